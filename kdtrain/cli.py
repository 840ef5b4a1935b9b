"""kd-train: one trial in this process, with checkpoint and resume; and what there is to train with."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kdtrain import catalogue, data, teacher_check
from kdtrain.build import trial_id
from kdtrain.checkpoint import write_file
from kdtrain.config import ConfigError, TeacherRef, TrialConfig, Where
from kdtrain.loop import Training
from kdtrain.record import DivergedError, EpochRecord, TrialResult
from kdtrain.trial_file import TeacherTable, TrialFile, read

app = typer.Typer(
    help="Train one student of a distillation method, export it; list the methods and the architectures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells do


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
    trial, file = read(trial_file)
    where = file.where.model_copy(update={"device": device, "cpus": cpus})
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
        accuracy = _measure(trial, file, where, folder)
        result = _train(trial, where, folder)
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command again to go on after the last whole epoch.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    told = {"trial_id": trial_id(trial), "teacher_top1": accuracy, **asdict(result)}
    write_file(json.dumps(told, indent=2).encode(), result_file)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    typer.echo(result_file.read_text())


@app.command("export")
def export_command(
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="A student's file of weights: model.safetensors.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for what is written.")],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="safetensors, pt2 or onnx; repeat it. Default: all three."),
    ] = None,
) -> None:
    """Write a distilled student as safetensors with a JSON card, as torch.export program and as ONNX, checked.

    Whatever the method predicts with is in it, and so is the normalisation: it takes pixels in 0..1.

    Example: kd-train export runs/first/model.safetensors -o exported
    """
    from kdtrain import export  # imports torch's exporters, which takes a second

    try:
        card = export.export(student, out, tuple(formats or export.FORMATS))
    except export.ExportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(json.dumps(asdict(card), indent=2))


@app.command("models")
def models_command(
    name: Annotated[str | None, typer.Argument(help="Show this one in full; without it a list of all.")] = None,
    classes: Annotated[int, typer.Option(help="Number of classes.", min=2)] = 100,
    size: Annotated[int, typer.Option(help="Rows and columns of the images.", min=8)] = 32,
) -> None:
    """List the architectures with their parameters and multiply-adds; of one also its features and its speed here.

    Example: kd-train models mobilenet_v2 --classes 10
    """
    from kdtrain import catalogue_models  # counts with torch's tools, which take a second to import

    if name is not None:
        typer.echo("\n".join(catalogue_models.described(name, classes, size)))
    else:
        _print_table(*catalogue_models.listing(classes, size))
        typer.echo(
            f"For {classes} classes and images of {size} x {size}; - where a network takes no images of that size."
        )


@app.command("methods")
def methods_command(
    name: Annotated[str | None, typer.Argument(help="Show this one in full; without it a list of all.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/methods.md.")] = False,
) -> None:
    """List the methods: paper, what they look at of the teacher, defaults, search space, time of a step.

    Example: kd-train methods cid
    """
    if name is not None:
        typer.echo("\n".join(catalogue.described(name)))
    elif markdown:
        typer.echo(catalogue.markdown(), nl=False)
    else:
        _print_table(*catalogue.listing())
        typer.echo(catalogue.about_costs())


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*header, box=None, pad_edge=False, row_styles=["", "dim"])
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)


def _ended_id(result_file: Path) -> str:
    """The id of the trial that ended with this result.json."""
    try:
        return str(json.loads(result_file.read_text())["trial_id"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{result_file} is not a result of kd-train: remove it, or choose another folder.") from None


def _measure(trial: TrialConfig, file: TrialFile, where: Where, folder: Path) -> float | None:
    """The teacher's accuracy on the test images, measured once; ConfigError if the trial demands another.

    So are the assistants'.
    """
    refs = [*([trial.teacher] if trial.teacher else []), *(trial.assistants or ())]
    tables = [*([file.teacher] if file.teacher else []), *file.assistant]
    accuracies = [
        _measured(ref, table, trial, where, folder / f"teacher_{i}.json")
        for i, (ref, table) in enumerate(zip(refs, tables, strict=True))
    ]
    return accuracies[0] if trial.teacher else None


def _measured(ref: TeacherRef, table: TeacherTable, trial: TrialConfig, where: Where, known: Path) -> float:
    """The accuracy of one teacher; `known` is where it is kept."""
    found = json.loads(known.read_text()) if known.exists() else {}
    if (found.get("trial_id"), found.get("id")) != (trial_id(trial), ref.id):
        top1 = teacher_check.evaluate(ref, trial.data, table.weights, where).top1
        found = {"trial_id": trial_id(trial), "model": ref.model, "id": ref.id, "test_top1": top1}
        typer.echo(f"teacher {ref.model}: {top1:.2f} % on the test images", err=True)
        write_file(json.dumps(found).encode(), known)
    if table.expect_top1 is not None:
        what = f"teacher {ref.model} ({table.weights}) on {data.title(trial.data.dataset)}"
        teacher_check.expect(found["test_top1"], table.expect_top1, table.within, what)
    return float(found["test_top1"])


def _train(trial: TrialConfig, where: Where, folder: Path) -> TrialResult:
    """Train to the end, leaving a checkpoint after each epoch and the weights at last."""
    state = folder / "checkpoint.pt"
    training = Training(trial, where, state.read_bytes() if state.exists() else None)
    for line in data.told(trial.data.dataset, training.batches.images):
        typer.echo(line, err=True)
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
