"""One training step of a method, timed in turns with the plain student's step."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table

from kdtrain import methods, models
from kdtrain.build import check
from kdtrain.checkpoint import pack_weights
from kdtrain.config import DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig, Where
from kdtrain.data import DATASETS
from kdtrain.data.dataset import Info
from kdtrain.data.memory import Arrays, opener
from kdtrain.loop import Training

BATCH, IMAGES, CLASSES = 64, 50_000, 100
STEPS = 3  # in a turn; the first is not counted: the caches are the last variant's then
EPOCH = 21  # CID has all its terms from here on
NOISE = "noise"
TEACHER, STUDENT = "resnet56", "resnet20"
METHODS = ("vanilla", "kd", "cid", "ipwd")
PRECISIONS = ("fp32", "bf16")
ROUNDS = 20


@dataclass
class Variant:
    """One method in one precision, under way."""

    method: str
    precision: str
    training: Training
    step: list[float] = field(default_factory=list)  # seconds
    teacher: list[float] = field(default_factory=list)  # of it the forward passes of teacher and assistants
    round: list[float] = field(default_factory=list)  # median of the steps of each round

    def turn(self, clock: Callable[[], float]) -> None:
        """Time some steps, and the teachers' forward passes alone where there are any."""
        training, seconds = self.training, []
        batches = training.batches.epoch(EPOCH, EPOCH)
        for _ in range(STEPS):
            start = clock()
            batch, partner = next(batches)
            training._step(batch, partner)
            seconds.append(clock() - start)
            if training.teacher is not None and training.method.teacher_in_loss:
                start = clock()
                training._teach(batch.images)
                training._with_others(batch, None)
                self.teacher.append(clock() - start)
        self.step += seconds[1:]
        self.round.append(median(seconds[1:]))

    def ratios(self, plain: "Variant") -> tuple[list[float], list[float]]:
        """Step / plain step and (step - teacher) / plain step, of each round."""
        teacher = median(self.teacher) if self.teacher else 0.0
        pairs = list(zip(self.round, plain.round, strict=True))
        return [mine / its for mine, its in pairs], [(mine - teacher) / its for mine, its in pairs]


def measure() -> Iterable[Table]:
    """One table: the variants take turns, so that what slows the machine down slows all of them."""
    with TemporaryDirectory() as folder:
        variants = [
            variant(method, (TEACHER, STUDENT), precision, Path(folder))
            for precision in PRECISIONS
            for method in METHODS
        ]
    time_in_turns(variants, ROUNDS)
    yield _table(variants)


def time_in_turns(variants: Iterable[Variant], rounds: int) -> None:
    """Let the variants take turns for some rounds."""
    variants = list(variants)
    clock = _clock(variants[0].training.device)
    for _ in range(rounds):
        for one in variants:
            one.turn(clock)


def variant(
    method: str, pair: tuple[str, str], precision: Any, folder: Path, params: Mapping[str, Any] | None = None
) -> Variant:
    """A method in its state of epoch EPOCH, on noise; ConfigError if the pair cannot work. Weights go to `folder`."""
    DATASETS[NOISE] = Info(
        name=NOISE,
        num_classes=CLASSES,
        in_channels=3,
        image_size=32,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        open=opener(_noise),
    )
    ref, (teacher, student) = MethodRef(name=method, params=dict(params or {})), pair
    teacher = student if methods.self_taught(ref) else teacher
    teachers = [TeacherRef(model=model, id=model) for model in (teacher, *methods.assistants(ref))]
    needs_teacher = bool(methods.needs(ref))
    trial = TrialConfig(
        data=DataConfig(dataset=NOISE),
        train=Recipe(batch_size=BATCH, precision=precision, lr=1e-3),
        teacher=teachers[0] if needs_teacher else None,
        assistants=tuple(teachers[1:]) or None,
        student=student,
        method=ref,
    )
    check(trial)
    paths = [str(_write_teacher(one.model, folder)) for one in teachers]
    where = Where(
        teacher_weights=paths[0] if needs_teacher else None,
        assistant_weights=tuple(paths[1:]),
        cpus=os.cpu_count() or 1,
    )
    training = Training(trial, where)
    training.pretraining, training.total_epochs = None, trial.train.epochs  # the stage of the recipe's epochs
    training._set_modes()
    training.method.start_epoch(EPOCH - 1)
    for batch, partner in islice(training.batches.epoch(EPOCH - 1, EPOCH - 1), STEPS):  # CID builds its centres here
        training._step(batch, partner)
    training.method.start_epoch(EPOCH)
    return Variant(method, precision, training)


def spread(values: list[float], scale: float = 1, digits: int = 2) -> str:
    """Median [first quartile, third quartile]."""
    low, middle, high = (f"{scale * value:.{digits}f}" for value in quantiles(values, n=4))
    return f"{middle} [{low}, {high}]"


def _table(variants: list[Variant]) -> Table:
    device, n = variants[0].training.device.type, len(variants[0].step)
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    title = (
        f"One step of {TEACHER} -> {STUDENT}, batch {BATCH}, 3 x 32 x 32, {CLASSES} classes, on {device}{threads}\n"
        f"median \\[quartiles] of {n} steps; ratios: of {ROUNDS} rounds, each to the plain student's step of its round"
    )
    table = Table(title=title, title_justify="left")
    for header in ("precision", "method", "step, ms", "of it teacher, ms", "step / plain", "without teacher / plain"):
        table.add_column(header, justify="left" if header in ("precision", "method") else "right", no_wrap=True)
    for one in variants:
        plain = next(v for v in variants if (v.method, v.precision) == ("vanilla", one.precision))
        ratios, rest = one.ratios(plain)
        table.add_row(
            one.precision, one.method, spread(one.step, 1000, 1),
            spread(one.teacher, 1000, 1) if one.teacher else "-", spread(ratios), spread(rest),
        )  # fmt: skip
    return table


def _write_teacher(name: str, folder: Path) -> Path:
    """An untrained teacher whose BatchNorm has seen images: without that its features would explode."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        teacher = models.build(name, CLASSES).train()
        with torch.no_grad():
            for _ in range(5):
                teacher(torch.randn(BATCH, 3, 32, 32))
        path.write_bytes(pack_weights(teacher.state_dict(), {}, name))
    return path


@cache
def _noise(where: Where) -> Arrays:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    return Arrays(images, labels, images[:500], labels[:500])


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock
