"""Images unpacked, decoded and resized once, into files that all processes of a machine map into memory.

`<cache>/<set>-<key>/` holds train_images.npy (uint8 [N, H, W, C]), train_labels.npy (int64 [N]), the same of the test
split, and meta.json. The key is a hash of what the pixels depend on, so that a changed source is prepared anew; a
folder that is no longer needed may be deleted.
"""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdtrain.config import ConfigError, Where, digest
from kdtrain.data.dataset import Dataset, Info
from kdtrain.data.images import Chunk, Pixels
from kdtrain.data.memory import Arrays, in_memory

FORMAT = 1  # of the folder, and of the way the pixels come about
PARTS = ("train", "test")


class Contents(NamedTuple):
    """A data set as it is read from its sources."""

    train: Iterable[Chunk]
    test: Iterable[Chunk]


class Prepared(NamedTuple):
    """A prepared data set: images mapped, not read."""

    arrays: Arrays  # images channels last in memory; copied on write
    mean: tuple[float, ...]  # of each channel of the training images, for pixels in 0..1
    std: tuple[float, ...]  # with the divisor N
    skipped: tuple[str, ...]  # the corrupt images that were left out


def cache(where: Where) -> Path:
    """The folder of all that is prepared."""
    return Path(where.cache) if where.cache is not None else Path(where.data_root) / "prepared"


def signature(files: Iterable[Path | str]) -> str:
    """A hash of the paths, sizes and times of change of files; OSError if one is missing."""
    found = [(os.path.abspath(file), os.stat(file)) for file in files]
    return digest([[path, stat.st_size, stat.st_mtime_ns] for path, stat in found])


def opener(
    find: Callable[[Where], list[Path]], read: Callable[[Info, Where], Contents]
) -> Callable[[Info, Where, torch.device], Dataset]:
    """`Info.open` of a set prepared by `read` from the files that `find` names.

    `find` raises ConfigError if a file is missing and cannot be fetched; `read`, if one is damaged.
    """

    def open_(info: Info, where: Where, device: torch.device) -> Dataset:
        sources = signature(find(where))
        made = prepare(info.name, [sources, info.image_size, where.skip_corrupt], where, lambda: read(info, where))
        return in_memory(info, made.arrays, device, made.skipped)

    return open_


def prepare(name: str, identity: Any, where: Where, read: Callable[[], Contents]) -> Prepared:
    """What `read` gives, prepared once for each `identity` (JSON: all that the images depend on).

    Several processes may call it at once: one prepares, the others wait.
    ConfigError if `read` raises it or if the cache cannot be written.
    """
    folder = cache(where) / f"{name}-{digest([FORMAT, identity])}"
    found = _mapped(folder)
    if found is None:
        with writing(where), locked(cache(where) / f".{name}.lock"):
            found = _mapped(folder)
            if found is None:
                _make(folder, read())
                found = _mapped(folder)
    assert found is not None
    return found


@contextmanager
def writing(where: Where) -> Iterator[None]:
    """OSErrors of the block as the ConfigError that the cache cannot be written; the block makes files only there."""
    try:
        cache(where).mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(
            f"prepared images cannot be written to {cache(where).absolute()} ({error.strerror or error}). "
            "Set `cache` under [run] to a folder that has room for them."
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that dies is free."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mapped(folder: Path) -> Prepared | None:
    """The prepared set, or None if it is not there or not whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if any((folder / file).stat().st_size != size for file, size in meta["bytes"].items()):
            return None
        loaded = (np.load(folder / f"{part}.npy", mmap_mode="c") for part in Arrays._fields)
        images, labels, test_images, test_labels = (torch.from_numpy(array) for array in loaded)
        arrays = Arrays(images.permute(0, 3, 1, 2), labels, test_images.permute(0, 3, 1, 2), test_labels)
        return Prepared(arrays, tuple(meta["mean"]), tuple(meta["std"]), tuple(meta["skipped"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make(folder: Path, contents: Contents) -> None:
    """Written under another name first, so that a folder of this name is whole."""
    partial = folder.with_name(f".{folder.name}")
    for old in (partial, folder):  # left by a process that died, or damaged
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    try:
        train, test = (_write(partial, part, chunks) for part, chunks in zip(PARTS, contents, strict=True))
    except BaseException:
        shutil.rmtree(partial)
        raise
    mean, std = train.statistics()
    meta = {
        "train": train.images,
        "test": test.images,
        "mean": mean,
        "std": std,
        "skipped": train.skipped + test.skipped,
        "bytes": {path.name: path.stat().st_size for path in sorted(partial.iterdir())},
    }
    (partial / "meta.json").write_text(json.dumps({"format": FORMAT, **meta}, indent=1))
    partial.rename(folder)


class _Written(NamedTuple):
    images: int
    pixels: int  # of each channel
    sums: list[int]  # of each channel
    squares: list[int]
    skipped: list[str]

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and population standard deviation of each channel for pixels in 0..1, from exact whole numbers."""
        n = self.pixels
        pairs = list(zip(self.sums, self.squares, strict=True))
        mean = [total / (255 * n) for total, _ in pairs]
        return mean, [math.sqrt(n * square - total**2) / (255 * n) for total, square in pairs]


def _write(folder: Path, part: str, chunks: Iterable[Chunk]) -> _Written:
    """Appends chunk by chunk: a full disk is then an error, where writing to a map would kill the process."""
    labels, skipped, histogram, shape = list[NDArray[np.int64]](), list[str](), np.zeros((1, 256), np.int64), (0, 0, 0)
    with (folder / f"{part}_images.npy").open("wb") as file:
        for chunk in chunks:
            if not labels:
                shape = chunk.images.shape[1:]
                _header(file, (0, *shape))
            file.write(chunk.images.tobytes())
            labels.append(chunk.labels)
            skipped += chunk.skipped
            histogram = histogram + _histogram(chunk.images)
        count = sum(map(len, labels))
        file.seek(0)
        _header(file, (count, *shape))  # numpy leaves room in a header for a longer first axis
    np.save(folder / f"{part}_labels.npy", np.concatenate(labels))
    values = np.arange(256)
    sums, squares = (histogram @ values).tolist(), (histogram @ values**2).tolist()
    return _Written(count, count * math.prod(shape[:2]), sums, squares, skipped)


def _header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _histogram(images: Pixels) -> NDArray[np.int64]:
    """How often each value occurs in each channel: [C, 256]."""
    channels = (images[..., channel].ravel() for channel in range(images.shape[3]))
    return np.stack([np.bincount(channel, minlength=256) for channel in channels])
