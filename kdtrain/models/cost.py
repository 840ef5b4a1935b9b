"""What an architecture costs, known before any training: parameters, multiply-adds, sizes of its features, latency."""

import statistics
import time
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdtrain import models
from kdtrain.models.outputs import Model, Outputs
from kdtrain.models.unfilled import shapes, unfilled

WARM_UP = 3  # forward passes before the measured ones


class Cost(NamedTuple):
    """Of one image."""

    params: int  # trainable, the last linear layer among them
    multiply_adds: int  # of convolutions and matrix products; norms, activations, pooling and biases are not counted
    shapes: Outputs  # of its features, on the meta device, B = 1


class Latency(NamedTuple):
    """Milliseconds of a forward pass of a batch on the CPU: median and quartiles of n passes."""

    median: float
    low: float
    high: float
    n: int
    batch_size: int
    threads: int


def parameters(name: str, num_classes: int, in_channels: int = 3) -> int:
    """How many parameters the network `name` has; ConfigError if there is no such network."""
    return sum(parameter.numel() for parameter in unfilled(name, num_classes, in_channels).parameters())


@lru_cache(maxsize=256)
def cost(name: str, num_classes: int, image_size: int, in_channels: int = 3) -> Cost:
    """The cost of the network `name` in eval mode, without its weights.

    ConfigError if there is no such network or if it cannot work with images of this size.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        found = shapes.__wrapped__(name, num_classes, image_size, in_channels)  # in full: a remembered one runs nothing
    # torch counts a multiply-add as two operations.
    return Cost(parameters(name, num_classes, in_channels), counter.get_total_flops() // 2, found)


def latency(
    name: str, num_classes: int, image_size: int, in_channels: int = 3, batch_size: int = 1, seconds: float = 2.0
) -> Latency:
    """Time the network on this machine's CPU for about `seconds`, with the threads that torch is set to.

    float32, channels-last, eval mode, random images and weights. ConfigError as for `cost`.
    """
    cost(name, num_classes, image_size, in_channels)  # its errors, before large weights are drawn
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        model = models.build(name, num_classes, in_channels).eval().to(memory_format=torch.channels_last)
        images = torch.randn(batch_size, in_channels, image_size, image_size)
    times = _times(model, images.contiguous(memory_format=torch.channels_last), seconds)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, low, high, len(times), batch_size, torch.get_num_threads())


def _times(model: Model, images: Tensor, seconds: float) -> list[float]:
    """Milliseconds of each of at least two forward passes."""
    with torch.inference_mode():
        for _ in range(WARM_UP):
            model(images)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            model(images)
            times.append(1000 * (time.perf_counter() - start))
    return times
