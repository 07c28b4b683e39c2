"""CellProfiler's load_data tables: which files show a site, and what is wrong with a row."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import pyarrow as pa

from morphoray.datasets.platemaps import well_name
from morphoray.datasets.tables import text_batches
from morphoray.errors import DataError, StorageError
from morphoray.storage import Storage, is_remote

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")  # as the columns name them; SITES has this order

_METADATA = ("Metadata_Plate", "Metadata_Well", "Metadata_Site")
# Which channel a file name says it is: Opera Phenix's ch5, ImageXpress's w1, CellVoyager's C01.
_CODE = re.compile(r"-ch(\d+)sk|_w(\d)|C(\d\d)\.tiff?$", re.IGNORECASE)

Uris = list[str | None]


@dataclass(frozen=True)
class Row:
    """A site: its well as A01, the URIs of its files in the order of CHANNELS, and why it can't be used.

    functions: the illumination functions' URIs; all None in a table that names none.
    """

    well: str | None
    site: str
    channels: Uris
    functions: Uris
    reason: str | None


def read_rows(
    uri: str, plate: str, locate: Callable[[str], str], illumination: bool, storage: Storage
) -> Iterator[Row]:
    """The rows of a plate's table; columns come in any order, files by FileName_ and PathName_ or by URL_.

    `locate` tells where a folder that the table names is. Raises DataError for a table without the columns
    of a channel, and for one that can't be read.
    """
    kinds = ("Orig", "Illum") if illumination else ("Orig",)
    columns = [
        *_METADATA,
        *(name for kind in kinds for channel in CHANNELS for name in _names(kind, channel)),
    ]
    located = cache(lambda folder: _locate(folder, locate))
    for batch in text_batches(uri, storage, columns):
        _check_columns(batch.column_names, uri)
        yield from _rows(batch, plate, located)


def _names(kind: str, channel: str) -> tuple[str, str, str]:
    return f"FileName_{kind}{channel}", f"PathName_{kind}{channel}", f"URL_{kind}{channel}"


def _check_columns(found: Sequence[str], uri: str) -> None:
    missing = [name for name in _METADATA[1:] if name not in found]
    for channel in CHANNELS:
        name, folder, url = _names("Orig", channel)
        if url not in found and not {name, folder} <= set(found):
            missing.append(f"{name} and {folder} (or {url})")
    if missing:
        raise DataError(f"{uri}: no column {', '.join(missing)}; the channels are read by these names")


def _locate(folder: str, locate: Callable[[str], str]) -> str | None:
    """Where a folder is, or None when that is nowhere a file can be read from."""
    try:
        place = locate(folder)
        is_remote(place)
    except StorageError:
        return None
    return place


def _rows(batch: pa.Table, plate: str, locate: Callable[[str], str | None]) -> Iterator[Row]:
    plates, wells, sites = (_column(batch, name) for name in _METADATA)
    by_channel = [_uris(batch, "Orig", channel, locate) for channel in CHANNELS]
    codes = [[_code(uri) for uri in uris] for uris in by_channel]
    usual = [_most_common(column) for column in codes]
    shared = _most_common([_pattern(channels) for channels in zip(*by_channel, strict=True)])
    functions = zip(*(_uris(batch, "Illum", channel, locate) for channel in CHANNELS), strict=True)
    for row, (named, well, site, channels, functions_of) in enumerate(
        zip(plates, wells, sites, zip(*by_channel, strict=True), functions, strict=True)
    ):
        reason = None
        if named and named != plate:
            reason = f"Metadata_Plate is {named}, in the table of plate {plate}"
        elif well_name(well) is None:
            reason = f"Metadata_Well {well!r} is no well such as A01"
        elif not site:
            reason = "Metadata_Site is empty"
        reason = (
            reason
            or _one_file(channels, shared)
            or _wrong_files(channels, functions_of, [column[row] for column in codes], usual)
        )
        yield Row(well_name(well), site.removesuffix(".0"), list(channels), list(functions_of), reason)


def _wrong_files(
    channels: Sequence[str | None],
    functions: Sequence[str | None],
    codes: Sequence[str | None],
    usual: Sequence[str | None],
) -> str | None:
    """What is wrong with the files that a row names, as far as their names tell."""
    if None in channels:
        return f"no file that can be read is named for channels: {_without(channels)}"
    if swapped := [
        f"{name} is {code}, on the plate {often}"
        for name, code, often in zip(CHANNELS, codes, usual, strict=True)
        if code and often and code != often
    ]:
        return f"channels swapped, by their file names: {'; '.join(swapped)}"
    if any(functions) and None in functions:
        return f"no illumination function is named for channels: {_without(functions)}"
    return None


def _pattern(channels: Sequence[str | None]) -> str:
    """Which channels have the same file: 01234 when each has its own, 01134 when RNA's is ER's."""
    return "".join(str(channels.index(uri)) for uri in channels)


def _one_file(channels: Sequence[str | None], shared: str | None) -> str | None:
    """What is wrong when channels share a file, unless they do on the plate (as in JUMP's source_15)."""
    if None in channels or len(set(channels)) == len(channels) or _pattern(channels) == shared:
        return None
    first = next(uri for uri in channels if channels.count(uri) > 1)
    same = [name for name, uri in zip(CHANNELS, channels, strict=True) if uri == first]
    return f"channels {' and '.join(same)} name one file"


def _without(uris: Sequence[str | None]) -> str:
    return ", ".join(name for name, uri in zip(CHANNELS, uris, strict=True) if uri is None)


def _column(batch: pa.Table, name: str) -> list[str]:
    return batch[name].to_pylist() if name in batch.column_names else [""] * len(batch)


def _uris(batch: pa.Table, kind: str, channel: str, locate: Callable[[str], str | None]) -> Uris:
    """The URI of each row's file, None where the row names none."""
    columns = [_column(batch, name) for name in _names(kind, channel)]
    return [_uri(name, folder, url, locate) for name, folder, url in zip(*columns, strict=True)]


def _uri(name: str, folder: str, url: str, locate: Callable[[str], str | None]) -> str | None:
    if not (name and folder):
        folder, _, name = url.rpartition("/")
    place = locate(folder) if name and folder and "/" not in name else None
    return f"{place.rstrip('/')}/{name}" if place else None


def _code(uri: str | None) -> str | None:
    match = _CODE.search(uri.rpartition("/")[2]) if uri else None
    return next(filter(None, match.groups()), None) if match else None


def _most_common(codes: Sequence[str | None]) -> str | None:
    """What more than half of the rows have."""
    found = Counter(codes).most_common(1)
    return found[0][0] if found and 2 * found[0][1] > len(codes) else None
