"""Tables of any size by column, as Arrow arrays of text: CSV, gzipped CSV and Parquet, from any storage."""

import zlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from morphoray.errors import DataError
from morphoray.storage import Storage

BLOCK_BYTES = 4 * 2**20  # of CSV text parsed at a time
BATCH_ROWS = 65_536  # of Parquet
MOST_BYTES = 2**30  # of a table that is held whole


def text_batches(
    uri: str, storage: Storage, columns: Collection[str], required: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """The rows of a table as trimmed strings, "" for null; a column that it lacks is absent.

    A table of any size takes the memory of a batch. At least one batch comes, which may be empty. Raises
    DataError when the file is no such table, lacks a `required` column or has one of `columns` twice,
    MissingObjectError without it.
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
                names = batch.schema.names
                if twice := [column for column in columns if names.count(column) > 1]:
                    raise DataError(f"{uri}: found columns {names}, expected {twice} once")
                if missing := [column for column in required if column not in names]:
                    raise DataError(f"{uri}: found columns {names}, expected also {missing}")
                yield pa.table({column: _text(batch, column) for column in columns if column in names})
    except (pa.ArrowException, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        kind = "Parquet table" if name.endswith((".parquet", ".pq")) else "CSV table in UTF-8"
        raise DataError(f"{uri}: not a {kind} ({error})") from None


def _parquet(file: object, columns: Collection[str]) -> Iterator[pa.RecordBatch | pa.Table]:
    """An empty table with all of the file's columns, then the rows of those wanted."""
    with pq.ParquetFile(file, pre_buffer=True) as table:
        yield table.schema_arrow.empty_table()
        found = [name for name in table.schema_arrow.names if name in columns]
        yield from table.iter_batches(BATCH_ROWS, columns=found)


def _csv(source: object) -> Iterator[pa.RecordBatch]:
    """The header is read as a row of data: it makes every column text, whatever the file's types."""
    options = csv.ReadOptions(block_size=BLOCK_BYTES, autogenerate_column_names=True, use_threads=False)
    names: list[str] | None = None
    for batch in csv.open_csv(source, read_options=options):
        if names is None and batch.num_rows:
            header = [column[0].as_py() or "" for column in batch]
            names = [(name.decode() if isinstance(name, bytes) else str(name)).strip() for name in header]
            batch = batch.slice(1)
        if names is not None:
            yield batch.rename_columns(names)


def _text(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    column = batch.column(batch.schema.names.index(name))
    return pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), ""))


def read_columns(
    uri: str, storage: Storage, names: Sequence[str], may_be_empty: Sequence[str] = ()
) -> pa.Table:
    """The named columns of a table, as trimmed text without empty cells.

    1 M rows of CSV take half a second. Raises MissingObjectError without the file, DataError naming a missing
    column, an empty cell of a column not in `may_be_empty`, or the row that is no CSV.
    """
    batches, size = [], 0
    for batch in text_batches(uri, storage, names, required=names):
        size += batch.nbytes
        if size > MOST_BYTES:
            raise DataError(f"{uri}: more than {MOST_BYTES} bytes of text, too many for such a table")
        batches.append(batch)
    table = pa.concat_tables(batches)
    if not len(table):
        raise DataError(f"{uri}: no rows below the header")
    for name in [name for name in names if name not in may_be_empty]:
        empty = np.flatnonzero(pc.equal(table[name], "").to_numpy())
        if empty.size:
            raise DataError(f"{uri} row {empty[0] + 1}: column {name!r} is empty ({empty.size} such rows)")
    return table


def rows_where(
    uri: str, storage: Storage, columns: Sequence[str], wanted: Collection[str]
) -> Iterator[tuple[str, ...]]:
    """The rows of a table whose first column is one of `wanted`. Raises DataError naming a missing column."""
    values = pa.array(sorted(wanted), pa.string())
    for batch in text_batches(uri, storage, columns, required=columns):
        rows = batch.filter(pc.is_in(batch[columns[0]], values))
        yield from zip(*(rows[name].to_pylist() for name in columns), strict=True)


def repeated(column: pa.ChunkedArray) -> list[str]:
    """The values that a column has more than once, in order."""
    counts = column.value_counts()
    values: list[str] = counts.filter(pc.greater(counts.field(1), 1)).field(0).to_pylist()
    return values
