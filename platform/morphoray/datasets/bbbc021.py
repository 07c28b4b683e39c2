"""BBBC021's own layout: three CSV tables, and Week<n>/<plate>/ folders or one zip archive a plate.

BBBC021v1 (Caie et al. 2010; Ljosa et al. 2012): MCF7 cells, 113 compounds, three stains in 16 bits.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from morphoray.datasets.base import Imported, Rejected, imported, select, sites_table
from morphoray.datasets.bbbc021_tables import CHANNELS, read_images, read_mechanisms, read_smiles
from morphoray.datasets.files import lists_of
from morphoray.datasets.options import ImportOptions
from morphoray.datasets.ranges import plate_ranges
from morphoray.datasets.selection import keep, thin
from morphoray.datasets.splits import shorten
from morphoray.errors import DataError
from morphoray.perturbations.base import dose_id, plain_id
from morphoray.storage import Storage, absolute, join

_LISTINGS = 8  # plates looked for at once

# The original project's lists: 98 compounds with a public structure, of which it trained on 14 (or on all).
SEEN_14 = (
    "az138", "az841", "az258", "cytochalasin-b", "cytochalasin-d", "latrunculin-b", "pp-2", "demecolcine",
    "nocodazole", "colchicine", "vincristine", "epothilone-b", "taxol", "docetaxel",
)  # fmt: skip
UNLISTED = (*(f"az-{letter}" for letter in "abchijklmnou"), "tkk", "unknown")


class Bbbc021Options(ImportOptions):
    """Options of the `bbbc021` importer."""

    preset: Literal["bbbc021_14", "bbbc021_all"] | None = Field(
        None, description="the original's 98 compounds and DMSO; _14: all but its 14 are held out"
    )
    moa_only: bool = Field(False, description="keep treatments with a mechanism in BBBC021_v1_moa.csv")
    dose_in_id: bool = Field(False, description="ids are <compound>@<micromolar> instead of <compound>")
    intensity: Literal["plate_controls", "image"] | tuple[float, float] = Field(
        "plate_controls", description="range of 8 bits: the plate's DMSO, each image's own, or [low, high]"
    )
    percentiles: tuple[float, float] = Field((0.1, 99.9), description="of the plate's DMSO pixels")
    intensity_sites: int = Field(8, ge=1, description="DMSO fields read on each plate for its range")
    pixel_size_um: float | None = Field(None, gt=0, description="of the raw pixels; not in the tables")

    @model_validator(mode="after")
    def _ranges(self) -> "Bbbc021Options":
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles: found {self.percentiles}, expected 0 <= low < high <= 100")
        if isinstance(self.intensity, tuple) and not self.intensity[0] < self.intensity[1]:
            raise ValueError(f"intensity: found {self.intensity}, expected low < high")
        if self.preset and self.held_out_perturbations:
            raise ValueError("preset brings its own held_out_perturbations, expected one of the two")
        return self


def read(source: str, storage: Storage, options: Bbbc021Options) -> Imported:
    """SITES of a BBBC021 folder, in BBBC021_v1_image.csv's order.

    Raises DataError for a table that breaks its contract, ConfigError for options that match nothing.
    """
    rows, rejected, notes = read_rows(source, storage, options.dose_in_id)
    sites = sites_table(rows | {"dataset": ["bbbc021"] * len(rows["site_id"])})
    wanted, unseen, more = _by_preset(sites, options)
    held_out = options.model_copy(update={"held_out_perturbations": unseen})
    chosen, selected = select(wanted, held_out, storage)
    notes += [*more, *selected]
    return with_files("bbbc021", source, sites, chosen, options, storage, rejected, notes)


def read_rows(
    source: str, storage: Storage, dose_in_id: bool
) -> tuple[dict[str, Any], list[Rejected], list[str]]:
    """SITES' columns as the three tables have them, the rows that can't be used, and what to tell.

    channel_uris are the names of the files. Raises DataError for a table that breaks its contract.
    """
    root = absolute(source)
    sites, rejected = read_images(root, storage)
    smiles, mechanisms = read_smiles(root, storage), read_mechanisms(root, storage)
    names = [site["perturbation_id"] for site in sites]
    doses = [site["concentration_um"] for site in sites]
    columns: dict[str, Any] = {name: [site[name] for site in sites] for name in sites[0]}
    columns["smiles"] = [(smiles or {}).get(name) for name in names]
    columns["moa"] = [(mechanisms or {}).get(treatment) for treatment in zip(names, doses, strict=True)]
    if dose_in_id:
        columns["perturbation_id"] = [
            name if is_control else dose_id(name, dose)
            for name, dose, is_control in zip(names, doses, columns["is_control"], strict=True)
        ]
    columns["perturbation_id"] = pa.array(columns["perturbation_id"])
    treated = [site for site in sites if not site["is_control"]]
    wanted = {site["perturbation_id"] for site in treated}
    treatments = {(site["perturbation_id"], site["concentration_um"]) for site in treated}
    return columns, rejected, [_smiles_note(smiles, wanted), _moa_note(mechanisms, treatments)]


def _smiles_note(smiles: Mapping[str, str] | None, wanted: set[str]) -> str:
    if smiles is None:
        return "SMILES: none, since there is no BBBC021_v1_compound.csv"
    lacking = sorted(wanted - set(smiles))
    note = f"SMILES: {len(wanted) - len(lacking)} of {len(wanted)} compounds"
    return f"{note}; without one: {shorten(lacking, 20)}" if lacking else note


def _moa_note(mechanisms: Mapping[tuple[str, float], str] | None, treatments: set[tuple[str, float]]) -> str:
    if mechanisms is None:
        return "mechanisms: none, since there is no BBBC021_v1_moa.csv"
    found = [mechanisms[treatment] for treatment in treatments if treatment in mechanisms]
    return f"mechanisms: {len(set(found))}, of {len(found)} treatments"


def _by_preset(sites: pa.Table, options: Bbbc021Options) -> tuple[pa.Table, tuple[str, ...] | str, list[str]]:
    """The sites that preset and moa_only keep, held_out_perturbations, and what to tell."""
    if options.moa_only:
        sites = keep(sites, {"moa": sites["moa"].unique().drop_null().to_pylist()})
    if not options.preset:
        return sites, options.held_out_perturbations, []
    known = sites["perturbation_id"].unique().to_pylist()
    sites = keep(sites, {"perturbation_id": [name for name in known if plain_id(name) not in UNLISTED]})
    treated = sites["perturbation_id"].filter(pc.invert(sites["is_control"])).unique().to_pylist()
    compounds = {plain_id(name) for name in treated}
    unseen = tuple(sorted(compounds.difference(SEEN_14))) if options.preset == "bbbc021_14" else ()
    return sites, unseen, [f"{options.preset}: {len(unseen)} of {len(compounds)} compounds are held out"]


def with_files(
    name: str,
    source: str,
    sites: pa.Table,
    chosen: pa.Table,
    options: Bbbc021Options,
    storage: Storage,
    rejected: Sequence[Rejected],
    notes: Sequence[str],
) -> Imported:
    """Imported from those `chosen` of all sites of the tree at `source`, with URIs and intensity ranges."""
    paths = _paths(chosen).unique().to_pylist()
    folders = _find_plates(absolute(source), paths, storage)
    whole = sites.filter(pc.is_in(_paths(sites), pa.array(paths)))
    ranges, more = _ranges(_with_uris(whole, folders), folders, storage, options)
    columns = {
        "intensity_ranges": [ranges.get(path) for path in _paths(chosen).to_pylist()],
        "pixel_size_um": [options.pixel_size_um] * len(chosen),
    }
    chosen = _with_uris(chosen, folders)
    for column, values in columns.items():
        field = chosen.schema.field(column)
        chosen = chosen.set_column(chosen.schema.names.index(column), field, pa.array(values, field.type))
    return imported(name, chosen, options, storage, rejected, [*notes, *more], CHANNELS)


def _paths(sites: pa.Table) -> pa.ChunkedArray:
    """Each site's <week>/<plate>."""
    return pc.binary_join_element_wise(sites["experiment"], sites["plate"], "/")


