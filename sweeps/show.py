"""The plan and the state of a sweep as text. Reads only the spec and the store."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from kdtrain.config import TrialConfig, canonical
from sweeps import show_cost, show_search
from sweeps.cost import learned, multiply_adds
from sweeps.job import asked, describe, describe_teacher, missing
from sweeps.plan import Cell, Plan
from sweeps.schema import Status
from sweeps.searches import searches
from sweeps.store import TEACHERS, Store
from sweeps.tables import Spec
from sweeps.words import count, duration

# Of TRIALS: how a trial ended, what was predicted of it, and what it took.
PREDICTED = ["status", "predicted_seconds", "train_seconds", "teacher_seconds", "shared_seconds"]


def show_plan(spec: Spec, text: str, plan: Plan, console: Console) -> None:
    """Print the cells of a sweep, what is done, what is missing and how long that may take."""
    own = Store(spec.run.results, spec.sweep.name)
    found = searches(spec, plan, own, [job.asked for job in asked(own)])
    cost = learned(spec)
    todo = missing(spec, text, plan, retry_failed=False, found=found, cost=cost)
    absent = {job.id for job in todo.jobs}
    trials = len(plan.trials) + sum(search.done + search.trials_left for search in found)
    title = f"{spec.sweep.name}: {count(trials, 'trial')} of {spec.data.dataset}"
    console.print(f"{title} ({spec.sweep.cites})" if spec.sweep.cites else title, soft_wrap=True)
    console.print(_cells_table(plan, absent) if spec.search is None else show_search.table(found))
    if spec.search is not None:
        for line in (*show_search.spaces(found), show_search.how(spec)):
            console.print(line, soft_wrap=True)
    for named in plan.published.values():
        state = "to measure" if named in todo.published else "measured"
        what = f"teacher {named.ref.model} from {named.source} ({_short(named.ref.id)})"
        console.print(f"{what}: {state}", soft_wrap=True)
    for key, teacher in plan.teachers.items():
        state = "trained" if key in todo.trained else "to train" if key in absent else "not needed, or failed"
        console.print(f"{describe_teacher(teacher)} ({key}): {state}", soft_wrap=True)
    console.print(f"{todo.done} of {trials} trials are done.")
    if todo.replays:
        return
    total = multiply_adds([*plan.trials.values(), *plan.teachers.values()])
    searching = show_search.multiply_adds(found)
    if total is not None and searching is not None:
        most = "at most " if spec.scheduler is not None else ""
        console.print(f"Training all of it takes {most}{total + searching:.1e} multiply-adds.")
    for line in show_cost.teachers(todo.sharing):
        console.print(line, soft_wrap=True)
    if todo.trials:
        console.print(show_cost.estimate(spec, todo, cost), soft_wrap=True)


def show_status(spec: Spec, plan: Plan, console: Console) -> None:
    """Print how many trials have ended and how, and how far the others are."""
    own, teachers = Store(spec.run.results, spec.sweep.name), Store(spec.run.results, TEACHERS)
    told = []
    for kind, store, trials in (("teachers", teachers, plan.teachers), ("trials", own, plan.trials)):
        if not trials:
            continue
        ended = store.read_trials(trials, columns=["trial_id", *PREDICTED]).to_pylist()
        told += ended
        counts = Counter(row["status"] for row in ended)
        open_ids = trials.keys() - {row["trial_id"] for row in ended}
        begun = {key: age for key, age in store.ages("epochs").items() if key in open_ids}
        parts = [f"{counts[status]} {status}" for status in Status if counts[status]]
        parts += [f"{len(begun)} begun"] if begun else []
        parts += [f"{len(open_ids) - len(begun)} not begun"] if len(open_ids) > len(begun) else []
        console.print(f"{len(ended)} of {len(trials)} {kind} have ended: {', '.join(parts)}.")
        _print_begun(store, begun, trials, console)
    if spec.search is not None:
        told += own.read_trials(columns=PREDICTED).to_pylist()
        _show_searches(spec, plan, own, console)
    for line in show_cost.predicted(told):
        console.print(line, soft_wrap=True)


def _show_searches(spec: Spec, plan: Plan, own: Store, console: Console) -> None:
    jobs = asked(own)
    found = searches(spec, plan, own, [job.asked for job in jobs], accept_changes=True)
    for line in show_search.progress(found):
        console.print(line, soft_wrap=True)
    trials = show_search.under_way(found, jobs)
    _print_begun(own, {key: age for key, age in own.ages("epochs").items() if key in trials}, trials, console)


def _print_begun(store: Store, begun: Mapping[str, float], trials: Mapping[str, TrialConfig], console: Console) -> None:
    """Print the trials under way with their last epochs. `begun`: when they did them, by id."""
    last = {row["trial_id"]: row for row in store.read_epochs(begun).to_pylist()}  # a trial's rows ascend
    for key, changed in sorted(begun.items(), key=lambda item: -item[1]):
        trial, row = trials[key], last[key]
        ago = duration(max(0.0, time.time() - changed))
        console.print(f"  {key} {describe(trial)}: {_epoch(row, trial.train.epochs)}, {ago} ago", soft_wrap=True)


def _epoch(row: Mapping[str, Any], epochs: int) -> str:
    """The last epoch of a trial under way; how many a stage before the recipe's epochs has is not in the spec."""
    if row["stage"] != "train":
        return f"{row['stage']} epoch {row['epoch']}"
    acc = row["val_acc"] if row["val_acc"] is not None else row["test_acc"]
    return f"epoch {row['epoch']}/{epochs}, {acc:.1f} %"


def _cells_table(plan: Plan, absent: set[str]) -> Table:
    """One line for each cell without its seed: how many seeds are done, which are missing."""
    lines: dict[str, list[Cell]] = defaultdict(list)
    for cell in plan.cells:
        lines[canonical({**cell.axes, "seed": None})].append(cell)
    table = Table(box=None, pad_edge=False)
    for header in ("method", "pair", "fraction", "done", "missing seeds"):
        table.add_column(header, overflow="fold")  # where there is no terminal, rich takes 80 columns
    for cells in lines.values():
        axes = cells[0].axes
        shown = ("method", "pair", "fraction", "seed", "probe")
        own = [f"{key}={value}" for key, value in axes.items() if key not in shown]
        own += [f"-> {axes['probe']}"] if "probe" in axes else []
        seeds = [str(cell.axes["seed"]) for cell in cells if cell.trial_id in absent]
        done = f"{len(cells) - len(seeds)}/{len(cells)}"
        table.add_row(" ".join([axes["method"], *own]), axes["pair"], f"{axes['fraction']:g}", done, " ".join(seeds))
    return table


def _short(key: str) -> str:
    """The first digits of a hash; a name in full."""
    return key if key.startswith("torchvision") else key[:16]
