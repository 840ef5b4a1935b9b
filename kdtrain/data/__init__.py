"""The data sets: a new one is one entry of DATASETS."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from kdtrain.config import ConfigError, DataConfig, Where, unknown
from kdtrain.data import folder, imagenet, memory, prepared, small, tiny_imagenet
from kdtrain.data.dataset import Dataset, Info

DATASETS: dict[str, Info] = {
    # 600 training and 200 test images of each class of Fashion-MNIST, shipped with the package.
    "fashion_mini": Info(
        name="fashion_mini",
        num_classes=10,
        in_channels=1,
        image_size=28,
        train_images=6000,
        mean=(0.2860,),  # as fashion_mnist
        std=(0.3530,),
        open=memory.opener(small.read_fashion_mini),
    ),
    "fashion_mnist": Info(
        name="fashion_mnist",
        num_classes=10,
        in_channels=1,
        image_size=28,
        train_images=60_000,
        mean=(0.2860,),  # of the pixels of the 60,000 training images
        std=(0.3530,),
        open=prepared.opener(small.FASHION_MNIST.find, small.read_fashion_mnist),
    ),
    "cifar10": Info(
        name="cifar10",
        num_classes=10,
        in_channels=3,
        image_size=32,
        train_images=50_000,
        mean=(0.4914, 0.4822, 0.4465),  # of the pixels of the 50,000 training images
        std=(0.2470, 0.2435, 0.2616),
        open=prepared.opener(small.CIFAR10.find, small.read_cifar10),
    ),
    "cifar100": Info(
        name="cifar100",
        num_classes=100,
        in_channels=3,
        image_size=32,
        train_images=50_000,
        mean=(0.5071, 0.4867, 0.4408),  # RepDistiller, dataset/cifar100.py
        std=(0.2675, 0.2565, 0.2761),
        open=prepared.opener(small.CIFAR100.find, small.read_cifar100),
    ),
    "stl10": Info(
        name="stl10",
        num_classes=10,
        in_channels=3,
        image_size=96,
        train_images=5000,
        mean=(0.4467, 0.4398, 0.4066),  # of the pixels of the 5,000 training images
        std=(0.2603, 0.2566, 0.2712),
        open=prepared.opener(small.STL10.find, small.read_stl10),
    ),
    "tiny_imagenet": Info(
        name="tiny_imagenet",
        num_classes=200,
        in_channels=3,
        image_size=64,
        train_images=100_000,
        mean=(0.4802, 0.4481, 0.3975),  # of the pixels of the 100,000 training images
        std=(0.2770, 0.2691, 0.2821),
        open=prepared.opener(tiny_imagenet.find, tiny_imagenet.read),
    ),
    "imagenet": Info(
        name="imagenet",
        num_classes=1000,
        in_channels=3,
        image_size=224,
        train_images=1_281_167,
        in_memory=False,
        mean=(0.485, 0.456, 0.406),  # as torchvision's trained networks expect
        std=(0.229, 0.224, 0.225),
        open=imagenet.open_,
    ),
}


def info_of(config: DataConfig, where: str = "data") -> Info:
    """What is known unread of the data set of a trial; ConfigError if a rule is broken. `where`: its key path."""
    info = _named(config, where)
    if config.channels not in (None, info.in_channels):
        info = _with_channels(info, config, where)
    changed = {key: value for key in ("image_size", "mean", "std") if (value := getattr(config, key)) is not None}
    for key in changed.keys() & {"mean", "std"}:
        if len(changed[key]) != info.in_channels:
            raise ConfigError(
                f"{where}.{key} must have a value for each of the {info.in_channels} channels of {info.name}, "
                f"but got {list(changed[key])}."
            )
    return replace(info, **changed)


@lru_cache(maxsize=16)
def named(dataset: str, where: Where) -> dict[str, Any]:
    """The fields of a DataConfig that a data set's name means; a person's own folder is looked at, once."""
    if not dataset.startswith(folder.PREFIX):
        return {"dataset": dataset}
    name = folder.PREFIX + str(Path(dataset.removeprefix(folder.PREFIX)).expanduser().absolute())
    ref, size = folder.reference(name, where)
    return {"dataset": name, "folder": ref.model_dump(), "image_size": size}


def _with_channels(info: Info, config: DataConfig, where: str) -> Info:
    """With grey images in three equal channels, or colours in grey, whose statistics the trial must say."""
    assert config.channels is not None
    if config.channels == 1 and (config.mean is None or config.std is None):
        raise ConfigError(f"{where}.mean and {where}.std are required for {info.name} with {where}.channels = 1.")
    size = config.channels
    return replace(info, in_channels=size, mean=info.mean[:1] * size, std=info.std[:1] * size)


def _named(config: DataConfig, where: str) -> Info:
    name = config.dataset
    if name.startswith(folder.PREFIX):
        return folder.info(config, where)
    if name not in DATASETS:
        raise ConfigError(unknown("data set", name, [*DATASETS, f"{folder.PREFIX}PATH"], f"{where}.dataset"))
    if config.folder is not None:
        raise ConfigError(f"{where}.folder is for data sets `{folder.PREFIX}PATH` only, but the data set is {name}.")
    return DATASETS[name]


def title(dataset: str) -> str:
    """What a data set is called wherever its images lie: a person's own folder by the last part of its path."""
    path = dataset.removeprefix(folder.PREFIX)
    return dataset if path == dataset else folder.PREFIX + Path(path).name


def told(name: str, dataset: Dataset) -> list[str]:
    """What a person should know of an opened data set: how many corrupt images were left out."""
    if not dataset.skipped:
        return []
    few = ", ".join(dataset.skipped[:3]) + (" ..." if len(dataset.skipped) > 3 else "")
    count = "1 corrupt image is" if len(dataset.skipped) == 1 else f"{len(dataset.skipped)} corrupt images are"
    return [f"{name}: {count} left out: {few}"]


def load(config: DataConfig, where: Where, device: torch.device) -> Dataset:
    """The data set of a trial, its files in the folder `where.data_root`.

    `where.download` fetches what is missing; the caller makes sure that only one process does it at a time.
    ConfigError if the name is not known, or if the files are missing, damaged or cannot be fetched.
    """
    info = info_of(config)
    return info.open(info, where, device)
