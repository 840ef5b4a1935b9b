"""Data sets as uint8 tensors on the device; on the CPU they may be mapped files, larger than memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdtrain import views
from kdtrain.config import Where
from kdtrain.data.dataset import Dataset, Info, Look, Source
from kdtrain.data.images import resized
from kdtrain.draws import TURNED, Stream

CHUNK = 1000  # images that are converted at a time


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
        train, test = (_resized(arrays[place], info.image_size) for place in (0, 2))
        return in_memory(info, arrays._replace(train_images=train, test_images=test), device)

    return open_


def in_memory(info: Info, arrays: Arrays, device: torch.device, skipped: tuple[str, ...] = ()) -> Dataset:
    """Images of the size that the network sees; those that are channels last and on the device are not copied."""
    train, test = (
        Memory(
            _in_channels(images, info.in_channels).contiguous(memory_format=torch.channels_last).to(device),
            labels.to(device), info,
        )
        for images, labels in (arrays[:2], arrays[2:])
    )  # fmt: skip
    return Dataset(info=info, train=train, test=test, skipped=skipped)


def _in_channels(images: Tensor, wanted: int) -> Tensor:
    """Grey images in three equal channels, or colours in grey as ITU-R 601 weighs them; others as they are."""
    if images.shape[1] == wanted:
        return images
    if wanted == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return torch.cat([(some.float() * weights).sum(1, keepdim=True).round().byte() for some in images.split(CHUNK)])


def _resized(images: Tensor, size: int) -> Tensor:
    return torch.from_numpy(resized(images.permute(0, 2, 3, 1).numpy(), size)).permute(0, 3, 1, 2)
