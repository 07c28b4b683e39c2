"""RxRx1's own layout: metadata.csv and images/<experiment>/Plate<n>/<well>_s<site>_w<channel>.png.

Unpacked, or inside the archives as they are published, which are read in place.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from morphoray.datasets.base import Imported, imported, select, sites_table
from morphoray.datasets.files import BLOCK, lists_of
from morphoray.datasets.genes import read_sirna_genes
from morphoray.datasets.options import ImportOptions
from morphoray.datasets.splits import shorten
from morphoray.datasets.tables import read_columns, repeated
from morphoray.errors import DataError, MissingObjectError
from morphoray.imaging.channels import CELL_PAINTING_CHANNELS
from morphoray.storage import Storage, absolute, join

_COLUMNS = ("site_id", "cell_type", "experiment", "plate", "well", "site", "well_type", "sirna")
_PLACE = ("experiment", "plate", "well", "site")  # of a site's files, in their path
_NO_NAME = r"[/\\\x00]|^\.\.?$"
UNTREATED = "EMPTY"


class Rxrx1Options(ImportOptions):
    """Options of the `rxrx1` importer."""

    cell_types: tuple[str, ...] | None = Field(None, description="filter.cell_type, in short")
    experiments: tuple[str, ...] | None = Field(None, description="filter.experiment, in short")
    gene_table: str | None = Field(None, description="CSV with columns siRNA ID and Gene Symbol")
    channels: int = Field(6, ge=1, le=9, description="channel files a site, w1 to w<channels>")

    def whole_filter(self) -> dict[str, tuple[str, ...]]:
        """The filter, with what cell_types and experiments add."""
        short = {"cell_type": self.cell_types, "experiment": self.experiments}
        return self.filter | {name: values for name, values in short.items() if values is not None}


def read(source: str, storage: Storage, options: Rxrx1Options) -> Imported:
    """SITES of an RxRx1 tree, in metadata.csv's order.

    Raises DataError for metadata that break their contract, ConfigError for options that match nothing.
    """
    rows = read_rows(source, storage)
    if options.gene_table:
        rows["gene"] = _genes(rows, read_sirna_genes(options.gene_table, storage))
    filtered = options.model_copy(update={"filter": options.whole_filter()})
    rows["dataset"] = ["rxrx1"] * len(rows["site_id"])
    sites, notes = select(sites_table(rows), filtered, storage)
    if options.gene_table:
        notes.append(_gene_note(sites))
    return with_files("rxrx1", source, sites, options, options.channels, storage, notes)


def _find(source: str, archive: str, name: str, storage: Storage) -> str:
    """Where metadata.csv or images/ lies: in the source, or in its archive, whose root is rxrx1/ or not."""
    root, packed = absolute(source), f"rxrx1-{archive}.zip!"
    places = [join(root, place, name) for place in ("", "rxrx1", f"{packed}/rxrx1", packed)]
    return next((uri for uri in places if storage.exists(uri)), places[0])


def read_rows(source: str, storage: Storage) -> dict[str, Any]:
    """SITES' columns as metadata.csv has them. Raises DataError for metadata that break their contract."""
    uri = _find(source, "metadata", "metadata.csv", storage)
    try:
        table = read_columns(uri, storage, _COLUMNS)
    except MissingObjectError:
        raise DataError(
            f"{uri}: missing. The source must be the folder that holds metadata.csv and images/, or "
            "rxrx1-metadata.zip and rxrx1-images.zip."
        ) from None
    _check_places(table, uri)
    control = pc.or_(pc.equal(table["well_type"], "negative_control"), pc.equal(table["sirna"], UNTREATED))
    return {name: table[name] for name in _COLUMNS[:6]} | {
        "perturbation_id": table["sirna"],
        "perturbation_kind": pc.if_else(control, "control", "gene"),
        "is_control": control,
    }


def _check_places(table: pa.Table, uri: str) -> None:
    """Raise DataError for a site that is there twice, and for a part of a path that leads elsewhere."""
    if twice := repeated(table["site_id"]):
        raise DataError(f"{uri}: {len(twice)} site_ids appear more than once, such as {twice[:3]}")
    for name in _PLACE:
        bad = np.flatnonzero(pc.match_substring_regex(table[name], _NO_NAME).to_numpy())
        if bad.size:
            found = table[name][int(bad[0])].as_py()
            raise DataError(
                f"{uri} row {bad[0] + 1}: {name} is {found!r}, expected part of a path without / and .."
            )
    places = pc.binary_join_element_wise(*(table[name] for name in _PLACE), "/")
    if twice := repeated(places):
        raise DataError(
            f"{uri}: {len(twice)} sites appear more than once, under several site_ids, such as {twice[:3]}"
        )


def with_files(
    name: str,
    source: str,
    sites: pa.Table,
    options: ImportOptions,
    channels: int,
    storage: Storage,
    notes: list[str],
) -> Imported:
    """Imported from selected sites of the tree at `source`, with the URIs of their channel files."""
    images = _find(source, "images", "images", storage)
    uris = [_channel_uris(images, batch, channels) for batch in sites.to_batches(max_chunksize=BLOCK)]
    column = pa.chunked_array(uris, pa.list_(pa.string()))
    sites = sites.set_column(sites.schema.get_field_index("channel_uris"), "channel_uris", column)
    files = [f"w{channel}" for channel in range(1, channels + 1)]
    return imported(name, sites, options, storage, notes=notes, files=files)


def _channel_uris(images: str, sites: pa.RecordBatch, channels: int) -> pa.ListArray:
    well = [sites[name] for name in _PLACE]
    words = [f"{images}/", well[0], "/Plate", well[1], "/", well[2], "_s", well[3], "_w"]
    stem = pc.binary_join_element_wise(*words, "")
    files = [pc.binary_join_element_wise(stem, f"{n}.png", "") for n in range(1, channels + 1)]
    return lists_of(files)


def _genes(rows: Mapping[str, Any], genes: Mapping[str, str]) -> pa.ChunkedArray:
    """The gene of each row; null for a control, and for an siRNA that the table lacks."""
    place = pc.index_in(rows["perturbation_id"], pa.array(genes.keys(), pa.string()))
    found = pc.take(pa.array(genes.values(), pa.string()), place)
    return pc.if_else(rows["is_control"], pa.scalar(None, pa.string()), found)


def channel_names(count: int) -> tuple[str, ...]:
    """What the files w1 to w<count> show; beyond RxRx1's six they are called by their number."""
    return tuple([*CELL_PAINTING_CHANNELS, "w7", "w8", "w9"][:count])


def _gene_note(sites: pa.Table) -> str:
    treated = sites.filter(pc.invert(sites["is_control"])).select(["perturbation_id", "gene"])
    genes = treated.group_by(["perturbation_id", "gene"]).aggregate([])
    unnamed = sorted(genes["perturbation_id"].filter(pc.is_null(genes["gene"])).to_pylist())
    note = f"genes: {len(genes) - len(unnamed)} of {len(genes)} siRNAs named"
    return f"{note}; without one: {shorten(unnamed)}" if unnamed else note
