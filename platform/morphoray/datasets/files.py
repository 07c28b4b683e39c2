"""What importers read alike: CSV tables, and where images lie, unpacked or in zip archives."""

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from morphoray.datasets.base import Rejected
from morphoray.errors import DataError
from morphoray.storage import Storage

_MAX_TABLE_BYTES = 2**29
_LISTINGS = 8  # folders listed at once; each waits on object storage


def read_columns(uri: str, columns: Sequence[str], storage: Storage) -> pd.DataFrame:
    """A CSV table (.gz: compressed) as text columns, with at least `columns` and one row.

    Raises MissingObjectError, or DataError naming what is not a table or which columns are missing.
    """
    text = _gunzipped(uri, storage) if uri.endswith(".gz") else storage.read_text(uri)
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{uri}: not a CSV table ({error})") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the surplus for row names
        raise DataError(f"{uri}: rows have more values than the header, {len(table.columns)}")
    if table.empty:
        raise DataError(f"{uri}: no rows below the header")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{uri}: found columns {list(table.columns)}, expected also {missing}")
    return table.fillna("")  # a short row's missing values


def _gunzipped(uri: str, storage: Storage) -> str:
    try:
        with gzip.open(io.BytesIO(storage.read_bytes(uri))) as file:
            data = file.read(_MAX_TABLE_BYTES + 1)
        if len(data) > _MAX_TABLE_BYTES:
            raise DataError(f"{uri}: more than {_MAX_TABLE_BYTES} bytes unpacked, too many for such a table")
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{uri}: expected gzip-compressed UTF-8 text, but {error}") from None


def evenly(count: int, limit: int | None) -> Any:
    """At most `limit` (None: all) of `count` positions, evenly spaced from the first."""
    kept = count if limit is None else min(limit, count)
    return np.arange(kept) * count // max(kept, 1)


def list_folders(folders: Iterable[str], storage: Storage) -> dict[str, list[str]]:
    """The URIs of the files in each folder; empty for one that isn't there."""
    distinct = list(dict.fromkeys(folders))
    with ThreadPoolExecutor(_LISTINGS) as threads:
        return dict(zip(distinct, threads.map(storage.list_files, distinct), strict=True))


def first_existing(candidates: Sequence[str], storage: Storage) -> str | None:
    """The first of the URIs that exists."""
    return next((uri for uri in candidates if storage.exists(uri)), None)


def check_files(
    site_ids: Sequence[str], uris: Any, names: Sequence[str], listed: Iterable[Iterable[str]]
) -> tuple[Any, list[Rejected]]:
    """Which sites (bool array) have all their files, and the others with what they lack.

    `uris` is an object array (sites, channels); `names` are the channels' in a reason; `listed` are folders.
    """
    files = {name for folder in listed for name in folder}
    present = np.fromiter((uri in files for uri in uris.flat), dtype=bool, count=uris.size)
    present = present.reshape(uris.shape)
    complete = present.all(axis=1)
    return complete, list(_incomplete(site_ids, uris, names, present, ~complete))


def _incomplete(
    site_ids: Sequence[str], uris: Any, names: Sequence[str], present: Any, which: Any
) -> Iterator[Rejected]:
    for row in np.flatnonzero(which).tolist():
        absent = np.flatnonzero(~present[row]).tolist()
        lacking = ", ".join(names[channel] for channel in absent)
        yield Rejected(str(site_ids[row]), str(uris[row, absent[0]]), f"missing channel files: {lacking}")


def uri_lists(uris: Any) -> pa.ListArray:
    """Arrow lists of the rows of an object array (sites, channels)."""
    sites, channels = uris.shape
    offsets = pa.array(np.arange(sites + 1) * channels, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(uris.ravel(), pa.string()))
