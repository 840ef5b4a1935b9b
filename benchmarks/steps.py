"""One training step of a method whose teacher outputs are at hand, timed in turns with the plain student's step."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.page import Shown, spread
from benchmarks.results import Row
from kdtrain import methods, models
from kdtrain.build import check
from kdtrain.checkpoint import pack_weights
from kdtrain.config import DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig, Where
from kdtrain.data import DATASETS
from kdtrain.data.dataset import Info
from kdtrain.data.memory import Arrays, opener
from kdtrain.epoch_outputs import DTYPE
from kdtrain.loop import Training

BATCH, IMAGES, CLASSES = 64, 50_000, 100
STEPS = 3  # in a turn; the first is not counted: the caches are the last variant's then
EPOCH = 21  # CID has all its terms from here on
NOISE = "noise"
PAIRS = (("resnet56", "resnet20"), ("wrn_40_2", "wrn_16_2"), ("resnet50_cifar", "mobilenet_v2"))
PARAMS: dict[str, dict[str, Any]] = {"wsld": {"teacher_bn": "eval"}}
METHODS = ("kd", "cid", "ipwd", "crd", "wsld", "dkd")
PRECISIONS = ("fp32", "bf16")
ROUNDS = 12
LIMIT, LIMITS = 1.10, {"crd": 1.5}


@dataclass
class Variant:
    """One method in one precision, under way."""

    method: str
    precision: str
    training: Training
    step: list[float] = field(default_factory=list)  # seconds
    teacher: list[float] = field(default_factory=list)  # the forward passes of teacher and assistants, asked live
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
            training.teachers.live(batch)
            training.teachers.live_assistants(batch)
            self.teacher.append(clock() - start)
        self.step += seconds[1:]
        self.round.append(median(seconds[1:]))

    def ratios(self, plain: "Variant") -> list[float]:
        """Step / plain step of each round, as the step is: with a teacher that is asked live, or without one."""
        return [mine / its for mine, its in zip(self.round, plain.round, strict=True)]

    def shares(self, plain: "Variant") -> tuple[list[float], list[float]]:
        """Step / plain step of each round, with the teacher's forward pass and without it."""
        live = 0.0 if self.training.teachers.at_once or not self.teacher else median(self.teacher)
        extra = median(self.teacher) - live if self.teacher else 0.0
        pairs = list(zip(self.round, plain.round, strict=True))
        return [(mine + extra) / its for mine, its in pairs], [(mine - live) / its for mine, its in pairs]


def measure() -> list[Row]:
    """A row for each pair, precision and method: the variants of a pair take turns."""
    rows = []
    for pair in PAIRS:
        for precision in PRECISIONS:
            with TemporaryDirectory() as folder:
                plain, *others = [
                    variant(name, pair, precision, Path(folder), PARAMS.get(name)) for name in ("vanilla", *METHODS)
                ]
            time_in_turns([plain, *others], ROUNDS)
            rows += [
                {
                    "pair": "/".join(pair), "precision": precision, "method": one.method, "rounds": ROUNDS,
                    "step_seconds": one.step, "teacher_seconds": one.teacher, "ratios": one.ratios(plain),
                    "device": one.training.device.type, "threads": torch.get_num_threads(),
                }
                for one in (plain, *others)
            ]  # fmt: skip
    return rows


def shown(rows: Sequence[Row]) -> list[Shown]:
    """One table."""
    lines = []
    for row in rows:
        limit = LIMITS.get(row["method"], LIMIT)
        ratio = median(row["ratios"])
        plain = row["method"] == "vanilla"
        lines.append([
            row["pair"], row["precision"], "plain student" if plain else row["method"],
            spread([1000 * value for value in row["step_seconds"]], 1),
            "-" if plain else spread([1000 * value for value in row["teacher_seconds"]], 1),
            "1" if plain else spread(row["ratios"]), "" if plain else f"{limit:.2f}",
            "" if plain else "kept" if ratio <= limit else "exceeded",
        ])  # fmt: skip
    n, first = len(rows[0]["step_seconds"]), rows[0]
    about = (
        f"Batch {BATCH}, {IMAGES:,} images of noise, 3 x 32 x 32, {CLASSES} classes, on {first['device']} with "
        f"{first['threads']} thread(s), as a trial has by default. Median [quartiles] of {n} steps; ratios of "
        f"{first['rounds']} rounds, each to the plain student's step of its round, same precision. A step is "
        "augmentation, forward and backward pass, loss and optimizer; of the teacher it reads the rows of the batch "
        "from the epoch's outputs. What computing them for a batch costs stands beside. wsld with teacher_bn = eval."
    )
    headers = ("pair", "precision", "method", "step, ms", "teacher, ms", "step / plain", "limit", "")
    return [Shown("1. A step with the teacher's outputs at hand", about, headers, lines)]


def time_in_turns(variants: Iterable[Variant], rounds: int) -> None:
    """Let the variants take turns for some rounds."""
    variants = list(variants)
    clock = _clock(variants[0].training.device)
    for _ in range(rounds):
        for one in variants:
            one.turn(clock)


def variant(
    method: str,
    pair: tuple[str, str],
    precision: Any,
    folder: Path,
    params: Mapping[str, Any] | None = None,
    cpus: int = 1,
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
        cpus=cpus,
    )
    training = Training(trial, where)
    training.pretraining, training.total_epochs = None, trial.train.epochs  # the stage of the recipe's epochs
    _fill(training)
    training._set_modes()
    training.method.start_epoch(EPOCH - 1)
    for batch, partner in islice(training.batches.epoch(EPOCH - 1, EPOCH - 1), STEPS):  # CID builds its centres here
        training._step(batch, partner)
    training.method.start_epoch(EPOCH)
    return Variant(method, precision, training)


def _fill(training: Training) -> None:
    """Noise in the place of the epoch's outputs of teachers: what they are does not change what a step costs."""
    batch = next(training.batches.plain("test"))
    batch = batch._replace(images=batch.images[:2], labels=batch.labels[:2])
    for outputs in training.teachers.at_once:
        example = outputs._of(batch.images, outputs.names)
        generator = torch.Generator().manual_seed(2)
        outputs._rows = {
            name: torch.randn(IMAGES, *values.shape[1:], generator=generator).to(training.device, DTYPE)
            for name, values in example.items()
        }


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
