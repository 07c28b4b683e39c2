"""Reading large CSV tables by column, as Arrow arrays of text."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from morphoray.errors import DataError
from morphoray.storage import Storage

_BLOCK = 8 * 2**20  # bytes read at a time


def read_columns(uri: str, storage: Storage, names: Sequence[str]) -> pa.Table:
    """The named columns of a CSV with a header, as text; others are skipped. 1 M rows take about a second.

    Raises MissingObjectError without the file, DataError naming a missing column, an empty cell or the row
    that is no CSV.
    """
    text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    blocks = csv.ReadOptions(block_size=_BLOCK)
    try:
        with storage.open(uri) as file:
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
    for name in names:
        empty = np.flatnonzero(pc.equal(pc.utf8_trim_whitespace(table[name]), "").to_numpy())
        if empty.size:
            raise DataError(f"{uri} row {empty[0] + 1}: column {name!r} is empty ({empty.size} such rows)")
    return table


def repeated(column: pa.ChunkedArray) -> list[str]:
    """The values that a column has more than once, in order."""
    counts = column.value_counts()
    values: list[str] = counts.filter(pc.greater(counts.field(1), 1)).field(0).to_pylist()
    return values
