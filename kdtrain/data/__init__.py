"""The data sets: a new one is one entry of DATASETS."""

from dataclasses import replace

import torch

from kdtrain.config import ConfigError, DataConfig, Where, unknown
from kdtrain.data import small
from kdtrain.data.dataset import Dataset, Info
from kdtrain.data.memory import opener

DATASETS: dict[str, Info] = {
    # 600 training and 200 test images of each class of Fashion-MNIST, shipped with the package.
    "fashion_mini": Info(
        name="fashion_mini",
        num_classes=10,
        in_channels=1,
        image_size=28,
        mean=(0.2860,),  # as fashion_mnist
        std=(0.3530,),
        open=opener(small.read_fashion_mini),
    ),
    "fashion_mnist": Info(
        name="fashion_mnist",
        num_classes=10,
        in_channels=1,
        image_size=28,
        mean=(0.2860,),  # of the pixels of the 60,000 training images
        std=(0.3530,),
        open=opener(small.read_fashion_mnist),
    ),
    "cifar10": Info(
        name="cifar10",
        num_classes=10,
        in_channels=3,
        image_size=32,
        mean=(0.4914, 0.4822, 0.4465),  # of the pixels of the 50,000 training images
        std=(0.2470, 0.2435, 0.2616),
        open=opener(small.read_cifar10),
    ),
    "cifar100": Info(
        name="cifar100",
        num_classes=100,
        in_channels=3,
        image_size=32,
        mean=(0.5071, 0.4867, 0.4408),  # RepDistiller, dataset/cifar100.py
        std=(0.2675, 0.2565, 0.2761),
        open=opener(small.read_cifar100),
    ),
}


def info_of(config: DataConfig, where: str = "data") -> Info:
    """What is known unread of the data set of a trial; ConfigError if a rule is broken. `where`: its key path."""
    name = config.dataset
    if name not in DATASETS:
        raise ConfigError(unknown("data set", name, DATASETS, f"{where}.dataset"))
    info = DATASETS[name]
    changed = {key: value for key in ("image_size", "mean", "std") if (value := getattr(config, key)) is not None}
    for key in changed.keys() & {"mean", "std"}:
        if len(changed[key]) != info.in_channels:
            raise ConfigError(
                f"{where}.{key} must have a value for each of the {info.in_channels} channels of {name}, "
                f"but got {list(changed[key])}."
            )
    return replace(info, **changed)


def load(config: DataConfig, where: Where, device: torch.device) -> Dataset:
    """The data set of a trial, its files in the folder `where.data_root`.

    `where.download` fetches what is missing; the caller makes sure that only one process does it at a time.
    ConfigError if the name is not known, or if the files are missing, damaged or cannot be fetched.
    """
    info = info_of(config)
    return info.open(info, where, device)
