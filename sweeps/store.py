"""The one writer and reader of result files, on any file system that pyarrow opens.

results/<sweep>/spec.toml              the spec of the last run; specs/ has all that the sweep was run with
results/<sweep>/trials/<id>.parquet    one row, written last: it exists when the trial has ended
results/<sweep>/epochs/<id>.parquet    one row an epoch, rewritten whole after each
results/<sweep>/checkpoints/<id>.pt    state of a trial under way
results/<sweep>/asked/<id>.json        a point of a search under way
results/teachers/...                   the same for teachers, and models/<id>.safetensors
"""

import hashlib
import io
import os
import posixpath
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from sweeps.schema import EPOCHS, TRIALS

TEACHERS = "teachers"
Row = Mapping[str, Any]


class StoreError(RuntimeError):
    """A result file cannot be read or written; the message names it."""


class Store:
    """The result files of one sweep. `results` is a folder or a URI such as s3://bucket/prefix."""

    def __init__(self, results: str, sweep: str) -> None:
        self.results, self.sweep = results, sweep
        self._fs, root = _filesystem(results)
        self._root = posixpath.join(root, sweep)

    @property
    def url(self) -> str:
        """The sweep's folder as a person would name it."""
        return posixpath.join(self.results, self.sweep)

    @property
    def is_local(self) -> bool:
        """Whether `path` gives paths of this machine."""
        return isinstance(self._fs, fs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        """The path of a file of this sweep within its file system."""
        return posixpath.join(self._root, *parts)

    def probe(self) -> None:
        """Raise StoreError unless a file can be written here and read back."""
        name = f".probe-{uuid.uuid4().hex}"
        self.write_bytes(b"kdsweep", name)
        if self.read_bytes(name) != b"kdsweep":
            raise StoreError(f"a file written to {self.results} does not read back.")
        self.delete(name)

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write one file so that readers see all of it or none, also after a crash of the machine."""
        path = self.path(*parts)
        with _told("write", path):
            if self.is_local:
                _write_local(data, path)
            else:  # object stores show an object when its upload has ended
                with self._fs.open_output_stream(path) as stream:
                    stream.write(data)

    def read_bytes(self, *parts: str) -> bytes | None:
        """The content of a file, or None if there is none."""
        path = self.path(*parts)
        with suppress(FileNotFoundError), _told("read", path), self._fs.open_input_stream(path) as stream:
            return bytes(stream.read())
        return None

    def delete(self, *parts: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError), _told("remove", self.path(*parts)):
            self._fs.delete_file(self.path(*parts))

    def exists(self, *parts: str) -> bool:
        """Whether there is such a file."""
        with _told("look at", self.path(*parts)):
            return bool(self._fs.get_file_info(self.path(*parts)).type == fs.FileType.File)

    def write_trial(self, row: Row) -> None:
        """Write the row of an ended trial."""
        self._write_table([row], TRIALS, "trials", f"{row['trial_id']}.parquet")

    def write_epochs(self, trial_id: str, rows: Iterable[Row]) -> None:
        """Write the rows of all epochs that a trial has done."""
        self._write_table(rows, EPOCHS, "epochs", f"{trial_id}.parquet")

    def read_trials(self, ids: Iterable[str] | None = None) -> pa.Table:
        """The rows of ended trials (of those named), sorted by trial_id."""
        return self._read(TRIALS, "trials", ids)

    def statuses(self, ids: Iterable[str]) -> dict[str, str]:
        """How those of the ids' trials that have ended did, by id."""
        rows = self.read_trials(ids).select(["trial_id", "status"]).to_pylist()
        return {row["trial_id"]: row["status"] for row in rows}

    def read_epochs(self, ids: Iterable[str] | None = None) -> pa.Table:
        """The rows of epochs done (by the trials named), also of trials under way."""
        return self._read(EPOCHS, "epochs", ids)

    def ids(self, kind: str) -> set[str]:
        """The ids of the trials that have a file in `kind` ("trials", "epochs", "checkpoints")."""
        return set(self._files(kind))

    def ages(self, kind: str) -> dict[str, float]:
        """For each id with a file in `kind`, the time of its last change (seconds since 1970)."""
        return {name: info.mtime.timestamp() for name, info in self._files(kind).items()}

    def _files(self, kind: str) -> dict[str, fs.FileInfo]:
        with _told("list", self.path(kind)):
            infos = self._fs.get_file_info(fs.FileSelector(self.path(kind), allow_not_found=True))
        suffixes = (".parquet", ".pt", ".safetensors", ".toml", ".json")
        files = (info for info in infos if info.base_name.endswith(suffixes))
        return {posixpath.splitext(info.base_name)[0]: info for info in files}

    def _write_table(self, rows: Iterable[Row], schema: pa.Schema, *parts: str) -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), buffer)
        self.write_bytes(buffer.getvalue(), *parts)

    def _read(self, schema: pa.Schema, kind: str, ids: Iterable[str] | None) -> pa.Table:
        wanted = self.ids(kind) if ids is None else self.ids(kind) & set(ids)
        tables = [self._read_table(schema, kind, f"{name}.parquet") for name in sorted(wanted)]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def _read_table(self, schema: pa.Schema, *parts: str) -> pa.Table:
        data = self.read_bytes(*parts)
        if data is None:  # deleted between listing and reading
            return schema.empty_table()
        try:
            table = pq.read_table(pa.BufferReader(data))
        except pa.ArrowInvalid as error:
            raise StoreError(
                f"{self.path(*parts)} is not a whole Parquet file ({_reason(error)}); "
                "delete it and run the sweep again to have that trial back."
            ) from error
        missing = [name for name in schema.names if name not in table.column_names]
        if lost := [name for name in missing if not schema.field(name).nullable]:
            raise StoreError(f"{self.path(*parts)} lacks the columns {', '.join(sorted(lost))}.")
        for name in missing:  # added since the file was written, for what was not there then
            table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
        return table.select(schema.names).cast(schema)


