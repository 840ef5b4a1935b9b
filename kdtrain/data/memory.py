"""Data sets that fit in memory: uint8 tensors on the device."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdtrain import views
from kdtrain.config import Where
from kdtrain.data.dataset import Dataset, Info, Look, Source
from kdtrain.draws import Stream

TURNED = (Stream.TURNED_90, Stream.TURNED_180, Stream.TURNED_270)


class Arrays(NamedTuple):
    """A data set as read: images uint8 [N, C, H, W], labels int64 [N]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Memory(Source):
    """Images uint8 [N, C, H, W], channels last in memory, of rows and columns as the network sees them."""

    def __init__(self, images: Tensor, labels: Tensor, info: Info) -> None:
        self.images, self.labels, self.info = images, labels, info

    def look(
        self, seed: int, epoch: int, batches: Iterable[Sequence[Look]], augment: bool = True
    ) -> Iterator[list[Tensor]]:
        """Crops after padding, mirrored or not, then turned."""
        drawn: dict[Stream, views.Views] = {}  # of all images at once, which takes a fraction of the time
        for looks in batches:
            shown = []
            for look in looks:
                if augment and look.stream not in drawn:
                    drawn[look.stream] = self._draw(seed, epoch, look.stream)
                shown.append(self._turned(self._view(look.indices, drawn.get(look.stream)), look.turns))
            yield shown

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images themselves."""
        for indices in batches:
            yield views.plain(self.images, indices, self.info.mean, self.info.std)

    def _draw(self, seed: int, epoch: int, stream: Stream) -> views.Views:
        n, size, device = len(self.labels), self.images.shape[2], self.labels.device
        drawn = views.draw(seed, epoch, n, size, device, stream)
        if stream in TURNED:
            drawn = drawn._replace(flip=views.draw(seed, epoch, n, size, device).flip)
        return drawn

    def _view(self, indices: Tensor, drawn: views.Views | None) -> Tensor:
        if drawn is None:
            return views.plain(self.images, indices, self.info.mean, self.info.std)
        return views.apply(self.images, indices, drawn, self.info.mean, self.info.std)

    @staticmethod
    def _turned(images: Tensor, turns: int) -> Tensor:
        return torch.rot90(images, turns, (2, 3)) if turns else images


def opener(read: Callable[[Where], Arrays]) -> Callable[[Info, Where, torch.device], Dataset]:
    """`Info.open` of a data set that `read` reads."""

    def open_(info: Info, where: Where, device: torch.device) -> Dataset:
        arrays = read(where)
        train, test = (
            Memory(images.contiguous(memory_format=torch.channels_last).to(device), labels.to(device), info)
            for images, labels in (arrays[:2], arrays[2:])
        )
        return Dataset(info=info, train=train, test=test)

    return open_
