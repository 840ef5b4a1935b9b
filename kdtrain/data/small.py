"""The data sets of small images that the package ships or torchvision reads."""

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdtrain.config import ConfigError, Where
from kdtrain.data.memory import Arrays


def read_fashion_mini(where: Where) -> Arrays:
    """The subset that comes with the package."""
    with (resources.files("kdtrain") / "assets" / "fashion_mini.npz").open("rb") as file:
        shipped = np.load(file, allow_pickle=False)
        tensors = {key: torch.from_numpy(shipped[key]) for key in Arrays._fields}
    images = {key: tensors[key][:, None] for key in ("train_images", "test_images")}
    labels = {key: tensors[key].long() for key in ("train_labels", "test_labels")}
    return Arrays(**images, **labels)


def read_fashion_mnist(where: Where) -> Arrays:
    """The four IDX files, as torchvision lays them out."""
    files = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    train, test = _open("FashionMNIST", "fashion_mnist", where, "FashionMNIST/raw", files)
    return Arrays(train.data[:, None], train.targets.long(), test.data[:, None], test.targets.long())


def read_cifar10(where: Where) -> Arrays:
    """The "python version" of the set, unpacked."""
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    return _cifar(*_open("CIFAR10", "cifar10", where, "cifar-10-batches-py", files))


def read_cifar100(where: Where) -> Arrays:
    """The "python version" of the set, unpacked; fine labels."""
    files = ("train", "test", "meta")
    return _cifar(*_open("CIFAR100", "cifar100", where, "cifar-100-python", files))


def _cifar(train: Any, test: Any) -> Arrays:
    # torchvision holds CIFAR images as [N, H, W, C].
    images = (torch.from_numpy(part.data).permute(0, 3, 1, 2) for part in (train, test))
    labels = (torch.tensor(part.targets) for part in (train, test))
    (train_images, test_images), (train_labels, test_labels) = images, labels
    return Arrays(train_images, train_labels, test_images, test_labels)


def _open(reader: str, name: str, where: Where, folder: str, files: tuple[str, ...]) -> tuple[Any, Any]:
    """The training and the test set by one of torchvision's readers; ConfigError says how to get them."""
    from torchvision import datasets  # takes more than a second, which every command and worker would spend

    read, root = getattr(datasets, reader), Path(where.data_root)
    try:
        train, test = (read(root, train=train, download=where.download) for train in (True, False))
        return train, test
    except (RuntimeError, OSError) as error:
        cause = " ".join(str(error).split())  # torchvision writes several lines
        problem = f"could not be downloaded ({cause}) to" if where.download else "is missing or damaged in"
        raise ConfigError(
            f"{name} {problem} {(root / folder).absolute()}. Set download = true under [data], "
            f"or put the standard files there, unpacked: {', '.join(files)}."
        ) from error