def sweeps(results: str) -> list[str]:
    """The names of the sweeps that have a folder under `results`, without that of the teachers."""
    filesystem, root = _filesystem(results)
    with _told("list", root):
        infos = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    folders = (info.base_name for info in infos if info.type == fs.FileType.Directory)
    return sorted(name for name in folders if name != TEACHERS and not name.startswith("."))


def local_file(source: str) -> str:
    """A local path of a file that may be a URI: a copy that is fetched again when the file has changed."""
    if "://" not in source:
        return str(Path(source).expanduser())
    filesystem, path = _filesystem(source)
    with _told("read", source):
        info = filesystem.get_file_info(path)
        if info.type != fs.FileType.File:
            raise StoreError(f"there is no file {source}.")
        if isinstance(filesystem, fs.LocalFileSystem):
            return path
        version = hashlib.sha256(f"{source} {info.size} {info.mtime_ns}".encode()).hexdigest()[:16]
        copy = Path(tempfile.gettempdir()) / "kdsweep" / "files" / f"{version}-{info.base_name}"
        if not copy.exists():
            with filesystem.open_input_stream(path) as stream:
                _write_local(bytes(stream.read()), str(copy))
        return str(copy)


def _filesystem(results: str) -> tuple[fs.FileSystem, str]:
    if "://" not in results:
        return fs.LocalFileSystem(), str(Path(results).expanduser().absolute())
    try:
        filesystem, root = fs.FileSystem.from_uri(results)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"cannot open {results}: {_reason(error)}.") from error
    return filesystem, root


def _write_local(data: bytes, path: str) -> None:
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
def _told(verb: str, path: str) -> Iterator[None]:
    """Errors of the file system as a StoreError that names the path; a missing file stays FileNotFoundError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and verb != "write":
            raise
        raise StoreError(f"cannot {verb} {path}: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).splitlines()[0].rstrip(".")
