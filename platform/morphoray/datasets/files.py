"""Whether the files that SITES names are there, by one listing a folder."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.storage import Storage

BLOCK = 65_536  # rows looked at together: with 6 files each some 40 MB of names
_LISTINGS = 8  # folders listed at once; each waits on object storage


def missing_files(
    sites: pa.Table, storage: Storage, column: str = "channel_uris"
) -> Iterator[tuple[int, list[int], str]]:
    """Row, the places in its `column` that are absent, and the first of these URIs; rows in order."""
    listed: dict[str, pa.Array] = {}
    start = 0
    for batch in sites.select([column]).to_batches(max_chunksize=BLOCK):
        lists = batch.column(0)
        files = lists.flatten()
        here = pc.replace_substring_regex(files, r"/[^/]*$", "").unique().to_pylist()
        new = [folder for folder in here if folder not in listed]
        with ThreadPoolExecutor(_LISTINGS) as threads:
            for folder, names in zip(new, threads.map(storage.list_files, new), strict=True):
                listed[folder] = pa.array(names, pa.string())
        there = pc.is_in(files, pa.chunked_array([listed[folder] for folder in here], pa.string()))
        yield from _absent(lists, files, there.to_numpy(zero_copy_only=False), start)
        start += len(batch)


def _absent(
    lists: pa.ListArray, files: pa.StringArray, there: npt.NDArray[np.bool_], start: int
) -> Iterator[tuple[int, list[int], str]]:
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    bounds = np.cumsum([0, *lengths.to_numpy(zero_copy_only=False)])
    lost = np.flatnonzero(~there)
    rows = np.searchsorted(bounds, lost, side="right") - 1
    for row in np.unique(rows):
        mine = lost[slice(*np.searchsorted(rows, [row, row + 1]))]
        yield start + int(row), [int(at - bounds[row]) for at in mine], files[int(mine[0])].as_py()


def lists_of(columns: Sequence[pa.Array]) -> pa.ListArray:
    """Arrow lists whose n-th items are the n-th of `columns`, arrays of one length."""
    rows, items = len(columns[0]), len(columns)
    order = np.arange(rows * items).reshape(items, rows).T.ravel()
    offsets = pa.array(np.arange(rows + 1) * items, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.concat_arrays(columns).take(pa.array(order)))
