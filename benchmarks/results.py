"""What benchmarks have measured, as Parquet: the page of docs/performance.md is made of it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).parent / "results"
Row = dict[str, Any]  # plain numbers and texts


class Result(NamedTuple):
    """The rows of one benchmark, and on what and when they were measured."""

    rows: list[Row]
    machine: str


def save(name: str, rows: Sequence[Row], machine: str, folder: Path = FOLDER) -> None:
    """Write `<folder>/<name>.parquet`."""
    table = pa.Table.from_pylist(list(rows)).replace_schema_metadata({"machine": machine})
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    (folder / f"{name}.parquet").write_bytes(buffer.getvalue())


def load(name: str, folder: Path = FOLDER) -> Result | None:
    """What was saved last; None if nothing was."""
    path = folder / f"{name}.parquet"
    if not path.exists():
        return None
    table = pq.read_table(path)
    return Result(table.to_pylist(), (table.schema.metadata or {})[b"machine"].decode())
