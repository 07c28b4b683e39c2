"""Writes a simulated tree in RxRx1's or BBBC021's layout, with what is true of it beside it; resumable."""

import io
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from pyarrow import csv

from morphoray.datasets.simulator import bbbc021
from morphoray.datasets.simulator.effects import gene_table
from morphoray.datasets.simulator.fields import draw_fields, field_truth
from morphoray.datasets.simulator.plan import (
    VERSION,
    SimulatedOptions,
    Site,
    Treatment,
    experiment_names,
    plan_sites,
    plan_treatments,
)
from morphoray.errors import FingerprintError, MissingObjectError
from morphoray.progress import Progress
from morphoray.schema import PERTURBATION_FIELDS, stamp
from morphoray.seeds import fingerprint
from morphoray.storage import Storage, absolute, join

_WRITERS = 8  # threads that compress and store while the next fields are drawn
_BLOCK = 16  # fields drawn, then handed to the writers
_CELL_TYPE = "simulated"
_TABLES = {"rxrx1": "metadata.csv", "bbbc021": bbbc021.IMAGES}  # of which a tree has one


def write_tree(root: str, storage: Storage, options: SimulatedOptions) -> str:
    """Make the tree at `root`, complete an interrupted one, or leave a finished one; a line saying which.

    Order: simulator.json (unfinished), images, tables, simulator.json (finished). Raises FingerprintError
    for a tree of other options, ConfigError for options that can't be.
    """
    root = absolute(root)
    treatments = plan_treatments(options)
    sites = list(plan_sites(options, treatments))
    made_by = fingerprint([VERSION, options.tree()])
    marker = join(root, "simulator.json")
    state = {"fingerprint": made_by, "version": VERSION, "options": options.tree()}
    found = _read_marker(marker, join(root, _TABLES[options.layout]), storage, made_by)
    if found == "finished":
        return f"simulated tree: {len(sites)} sites, made before"
    if found == "absent":
        storage.write_json(marker, {**state, "finished": False})
    missing = sites if found == "absent" else _missing(root, sites, options, storage)
    _write_images(root, missing, options, storage)
    _write_tables(root, sites, treatments, options, storage, made_by)
    storage.write_json(marker, {**state, "finished": True})
    return f"simulated tree: {len(sites)} sites, {len(missing)} of them drawn now"


def _read_marker(marker: str, table: str, storage: Storage, made_by: str) -> str:
    """Whether the tree is "absent", "unfinished" or "finished"."""
    try:
        found = storage.read_json(marker)
    except MissingObjectError:
        if storage.exists(table):
            raise FingerprintError(
                f"{table} is there, but no simulator.json: the simulator did not make it. "
                "Give dataset.source a new folder, or read it as dataset rxrx1 or bbbc021."
            ) from None
        return "absent"
    if found.get("fingerprint") != made_by:
        raise FingerprintError(
            f"{marker}: the tree was simulated with fingerprint {found.get('fingerprint')} (options in "
            f"it), these options have {made_by}. Use the same options, or give dataset.source a new folder."
        )
    return "finished" if found.get("finished") else "unfinished"


def _channel_uris(root: str, site: Site, options: SimulatedOptions) -> list[str]:
    """One file for each channel of the image."""
    if options.layout == "bbbc021":
        return bbbc021.channel_uris(root, site)
    folder = join(root, "images", site.experiment, f"Plate{site.plate}")
    stem = join(folder, f"{site.well}_s{site.site}_w")
    return [f"{stem}{channel}.png" for channel in range(1, options.channels + 1)]


def _missing(root: str, sites: list[Site], options: SimulatedOptions, storage: Storage) -> list[Site]:
    """The sites that lack a file, by one listing a plate."""
    uris = [_channel_uris(root, site, options) for site in sites]
    folders = {files[0].rpartition("/")[0] for files in uris}
    present = {uri for folder in folders for uri in storage.list_files(folder)}
    return [site for site, files in zip(sites, uris, strict=True) if not present.issuperset(files)]


def _write_images(root: str, sites: list[Site], options: SimulatedOptions, storage: Storage) -> None:
    """Draw the sites; compression and storage run in threads, at most two blocks behind."""
    waiting: list[Future[None]] = []
    progress = Progress("draw", len(sites), "fields")
    with ThreadPoolExecutor(_WRITERS) as threads:
        for block in _blocks(sites):
            fields = draw_fields(
                [site.treatment.phenotype for site in block],
                [site.batch for site in block],
                options.size,
                options.channels,
                options.bit_depth,
                keys=[site.key for site in block],
                nucleus_diameter_px=options.nucleus_diameter_px,
            )
            _finish(waiting, keep=_BLOCK)
            waiting += [
                threads.submit(_write_site, _channel_uris(root, site, options), image, storage)
                for site, image in zip(block, fields.images, strict=True)
            ]
            progress.add(len(block))
        _finish(waiting, keep=0)


