"""The data sets of small images that the package ships or that come as a few binary files."""

import math
import pickle
import struct
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kdtrain.config import ConfigError, Where
from kdtrain.data.dataset import Info
from kdtrain.data.images import Pixels, in_chunks, reader
from kdtrain.data.memory import Arrays
from kdtrain.data.prepared import Contents


class Published(NamedTuple):
    """A data set as its authors' archive unpacks, and torchvision's name for it."""

    name: str
    torchvision: str
    folder: str  # in the data root
    files: tuple[str, ...]

    def path(self, where: Where) -> Path:
        """The folder of the files."""
        return (Path(where.data_root) / self.folder).absolute()

    def find(self, where: Where) -> list[Path]:
        """Its files, fetched by torchvision if one is missing and `where.download` is set; ConfigError."""
        if where.download and self._missing(where):
            from torchvision import datasets  # takes more than a second, which every command and worker would spend

            try:
                getattr(datasets, self.torchvision)(Path(where.data_root), download=True)
            except (RuntimeError, OSError) as error:
                cause = " ".join(str(error).split())  # torchvision writes several lines
                raise self.refusal(where, f"could not be downloaded ({cause}) to") from error
        if missing := self._missing(where):
            raise self.refusal(where, f"is incomplete ({missing[0]} is missing) in")
        return [self.path(where) / file for file in self.files]

    def _missing(self, where: Where) -> list[str]:
        return [file for file in self.files if not (self.path(where) / file).is_file()]

    def refusal(self, where: Where, problem: str) -> ConfigError:
        """The error that says what the set's state is, and the two ways to get it."""
        return ConfigError(
            f"{self.name} {problem} {self.path(where)}. Set download = true under [data], "
            f"or put the standard files there, unpacked: {', '.join(self.files)}."
        )

    def damaged(self, where: Where, file: str, why: str) -> ConfigError:
        """The error that names a damaged file, which torchvision does not fetch again while it is there."""
        return ConfigError(
            f"{self.path(where) / file} is truncated or damaged: {why}. "
            "Put the whole file there, or remove it and set download = true under [data]."
        )


FASHION_MNIST = Published(
    "fashion_mnist",
    "FashionMNIST",
    "FashionMNIST/raw",
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
CIFAR10 = Published(
    "cifar10",
    "CIFAR10",
    "cifar-10-batches-py",
    (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
)
CIFAR100 = Published("cifar100", "CIFAR100", "cifar-100-python", ("train", "test", "meta"))
STL10 = Published("stl10", "STL10", "stl10_binary", ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"))


def read_fashion_mini(where: Where) -> Arrays:
    """The subset that comes with the package."""
    return _shipped()


@cache
def _shipped() -> Arrays:
    # Unpacked once a process: a worker may train hundreds of short trials.
    with (resources.files("kdtrain") / "assets" / "fashion_mini.npz").open("rb") as file:
        shipped = np.load(file, allow_pickle=False)
        tensors = {key: torch.from_numpy(shipped[key]) for key in Arrays._fields}
    images = {key: tensors[key][:, None] for key in ("train_images", "test_images")}
    labels = {key: tensors[key].long() for key in ("train_labels", "test_labels")}
    return Arrays(**images, **labels)


def read_fashion_mnist(info: Info, where: Where) -> Contents:
    """The four IDX files (their format: http://yann.lecun.com/exdb/mnist/)."""
    images, labels, test_images, test_labels = (_idx(where, file) for file in FASHION_MNIST.files)
    return _contents(info, images[..., None], labels, test_images[..., None], test_labels)


def _idx(where: Where, file: str) -> Pixels:
    """Two zero bytes, the type (8: uint8), the number of axes, their big-endian lengths, the values."""
    raw = reader(FASHION_MNIST.path(where))(file)
    axes = raw[3] if raw[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * axes
    if axes == 0 or len(raw) < start:
        raise FASHION_MNIST.damaged(where, file, "it has no IDX header")
    shape = struct.unpack(f">{axes}I", raw[4:start])
    if len(raw) != start + math.prod(shape):
        raise FASHION_MNIST.damaged(
            where, file, f"{len(raw)} bytes, where its header promises {start + math.prod(shape)}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read_stl10(info: Info, where: Where) -> Contents:
    """The labelled images. Each is three planes, stored column by column; the labels are 1..10.

    Format: https://cs.stanford.edu/~acoates/stl10/.
    """
    arrays = []
    for file, label_file in (STL10.files[:2], STL10.files[2:]):
        pixels, labels = (np.frombuffer(reader(STL10.path(where))(name), np.uint8) for name in (file, label_file))
        if len(pixels) != len(labels) * 3 * 96 * 96:
            promised = f"{len(pixels)} bytes, where the {len(labels)} labels of {label_file} promise"
            raise STL10.damaged(where, file, f"{promised} {len(labels) * 3 * 96 * 96}")
        arrays += [pixels.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1), labels - 1]
    return _contents(info, *arrays)


def read_cifar10(info: Info, where: Where) -> Contents:
    """The "python version" of the set, unpacked."""
    return _cifar(CIFAR10, info, where)


def read_cifar100(info: Info, where: Where) -> Contents:
    """The "python version" of the set, unpacked; fine labels."""
    return _cifar(CIFAR100, info, where)


def _cifar(published: Published, info: Info, where: Where) -> Contents:
    """By torchvision, which compares checksums before it unpickles."""
    from torchvision import datasets  # slow to import, as above

    read = getattr(datasets, published.torchvision)
    try:
        train, test = (read(Path(where.data_root), train=train, download=where.download) for train in (True, False))
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        file = _altered(published, where, read)
        raise published.refusal(where, f"is damaged ({file} is truncated or altered) in") from error
    # torchvision holds the images as [N, H, W, C].
    return _contents(info, train.data, np.array(train.targets), test.data, np.array(test.targets))


def _altered(published: Published, where: Where, read: Any) -> str:
    """The first file whose checksum is not the published one."""
    from torchvision.datasets.utils import check_integrity

    checksums = dict([*read.train_list, *read.test_list, (read.meta["filename"], read.meta["md5"])])
    bad = (file for file in published.files if not check_integrity(published.path(where) / file, checksums[file]))
    return next(bad, "a file")


def _contents(info: Info, images: Pixels, labels: Any, test_images: Pixels, test_labels: Any) -> Contents:
    """Images [N, H, W, C] and labels [N] of both splits; ConfigError if they cannot belong together."""
    for x, y in ((images, labels), (test_images, test_labels)):
        if not 0 < len(x) == len(y) or y.max() >= info.num_classes:
            raise ConfigError(
                f"{info.name} is damaged: {len(x)} images have {len(y)} labels up to {max(y, default=0)}."
            )
    return Contents(
        in_chunks(images, labels.astype(np.int64), info.image_size),
        in_chunks(test_images, test_labels.astype(np.int64), info.image_size),
    )
