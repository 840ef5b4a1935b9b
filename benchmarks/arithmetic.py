"""How near a student's step comes to its convolutions alone, each in the memory format that suits it best."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.page import Shown, percent
from benchmarks.results import Row
from benchmarks.steps import BATCH, CLASSES, PAIRS, PRECISIONS, time_in_turns, variant
from kdtrain import models

ROUNDS = 12
FORMATS = (torch.channels_last, torch.contiguous_format)
SECONDS = 0.25  # for which a convolution is run in each format, three times at least


class Shape(NamedTuple):
    """A convolution of a network."""

    channels: int
    height: int
    filters: int
    kernel: int
    stride: int
    padding: int
    groups: int
    first: bool  # it needs no gradient of its input

    @property
    def multiply_adds(self) -> int:
        """Of a forward pass of an image."""
        height = (self.height + 2 * self.padding - self.kernel) // self.stride + 1
        return height**2 * self.filters * (self.channels // self.groups) * self.kernel**2

    @property
    def flops(self) -> int:
        """Of forward and backward pass of a batch: two for a multiply-add."""
        return 2 * BATCH * self.multiply_adds * (2 if self.first else 3)


def convolutions(name: str) -> Counter[Shape]:
    """The convolutions of a network for 3 x 32 x 32, and how often each occurs."""
    model, found = models.build(name, CLASSES), Counter[Shape]()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        (x,) = inputs
        found[Shape(
            module.in_channels, x.shape[2], module.out_channels, module.kernel_size[0], module.stride[0],
            int(module.padding[0]), module.groups, first=not found,
        )] += 1  # fmt: skip

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return found


def best_seconds(shape: Shape, precision: str) -> float:
    """The time of forward and backward pass of a convolution alone: the best median of the formats."""
    return min(median(_seconds(shape, precision, layout)) for layout in FORMATS)


def _seconds(shape: Shape, precision: str, layout: torch.memory_format) -> Iterator[float]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(BATCH, shape.channels, shape.height, shape.height, dtype=dtype).to(memory_format=layout)
    x.requires_grad_(not shape.first)
    conv = nn.Conv2d(
        shape.channels, shape.filters, shape.kernel, shape.stride, shape.padding, groups=shape.groups, bias=False
    ).to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
    gradient = torch.randn_like(conv(x))
    end, n = time.perf_counter() + SECONDS, 0
    while n < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        conv(x).backward(gradient)
        if n:  # the first makes what later ones reuse
            yield time.perf_counter() - start
        conv.weight.grad = x.grad = None
        n += 1


def measure() -> list[Row]:
    """A row for each student and precision."""
    rows = []
    for pair in PAIRS:
        shapes = convolutions(pair[1])
        for precision in PRECISIONS:
            with TemporaryDirectory() as folder:
                plain = variant("vanilla", pair, precision, Path(folder))
            time_in_turns([plain], ROUNDS)
            rows.append({
                "student": pair[1], "precision": precision, "step_seconds": plain.step,
                "conv_seconds": sum(n * best_seconds(shape, precision) for shape, n in shapes.items()),
                "flops": sum(n * shape.flops for shape, n in shapes.items()), "threads": torch.get_num_threads(),
            })  # fmt: skip
    return rows


def shown(rows: Sequence[Row]) -> list[Shown]:
    """One table."""
    lines = []
    for row in rows:
        step, rate = median(row["step_seconds"]), _rate(row["flops"])
        lines.append([
            row["student"], row["precision"], f"{row['flops'] / 1e9:.1f}", f"{1000 * step:.1f}", rate(step),
            f"{1000 * row['conv_seconds']:.1f}", rate(row["conv_seconds"]), percent(row["conv_seconds"] / step),
        ])  # fmt: skip
    about = (
        f"The plain student's whole step, batch {BATCH}, 3 x 32 x 32, {rows[0]['threads']} thread(s): medians of "
        f"{len(rows[0]['step_seconds'])} steps. Beside it all convolutions of the network, forward and backward, each "
        f"run alone for {SECONDS} s in channels-last and in contiguous format, the better median taken. The FLOPs are "
        "those of the convolutions."
    )
    headers = (
        "student", "precision", "GFLOP a step", "step, ms", "GFLOP/s", "convolutions alone, ms", "GFLOP/s alone",
        "alone / step",
    )  # fmt: skip
    return [Shown("3. The step against its convolutions alone", about, headers, lines)]


def _rate(flops: float) -> Callable[[float], str]:
    return lambda seconds: f"{flops / seconds / 1e9:.0f}"
