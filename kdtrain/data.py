"""The data sets, as uint8 tensors on the device: a new one is one entry of DATASETS."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdtrain.config import ConfigError, unknown


class Arrays(NamedTuple):
    """A data set as read: images uint8 [N, C, H, W], labels int64 [N]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Info:
    """What is known of a data set without reading it. `mean` and `std`: of each channel, for pixels in 0..1."""

    name: str
    num_classes: int
    in_channels: int
    image_size: int  # rows and columns
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[Path, bool], Arrays]  # (data_root, download)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set on a device. Images uint8 [N, C, H, W], channels last in memory; labels int64 [N]."""

    info: Info
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def check(name: str, where: str) -> None:
    """Raise ConfigError unless `name` is a data set; `where` is its key path."""
    if name not in DATASETS:
        raise ConfigError(unknown("data set", name, DATASETS, where))


def load(name: str, root: str, download: bool, device: torch.device) -> Dataset:
    """The data set `name` from the folder `root` (data.root), on `device`.

    `download` fetches what is missing; the caller makes sure that only one process does it at a time.
    Raises ConfigError if the name is not known, or if the files are missing, damaged or cannot be fetched.
    """
    check(name, "data.dataset")
    info = DATASETS[name]
    arrays = info.read(Path(root), download)
    train, test = (
        part.contiguous(memory_format=torch.channels_last).to(device)
        for part in (arrays.train_images, arrays.test_images)
    )
    return Dataset(
        info=info,
        train_images=train,
        train_labels=arrays.train_labels.to(device),
        test_images=test,
        test_labels=arrays.test_labels.to(device),
    )


def _read_fashion_mini(root: Path, download: bool) -> Arrays:
    with (resources.files("kdtrain") / "assets" / "fashion_mini.npz").open("rb") as file:
        shipped = np.load(file, allow_pickle=False)
        tensors = {key: torch.from_numpy(shipped[key]) for key in Arrays._fields}
    images = {key: tensors[key][:, None] for key in ("train_images", "test_images")}
    labels = {key: tensors[key].long() for key in ("train_labels", "test_labels")}
    return Arrays(**images, **labels)


def _read_fashion_mnist(root: Path, download: bool) -> Arrays:
    files = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    train, test = _open("FashionMNIST", "fashion_mnist", root, download, root / "FashionMNIST" / "raw", files)
    return Arrays(train.data[:, None], train.targets.long(), test.data[:, None], test.targets.long())


def _read_cifar10(root: Path, download: bool) -> Arrays:
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    return _cifar(*_open("CIFAR10", "cifar10", root, download, root / "cifar-10-batches-py", files))


def _read_cifar100(root: Path, download: bool) -> Arrays:
    files = ("train", "test", "meta")
    return _cifar(*_open("CIFAR100", "cifar100", root, download, root / "cifar-100-python", files))


def _cifar(train: Any, test: Any) -> Arrays:
    # torchvision holds CIFAR images as [N, H, W, C].
    images = (torch.from_numpy(part.data).permute(0, 3, 1, 2) for part in (train, test))
    labels = (torch.tensor(part.targets) for part in (train, test))
    (train_images, test_images), (train_labels, test_labels) = images, labels
    return Arrays(train_images, train_labels, test_images, test_labels)


def _open(reader: str, name: str, root: Path, download: bool, folder: Path, files: tuple[str, ...]) -> tuple[Any, Any]:
    """The training and the test set by one of torchvision's readers; ConfigError says how to get them."""
    from torchvision import datasets  # takes more than a second, which every command and worker would spend

    read = getattr(datasets, reader)
    try:
        return read(root, train=True, download=download), read(root, train=False, download=download)
    except (RuntimeError, OSError) as error:
        cause = " ".join(str(error).split())  # torchvision writes several lines
        problem = f"could not be downloaded ({cause}) to" if download else "is missing or damaged in"
        raise ConfigError(
            f"{name} {problem} {folder.absolute()}. Set download = true under [data], "
            f"or put the standard files there, unpacked: {', '.join(files)}."
        ) from error


DATASETS: dict[str, Info] = {
    # 600 training and 200 test images of each class of Fashion-MNIST, shipped with the package.
    "fashion_mini": Info(
        name="fashion_mini",
        num_classes=10,
        in_channels=1,
        image_size=28,
        mean=(0.2860,),  # as fashion_mnist
        std=(0.3530,),
        read=_read_fashion_mini,
    ),
    "fashion_mnist": Info(
        name="fashion_mnist",
        num_classes=10,
        in_channels=1,
        image_size=28,
        mean=(0.2860,),  # of the pixels of the 60,000 training images
        std=(0.3530,),
        read=_read_fashion_mnist,
    ),
    "cifar10": Info(
        name="cifar10",
        num_classes=10,
        in_channels=3,
        image_size=32,
        mean=(0.4914, 0.4822, 0.4465),  # of the pixels of the 50,000 training images
        std=(0.2470, 0.2435, 0.2616),
        read=_read_cifar10,
    ),
    "cifar100": Info(
        name="cifar100",
        num_classes=100,
        in_channels=3,
        image_size=32,
        mean=(0.5071, 0.4867, 0.4408),  # RepDistiller, dataset/cifar100.py
        std=(0.2675, 0.2565, 0.2761),
        read=_read_cifar100,
    ),
}