def _find_plates(root: str, paths: Sequence[str], storage: Storage) -> dict[str, tuple[str, bool]]:
    """Each plate's folder (the one it should be in, if there is none), and whether it has files."""

    def find(path: str) -> tuple[str, bool]:
        plate = path.rpartition("/")[2]
        archive = f"BBBC021_v1_images_{plate}.zip!"
        for place in (path, plate, f"{archive}/{plate}", f"{archive}/{path}", archive):
            folder = join(root, place)
            try:
                if storage.list_files(folder):
                    return folder, True
            except DataError:  # a damaged archive, whose reason the look for files tells
                return folder, False
        return join(root, path), False

    with ThreadPoolExecutor(_LISTINGS) as threads:
        return dict(zip(paths, threads.map(find, paths), strict=True))


def _with_uris(sites: pa.Table, folders: Mapping[str, tuple[str, bool]]) -> pa.Table:
    """The sites with the URIs of their files instead of the names."""
    place = pc.index_in(_paths(sites), pa.array(folders))
    folder = pc.take(pa.array([folder for folder, _ in folders.values()]), place)
    names = sites["channel_uris"]
    uris = [
        pc.binary_join_element_wise(folder, pc.list_element(names, channel), "/").combine_chunks()
        for channel in range(len(CHANNELS))
    ]
    return sites.set_column(sites.schema.names.index("channel_uris"), "channel_uris", lists_of(uris))


def _ranges(
    sites: pa.Table,
    folders: Mapping[str, tuple[str, bool]],
    storage: Storage,
    options: Bbbc021Options,
) -> tuple[dict[str, list[float] | None], list[str]]:
    """The intensity ranges of every plate by its path (none: each image's own) and what to tell of them."""
    if options.intensity == "image":
        return {}, ["intensity: each image's own 0.1 and 99.9 percentiles"]
    if isinstance(options.intensity, tuple):
        fixed = list(options.intensity) * len(CHANNELS)
        return dict.fromkeys(folders, fixed), [f"intensity: fixed, {options.intensity}"]
    samples = {}
    for path in [path for path, (_, has_files) in folders.items() if has_files]:
        mine = sites.filter(pc.equal(_paths(sites), path))
        kinds = (mine.filter(mine["is_control"]), mine)
        samples[path] = [thin(kind, options.intensity_sites)["channel_uris"].to_pylist() for kind in kinds]
    ranges, used = plate_ranges(samples, options.percentiles, storage)
    low, high = options.percentiles
    controls = sum(number == 0 for number in used.values())
    notes = []
    if controls:
        notes.append(
            f"intensity: {low:g} and {high:g} percentiles of up to {options.intensity_sites} DMSO fields on "
            f"each of {controls} plates"
        )
    if other := [path for path, number in used.items() if number == 1]:
        notes.append(f"intensity: of fields of any kind, for want of readable DMSO, on {shorten(other)}")
    if none := [path for path in folders if not ranges.get(path)]:
        notes.append(f"intensity: each image's own percentiles on {len(none)} plates without readable fields")
    return ranges, notes
