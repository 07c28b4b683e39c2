"""What every importer offers and returns, and the tables that importers build alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from morphoray.errors import DataError
from morphoray.schema import QUARANTINE, SITES, conform
from morphoray.storage import Storage


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
    `mapping` is the default channel mapping.
    """

    name: str
    options: type[BaseModel]
    read: Callable[[str, Storage, Any], Imported]
    channels: tuple[str, ...]
    mapping: str


@dataclass(frozen=True)
class Rejected:
    """A site that can't be imported: its id, the file that is at fault, and the reason."""

    item: str
    uri: str | None
    reason: str


def imported(
    name: str, columns: Mapping[str, Any], rejected: Sequence[Rejected], notes: Sequence[str] = ()
) -> Imported:
    """Imported from SITES' columns (lists or arrays of one length; an absent one is null) and rejected sites.

    Raises DataError when no site is left, or none to train on.
    """
    count = len(columns["site_id"])
    arrays = {
        field.name: _array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(count, field.type)
        for field in SITES
    }
    sites = conform(pa.table(arrays), SITES, f"sites of {name}")
    rows = [{"stage": "import", **vars(row)} for row in rejected]
    quarantine = pa.Table.from_pylist(rows, schema=QUARANTINE)
    if count == 0:
        first = (
            f"; the first: {rejected[0].uri or rejected[0].item}: {rejected[0].reason}" if rejected else ""
        )
        raise DataError(f"{name}: no site could be imported, {len(rejected)} were rejected{first}")
    if not pc.any(pc.equal(sites["split"], "train")).as_py():
        raise DataError(f"{name}: all {count} sites are held out, none is left to train on")
    return Imported(sites, quarantine, _summary(name, sites, quarantine, notes))


def _array(values: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def _summary(name: str, sites: pa.Table, quarantine: pa.Table, notes: Sequence[str]) -> str:
    distinct = {
        column: pc.count_distinct(sites[column]).as_py()
        for column in ("experiment", "plate", "perturbation_id")
    }
    plates = sites.group_by(["experiment", "plate"]).aggregate([]).num_rows
    controls = pc.sum(sites["is_control"]).as_py() or 0
    lines = [
        f"{name}: {sites.num_rows} sites, {quarantine.num_rows} quarantined",
        f"  experiments: {distinct['experiment']}, plates: {plates}",
        f"  perturbations: {distinct['perturbation_id']}, control sites: {controls}",
    ]
    for column, label in (("split", "split"), ("cell_type", "cell types")):
        counts = sites[column].drop_null().value_counts().to_pylist()
        if counts:
            parts = sorted(f"{row['values']} {row['counts']}" for row in counts)
            lines.append(f"  {label}: {', '.join(parts)}")
    reasons = quarantine["reason"].value_counts().to_pylist()
    lines += [f"  quarantined: {row['counts']} x {row['values']}" for row in reasons]
    return "\n".join([*lines, *(f"  {note}" for note in notes)])