def _blocks(sites: Iterable[Site]) -> Iterator[tuple[Site, ...]]:
    iterator = iter(sites)
    while block := tuple(itertools.islice(iterator, _BLOCK)):
        yield block


def _finish(waiting: list[Future[None]], keep: int) -> None:
    """Wait for all but the last `keep`, raising what they raised."""
    while len(waiting) > keep:
        waiting.pop(0).result()


def _write_site(uris: list[str], image: npt.NDArray[Any], storage: Storage) -> None:
    for uri, plane in zip(uris, image, strict=True):
        encode = bbbc021.encode_tiff if uri.endswith(".tif") else encode_plane
        storage.write_bytes(uri, encode(plane))


def encode_plane(plane: npt.NDArray[Any]) -> bytes:
    """PNG bytes of one (H, W) channel, uint8 or uint16; level 1, since noise hardly compresses anyway."""
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_tables(
    root: str,
    sites: list[Site],
    treatments: list[Treatment],
    options: SimulatedOptions,
    storage: Storage,
    made_by: str,
) -> None:
    if options.layout == "bbbc021":
        tables = bbbc021.tables(sites, [item.perturbation for item in treatments])
    else:
        tables = {"metadata.csv": _metadata(sites, treatments, options)}
    for name, table in tables.items():
        storage.write_bytes(join(root, name), _csv(table))
    storage.write_bytes(join(root, "perturbations.csv"), _csv(_perturbations(treatments)))
    if options.kind == "gene":
        storage.write_bytes(join(root, "gene_vectors.csv"), _csv(_gene_vectors()))
    truth = pa.Table.from_pylist([_truth_row(site, options) for site in sites])
    storage.write_table(join(root, "ground_truth.parquet"), stamp(truth, made_by))


def _csv(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    csv.write_csv(table, buffer, csv.WriteOptions(quoting_style="needed"))
    return buffer.getvalue()


def _metadata(sites: list[Site], treatments: list[Treatment], options: SimulatedOptions) -> pa.Table:
    """RxRx1's metadata: `sirna` is the perturbation's id."""
    numbers = {item.perturbation.perturbation_id: number for number, item in enumerate(treatments)}
    held_out = set(experiment_names(options)[1])
    rows = []
    for site in sites:
        item = site.treatment.perturbation
        rows.append(
            {
                "site_id": site.site_id,
                "well_id": f"{site.experiment}_{site.plate}_{site.well}",
                "cell_type": _CELL_TYPE,
                "dataset": "test" if site.experiment in held_out else "train",
                "experiment": site.experiment,
                "plate": site.plate,
                "well": site.well,
                "site": site.site,
                "well_type": "negative_control" if item.is_control else "treatment",
                "sirna": item.perturbation_id,
                "sirna_id": numbers[item.perturbation_id],
            }
        )
    return pa.Table.from_pylist(rows)


def _perturbations(treatments: list[Treatment]) -> pa.Table:
    rows = []
    for treatment in treatments:
        row = asdict(treatment.perturbation)
        row["perturbation_kind"] = row.pop("kind")
        rows.append({**row, "held_out": treatment.held_out})
    return pa.Table.from_pylist(rows, pa.schema([*PERTURBATION_FIELDS, pa.field("held_out", pa.bool_())]))


def _gene_vectors() -> pa.Table:
    """The gene's id, then its vector: the shape that the `table` encoder reads."""
    rows = [
        {"gene": gene, **{f"latent_{i + 1}": float(value) for i, value in enumerate(vector)}}
        for gene, vector in gene_table().items()
    ]
    return pa.Table.from_pylist(rows)


def _truth_row(site: Site, options: SimulatedOptions) -> dict[str, Any]:
    """A site's phenotype (phenotype_*), batch effect (batch_*) and what its field came to hold (field_*)."""
    item = site.treatment.perturbation
    phenotype, batch = asdict(site.treatment.phenotype), asdict(site.batch)
    truth = field_truth(
        site.treatment.phenotype, site.batch, options.size, site.key, options.nucleus_diameter_px
    )
    return {
        "site_id": site.site_id,
        "experiment": site.experiment,
        "plate": site.plate,
        "well": site.well,
        "site": site.site,
        "perturbation_id": item.perturbation_id,
        "moa": item.moa,
        "concentration_um": item.concentration_um,
        **{f"phenotype_{name}": value for name, value in phenotype.items()},
        **{f"batch_{name}": np.asarray(v).tolist() for name, v in batch.items()},
        **{f"field_{name}": value for name, value in asdict(truth).items()},
    }
