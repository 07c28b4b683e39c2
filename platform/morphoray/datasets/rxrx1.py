"""RxRx1's own layout: metadata.csv and images/<experiment>/Plate<n>/<well>_s<site>_w<channel>.png."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from morphoray.datasets import splits
from morphoray.datasets.base import Imported, Rejected, imported
from morphoray.datasets.genes import read_sirna_genes
from morphoray.errors import ConfigError, DataError, MissingObjectError
from morphoray.imaging.channels import CELL_PAINTING_CHANNELS
from morphoray.storage import Storage, absolute, join

_COLUMNS = ("site_id", "cell_type", "experiment", "plate", "well", "site", "well_type", "sirna")
_LISTINGS = 8  # plate folders listed at once; each waits on object storage


class Rxrx1Options(BaseModel):
    """Options of the `rxrx1` importer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell_types: tuple[str, ...] | None = Field(None, description="keep these; null: all")
    experiments: tuple[str, ...] | None = Field(None, description="keep these; null: all")
    gene_table: str | None = Field(None, description="CSV with columns siRNA ID and Gene Symbol")
    held_out_experiments: tuple[str, ...] = ()
    held_out_perturbations: tuple[str, ...] | str = Field((), description="ids, or a CSV perturbation,ood")
    limit: int | None = Field(
        None, ge=1, description="at most so many sites, evenly spaced over the metadata"
    )
    check_files: bool = Field(True, description="list the plate folders and quarantine incomplete sites")
    channels: int = Field(6, ge=1, le=9, description="channel files a site, w1 to w<channels>")


def read(source: str, storage: Storage, options: Rxrx1Options) -> Imported:
    """SITES of an RxRx1 tree, in metadata.csv's order.

    Raises DataError for metadata that break their contract, ConfigError for options that match nothing.
    """
    root = absolute(source)
    metadata = read_metadata(join(root, "metadata.csv"), storage)
    rows = _select(metadata, options)
    uris = _channel_uris(root, rows, options.channels)
    complete, rejected = _check_files(rows, uris, storage) if options.check_files else (slice(None), [])
    rows, uris = rows[complete], uris[complete]
    genes, notes = _genes(rows, options, storage)
    control = (rows["well_type"] == "negative_control") | (rows["sirna"] == "EMPTY")
    unseen, more = splits.held_out(options.held_out_perturbations, rows["sirna"].unique(), storage)
    columns: dict[str, Any] = {name: rows[name].to_numpy(object) for name in _COLUMNS[:6]}
    columns |= {
        "dataset": ["rxrx1"] * len(rows),
        "perturbation_id": rows["sirna"].to_numpy(object),
        "perturbation_kind": np.where(control, "control", "gene").astype(object),
        "gene": [
            None if is_control else genes.get(sirna)
            for is_control, sirna in zip(control, rows["sirna"], strict=True)
        ],
        "is_control": control.to_numpy(bool),
        "channel_uris": _lists(uris),
        "split": splits.assign(rows["experiment"], rows["sirna"], options.held_out_experiments, unseen),
    }
    return imported("rxrx1", columns, rejected, [*notes, *more])


def read_metadata(uri: str, storage: Storage) -> pd.DataFrame:
    """metadata.csv as text columns.

    Raises DataError naming a missing column, an empty cell or a repeated id.
    """
    try:
        text = storage.read_text(uri)
    except MissingObjectError:
        raise DataError(
            f"{uri}: missing. The source must be the folder that holds metadata.csv and images/."
        ) from None
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{uri}: not a CSV table ({error})") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the surplus for row names
        raise DataError(f"{uri}: rows have more values than the header, {len(table.columns)}")
    if table.empty:
        raise DataError(f"{uri}: no rows below the header")
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        raise DataError(f"{uri}: found columns {list(table.columns)}, expected also {missing}")
    for name in _COLUMNS:
        empty = np.flatnonzero(table[name].fillna("").str.strip() == "")
        if empty.size:
            raise DataError(f"{uri} row {empty[0] + 1}: column {name!r} is empty ({empty.size} such rows)")
    repeated = table["site_id"][table["site_id"].duplicated()].unique()
    if repeated.size:
        raise DataError(
            f"{uri}: {repeated.size} site_ids appear more than once, such as {list(repeated[:3])}"
        )
    return table


