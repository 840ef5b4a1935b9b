"""What the network sees of large images of any size: a crop of random area and shape, resized, mirrored or not.

The augmentation is torchvision's RandomResizedCrop (area 0.08..1, ratio 3/4..4/3, bilinear with antialiasing) and
RandomHorizontalFlip; without it, its Resize and CenterCrop. The numbers of image i in epoch e are a pure function of
(view_seed, e, i), drawn for this image alone, so a process that reads images needs to know nothing of the others.
Images are uint8 [C, H, W]; torchvision's resizing of uint8 rounds alike on all processors but very old ones.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdtrain.draws import Stream, below, raw_of

ATTEMPTS = 10  # boxes drawn before the central one is taken
LOG_RATIO = math.log(4 / 3)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def numbers(view_seed: int, epoch: int, index: int, stream: Stream = Stream.VIEWS) -> NDArray[np.uint64]:
    """What the view of image `index` in `epoch` is made of: one number for the flip, four for each attempt at a box."""
    return raw_of(view_seed, stream, epoch, index, 1 + 4 * ATTEMPTS)


def flipped(drawn: NDArray[np.uint64]) -> bool:
    """Whether the view is mirrored left to right: so with probability 1/2."""
    return int(drawn[0]) >> 63 == 1


def box(drawn: NDArray[np.uint64], height: int, width: int) -> Box:
    """The part of an image of `height` x `width` that is seen; `drawn` as of `numbers`.

    Its share of the area is uniform in 0.08..1 and the logarithm of width / height uniform in log 3/4..log 4/3; the
    first of ten attempts that fits is put at a uniform place. If none does: the largest central box of ratio 3/4..4/3.
    """
    for area, ratio, row, column in drawn[1:].reshape(ATTEMPTS, 4):
        pixels = height * width * (0.08 + 0.92 * _uniform(area))
        shape = math.exp(LOG_RATIO * (2 * _uniform(ratio) - 1))
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(below(row, height - h + 1)), int(below(column, width - w + 1)), h, w)
    h, w = min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def apply(image: Tensor, part: Box, flip: bool, size: int) -> Tensor:
    """The part of the image, resized to [C, size, size], then mirrored if `flip`."""
    from torchvision.transforms.v2 import functional  # takes more than a second, which every command would spend

    resized: Tensor = functional.resized_crop(image, *part, [size, size], antialias=True)
    return resized.flip(-1) if flip else resized


def central(image: Tensor, size: int) -> Tensor:
    """The middle [C, size, size] of the image, of which the shorter side is resized to 256 / 224 of that."""
    from torchvision.transforms.v2 import functional

    resized = functional.resize(image, [round(size * 256 / 224)], antialias=True)
    middle: Tensor = functional.center_crop(resized, [size, size])
    return middle


def _uniform(number: np.uint64) -> float:
    """A number of `raw` as a float in 0..1, 1 excluded."""
    return (int(number) >> 11) * 2.0**-53
