"""Tables of any size as batches of text columns: CSV, gzipped CSV and Parquet, from any storage."""

import zlib
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from morphoray.errors import DataError
from morphoray.storage import Storage

BLOCK_BYTES = 4 * 2**20  # of CSV text parsed at a time
BATCH_ROWS = 65_536  # of Parquet


def text_batches(uri: str, storage: Storage, columns: Collection[str]) -> Iterator[pa.Table]:
    """The rows of a table as trimmed strings, "" for null; a column that it lacks is absent.

    A table of any size takes the memory of a batch. At least one batch comes, which may be empty. Raises
    DataError when the file is no such table, MissingObjectError without it.
    """
    name = uri.lower()
    try:
        with storage.open(uri) as file:
            if name.endswith((".parquet", ".pq")):
                batches = _parquet(file, columns)
            else:
                source = pa.PythonFile(file, "r")
                batches = _csv(pa.CompressedInputStream(source, "gzip") if name.endswith(".gz") else source)
            for batch in batches:
                found = [column for column in columns if column in batch.schema.names]
                yield pa.table({column: _text(batch, column) for column in found})
    except (pa.ArrowException, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        kind = "Parquet" if name.endswith((".parquet", ".pq")) else "CSV"
        raise DataError(f"{uri}: not a {kind} table ({error})") from None


def _parquet(file: object, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file, pre_buffer=True) as table:
        found = [name for name in table.schema_arrow.names if name in columns]
        yield table.schema_arrow.empty_table().select(found)
        yield from table.iter_batches(BATCH_ROWS, columns=found)


def _csv(source: object) -> Iterator[pa.RecordBatch]:
    """The header is read as a row of data: it makes every column text, whatever the file's types."""
    options = csv.ReadOptions(block_size=BLOCK_BYTES, autogenerate_column_names=True, use_threads=False)
    names: list[str] | None = None
    for batch in csv.open_csv(source, read_options=options):
        if names is None and batch.num_rows:
            names = [str(column[0].as_py() or "").strip() for column in batch]
            batch = batch.slice(1)
        if names is not None:
            yield batch.rename_columns(names)


def _text(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    column = batch.column(batch.schema.names.index(name))
    return pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), ""))


def rows_where(
    uri: str, storage: Storage, columns: Sequence[str], wanted: Collection[str]
) -> Iterator[tuple[str, ...]]:
    """The rows of a table whose first column is one of `wanted`. Raises DataError naming a missing column."""
    values = pa.array(sorted(wanted), pa.string())
    for batch in text_batches(uri, storage, columns):
        if missing := [name for name in columns if name not in batch.column_names]:
            raise DataError(f"{uri}: no column {', '.join(missing)}")
        rows = batch.filter(pc.is_in(batch[columns[0]], values))
        yield from zip(*(rows[name].to_pylist() for name in columns), strict=True)