def _select(metadata: pd.DataFrame, options: Rxrx1Options) -> pd.DataFrame:
    """The rows that the filters keep, evenly thinned to `limit`."""
    keep = np.ones(len(metadata), dtype=bool)
    for key, column in (("cell_types", "cell_type"), ("experiments", "experiment")):
        wanted = getattr(options, key)
        if wanted is not None:
            keep &= _matches(key, wanted, metadata[column])
    rows = metadata[keep]
    if rows.empty:
        raise ConfigError("dataset.cell_types and dataset.experiments together leave no site of the data")
    _matches("held_out_experiments", options.held_out_experiments, rows["experiment"])
    if options.limit is not None and options.limit < len(rows):
        rows = rows.iloc[np.arange(options.limit) * len(rows) // options.limit]
    return rows


def _matches(key: str, wanted: Sequence[str], column: "pd.Series[str]") -> Any:
    absent = [name for name in wanted if not (column == name).any()]
    if absent:
        raise ConfigError(splits.unknown(key, absent, column.unique()))
    return column.isin(wanted).to_numpy()


def channel_names(count: int) -> tuple[str, ...]:
    """What the files w1 to w<count> show; beyond RxRx1's six they are called by their number."""
    return tuple([*CELL_PAINTING_CHANNELS, "w7", "w8", "w9"][:count])


def _channel_uris(root: str, rows: pd.DataFrame, channels: int) -> Any:
    """An object array (sites, channels) of URIs."""
    stem = root.rstrip("/") + "/images/" + rows["experiment"] + "/Plate" + rows["plate"]
    stem = stem + "/" + rows["well"] + "_s" + rows["site"] + "_w"
    return np.stack(
        [(stem + f"{channel}.png").to_numpy(object) for channel in range(1, channels + 1)], axis=1
    )


def _check_files(rows: pd.DataFrame, uris: Any, storage: Storage) -> tuple[Any, list[Rejected]]:
    """Which sites have all their files, by one listing a plate folder, and the others with what they lack."""
    folders = sorted({str(uri).rpartition("/")[0] for uri in uris[:, 0]})
    with ThreadPoolExecutor(_LISTINGS) as threads:
        listed = {name for names in threads.map(storage.list_files, folders) for name in names}
    present = np.fromiter((uri in listed for uri in uris.flat), dtype=bool, count=uris.size).reshape(
        uris.shape
    )
    complete = present.all(axis=1)
    return complete, list(_incomplete(rows["site_id"].to_numpy(object), uris, present, ~complete))


def _incomplete(site_ids: Any, uris: Any, present: Any, which: Any) -> Iterator[Rejected]:
    for row in np.flatnonzero(which):
        absent = np.flatnonzero(~present[row])
        names = ", ".join(f"w{channel + 1}" for channel in absent)
        yield Rejected(str(site_ids[row]), str(uris[row, absent[0]]), f"missing channel files: {names}")


def _genes(rows: pd.DataFrame, options: Rxrx1Options, storage: Storage) -> tuple[dict[str, str], list[str]]:
    """The gene of every siRNA, and a note of those that have none."""
    if options.gene_table is None:
        return {}, []
    genes = read_sirna_genes(options.gene_table, storage)
    treated = set(rows["sirna"]) - {"EMPTY"}
    if not treated:
        return genes, []
    unnamed = sorted(treated - set(genes))
    note = f"genes: {len(treated) - len(unnamed)} of {len(treated)} siRNAs named"
    return genes, [f"{note}; without one: {', '.join(unnamed[:5])}" if unnamed else note]


def _lists(uris: Any) -> pa.ListArray:
    """Arrow lists of the rows of an object array (sites, channels)."""
    sites, channels = uris.shape
    offsets = pa.array(np.arange(sites + 1) * channels, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(uris.ravel(), pa.string()))
