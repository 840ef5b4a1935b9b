"""Which training images a trial sees: pure functions from labels to indices."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdtrain.config import ConfigError
from kdtrain.draws import Stream, permutation

Ints = NDArray[np.int64]


class Split(NamedTuple):
    """Indices into the full training set, int64 on the CPU, ascending, disjoint."""

    train: Tensor  # [N_train]
    val: Tensor  # [val_size]


def split(labels: Tensor, fraction: float, val_size: int, subset_seed: int) -> Split:
    """`val_size` images held out, and the `fraction` of the others that is trained on; both stratified by class.

    `labels`: [N] int64. `val_size` is shared out in proportion to the classes, by largest remainder, so that the
    total is exact; it does not depend on the fraction. Of class c, with n_c images left,
    max(1, round(fraction * n_c)) are kept: at one seed and `val_size`, the 20 % images are inside the 40 % images.

    Raises ConfigError if a class would have no image left.
    """
    values = labels.cpu().numpy()
    classes, counts = np.unique(values, return_counts=True)
    held = _shares(counts, val_size)
    if np.any(held >= counts):
        empty = int(classes[np.argmax(held >= counts)])
        raise ConfigError(
            f"data.val_size must leave an image of each class, but got {val_size} of {len(values)} images, "
            f"which leaves class {empty} none."
        )
    train, val = [], []
    for label, count, out in zip(classes, counts, held, strict=True):
        order = _shuffled(np.flatnonzero(values == label), subset_seed, int(label))
        left = int(count - out)
        train.append(order[: max(1, round(fraction * left))])
        # From the other end of the same order, so that a validation set changes the training images least.
        val.append(order[left:])
    return Split(*(torch.from_numpy(np.sort(np.concatenate(parts))) for parts in (train, val)))


def _shares(counts: Ints, size: int) -> Ints:
    """`size` shared out in proportion to `counts`, by largest remainder; the lower class wins a tie."""
    shares, remainders = np.divmod(counts * size, counts.sum())
    late = np.argsort(-remainders, kind="stable")[: size - shares.sum()]
    shares[late] += 1
    return shares


def _shuffled(indices: Ints, seed: int, label: int) -> Ints:
    """`indices` in an order that depends on (seed, label) alone."""
    return indices[permutation(seed, Stream.SUBSET, label, len(indices))]
