"""The one writer and reader of result files, on any file system that pyarrow opens.

results/<sweep>/spec.toml              the spec of the last run; specs/ has all that the sweep was run with
results/<sweep>/trials/<id>.parquet    one row, written last: it exists when the trial has ended
results/<sweep>/epochs/<id>.parquet    one row an epoch, rewritten whole after each
results/<sweep>/trials/merged/...      the same rows of many trials in one file, likewise epochs/merged/
results/<sweep>/checkpoints/<id>.pt    state of a trial under way
results/<sweep>/asked/<id>.json        a point of a search under way
results/teachers/...                   the same for teachers, and models/<id>.safetensors

A trial's own file is newer than what a merged one has of it; of merged files the highest number is the newest. One is
written before anything that it replaces is removed, and looked for after the own files: so readers miss no trial, and
who is stopped halfway loses none.
"""

import os
import posixpath
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from sweeps.files import Folder, StoreError, local_file, open_root, told
from sweeps.parquet import decoded, encoded, joined, selected
from sweeps.schema import EPOCHS, TRIALS

__all__ = ["TEACHERS", "Store", "StoreError", "local_file", "stores", "sweeps"]

TEACHERS = "teachers"
MERGED = "merged"
ATTEMPTS = 100  # of reading what is being merged
ID = pc.field("trial_id")
SCHEMAS = {"trials": TRIALS, "epochs": EPOCHS}
Row = Mapping[str, Any]
Files = dict[str, fs.FileInfo]  # by name: of own files the trials' ids
T = TypeVar("T")


