"""The time of one training step of each method, as a ratio to that of the student alone."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.table import Table

from kdtrain import models, views
from kdtrain.checkpoint import pack_weights
from kdtrain.config import DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig, Where
from kdtrain.data import DATASETS, Arrays, Info
from kdtrain.loop import Training

TEACHER, STUDENT, BATCH = "resnet56", "resnet20", 64
METHODS = ("vanilla", "kd", "cid", "ipwd")
PRECISIONS = ("fp32", "bf16")
ROUNDS = 20
STEPS = 3  # in a turn; the first is not counted: the caches are the last variant's then
EPOCH = 21  # CID has all its terms from here on
TEACHER_ID = "0" * 16
NOISE = "noise"


@dataclass
class Variant:
    """One method in one precision, under way."""

    method: str
    precision: str
    training: Training
    step: list[float] = field(default_factory=list)  # seconds
    teacher: list[float] = field(default_factory=list)
    round: list[float] = field(default_factory=list)  # median of the steps of each round

    def turn(self, clock: Callable[[], float]) -> None:
        """Time some steps, and the teacher's forward pass alone where there is one."""
        training = self.training
        drawn = views.draw(1, EPOCH, len(training.images.train_labels), training.device)
        seconds = []
        for indices in training.train_indices.to(training.device).split(BATCH)[:STEPS]:
            start = clock()
            batch = training._batch(indices, drawn, EPOCH)
            training._step(batch)
            seconds.append(clock() - start)
            if training.teacher is not None:
                start = clock()
                training._teach(batch.images)
                self.teacher.append(clock() - start)
        self.step += seconds[1:]
        self.round.append(median(seconds[1:]))


def measure() -> Iterable[Table]:
    """One table: the variants take turns, so that what slows the machine down slows all of them."""
    DATASETS[NOISE] = Info(
        name=NOISE, num_classes=100, in_channels=3, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, read=_noise
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = _write_teacher(Path(folder))
        variants = [_variant(method, precision, weights) for precision in PRECISIONS for method in METHODS]
    clock = _clock(variants[0].training.device)
    for _ in range(ROUNDS):
        for variant in variants:
            variant.turn(clock)
    yield _table(variants)


def _table(variants: list[Variant]) -> Table:
    device, n = variants[0].training.device.type, len(variants[0].step)
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    title = (
        f"One step of {TEACHER} -> {STUDENT}, batch {BATCH}, 3 x 32 x 32, 100 classes, on {device}{threads}\n"
        f"median [quartiles] of {n} steps; ratios: of {ROUNDS} rounds, each to the plain student's step of its round"
    )
    table = Table(title=title, title_justify="left")
    for header in ("precision", "method", "step, ms", "of it teacher, ms", "step / plain", "without teacher / plain"):
        table.add_column(header, justify="left" if header in ("precision", "method") else "right", no_wrap=True)
    for variant in variants:
        plain = next(v for v in variants if (v.method, v.precision) == ("vanilla", variant.precision))
        teacher = median(variant.teacher) if variant.teacher else 0.0
        ratios = [mine / its for mine, its in zip(variant.round, plain.round, strict=True)]
        rest = [(mine - teacher) / its for mine, its in zip(variant.round, plain.round, strict=True)]
        table.add_row(
            variant.precision, variant.method, _spread(variant.step, 1000, 1),
            _spread(variant.teacher, 1000, 1) if variant.teacher else "-", _spread(ratios), _spread(rest),
        )  # fmt: skip
    return table


def _spread(values: list[float], scale: float = 1, digits: int = 2) -> str:
    low, middle, high = (f"{scale * value:.{digits}f}" for value in quantiles(values, n=4))
    return f"{middle} [{low}, {high}]"


def _variant(method: str, precision: Any, weights: Path) -> Variant:
    trial = TrialConfig(
        data=DataConfig(dataset=NOISE),
        train=Recipe(batch_size=BATCH, precision=precision, lr=1e-3),
        teacher=None if method == "vanilla" else TeacherRef(model=TEACHER, id=TEACHER_ID),
        student=STUDENT,
        method=MethodRef(name=method),
    )
    training = Training(trial, Where(teacher_weights=str(weights), cpus=os.cpu_count() or 1))
    training.student.train()
    training.method.train()
    if training.teacher is not None:
        training.teacher.train(training.method.teacher_trains)
    training.method.start_epoch(EPOCH - 1)
    variant = Variant(method, precision, training)
    variant.turn(time.perf_counter)  # CID builds its centres here; all else warms up
    training.method.start_epoch(EPOCH)
    return Variant(method, precision, training)


def _write_teacher(folder: Path) -> Path:
    """An untrained teacher whose BatchNorm has seen the images: without that its features would explode."""
    teacher = models.build(TEACHER, 100).train()
    with torch.no_grad():
        for _ in range(5):
            teacher(torch.randn(BATCH, 3, 32, 32))
    path = folder / "teacher.safetensors"
    path.write_bytes(pack_weights(teacher.state_dict(), {}, TEACHER_ID))
    return path


def _noise(root: Path, download: bool) -> Arrays:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 100, (2000,), generator=generator)
    return Arrays(images, labels, images[:500], labels[:500])


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock
