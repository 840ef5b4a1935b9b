"""Data sets too large for memory: images are read, cut out and resized by processes of their own, batch by batch."""

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdtrain import resized_crops, views
from kdtrain.config import ConfigError
from kdtrain.data.dataset import Info, Look, Source
from kdtrain.data.images import Corrupt, refusal
from kdtrain.draws import TURNED, Stream


class View(NamedTuple):
    """What the augmentation is drawn by, beside the image."""

    seed: int
    epoch: int
    stream: Stream


class Wanted(NamedTuple):
    """The images of a look before any turn, as a reading process is told."""

    indices: list[int]  # [B], places in the source
    files: list[str]  # [B], below the source's folder
    view: View | None  # None: not augmented


class Streamed(Source):
    """Images in files, decoded by `workers` processes while the network trains; 0: in this process.

    files: N names below `folder`; labels: int64 [N], on the device. A batch is the same for any number of processes.
    An image that cannot be read raises ConfigError once its batch is reached.
    """

    def __init__(self, folder: Path, files: Sequence[str], labels: Tensor, info: Info, workers: int) -> None:
        self.folder, self.files, self.labels, self.info, self.workers = folder, files, labels, info, workers

    def look(
        self, seed: int, epoch: int, batches: Iterable[Sequence[Look]], augment: bool = True
    ) -> Iterator[list[Tensor]]:
        """Random resized crops, mirrored or not, then turned."""
        # All indices leave the device before the first batch: later, each would wait for the training step under way.
        at_once = [[look._replace(indices=look.indices.cpu()) for look in looks] for looks in batches]
        wanted = (
            [self._wanted(look.indices, View(seed, epoch, look.stream) if augment else None) for look in looks]
            for looks in at_once
        )
        for looks, shown in zip(at_once, self._read(wanted, len(at_once)), strict=True):
            yield [
                torch.rot90(images, look.turns, (2, 3)) if look.turns else images
                for look, images in zip(looks, shown, strict=True)
            ]

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The middle of each image."""
        at_once = [indices.cpu() for indices in batches]
        for (images,) in self._read(([self._wanted(indices, None)] for indices in at_once), len(at_once)):
            yield images

    def _wanted(self, indices: Tensor, view: View | None) -> Wanted:
        places = indices.tolist()
        return Wanted(places, [self.files[place] for place in places], view)

    def _read(self, wanted: Iterator[list[Wanted]], n: int) -> Iterator[list[Tensor]]:
        """The images of n batches on the device, in order. The processes end when the iterator does."""
        workers = min(self.workers, n)
        on_gpu = self.labels.is_cuda
        loader = DataLoader(
            Reader(self.folder, self.info.image_size, self.info.in_channels),
            batch_size=None,  # an item is a whole batch, which the sampler names by its Wanted, not by a number
            sampler=wanted,
            num_workers=workers,
            worker_init_fn=_end_with_parent,
            multiprocessing_context=_server() if workers else None,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # the global one is left alone
        )
        for read in loader:
            if isinstance(read, ConfigError):
                raise read
            yield [self._normalised(images.to(self.labels.device, non_blocking=on_gpu)) for images in read]

    def _normalised(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, C] to float32 [B, C, H, W], channels last."""
        every = torch.arange(len(images), device=images.device)
        return views.plain(images.permute(0, 3, 1, 2), every, self.info.mean, self.info.std)


class Reader(Dataset[list[Tensor] | ConfigError]):
    """What runs in the processes: it maps the Wanted of a batch to their images, uint8 [B, size, size, C] each.

    It knows neither the files nor the epoch beforehand, so little has to be sent when a process starts.
    """

    def __init__(self, folder: Path, size: int, channels: int) -> None:
        self.folder, self.size, self.channels = folder, size, channels

    def __getitem__(self, looks: list[Wanted]) -> list[Tensor] | ConfigError:
        """The images; or the error as a value, since a DataLoader makes a traceback of the message of one raised."""
        shape = self.size, self.size, self.channels
        shown = [torch.empty(len(look.files), *shape, dtype=torch.uint8) for look in looks]
        uses = defaultdict(list)  # of each file, which is decoded once for all looks
        for look, images in zip(looks, shown, strict=True):
            for index, file, image in zip(look.indices, look.files, images, strict=True):
                uses[file].append((index, look.view, image))
        for file, places in uses.items():
            try:
                decoded = decode(self.folder / file, self.channels)
            except Corrupt as cause:
                return refusal(self.folder, file, cause)
            for index, view, image in places:
                image.copy_(self._seen(decoded, index, view).permute(1, 2, 0))
        return shown

    def _seen(self, image: Tensor, index: int, view: View | None) -> Tensor:
        if view is None:
            return resized_crops.central(image, self.size)
        drawn = resized_crops.numbers(view.seed, view.epoch, index, view.stream)
        upright = resized_crops.numbers(view.seed, view.epoch, index) if view.stream in TURNED else drawn
        part = resized_crops.box(drawn, *image.shape[1:])
        return resized_crops.apply(image, part, resized_crops.flipped(upright), self.size)


def decode(file: Path, channels: int = 3) -> Tensor:
    """The image in a file as uint8 [C, H, W], channels last in memory: RGB, or for one channel grey. Corrupt.

    As torchvision's ImageFolder reads it: orientation in EXIF is ignored. Not by torchvision.io, whose decoders are
    deprecated since torchvision 0.29.
    """
    try:
        with Image.open(file) as image:
            colours = image.convert("RGB")
        pixels = np.array(colours if channels == 3 else colours.convert("L"))
    except Exception as error:  # PIL's decoders raise nearly anything when a file is damaged
        raise Corrupt(" ".join(str(error).split())) from error
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)


def _server() -> multiprocessing.context.BaseContext:
    """Processes are forked off a small server, which has imported what they need and has no threads, locks or CUDA.

    The server starts in 3 s, once; then a process starts in 15 ms, as one forked off this process would, while `spawn`
    takes 3 s for each. Processes can therefore come and go with each pass over the images.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "torchvision.transforms.v2", __name__])
    return context


def _end_with_parent(worker: int) -> None:
    """In a reading process: it ends when the training process does, even if that is killed.

    A DataLoader looks for the death of the process it was forked off, here the server, which waits for this one.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
