"""ImageNet (ILSVRC 2012): class folders of JPEG files, streamed.

The classes are numbered in the order of their folders' names (WordNet ids), which is torchvision's, so the heads of
its trained networks fit.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from kdtrain.config import ConfigError, Where, digest
from kdtrain.data.dataset import Dataset, Info
from kdtrain.data.images import Corrupt
from kdtrain.data.prepared import cache, locked, writing
from kdtrain.data.streamed import Streamed, decode

SPLITS = ("train", "val")
FORMAT = 1  # of the kept list


def open_(info: Info, where: Where, device: torch.device) -> Dataset:
    """The data set in `<data_root>/imagenet`, of `info.num_classes` classes, read by `where.cpus` - 1 processes.

    The list of its files is made once and kept in the cache folder. It is made again when an image is added to or
    removed from a class folder, not when one is overwritten. With `where.skip_corrupt` all images are decoded then.
    ConfigError if the folders are not laid out as `_classes` says, if a class has no images or the cache no room.
    """
    folder = Path(where.data_root) / "imagenet"
    found = _found(folder, _classes(folder, info.num_classes), where)
    sources = []
    for split in SPLITS:
        files = [f"{wnid}/{name}" for wnid, names in found[split].items() for name in names]
        counts = torch.tensor([len(names) for names in found[split].values()])
        labels = torch.arange(len(counts)).repeat_interleave(counts).to(device)
        sources.append(Streamed(folder / split, files, labels, info, where.cpus - 1))
    train, test = sources
    return Dataset(info=info, train=train, test=test, skipped=tuple(found["skipped"]))


def _found(folder: Path, wnids: list[str], where: Where) -> dict[str, Any]:
    """What `_list` gives, made by one process while others wait, and then kept."""
    # Names and times of the class folders stand for their 1.3 million files, which each worker would have to list.
    times = {f"{split}/{wnid}": (folder / split / wnid).stat().st_mtime_ns for split in SPLITS for wnid in wnids}
    path = cache(where) / f"imagenet-{digest([FORMAT, str(folder.absolute()), times, where.skip_corrupt])}.json"
    if (found := _known(path)) is not None:
        return found
    with writing(where), locked(path.with_name(".imagenet.lock")):
        found = _known(path)
        if found is None:
            found = _list(folder, wnids, where)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(found))
            partial.replace(path)
    return found


def _known(path: Path) -> dict[str, Any] | None:
    """The list that is kept; None if there is none, or if it is damaged."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found


def _classes(folder: Path, num_classes: int) -> list[str]:
    """The names of the class folders, sorted: as many as there are classes, the same in train and in val."""
    for split in SPLITS:
        if not (folder / split).is_dir():
            raise ConfigError(
                f"imagenet needs the folder {split} in {folder.absolute()}. Put the images of ILSVRC 2012 there, "
                f"unpacked, in {num_classes} class folders each: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG."
            )
    if any((folder / "val").glob("ILSVRC2012_val_*.JPEG")):
        raise ConfigError(
            f"validation images must be sorted into class folders val/<wnid>/*.JPEG, "
            f"but {(folder / 'val').absolute()} holds them as downloaded."
        )
    train, val = ([entry.name for entry in _entries(folder / split) if entry.is_dir()] for split in SPLITS)
    for split, wnids in zip(SPLITS, (train, val), strict=True):
        if len(wnids) != num_classes:
            path = (folder / split).absolute()
            raise ConfigError(f"imagenet must have {num_classes} class folders in {path}, but got {len(wnids)}.")
    if different := sorted(set(train) ^ set(val)):
        only = folder / ("train" if different[0] in train else "val")
        raise ConfigError(
            f"train and val must have the same class folders, but got {different[0]} only in {only.absolute()}."
        )
    return train


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in the folder and not hidden, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"{folder.absolute()} cannot be read ({error.strerror}).") from error


def _list(folder: Path, wnids: list[str], where: Where) -> dict[str, Any]:
    """{"train": {wnid: names of its images}, "val": the same, "skipped": images left out as they cannot be read}."""
    found: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    skipped: list[str] = []
    with ThreadPoolExecutor(where.cpus) as pool:  # Pillow decodes without holding the lock of Python
        for split, wnid in ((split, wnid) for split in SPLITS for wnid in wnids):
            path = folder / split / wnid
            names = [entry.name for entry in _entries(path) if entry.name.endswith(".JPEG")]
            good = pool.map(_readable, (path / name for name in names)) if where.skip_corrupt else [True] * len(names)
            kept = [name for name, readable in zip(names, good, strict=True) if readable]
            skipped += [f"{split}/{wnid}/{name}" for name in sorted(set(names) - set(kept))]
            if not kept:
                but = f", or {len(names)} that cannot be read" if names else ""
                raise ConfigError(f"each class must have *.JPEG images, but got none{but} in {path.absolute()}.")
            found[split][wnid] = kept
    return {**found, "skipped": skipped}


def _readable(file: Path) -> bool:
    try:
        decode(file)
    except Corrupt:
        return False
    return True