class Store(Folder):
    """The result files of one sweep. `results` is a folder or a URI such as s3://bucket/prefix."""

    def __init__(self, results: str, sweep: str) -> None:
        super().__init__(results, sweep)
        self.results, self.sweep = results, sweep

    def write_trial(self, row: Row) -> None:
        """Write the row of an ended trial."""
        self._write_rows([row], "trials", row["trial_id"])

    def write_epochs(self, trial_id: str, rows: Iterable[Row]) -> None:
        """Write the rows of all epochs that a trial has done."""
        self._write_rows(rows, "epochs", trial_id)

    def read_trials(self, ids: Iterable[str] | None = None, columns: Collection[str] | None = None) -> pa.Table:
        """The rows of ended trials (of those named; of these columns), sorted by trial_id."""
        return self._read("trials", ids, columns)

    def statuses(self, ids: Iterable[str]) -> dict[str, str]:
        """How those of the ids' trials that have ended did, by id."""
        rows = self.read_trials(ids, ["trial_id", "status"]).to_pylist()
        return {row["trial_id"]: row["status"] for row in rows}

    def read_epochs(self, ids: Iterable[str] | None = None, columns: Collection[str] | None = None) -> pa.Table:
        """The rows of epochs done (by the trials named; of these columns), also of trials under way.

        Sorted by trial_id, those of a trial as they were written.
        """
        return self._read("epochs", ids, columns)

    def ids(self, kind: str) -> set[str]:
        """The ids of the trials of which there is something in `kind` ("trials", "epochs", "checkpoints")."""
        return _settled(lambda: self._ids(kind), self.path(kind))

    def ages(self, kind: str) -> dict[str, float]:
        """For each id with a file of its own in `kind`, the time of its last change (seconds since 1970).

        Trials under way have one; what has been merged is of trials that have ended.
        """
        return {name: info.mtime.timestamp() for name, info in self.files(kind).items()}

    def write_merged(self, kind: str, table: pa.Table) -> None:
        """Write the rows of many trials as one file, which is newer than those that are there."""
        self._write_merged(kind, table.sort_by("trial_id"), self.files(kind, MERGED))

    def merge(self, kind: str, ids: Collection[str]) -> int:
        """Move what these trials have in files of their own into the one merged file; how many had any.

        What is written anew meanwhile stays. Of several that do this at once, one waits for the other.
        """
        with self.alone(f".{kind}.lock"):
            return _settled(lambda: self._merge(kind, ids), self.path(kind))

    def _write_rows(self, rows: Iterable[Row], kind: str, trial_id: str) -> None:
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMAS[kind])
        self.write_bytes(encoded(table), kind, f"{trial_id}.parquet")

    def _write_merged(self, kind: str, table: pa.Table, older: Iterable[str]) -> None:
        number = 1 + max((int(name.partition("-")[0]) for name in older), default=0)
        # Nobody can write the same name, where there are no locks.
        self.write_bytes(encoded(table), kind, MERGED, f"{number:08d}-{uuid.uuid4().hex[:8]}.parquet")

    def _ids(self, kind: str) -> set[str]:
        own, merged = self._listed(kind)
        return set(own).union(*(self._merged_ids(kind, info) for info in merged.values()))

    def _merged_ids(self, kind: str, info: fs.FileInfo) -> list[str]:
        schema = pa.schema([SCHEMAS[kind].field("trial_id")])
        found: list[str] = selected(self._fs, info.path, schema, None)["trial_id"].unique().to_pylist()
        return found

    def _listed(self, kind: str) -> tuple[Files, Files]:
        """The trials' own files, then the merged ones: whoever merges writes these before it removes those."""
        return self.files(kind), self.files(kind, MERGED) if kind in SCHEMAS else {}

    def _read(self, kind: str, ids: Iterable[str] | None, columns: Collection[str] | None) -> pa.Table:
        whole = SCHEMAS[kind]
        names = whole.names if columns is None else list(columns)
        schema = pa.schema([whole.field(name) for name in {"trial_id": None, **dict.fromkeys(names)}], whole.metadata)
        wanted = None if ids is None else set(ids)
        table = _settled(lambda: self._collected(kind, schema, *self._listed(kind), wanted), self.path(kind))
        return table.select(names)

    def _collected(
        self, kind: str, schema: pa.Schema, own: Files, merged: Files, wanted: set[str] | None = None
    ) -> pa.Table:
        """The newest rows of each trial (of those wanted) in these files. FileNotFoundError if one is gone."""
        names = sorted(own if wanted is None else own.keys() & wanted)
        tables = [joined((self._own(kind, schema, name) for name in names), schema)]
        seen = own.keys() | set(tables[0]["trial_id"].to_pylist())  # a file that was not written here may have any
        for name in sorted(merged, reverse=True):
            rows = ~ID.isin(_strings(seen)) if wanted is None else ID.isin(_strings(wanted - seen))
            tables.append(selected(self._fs, merged[name].path, schema, rows))
            if len(merged) > 1:
                seen |= set(tables[-1]["trial_id"].unique().to_pylist())
        tables = [table for table in tables if len(table)]
        if len(tables) == 1:  # which is sorted
            return tables[0]
        return pa.concat_tables(tables).sort_by("trial_id") if tables else schema.empty_table()

    def _own(self, kind: str, schema: pa.Schema, trial_id: str) -> pa.Table:
        parts = kind, f"{trial_id}.parquet"
        data = self.read_bytes(*parts)
        if data is None:
            raise FileNotFoundError(self.path(*parts))
        return decoded(data, schema, self.path(*parts))

    def _merge(self, kind: str, ids: Collection[str]) -> int:
        own, merged = self._listed(kind)
        own = {name: info for name, info in own.items() if name in ids}
        if not own and len(merged) < 2:
            return 0
        self._write_merged(kind, self._collected(kind, SCHEMAS[kind], own, merged), merged)
        for name in merged:
            self.delete(kind, MERGED, f"{name}.parquet")
        for info in own.values():  # last: they win over whatever is merged
            self.delete_unless_rewritten(info)
        return len(own)


def stores(path: str) -> list[Store]:
    """The sweep whose folder this is, or else all sweeps in it, with the teachers' folder."""
    path = path.rstrip("/") if "://" in path else os.path.abspath(os.path.expanduser(path))
    parent, name = posixpath.split(path)
    if not parent.endswith(":") and Store(parent, name).ids("trials"):
        return [Store(parent, name)]
    return [Store(path, each) for each in (*sweeps(path), TEACHERS)]


def sweeps(results: str) -> list[str]:
    """The names of the sweeps that have a folder under `results`, without that of the teachers."""
    filesystem, root = open_root(results)
    with told("list", root):
        infos = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    folders = (info.base_name for info in infos if info.type == fs.FileType.Directory)
    return sorted(name for name in folders if name != TEACHERS and not name.startswith("."))


def _strings(ids: Iterable[str]) -> pa.Array:
    return pa.array(list(ids), pa.string())


def _settled(read: Callable[[], T], path: str) -> T:
    """What `read` returns once none of its files vanishes under it, as they do while others merge them."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError):
            return read()
    raise StoreError(f"the files in {path} change faster than they can be read.")
