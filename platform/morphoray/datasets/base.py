"""What every importer offers and returns, and the steps that all of them take from rows to SITES."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray.datasets import selection, splits
from morphoray.datasets.files import missing_files
from morphoray.datasets.options import ImportOptions, SelectionOptions
from morphoray.datasets.summary import describe
from morphoray.errors import DataError
from morphoray.schema import QUARANTINE, SITES, conform
from morphoray.storage import Storage

_FILES = {"channel_uris": "channel files", "illumination_uris": "illumination functions"}


@dataclass(frozen=True)
class Imported:
    """An import's result: SITES, QUARANTINE (stage "import"), and counts for people, several lines."""

    sites: pa.Table
    quarantine: pa.Table
    summary: str


@dataclass(frozen=True)
class Dataset:
    """A registry entry.

    `channels` names the files of a site in the order of channel_uris (or the planes of its one file);
    `channels_in`: the same under given options, where these choose the files.
    `mapping` is the default channel mapping, for sites whose channels it takes; `mapping_in`: under options.
    """

    name: str
    options: type[SelectionOptions]
    read: Callable[[str, Storage, Any], Imported]
    channels: tuple[str, ...]
    mapping: str
    channels_in: Callable[[Any], tuple[str, ...]] | None = None
    mapping_in: Callable[[Any], str] | None = None

    def channel_names(self, options: Any) -> tuple[str, ...]:
        """The channels of a site under these options, in the order of its files."""
        return self.channels if self.channels_in is None else self.channels_in(options)

    def mapping_name(self, options: Any) -> str:
        """The default channel mapping under these options."""
        return self.mapping if self.mapping_in is None else self.mapping_in(options)


@dataclass(frozen=True)
class Rejected:
    """A site that can't be imported: its id, the file that is at fault, and the reason."""

    item: str
    uri: str | None
    reason: str


def sites_table(columns: Mapping[str, Any]) -> pa.Table:
    """A table of SITES' columns but `split`, from lists or arrays of one length; an absent one is null."""
    count = len(columns["site_id"])
    arrays = {
        field.name: pa.nulls(count, field.type) if field.name not in columns else _array(columns, field)
        for field in SITES
        if field.name != "split"
    }
    return pa.table(arrays)


def _array(columns: Mapping[str, Any], field: pa.Field) -> Any:
    values = columns[field.name]
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, field.type)


def select(sites: pa.Table, options: ImportOptions, storage: Storage) -> tuple[pa.Table, list[str]]:
    """The rows that the filter and then the limit keep, with the column `split`; notes for the summary.

    Names in the options are looked for in all of `sites`, and shares are taken of what the filter keeps, so
    that a limit changes no site's split. Raises ConfigError for options that match nothing.
    """
    splits.check_names(sites, options)
    known = sites["perturbation_id"].unique().to_pylist()
    listed, notes = splits.held_out(options.held_out_perturbations, known, storage, splits.ids_by_gene(sites))
    kept = selection.keep(sites, options.filter)
    split, more = splits.assign(kept, options, listed)
    chosen = selection.thin(kept.append_column("split", split), options.limit)
    if len(chosen) < len(sites):
        notes.append(f"selected: {len(chosen)} of {len(sites)} sites, by filter ({len(kept)}) and limit")
    return chosen, [*notes, *more]


def imported(
    name: str,
    sites: pa.Table,
    options: ImportOptions,
    storage: Storage,
    rejected: Sequence[Rejected] = (),
    notes: Sequence[str] = (),
    files: Sequence[str] = (),
) -> Imported:
    """Imported from selected sites and those rejected before; `files` names a site's files in the reasons.

    Sites that lack a file are quarantined, those of a damaged zip archive too. Where all lack all, the
    images are elsewhere: SITES keeps its rows, and the summary says it. Raises DataError when no site is
    left, or none to train on.
    """
    bad, more = list(rejected), list(notes)
    if options.check_files and len(sites):
        lacking, imageless = _lacking(sites, storage, files)
        if imageless == len(sites):
            first = lacking[0].uri
            more.append(f"missing files: all {len(sites)} sites lack all their images, the first {first}")
        else:
            bad += [lacking[row] for row in sorted(lacking)]
            sites = sites.filter(np.isin(np.arange(len(sites)), list(lacking), invert=True))
            more.append(f"missing files: {f'{len(lacking)} sites lack one' if lacking else 'none'}")
    rows = [{"stage": "import", **vars(row)} for row in bad]
    quarantine = pa.Table.from_pylist(rows, schema=QUARANTINE)
    if not len(sites):
        first = f"; the first: {bad[0].uri or bad[0].item}: {bad[0].reason}" if bad else ""
        raise DataError(f"{name}: no site could be imported, {len(bad)} were rejected{first}")
    if not pc.any(pc.equal(sites["split"], splits.TRAIN)).as_py():
        raise DataError(f"{name}: all {len(sites)} sites are held out, none is left to train on")
    settled, unseen = splits.settle(sites)
    table = conform(settled, SITES, f"sites of {name}")
    return Imported(table, quarantine, describe(name, table, quarantine, [*more, *unseen]))


def _lacking(sites: pa.Table, storage: Storage, files: Sequence[str]) -> tuple[dict[int, Rejected], int]:
    """The sites that lack a file, by row, and how many of them lack all their images."""
    found: dict[int, Rejected] = {}
    imageless = 0
    for column, what in _FILES.items():
        for row, places, uri, problem in missing_files(sites, storage, column):
            count = len(sites[column][row])
            names = ", ".join(files[place] if place < len(files) else str(place + 1) for place in places)
            reason = problem or ("missing file" if count == 1 else f"missing {what}: {names}")
            imageless += column == "channel_uris" and len(places) == count and problem is None
            first = found.get(row)
            found[row] = (
                Rejected(first.item, first.uri, f"{first.reason}; {reason}")
                if first
                else Rejected(sites["site_id"][row].as_py(), uri, reason)
            )
    return found, imageless
