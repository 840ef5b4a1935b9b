"""kd-train: one trial in this process, with checkpoint and resume; and what there is to train with."""

import json
import os
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ConfigDict, Field
from rich.console import Console
from rich.table import Table

from kdtrain import catalogue, recipes
from kdtrain.build import check, trial_id
from kdtrain.checkpoint import identity, write_file
from kdtrain.config import (
    ConfigError,
    DataConfig,
    Frozen,
    MethodRef,
    Recipe,
    Seed,
    TeacherRef,
    TrialConfig,
    Where,
    parse,
)
from kdtrain.loop import Training
from kdtrain.methods import assistants, needs, resolve
from kdtrain.record import DivergedError, EpochRecord, TrialResult

app = typer.Typer(
    help="Train one student of a distillation method; list the methods.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells do


class DataTable(DataConfig):
    """[data]: the images, and where they lie."""

    root: str = "data"
    download: bool = False
    skip_corrupt: bool = False


class TeacherTable(Frozen):
    """[teacher], [[assistant]]: an architecture and a safetensors file of its weights, such as kd-train writes."""

    model: str
    weights: str


class MethodTable(Frozen):
    """[method]: a name, and its parameters beside it."""

    model_config = ConfigDict(extra="allow")

    name: str


class TrialFile(Frozen):
    """A trial as TOML."""

    student: str
    seed: Seed = 0
    view_seed: Seed | None = None
    data: DataTable
    train: Recipe = Recipe()
    teacher: TeacherTable | None = None
    assistant: list[TeacherTable] = Field(default_factory=list)  # in the order of the method's assistants
    method: MethodTable


@app.command("run")
def run_command(
    trial_file: Annotated[Path, typer.Argument(metavar="TRIAL", help="The trial's TOML file.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for weights and results; default runs/<trial id>.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto: cuda if there is one.")] = "auto",
    cpus: Annotated[int, typer.Option(help="Threads.", min=1)] = os.cpu_count() or 1,
) -> None:
    """Train the student of TRIAL. A run that was stopped goes on from its last epoch; an ended one is only shown.

    Example: kd-train run trial.toml -o runs/first
    """
    trial, where = read(trial_file)
    where = where.model_copy(update={"device": device, "cpus": cpus})
    folder = out or Path("runs") / trial_id(trial)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"-o must name a folder, but got the file {folder}.")
    result_file = folder / "result.json"
    if result_file.exists():
        ended = _ended_id(result_file)
        if ended != trial_id(trial):
            raise ConfigError(f"{folder} holds another trial ({ended}): choose another folder with -o.")
        typer.echo(result_file.read_text())
        return
    try:
        result = _train(trial, where, folder)
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command again to go on after the last whole epoch.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    told = {"trial_id": trial_id(trial), **asdict(result)}
    write_file(json.dumps(told, indent=2).encode(), result_file)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    typer.echo(result_file.read_text())


@app.command("methods")
def methods_command(
    name: Annotated[str | None, typer.Argument(help="Show this one in full; without it a list of all.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/methods.md.")] = False,
) -> None:
    """List the methods: paper, what they look at of the teacher, defaults, search space, time of a step.

    Example: kd-train methods cid
    """
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False, markup=False)
    if name is not None:
        typer.echo("\n".join(catalogue.described(name)))
    elif markdown:
        typer.echo(catalogue.markdown(), nl=False)
    else:
        header, rows = catalogue.listing()
        table = Table(*header, box=None, pad_edge=False, row_styles=["", "dim"])
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(catalogue.about_costs(), soft_wrap=True)


def _ended_id(result_file: Path) -> str:
    """The id of the trial that ended with this result.json."""
    try:
        return str(json.loads(result_file.read_text())["trial_id"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{result_file} is not a result of kd-train: remove it, or choose another folder.") from None


def read(path: Path) -> tuple[TrialConfig, Where]:
    """The trial in a TOML file, completely checked; ConfigError if a rule is broken."""
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the trial {path}: {reason}.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None
    if isinstance(tables.get("train"), dict):
        tables["train"] = recipes.expanded(tables["train"], "train")
    file = parse(TrialFile, tables)
    method = MethodRef(name=file.method.name, params=file.method.model_extra or {})
    resolve(method, "method.name")
    # What the method does not look at is no part of the trial, so that a file serves several methods.
    teacher = file.teacher if needs(method) else None
    others = file.assistant if assistants(method) else []
    trial = TrialConfig(
        data=DataConfig(**file.data.model_dump(include=set(DataConfig.model_fields))),
        train=file.train,
        teacher=_reference(teacher, "teacher") if teacher else None,
        assistants=tuple(_reference(other, f"assistant[{i}]") for i, other in enumerate(others)) or None,
        student=file.student,
        method=method,
        seed=file.seed,
        view_seed=file.view_seed,
    )
    check(trial)
    where = Where(
        data_root=file.data.root,
        download=file.data.download,
        skip_corrupt=file.data.skip_corrupt,
        teacher_weights=teacher.weights if teacher else None,
        assistant_weights=tuple(other.weights for other in others),
    )
    return trial, where


def _reference(table: TeacherTable, path: str) -> TeacherRef:
    return TeacherRef(model=table.model, id=identity(table.weights, f"{path}.weights"))


def _train(trial: TrialConfig, where: Where, folder: Path) -> TrialResult:
    """Train to the end, leaving a checkpoint after each epoch and the weights at last."""
    state = folder / "checkpoint.pt"
    training = Training(trial, where, state.read_bytes() if state.exists() else None)
    if training.records:
        typer.echo(f"going on after {_epoch(training.records[-1])}", err=True)
    while not training.done:
        typer.echo(_line(training.run_epoch()), err=True)
        write_file(training.pack(), state)
    write_file(training.weights(), folder / "model.safetensors")
    return training.result()


def _line(record: EpochRecord) -> str:
    terms = " ".join(f"{name} {value:.4f}" for name, value in record.terms.items())
    accs = {"train": record.train_acc, "val": record.val_acc, "test": record.test_acc}
    shown = " ".join(f"{name} {acc:.2f} %" for name, acc in accs.items() if acc is not None)
    told = (f"lr {record.lr:g}", terms, shown, f"({record.seconds:.1f} s)")
    return f"{_epoch(record)}: " + " ".join(part for part in told if part)


def _epoch(record: EpochRecord) -> str:
    return f"epoch {record.epoch}" if record.stage == "train" else f"{record.stage} epoch {record.epoch}"


def main() -> None:
    """Entry point: errors of ours become one line on stderr and a non-zero exit status."""
    try:
        app()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except DivergedError as error:
        print(f"diverged: {error}", file=sys.stderr)
        sys.exit(1)
