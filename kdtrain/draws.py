"""The random numbers behind a trial's data: pure functions of (seed, stream, place), the same on every machine.

numpy guarantees the raw output of Philox for ever, and not that of its distributions. The stream and the place (an
epoch, or a class) are the high words of the counter, so no two streams or places ever meet.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """What the numbers are for."""

    VIEWS = 0  # crop and flip of each image in an epoch
    SUBSET = 1  # the order in which a class's images are taken
    ORDER = 2  # the order of the images in an epoch
    PARTNERS = 3  # another image of each label
    PARTNER_VIEWS = 4
    TURNED_90 = 5  # the crops of turned images
    TURNED_180 = 6
    TURNED_270 = 7
    TEST = 8  # the test split of a folder that has none


TURNED = (Stream.TURNED_90, Stream.TURNED_180, Stream.TURNED_270)


def raw(seed: int, stream: Stream, place: int, shape: int | tuple[int, ...]) -> NDArray[np.uint64]:
    """Independent numbers, uniform in 0..2^64-1."""
    return np.random.Philox(key=seed, counter=[0, 0, int(stream), place]).random_raw(shape)


def below(numbers: NDArray[np.uint64], bound: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """`numbers` of `raw` scaled to 0..bound-1, each with a share that is uniform to within 2^-32."""
    factor = np.asarray(bound, dtype=np.uint64)
    return np.asarray((numbers >> np.uint64(32)) * factor >> np.uint64(32), dtype=np.int64)


def permutation(seed: int, stream: Stream, place: int, n: int) -> NDArray[np.int64]:
    """0..n-1 in random order."""
    return np.argsort(raw(seed, stream, place, n), kind="stable")


def same_class(seed: int, epoch: int, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of n samples the place of one of its class, itself included, all equally likely; labels: [n]."""
    by_class = np.argsort(labels, kind="stable")
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    numbers = raw(seed, Stream.PARTNERS, epoch, len(labels))
    places: NDArray[np.int64] = by_class[first[classes] + below(numbers, counts[classes])]
    return places


def raw_of(seed: int, stream: Stream, place: int, index: int, n: int) -> NDArray[np.uint64]:
    """As `raw`, n numbers of the one image `index`, which no other image has, nor `raw`."""
    return np.random.Philox(key=seed, counter=[0, 1 + index, int(stream), place]).random_raw(n)
