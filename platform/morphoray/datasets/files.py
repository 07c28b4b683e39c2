"""Whether the files that SITES names are there, by one listing a folder."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.errors import DataError
from morphoray.storage import Storage

BLOCK = 65_536  # rows looked at together: with 6 files each some 40 MB of names
_LISTINGS = 8  # folders listed at once; each waits on object storage


class Missing(NamedTuple):
    """A row that lacks files: the places in its column, the first URI, why its folder can't be read."""

    row: int
    places: list[int]
    uri: str
    problem: str | None = None


def missing_files(sites: pa.Table, storage: Storage, column: str = "channel_uris") -> Iterator[Missing]:
    """The rows that lack a file of `column`, in order.

    A damaged zip archive has none, and is the problem of its rows.
    """
    listed: dict[str, pa.Array] = {}
    problems: dict[str, str] = {}

    def names(folder: str) -> list[str]:
        try:
            return [uri for uri in storage.list_files(folder) if _is_text(uri)]
        except DataError as error:
            problems[folder] = str(error)
            return []

    start = 0
    for batch in sites.select([column]).to_batches(max_chunksize=BLOCK):
        lists = batch.column(0)
        files = lists.flatten()
        here = pc.replace_substring_regex(files, r"/[^/]*$", "").unique().to_pylist()
        new = [folder for folder in here if folder not in listed]
        with ThreadPoolExecutor(_LISTINGS) as threads:
            for folder, found in zip(new, threads.map(names, new), strict=True):
                listed[folder] = pa.array(found, pa.string())
        there = pc.is_in(files, pa.chunked_array([listed[folder] for folder in here], pa.string()))
        for lost in _absent(lists, files, there.to_numpy(zero_copy_only=False), start):
            yield lost._replace(problem=problems.get(lost.uri.rpartition("/")[0]))
        start += len(batch)


def _is_text(name: str) -> bool:
    """Whether a file's name is Unicode: on a disk it is any bytes, and then no row can name it."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _absent(
    lists: pa.ListArray, files: pa.StringArray, there: npt.NDArray[np.bool_], start: int
) -> Iterator[Missing]:
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    bounds = np.cumsum([0, *lengths.to_numpy(zero_copy_only=False)])
    lost = np.flatnonzero(~there)
    rows = np.searchsorted(bounds, lost, side="right") - 1
    for row in np.unique(rows):
        mine = lost[slice(*np.searchsorted(rows, [row, row + 1]))]
        places = [int(at - bounds[row]) for at in mine]
        yield Missing(start + int(row), places, files[int(mine[0])].as_py())


def lists_of(columns: Sequence[pa.Array]) -> pa.ListArray:
    """Arrow lists whose n-th items are the n-th of `columns`, arrays of one length."""
    rows, items = len(columns[0]), len(columns)
    order = np.arange(rows * items).reshape(items, rows).T.ravel()
    offsets = pa.array(np.arange(rows + 1) * items, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.concat_arrays(columns).take(pa.array(order)))
