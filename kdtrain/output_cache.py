"""Files of teacher outputs that the processes of a machine share: made by one, mapped into memory by all.

`<folder>/<key>/<number>.safetensors` holds the float16 arrays of one epoch with a checksum. Files are bounded in size
altogether: the one not used for longest goes first, and none that a process maps. All of them may be deleted at any
time. Locks are flock's, so that those of a process that dies are free.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

Arrays = Mapping[str, Tensor]  # float16 [n, ...] by name, on the CPU
Make = Callable[[int, Set[str]], Arrays]  # the arrays of an epoch of these names
SUFFIX, PARTIAL = ".safetensors", ".partial"


class Shared(NamedTuple):
    """The arrays of one epoch. Close it when they are no longer used: until then their file stays."""

    arrays: Arrays
    file: BinaryIO | None = None  # None: the arrays are not mapped

    def close(self) -> None:
        """Let the file go."""
        if self.file is not None:
            self.file.close()


class OutputCache:
    """The files of one key. `limit`: bytes of all files in `folder`, of all keys.

    `problem` says why files cannot be written, once that has failed: what was to be stored is used all the same.
    `full`: whether the last file found no room beside those in use.
    """

    def __init__(self, folder: Path, key: str, limit: int) -> None:
        self.folder, self.own, self.limit = folder, folder / key, limit
        self.problem: str | None = None
        self.full = False

    def get(self, number: int, names: Set[str], make: Make, ahead: Iterable[int] = ()) -> Shared:
        """At least the arrays named, of the epoch `number`: from its file, else from `make`, which is then stored.

        Of several processes one makes them. The others do not idle: they make those of the epochs `ahead` that nobody
        has or makes, and wait when there is none.
        """
        later = (n for n in ahead if not (self.own / f"{n}{SUFFIX}").exists())
        while (found := self._obtain(number, names, make, wait=False)) is None:
            other = None if self.full or self.problem else next(later, None)
            if other is None:
                found = self._obtain(number, names, make, wait=True)
                assert found is not None
                break
            if (made := self._obtain(other, names, make, wait=False)) is not None:
                made.close()
        return found

    def _obtain(self, number: int, names: Set[str], make: Make, wait: bool) -> Shared | None:
        """What `get` returns; None without `wait` if another process makes it."""
        path = self.own / f"{number}{SUFFIX}"
        if (found := _read(path, names)) is not None:
            return found
        with ExitStack() as stack:
            try:
                self.own.mkdir(parents=True, exist_ok=True)
                partial = stack.enter_context(_turn(path.with_suffix(PARTIAL), wait))
            except BlockingIOError:
                return None
            except OSError as error:
                self.problem = _reason(self.folder, error)
                return Shared(make(number, names))
            if (found := _read(path, names)) is not None:  # another process has made it meanwhile
                os.unlink(partial.name)
                return found
            with suppress(FileNotFoundError):  # made for trials that needed less
                names = names | (_names(path) or set())
            arrays = make(number, names)
            try:
                self._store(arrays, partial, path)
            except OSError as error:
                self.problem = _reason(self.folder, error)
                with suppress(OSError):
                    os.unlink(partial.name)
            return Shared(arrays)

    def _store(self, arrays: Arrays, partial: FileIO, path: Path) -> None:
        """Write a file, unless it does not fit beside those in use."""
        data = save({name: array.contiguous() for name, array in arrays.items()}, {"sha256": _checksum(arrays)})
        with _turn(self.folder / ".lock"):  # one writer at a time, so that the files keep to the limit
            self.full = not self._make_room(len(data))
            if self.full:
                os.unlink(partial.name)
                return
            partial.truncate(0)  # what a process that died has left
            left = memoryview(data)
            while left:
                left = left[partial.write(left) :]
            os.rename(partial.name, path)

    def _make_room(self, size: int) -> bool:
        """Delete files not in use, the one not used for longest first, until there is room; whether there is."""
        if size > self.limit:
            return False
        for path in self.folder.glob(f"*/*{PARTIAL}"):  # of processes that died
            _deleted(path)
        found = list[tuple[float, int, Path]]()
        for path in self.folder.glob(f"*/*{SUFFIX}"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        total = sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, path in sorted(found):
            if total + size <= self.limit:
                break
            total -= bytes_ if _deleted(path) else 0
        return total + size <= self.limit


@contextmanager
def _turn(path: Path, wait: bool = True) -> Iterator[FileIO]:
    """The file `path`, made if need be, held by this process alone; BlockingIOError if it would have to wait."""
    while True:
        with open(path, "ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(file, path):  # else whoever held it has renamed or deleted it
                yield file
                return


def _read(path: Path, names: Set[str]) -> Shared | None:
    """The arrays in a file, mapped; None if there is none, or if it is damaged or lacks one of those named."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by Shared.close)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        if _is_at(file, path):
            with safe_open(f"/dev/fd/{file.fileno()}", "pt") as stored:
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
                checksum = (stored.metadata() or {}).get("sha256")
            if names <= arrays.keys() and checksum == _checksum(arrays):
                with suppress(OSError):  # a folder that may only be read
                    os.utime(path)
                return Shared(arrays, file)
    except (OSError, SafetensorError):
        pass
    file.close()
    return None


def _names(path: Path) -> set[str] | None:
    """The names of the arrays in a file; None if it is damaged."""
    with suppress(SafetensorError), safe_open(path, "pt") as stored:
        return set(stored.keys())
    return None


def _deleted(path: Path) -> bool:
    """Delete a file unless a process holds it; whether it is gone."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _is_at(file: FileIO | BinaryIO, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _checksum(arrays: Arrays) -> str:
    """The SHA-256 of names, shapes and contents."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {tuple(array.shape)} ".encode())
        found.update(array.contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _reason(folder: Path, error: OSError) -> str:
    return (
        f"teacher outputs cannot be shared in {folder.absolute()} ({error.strerror or error}): each trial computes its "
        "own. Set `cache` under [run] to a folder that has room for them."
    )
