"""kd-sweep: plan, run and watch sweeps."""

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from kdtrain.config import ConfigError
from sweeps import changes, cli_study, plan, replay, show, spec
from sweeps.compact import compact
from sweeps.cost import learned
from sweeps.job import Missing, asked, missing, source_of, tidy
from sweeps.published import bring
from sweeps.schema import Status
from sweeps.searches import remember_spaces, searches
from sweeps.store import TEACHERS, Store, StoreError
from sweeps.tables import Spec
from sweeps.words import count

app = typer.Typer(
    help="Plan, run and watch sweeps of distillation trials.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_study.app, name="study")
SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep's TOML file.")]
Results = Annotated[str | None, typer.Option("--results", help="Folder or URI for results instead of run.results.")]
Planned = tuple[Spec, str, plan.Plan]

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells do


@app.command("plan")
def plan_command(spec_file: SpecFile, results: Results = None) -> None:
    """Print the trials of SPEC, what is done and what is missing. Starts nothing.

    Example: kd-sweep plan sweeps/specs/demo.toml
    """
    loaded, text, planned = _load(spec_file, results)
    own = Store(loaded.run.results, loaded.sweep.name)
    changes.check(loaded, text, planned, own)
    replay.check(loaded, planned, own)
    show.show_plan(loaded, text, planned, Console(highlight=False, markup=False))


@app.command("run")
def run_command(
    spec_file: SpecFile,
    results: Results = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed and diverged trials again, too.")
    ] = False,
    accept_space_change: Annotated[
        bool,
        typer.Option("--accept-space-change", help="Search on in a changed space, with the points that still fit it."),
    ] = False,
) -> None:
    """Run the trials of SPEC that are missing. Stop it as you like: run it again and it goes on.

    Example: kd-sweep run sweeps/specs/demo.toml
    """
    console = Console(highlight=False, markup=False)
    try:
        planned = _load(spec_file, results)
        failed = _run(planned[0], _prepare(planned, retry_failed, accept_space_change), console)
    except KeyboardInterrupt:
        console.print("interrupted: what has ended is stored; run the same command again to go on.", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    failed |= _report(planned, console)
    raise typer.Exit(1 if failed else 0)


@app.command("status")
def status_command(spec_file: SpecFile, results: Results = None) -> None:
    """Print how far the sweep of SPEC is, from its result files alone; also while it runs.

    Example: kd-sweep status sweeps/specs/demo.toml
    """
    loaded, _, planned = _load(spec_file, results)
    show.show_status(loaded, planned, Console(highlight=False, markup=False))


@app.command("compact")
def compact_command(
    results: Annotated[
        str, typer.Argument(help="The folder of a sweep, such as results/demo, or of several, such as results.")
    ],
) -> None:
    """Merge the small files of ended trials, which makes reading large sweeps fast. Safe at any time.

    Example: kd-sweep compact results/demo
    """
    for each in compact(results):
        n = max(each.trials, each.epochs)
        typer.echo(f"{each.sweep}: " + (f"merged the files of {count(n, 'trial')}" if n else "nothing to merge"))


def _load(path: Path, results: str | None) -> Planned:
    loaded, text = spec.read(path)
    if results is not None:
        loaded = loaded.model_copy(update={"run": loaded.run.model_copy(update={"results": results})})
    return loaded, text, plan.expand(loaded)


def _prepare(planned: Planned, retry_failed: bool, accept_changes: bool) -> Missing:
    """All that can go wrong before anything starts: a changed spec, results that cannot be written, no data."""
    loaded, text, whole = planned
    own = Store(loaded.run.results, loaded.sweep.name)
    changes.check(loaded, text, whole, own)
    replay.check(loaded, whole, own)
    open_points = [job.asked for job in asked(own)]
    found = searches(
        loaded, whole, own, open_points, retry_failed=retry_failed, accept_changes=accept_changes, to_run=True
    )
    todo = missing(loaded, text, whole, retry_failed, found, learned(loaded))
    tidy(own)
    if todo.trials:
        own.probe()
    if todo.trials and not todo.replays:
        Store(loaded.run.results, TEACHERS).probe()
        targets = {trial.data.model_dump_json(): trial.data for trial in whole.trials.values() if trial.probe}
        for line in spec.check_data(loaded, targets.values()):
            typer.echo(line, err=True)
        todo = _bring(loaded, text, todo)
    changes.remember(text, whole, own)
    remember_spaces(whole, own)
    return todo


def _bring(loaded: Spec, text: str, todo: Missing) -> Missing:
    """Measure the teachers that were trained elsewhere; ConfigError if one is not what the spec demands."""
    own, taught = Store(loaded.run.results, loaded.sweep.name), Store(loaded.run.results, TEACHERS)
    where = spec.where(loaded).model_copy(update={"cpus": os.cpu_count() or 1})  # nothing else runs yet
    for teacher in todo.published:
        bring(teacher, own, taught, where, source_of(loaded, text))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the workers
    return replace(todo, published=[], trained=todo.trained | {teacher.ref.id for teacher in todo.published})


def _run(loaded: Spec, todo: Missing, console: Console) -> bool:
    """Run what is missing; whether a trial could not be run."""
    blocked = todo.blocked
    if todo.trials:
        from sweeps.run import run  # imports Ray, which takes seconds

        blocked = [*blocked, *run(todo, loaded.run, loaded.scheduler, todo.cost, console)]
    lost: Counter[str] = Counter()
    for other in blocked:
        lost[other.by] += other.trials if other.job.role != "teacher" else 0
    for by, n in lost.items():
        trials = "1 trial was" if n == 1 else f"{n} trials were"
        console.print(f"{trials} not run, because the {by} failed.", soft_wrap=True)
    return bool(blocked)


def _report(planned: Planned, console: Console) -> bool:
    """Say how the trials of the plan ended; whether any failed."""
    loaded, _, whole = planned
    own, teachers = Store(loaded.run.results, loaded.sweep.name), Store(loaded.run.results, TEACHERS)
    rows = own.read_trials(None if whole.studies else whole.trials).to_pylist()
    phases: dict[str | None, str] = {"search": "search: "} if whole.studies else {None: ""}
    phases |= {"confirm": "confirmation: "} if loaded.confirm else {}
    for phase, named in phases.items():
        mine = [row["status"] for row in rows if row["phase"] == phase]
        told = ", ".join(f"{mine.count(status)} {status}" for status in Status if status in mine) or "none has ended"
        of = "" if whole.studies else f", of {len(whole.trials)} trials"
        console.print(f"{loaded.sweep.name}: {named}{told}{of}.", soft_wrap=True)
    bad = [row for row in rows if row["status"] == Status.FAILED]
    bad += [row for row in teachers.read_trials(whole.teachers).to_pylist() if row["status"] != Status.COMPLETED]
    for row in bad:
        reason = (row["error"] or "").strip().rpartition("\n")[2]
        what = f"{row['status']}: {row['role']} {row['trial_id']} {row['method']} {row['student']}"
        console.print(f"{what}: {reason}", soft_wrap=True)
    if bad:
        console.print("kd-sweep run --retry-failed runs failed and diverged trials again.", soft_wrap=True)
    console.print(f"table: kd-report table {own.url}", soft_wrap=True)
    if whole.studies:
        console.print(f"search: kd-report search {own.url}", soft_wrap=True)
    return bool(bad)


def main() -> None:
    """Entry point: errors of ours become one line on stderr and exit status 2."""
    try:
        app()
    except (ConfigError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
