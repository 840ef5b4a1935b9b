"""The step of every method, beside the plain student's: what `kd-train methods` shows of their cost."""

import json
import os
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table

import kdtrain
from benchmarks import machine
from benchmarks.page import spread
from benchmarks.steps import BATCH, CLASSES, IMAGES, Variant, time_in_turns, variant
from kdtrain import methods
from kdtrain.config import ConfigError

PAIRS = (("resnet56", "resnet20"), ("wrn_40_2", "vgg8"))
ROUNDS = 8
FILE = Path(kdtrain.__file__).parent / "assets" / "step_costs.json"
# Assistants between teacher and student.
PARAMS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("resnet56", "resnet20"): {"dgkd": {"assistants": ["resnet32"]}},
    ("wrn_40_2", "vgg8"): {"dgkd": {"assistants": ["wrn_16_2"]}},
}


def measure(only: Collection[str] | None = None) -> Iterable[Table]:
    """A table for each pair; what they hold goes to the file that `kd-train methods` reads.

    `only`: methods to measure, while the others stay as they are in the file.
    """
    about = f"{machine.facts().splitlines()[0]}; {datetime.now(UTC):%Y-%m-%d}"
    costs: dict[str, dict[str, Any]] = {"/".join(pair): {} for pair in PAIRS}
    if only:
        known = json.loads(FILE.read_text())
        costs, about = known["pairs"], f"{known['machine']}, {' '.join(only)} {datetime.now(UTC):%Y-%m-%d}"
    for pair in PAIRS:
        table = _table(pair)
        for name in only or methods.METHODS:
            try:
                own, plain = _timed(name, pair)
            except ConfigError as error:
                table.add_row(name, "-", "-", str(error))
                continue
            ratios, rest = own.shares(plain)
            teacher = _milliseconds(own.teacher) if own.teacher else "-"
            table.add_row(name, _milliseconds(own.step), teacher, spread(ratios), spread(rest))
            costs["/".join(pair)][name] = {"step": _quartiles(ratios), "without_teacher": _quartiles(rest)}
        yield table
    told = {"machine": about, "rounds": ROUNDS, "batch": BATCH, "pairs": costs}
    FILE.write_text(json.dumps(told, indent=1) + "\n")


def _timed(name: str, pair: tuple[str, str]) -> tuple[Variant, Variant]:
    """A method and the plain student, timed in turns."""
    with TemporaryDirectory() as folder:
        own, plain = (
            variant(one, pair, "fp32", Path(folder), PARAMS[pair].get(one), cpus=os.cpu_count() or 1)
            for one in (name, "vanilla")
        )
    time_in_turns([plain, own], ROUNDS)
    return own, plain


def _milliseconds(values: list[float]) -> str:
    return spread([1000 * value for value in values], 1)


def _quartiles(values: list[float]) -> list[float]:
    return [round(value, 3) for value in quantiles(values, n=4)]


def _table(pair: tuple[str, str]) -> Table:
    title = (
        f"One step of {pair[0]} -> {pair[1]}, fp32, batch {BATCH}, {IMAGES:,} images of 3 x 32 x 32, "
        f"{CLASSES} classes, {torch.get_num_threads()} threads\n"
        f"median \\[quartiles]; ratios: of {ROUNDS} rounds, each to the plain student's step of its round"
    )
    table = Table(title=title, title_justify="left")
    for header in ("method", "step, ms", "teacher live, ms", "step / plain", "without teacher / plain"):
        table.add_column(header, justify="left" if header == "method" else "right")
    return table
