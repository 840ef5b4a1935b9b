"""Tiny ImageNet (200 classes, 64x64; CS231n of Stanford), read as downloaded: the zip file, or its folder unpacked."""

import os
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path

from kdtrain.config import ConfigError, Where
from kdtrain.data.dataset import Info
from kdtrain.data.images import Corrupt, Files, decoded, reader
from kdtrain.data.prepared import Contents

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def find(where: Where) -> list[Path]:
    """All files of the folder if there is one, else the zip file; ConfigError if neither is there."""
    folder, archive = Path(where.data_root) / FOLDER, Path(where.data_root) / f"{FOLDER}.zip"
    if folder.is_dir():
        return [folder / name for name in _walk(folder)]
    if where.download and not archive.exists():
        _download(where)
    if not archive.is_file():
        raise ConfigError(
            f"tiny_imagenet is missing: neither {folder.absolute()} nor {archive.absolute()} is there. "
            f"Set download = true under [data], or put one there (the zip file: {URL})."
        )
    return [archive]


def read(info: Info, where: Where) -> Contents:
    """The training images, and the validation images as the test split, in the order of their names in each class.

    Classes are numbered in the order of their sorted WordNet ids. ConfigError names what is missing or damaged.
    """
    root = Path(where.data_root).absolute() / FOLDER
    files = _unpacked(root) if root.is_dir() else _zipped(root.with_name(f"{FOLDER}.zip"))
    classes = {wnid: label for label, wnid in enumerate(sorted(_lines(files, "wnids.txt")))}
    train, test = _train(files, classes), _val(files, classes)
    return Contents(*(decoded(part, info.image_size, where.skip_corrupt) for part in (train, test)))


def _train(files: Files, classes: dict[str, int]) -> Files:
    """train/<wnid>/images/<wnid>_<i>.JPEG."""
    by_class = defaultdict(list)
    for name in files.names:
        match name.split("/"):
            case ["train", wnid, "images", _]:
                by_class[wnid].append(name)
    if empty := classes.keys() - by_class.keys():
        raise ConfigError(f"tiny_imagenet has no image of class {min(empty)} in {files.root / 'train'}.")
    named = [(name, label) for wnid, label in classes.items() for name in sorted(by_class[wnid])]
    return files._replace(names=[name for name, _ in named], labels=[label for _, label in named])


def _val(files: Files, classes: dict[str, int]) -> Files:
    """val/images/val_<i>.JPEG; val_annotations.txt has a line for each: name, wnid and a box, between tabs."""
    known, named = set(files.names), list[tuple[int, str]]()
    for line in _lines(files, "val/val_annotations.txt"):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in classes or f"val/images/{name}" not in known:
            problem = "names an image that is not there" if wnid in classes else "has no known class"
            raise ConfigError(f"a line of {files.root / 'val/val_annotations.txt'} {problem}: {line!r}.")
        named.append((classes[wnid], f"val/images/{name}"))
    named.sort()
    return files._replace(names=[name for _, name in named], labels=[label for label, _ in named])


def _lines(files: Files, name: str) -> list[str]:
    if name not in files.names:
        raise ConfigError(f"tiny_imagenet is incomplete: {files.root / name} is missing.")
    try:
        lines = files.read(name).decode().splitlines()
    except (Corrupt, UnicodeDecodeError) as error:
        raise ConfigError(f"{files.root / name} is damaged ({error}).") from error
    if not any(lines):
        raise ConfigError(f"{files.root / name} is empty.")
    return [line for line in lines if line]


def _unpacked(root: Path) -> Files:
    return Files(root, reader(root), _walk(root), [])


def _walk(root: Path) -> list[str]:
    """The files below `root`, by their names with slashes."""
    start = len(str(root)) + 1
    found = (f"{top}/{name}" for top, _, names in os.walk(root) for name in names)
    return sorted(path[start:].replace(os.sep, "/") for path in found)


def _zipped(archive: Path) -> Files:
    try:
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise ConfigError(
            f"{archive} is not a whole zip file ({error}). Put the whole file there, or remove it and set "
            "download = true under [data]."
        ) from error

    def read(name: str) -> bytes:
        try:
            return opened.read(f"{FOLDER}/{name}")
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise Corrupt(str(error)) from error

    names = [name.removeprefix(f"{FOLDER}/") for name in opened.namelist() if name.startswith(f"{FOLDER}/")]
    return Files(archive, read, names, [])


def _download(where: Where) -> None:
    from torchvision.datasets.utils import download_url  # torchvision takes more than a second to import

    try:
        download_url(URL, where.data_root, md5=MD5)
    except (RuntimeError, OSError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(
            f"tiny_imagenet could not be downloaded ({cause}) to {Path(where.data_root).absolute()}. "
            f"Put the zip file there: {URL}."
        ) from error
