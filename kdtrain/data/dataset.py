"""What a data set is to the rest: what is known of it unread, and once opened, two sources of images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kdtrain.config import Where
from kdtrain.draws import Stream


class Look(NamedTuple):
    """Images as the network is to see them."""

    indices: Tensor  # [B] int64, places in the source
    stream: Stream  # what crop and flip are drawn by
    turns: int = 0  # right angles by which the view is turned at last


class Source(ABC):
    """The images of one split. All images come as float32 [B, C, H, W], channels last, normalised, on the device."""

    labels: Tensor  # [N] int64, on the device

    @abstractmethod
    def look(
        self, seed: int, epoch: int, batches: Iterable[Sequence[Look]], augment: bool = True
    ) -> Iterator[list[Tensor]]:
        """The images of each look of each batch, augmented. The view of image i is a function of (seed, epoch, i).

        Turned views (`Stream.TURNED_*`) have the flip of `Stream.VIEWS`: it comes before the turn.
        """

    @abstractmethod
    def plain(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images at the places of each batch [B], not augmented."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """What is known of a data set without reading it.

    `mean` and `std`: of each channel, for pixels in 0..1; empty if only the opened set's Info knows them.
    """

    name: str
    num_classes: int
    in_channels: int
    image_size: int  # rows and columns of the images that networks see
    train_images: int | None = None  # None: known only when it is opened
    in_memory: bool = True  # whether it costs little to look at an image twice
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # ConfigError if the files are missing, damaged or cannot be fetched. The Info is that of the trial: its image_size,
    # mean and std may have been changed.
    open: Callable[["Info", Where, torch.device], "Dataset"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An opened data set."""

    info: Info
    train: Source
    test: Source
    skipped: tuple[str, ...] = ()  # names of the corrupt files that `Where.skip_corrupt` left out
