"""Reading large CSV tables by column, as Arrow arrays of text."""

import gzip
import io
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from morphoray.errors import DataError
from morphoray.storage import Storage

_BLOCK = 8 * 2**20  # bytes read at a time
_MAX_UNPACKED = 2**29  # bytes of a .gz


def read_columns(
    uri: str, storage: Storage, names: Sequence[str], may_be_empty: Sequence[str] = ()
) -> pa.Table:
    """The named columns of a CSV (.gz: compressed) with a header, as text; others are skipped.

    1 M rows take about a second. Raises MissingObjectError without the file, DataError naming a missing
    column, an empty cell of a column not in `may_be_empty`, or the row that is no CSV.
    """
    text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    blocks = csv.ReadOptions(block_size=_BLOCK)
    try:
        with _unpacked(uri, storage) if uri.endswith(".gz") else storage.open(uri) as file:
            table = csv.read_csv(file, read_options=blocks, convert_options=text)
        found = table.column_names
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataError(f"{uri}: not a CSV table in UTF-8 ({error})") from None
    missing = [name for name in names if found.count(name) != 1]
    if missing:
        raise DataError(f"{uri}: found columns {found}, expected also {missing}, each once")
    if not len(table):
        raise DataError(f"{uri}: no rows below the header")
    table = table.select(list(names))
    for name in [name for name in names if name not in may_be_empty]:
        empty = np.flatnonzero(pc.equal(pc.utf8_trim_whitespace(table[name]), "").to_numpy())
        if empty.size:
            raise DataError(f"{uri} row {empty[0] + 1}: column {name!r} is empty ({empty.size} such rows)")
    return table


def _unpacked(uri: str, storage: Storage) -> BinaryIO:
    packed = io.BytesIO(storage.read_bytes(uri))
    try:
        with gzip.open(packed) as file:
            data = file.read(_MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{uri}: expected gzip-compressed text, but {error}") from None
    if len(data) > _MAX_UNPACKED:
        raise DataError(f"{uri}: more than {_MAX_UNPACKED} bytes unpacked, too many for such a table")
    return io.BytesIO(data)


def repeated(column: pa.ChunkedArray) -> list[str]:
    """The values that a column has more than once, in order."""
    counts = column.value_counts()
    values: list[str] = counts.filter(pc.greater(counts.field(1), 1)).field(0).to_pylist()
    return values
