"""RxRx1's own layout: metadata.csv and images/<experiment>/Plate<n>/<well>_s<site>_w<channel>.png.

Unpacked, or inside the archives as they are published, which are read in place.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from morphoray.datasets import splits
from morphoray.datasets.base import Imported, Rejected, imported
from morphoray.datasets.files import (
    check_files,
    evenly,
    first_existing,
    list_folders,
    read_columns,
    uri_lists,
)
from morphoray.datasets.genes import read_sirna_genes
from morphoray.errors import ConfigError, DataError, MissingObjectError
from morphoray.storage import Storage, absolute, join

_COLUMNS = ("site_id", "cell_type", "experiment", "plate", "well", "site", "well_type", "sirna")


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
    images, metadata = _locate(root, storage)
    rows = _select(read_metadata(metadata, storage), options)
    uris = _channel_uris(images, rows, options.channels)
    rejected: list[Rejected] = []
    if options.check_files:
        names = [f"w{channel}" for channel in range(1, options.channels + 1)]
        site_ids = rows["site_id"].to_numpy(object)
        complete, rejected = check_files(site_ids, uris, names, _plate_lists(uris, storage))
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
        "channel_uris": uri_lists(uris),
        "split": splits.assign(rows["experiment"], rows["sirna"], options.held_out_experiments, unseen),
    }
    return imported("rxrx1", columns, rejected, [*notes, *more])


def _locate(root: str, storage: Storage) -> tuple[str, str]:
    """The folder of the experiments and metadata.csv: unpacked, or in the archives as they are published."""
    packed = [f"rxrx1-{part}.zip!/rxrx1" for part in ("images", "metadata")]
    places = ["", "rxrx1", *packed, *(place.removesuffix("/rxrx1") for place in packed)]
    metadata = first_existing([join(root, place, "metadata.csv") for place in places], storage)
    images = first_existing([join(root, place, "images") for place in places], storage)
    return images or join(root, "images"), metadata or join(root, "metadata.csv")


def read_metadata(uri: str, storage: Storage) -> pd.DataFrame:
    """metadata.csv as text columns.

    Raises DataError naming a missing column, an empty cell or a repeated id.
    """
    try:
        table = read_columns(uri, _COLUMNS, storage)
    except MissingObjectError:
        raise DataError(
            f"{uri}: missing. The source must be the folder that holds metadata.csv and images/, or "
            "rxrx1-metadata.zip and rxrx1-images.zip."
        ) from None
    for name in _COLUMNS:
        empty = np.flatnonzero(table[name].str.strip() == "")
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
    return rows.iloc[evenly(len(rows), options.limit)]


def _matches(key: str, wanted: Sequence[str], column: "pd.Series[str]") -> Any:
    absent = [name for name in wanted if not (column == name).any()]
    if absent:
        raise ConfigError(splits.unknown(key, absent, column.unique()))
    return column.isin(wanted).to_numpy()


def _channel_uris(images: str, rows: pd.DataFrame, channels: int) -> Any:
    """An object array (sites, channels) of URIs."""
    stem = images + "/" + rows["experiment"] + "/Plate" + rows["plate"]
    stem = stem + "/" + rows["well"] + "_s" + rows["site"] + "_w"
    return np.stack(
        [(stem + f"{channel}.png").to_numpy(object) for channel in range(1, channels + 1)], axis=1
    )


def _plate_lists(uris: Any, storage: Storage) -> Iterable[list[str]]:
    """The files of every plate's folder."""
    return list_folders(sorted({str(uri).rpartition("/")[0] for uri in uris[:, 0]}), storage).values()


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
