"""Parquet files <-> tables of the columns that the schema has."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from sweeps.files import StoreError, reason, told

_BATCH = 1000  # tables of a row or a few that are joined at a time: until then each of their columns is a chunk
_GROUP = 2**16  # rows in a row group of a merged file: readers of a few trials skip the others
_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


def encoded(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=_GROUP, write_page_checksum=True)
    return buffer.getvalue()


def decoded(data: bytes, schema: pa.Schema, path: str) -> pa.Table:
    """The columns of `schema` of the Parquet file of one trial; StoreError names `path` if it is none."""
    with _readable(path, "that trial"):
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        missing = _missing(file.schema_arrow, schema, path)
        table = file.read([name for name in schema.names if name not in missing])
    return _conformed(table, schema)


def selected(filesystem: fs.FileSystem, path: str, schema: pa.Schema, rows: pc.Expression | None) -> pa.Table:
    """The columns of `schema` of those rows of a file of many trials; StoreError names the file if it is damaged."""
    with _readable(path, "its trials"):
        file = _FORMAT.make_fragment(path, filesystem)
        missing = _missing(file.physical_schema, schema, path)
        table = file.to_table(columns=[name for name in schema.names if name not in missing], filter=rows)
    return _conformed(table, schema)


def joined(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """Many small tables as one."""
    left = iter(tables)
    batches = iter(lambda: list(islice(left, _BATCH)), [])
    return pa.concat_tables([schema.empty_table(), *(pa.concat_tables(batch).combine_chunks() for batch in batches)])


@contextmanager
def _readable(path: str, lost: str) -> Iterator[None]:
    """Errors of reading a file as a StoreError that names it, with the remedy where it is damaged for certain."""
    try:
        with told("read", path):
            yield
    except pa.ArrowInvalid as error:
        raise StoreError(
            f"{path} is not a whole Parquet file ({reason(error)}); "
            f"delete it and run the sweep again to have {lost} back."
        ) from error


def _missing(found: pa.Schema, wanted: pa.Schema, path: str) -> set[str]:
    """The wanted columns that a file lacks: those that were added since it was written, for what was not there then."""
    missing = set(wanted.names) - set(found.names)
    if lost := [name for name in missing if not wanted.field(name).nullable]:
        raise StoreError(f"{path} lacks the columns {', '.join(sorted(lost))}.")
    return missing


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for name in set(schema.names) - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
    return table.select(schema.names).cast(schema)
