"""Files of a folder on any file system that pyarrow opens: whole or not there, and errors that name them."""

import fcntl
import hashlib
import os
import posixpath
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

_SUFFIXES = (".parquet", ".pt", ".safetensors", ".toml", ".json")  # of what a crash may leave beside them, none


class StoreError(RuntimeError):
    """A result file cannot be read or written; the message names it."""


class Folder:
    """A folder `name` in `parent`, which is a folder or a URI such as s3://bucket/prefix."""

    def __init__(self, parent: str, name: str) -> None:
        self.parent, self.name = parent, name
        self._fs, root = open_root(parent)
        self._root = posixpath.join(root, name)

    @property
    def url(self) -> str:
        """The folder as a person would name it."""
        return posixpath.join(self.parent, self.name)

    @property
    def is_local(self) -> bool:
        """Whether `path` gives paths of this machine."""
        return isinstance(self._fs, fs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        """The path of a file of this folder within its file system."""
        return posixpath.join(self._root, *parts)

    def probe(self) -> None:
        """Raise StoreError unless a file can be written here and read back."""
        name = f".probe-{uuid.uuid4().hex}"
        self.write_bytes(b"kdsweep", name)
        if self.read_bytes(name) != b"kdsweep":
            raise StoreError(f"a file written to {self.parent} does not read back.")
        self.delete(name)

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write one file so that readers see all of it or none, also after a crash of the machine."""
        path = self.path(*parts)
        with told("write", path):
            if self.is_local:
                _write_whole(data, path)
            else:  # object stores show an object when its upload has ended
                with self._fs.open_output_stream(path) as stream:
                    stream.write(data)

    def read_bytes(self, *parts: str) -> bytes | None:
        """The content of a file, or None if there is none."""
        path = self.path(*parts)
        with suppress(FileNotFoundError), told("read", path), self._fs.open_input_stream(path) as stream:
            return bytes(stream.read())
        return None

    def delete(self, *parts: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError), told("remove", self.path(*parts)):
            self._fs.delete_file(self.path(*parts))

    def exists(self, *parts: str) -> bool:
        """Whether there is such a file."""
        with told("look at", self.path(*parts)):
            return bool(self._fs.get_file_info(self.path(*parts)).type == fs.FileType.File)

    def files(self, *parts: str) -> dict[str, fs.FileInfo]:
        """The files of a folder in this one by their names without suffix; of a folder that is not there, none."""
        with told("list", self.path(*parts)):
            infos = self._fs.get_file_info(fs.FileSelector(self.path(*parts), allow_not_found=True))
        files = (info for info in infos if info.base_name.endswith(_SUFFIXES) and info.type == fs.FileType.File)
        return {posixpath.splitext(info.base_name)[0]: info for info in files}

    @contextmanager
    def alone(self, *parts: str) -> Iterator[None]:
        """Wait until nobody else holds the lock file and hold it; whoever dies lets go. Object stores have no locks."""
        if not self.is_local:
            yield
            return
        path = self.path(*parts)
        with told("write", path):
            os.makedirs(posixpath.dirname(path), exist_ok=True)
            lock = open(path, "wb")  # noqa: SIM115
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def delete_unless_rewritten(self, info: fs.FileInfo) -> None:
        """Remove a file if it still is what `info` says.

        Object stores cannot do that in one step: there, what is written between the look and the removal is lost.
        """
        with suppress(FileNotFoundError), told("remove", info.path):
            if not _same(self._fs.get_file_info(info.path), info):
                return
            if not self.is_local:
                self._fs.delete_file(info.path)
                return
            aside = f"{info.path}.{uuid.uuid4().hex}.tmp"
            os.rename(info.path, aside)  # out of the reach of writers, then looked at once more
            if not _same(self._fs.get_file_info(aside), info):
                with suppress(FileExistsError):  # there is a still newer one
                    os.link(aside, info.path)
            os.unlink(aside)


def local_file(source: str) -> str:
    """A local path of a file that may be a URI: a copy that is fetched again when the file has changed."""
    if "://" not in source:
        return str(Path(source).expanduser())
    filesystem, path = open_root(source)
    with told("read", source):
        info = filesystem.get_file_info(path)
        if info.type != fs.FileType.File:
            raise StoreError(f"there is no file {source}.")
        if isinstance(filesystem, fs.LocalFileSystem):
            return path
        version = hashlib.sha256(f"{source} {info.size} {info.mtime_ns}".encode()).hexdigest()[:16]
        copy = Path(tempfile.gettempdir()) / "kdsweep" / "files" / f"{version}-{info.base_name}"
        if not copy.exists():
            with filesystem.open_input_stream(path) as stream:
                _write_whole(bytes(stream.read()), str(copy))
        return str(copy)


def open_root(results: str) -> tuple[fs.FileSystem, str]:
    """The file system of a folder or a URI, and the path within it."""
    if "://" not in results:
        return fs.LocalFileSystem(), str(Path(results).expanduser().absolute())
    try:
        filesystem, root = fs.FileSystem.from_uri(results)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"cannot open {results}: {reason(error)}.") from error
    return filesystem, root


def _write_whole(data: bytes, path: str) -> None:
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    os.makedirs(posixpath.dirname(path), exist_ok=True)
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # else a crash of the machine may leave the new name with no content
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def told(verb: str, path: str) -> Iterator[None]:
    """Errors of the file system as a StoreError that names the path; a missing file stays FileNotFoundError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and verb != "write":
            raise
        raise StoreError(f"cannot {verb} {path}: {reason(error)}.") from error


def reason(error: Exception) -> str:
    """What an error says, in a line."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).splitlines()[0].rstrip(".")


def _same(one: fs.FileInfo, other: fs.FileInfo) -> bool:
    """Whether a file has not been rewritten between these two looks at it."""
    return (one.size, one.mtime_ns) == (other.size, other.mtime_ns)
