"""A person's own images: `folder:PATH`.

PATH/train/<class>/ and PATH/test/<class>/ (or val/, if there is no test/); or PATH/<class>/ alone, of which a fifth of
each class, drawn once for all, is the test split. Images may lie in folders inside that of their class. Classes are
numbered in the order of their sorted names. Hidden files and files that are no images by their extension are ignored.
"""

import hashlib
import json
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from kdtrain.config import ConfigError, DataConfig, FolderRef, Where
from kdtrain.data.dataset import Dataset, Info
from kdtrain.data.images import Corrupt, Files, decoded, reader, refusal, shape
from kdtrain.data.memory import in_memory
from kdtrain.data.prepared import Contents, cache, locked, prepare, signature, writing
from kdtrain.draws import Stream, permutation

PREFIX = "folder:"
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class Layout(NamedTuple):
    """Which files are which images; names below the root."""

    classes: tuple[str, ...]
    train: Files
    test: Files

    @property
    def names(self) -> list[str]:
        """All files, sorted."""
        return sorted(self.train.names + self.test.names)


def info(config: DataConfig, where: str = "data") -> Info:
    """What is known of a `folder:PATH` without the disk; its mean and std are known once it is opened.

    ConfigError if `folder` or `image_size`, which `reference` finds, is missing.
    """
    for key in ("folder", "image_size"):
        if getattr(config, key) is None:
            raise ConfigError(f"{where}.{key} is required for the data set {config.dataset!r}.")
    assert config.folder is not None
    assert config.image_size is not None
    return Info(
        name="folder",
        num_classes=config.folder.num_classes,
        in_channels=3,
        image_size=config.image_size,
        mean=(),
        std=(),
        open=partial(_open, config.dataset, config.folder),
    )


def reference(name: str, where: Where) -> tuple[FolderRef, int]:
    """What identifies the images of `folder:PATH`, and the size that suits them.

    The SHA-256 is of each file's path below PATH and contents. The size is that of the images if all are square, equal
    and of 8 to 64 pixels; else the median of their shorter sides, at most 224, rounded down to a multiple of 32, at
    least 32. Both are remembered in the cache until a path, a size or a time of change is another: the files are read
    once. ConfigError if the folder has no such layout, or if an image is corrupt and `where.skip_corrupt` is not set.
    """
    return _read(Path(name.removeprefix(PREFIX)), where)[1:]


def layout(root: Path) -> Layout:
    """The classes and files below `root`; ConfigError names what is wrong with them."""
    if not root.is_dir():
        raise ConfigError(f"there is no folder {root}.")
    if not (root / "train").is_dir():
        return _divided(root)
    test = next((part for part in ("test", "val") if (root / part).is_dir()), None)
    if test is None:
        raise ConfigError(
            f"{root} has the folder train, but neither test nor val: {PREFIX}{root / 'train'} takes a fifth of its "
            "images as the test split."
        )
    classes, test_classes = (_classes(root / part) for part in ("train", test))
    if odd := sorted(set(classes) ^ set(test_classes)):
        there, absent = ("train", test) if odd[0] in classes else (test, "train")
        raise ConfigError(
            f"{root} must have the same classes in train and {test}, but {odd[0]} is in {there} only, not in {absent}."
        )
    return Layout(
        classes, *(_files(root, [_images(root, f"{part}/{name}") for name in classes]) for part in ("train", test))
    )


def _divided(root: Path) -> Layout:
    """Of each class with n images, max(1, round(n / 5)) are the test split."""
    classes = _classes(root)
    parts: tuple[list[list[str]], list[list[str]]] = [], []
    for label, name in enumerate(classes):
        images = _images(root, name)
        if len(images) < 2:
            raise ConfigError(f"{root / name} has one image, but training and test split need one each.")
        out = set(permutation(0, Stream.TEST, label, len(images))[: max(1, round(len(images) / 5))].tolist())
        for part, wanted in zip(parts, (False, True), strict=True):
            part.append([image for i, image in enumerate(images) if (i in out) == wanted])
    return Layout(classes, *(_files(root, part) for part in parts))


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise ConfigError(
            f"{folder} must have a folder of images for each of at least two classes, "
            f"but has {', '.join(names) or 'none'}."
        )
    return tuple(names)


def _images(root: Path, name: str) -> list[str]:
    """The images of one class by their names below `root`, sorted."""
    found = sorted(_below(root / name, name))
    if not found:
        raise ConfigError(f"{root / name} has no images ({' '.join(sorted(EXTENSIONS))}).")
    return found


def _below(folder: Path, name: str) -> Iterator[str]:
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _below(Path(entry.path), f"{name}/{entry.name}")
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            yield f"{name}/{entry.name}"


def _files(root: Path, by_class: list[list[str]]) -> Files:
    names = [name for images in by_class for name in images]
    return Files(root, reader(root), names, [label for label, images in enumerate(by_class) for _ in images])


def _read(root: Path, where: Where) -> tuple[Layout, FolderRef, int]:
    """The folder's layout, and what `reference` gives."""
    try:
        found = layout(root)
        remembered = cache(where) / f"folder-{signature(f'{root}/{name}' for name in found.names)}.json"
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read ({error.strerror}).") from error
    known = _known(remembered)
    if known is None:
        with writing(where), locked(cache(where) / ".folder.lock"):
            known = _known(remembered)
            if known is None:
                known = _identity(found, where.skip_corrupt)
                partial = remembered.with_suffix(".part")
                partial.write_text(json.dumps({"root": str(root), "sha256": known[0], "image_size": known[1]}))
                partial.rename(remembered)
    return found, FolderRef(sha256=known[0], num_classes=len(found.classes)), known[1]


def _known(remembered: Path) -> tuple[str, int] | None:
    try:
        read = json.loads(remembered.read_text())
        return str(read["sha256"]), int(read["image_size"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not whole
        return None


def _identity(found: Layout, skip_corrupt: bool) -> tuple[str, int]:
    def read(name: str) -> tuple[bytes, tuple[int, int] | None]:
        raw = found.train.read(name)
        try:
            return hashlib.sha256(raw).digest(), shape(raw)
        except Corrupt as error:
            if not skip_corrupt:
                raise refusal(found.train.root, name, error) from error
            return hashlib.sha256(raw).digest(), None

    sha256, shapes = hashlib.sha256(), list[tuple[int, int]]()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, (contents, size) in zip(found.names, pool.map(read, found.names), strict=True):
            sha256.update(hashlib.sha256(os.fsencode(name)).digest() + contents)
            if size is not None:
                shapes.append(size)
    return sha256.hexdigest(), _natural(shapes)


def _natural(shapes: list[tuple[int, int]]) -> int:
    """The image size by the columns and rows of the images; see `reference`."""
    if len(set(shapes)) == 1 and shapes[0][0] == shapes[0][1] and 8 <= shapes[0][0] <= 64:
        return shapes[0][0]
    middle = statistics.median(map(min, shapes)) if shapes else 0
    return max(32, int(min(middle, 224)) // 32 * 32)


def _open(name: str, planned: FolderRef, info: Info, where: Where, device: torch.device) -> Dataset:
    """`Info.open`; ConfigError if the images are no longer those that were planned with."""
    found, there, _ = _read(Path(name.removeprefix(PREFIX)), where)
    if there != planned:
        raise ConfigError(
            f"{name} has changed since it was planned with: its images have SHA-256 {there.sha256[:16]}..., "
            f"but {planned.sha256[:16]}... was planned. Restore them, or plan anew."
        )

    def read() -> Contents:
        return Contents(*(decoded(part, info.image_size, where.skip_corrupt) for part in (found.train, found.test)))

    made = prepare("folder", [there.sha256, info.image_size, where.skip_corrupt], where, read)
    # A channel in which all images are alike is only shifted.
    std = tuple(value or 1.0 for value in made.std)
    known = replace(info, mean=info.mean or made.mean, std=info.std or std)
    return in_memory(known, made.arrays, device, made.skipped)
