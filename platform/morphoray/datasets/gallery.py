"""Cell Painting Gallery projects: the sources' plates, where their files are, and their sites as SITES.

A project's folder has one folder a source (broad/, source_4/): images/<batch>/{images,illum}/<plate>/, and
workspace/load_data_csv/<batch>/<plate>/load_data_with_illum.parquet, .csv.gz or .csv.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from morphoray.datasets.base import Imported, Rejected, imported, select, sites_table
from morphoray.datasets.load_data import CHANNELS, Row, read_rows
from morphoray.datasets.options import ImportOptions
from morphoray.datasets.selection import unknown
from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.base import Perturbation
from morphoray.schema import PERTURBATION_FIELDS
from morphoray.storage import Storage, absolute, join

CHANNEL_NAMES = tuple(name.lower() for name in CHANNELS)  # of the files in channel_uris
BUCKET = (  # how the tables name the gallery's bucket
    "/home/ubuntu/bucket/",
    "s3://cellpainting-gallery/",
    "https://cellpainting-gallery.s3.amazonaws.com/",
    "https://s3.amazonaws.com/cellpainting-gallery/",
)
_TABLES = tuple(  # of a plate, the best first
    f"{stem}.{kind}"
    for stem in ("load_data_with_illum", "load_data")
    for kind in ("parquet", "csv.gz", "csv")
)
_THREADS = 8  # plates looked at together; each waits on object storage
# What a Perturbation calls each of SITES' columns.
_PERTURBATION = {field.name: field.name for field in PERTURBATION_FIELDS} | {"perturbation_kind": "kind"}

Wells = Mapping[str, Perturbation | str | None]
"""What each well of a plate got: a perturbation, the reason why that isn't known, or None to leave it out."""


class GalleryOptions(ImportOptions):
    """What the importers of the gallery's projects have in common."""

    paths: dict[str, str] = Field(
        default_factory=dict,
        description="what the tables' paths begin with: what to read instead (the gallery's own: the source)",
    )
    batches: tuple[str, ...] | None = Field(None, description="read these batches' tables; null: all")
    plates: tuple[str, ...] | None = Field(None, description="read these plates' tables; null: all")
    controls: bool = Field(True, description="keep the control wells beside chosen perturbations")
    illumination: bool = Field(
        True, description="take the illumination functions along, which sites then need"
    )
    intensity: Literal["image"] | tuple[float, float] = Field(
        "image",
        description="what is 0 and 255 in every channel: each image's own percentiles, or [low, high]",
    )

    @model_validator(mode="after")
    def _low_below_high(self) -> "GalleryOptions":
        if self.intensity != "image" and not self.intensity[0] < self.intensity[1]:
            raise ValueError(f"intensity: found {list(self.intensity)}, expected low < high")
        return self


@dataclass(frozen=True)
class Project:
    """SOURCE, and its sources' folders by name; `alone` when SOURCE is one source's folder itself."""

    uri: str
    sources: Mapping[str, str]
    alone: bool


@dataclass(frozen=True)
class PlateTable:
    """Where a plate's load_data table is."""

    source: str
    batch: str
    plate: str
    uri: str


@dataclass(frozen=True)
class Plate:
    """A plate to import: its table, what SITES say of all its sites, and its wells or why there are none."""

    table: PlateTable
    experiment: str
    wells: Wells | str
    cell_type: str | None = None
    pixel_size_um: float | None = None


def find_project(source: str, storage: Storage, only: Sequence[str] | None = None) -> Project:
    """The sources in a project's folder, or the one whose folder SOURCE is; `only` keeps those of that name.

    Raises DataError when none has a workspace/, ConfigError when `only` names one that isn't there.
    """
    root = absolute(source)
    if storage.exists(join(root, "workspace")):
        name = root.rstrip("/").rpartition("/")[2]
        return Project(root, dict.fromkeys(choose("sources", only, [name]), root), True)
    folders = {uri.rpartition("/")[2]: uri for uri in storage.list_folders(root)}
    names = choose("sources", only, folders)
    found = {name: folders[name] for name in names if storage.exists(join(folders[name], "workspace"))}
    if not found:
        raise DataError(
            f"{root}: no folder workspace/ in it, nor in a folder of it. The source must be a project's "
            "folder, which has broad/ or source_4/ in it, or one of those."
        )
    return Project(root, found, False)


def choose(key: str, wanted: Sequence[str] | None, known: Collection[str]) -> list[str]:
    """The known names that an option wants, sorted; all for None. Raises ConfigError for an unknown one."""
    if wanted is None:
        return sorted(known)
    if absent := [name for name in wanted if name not in known]:
        raise ConfigError(unknown(key, absent, known))
    return sorted(set(wanted))


def find_tables(project: Project, options: GalleryOptions, storage: Storage) -> list[PlateTable]:
    """The best load_data table of each plate, by source, batch and plate: rather one with illumination.

    Raises DataError when there is none, ConfigError for batches and plates that aren't there.
    """
    best: dict[tuple[str, str, str], tuple[int, str]] = {}
    for source, uri in project.sources.items():
        folder = join(uri, "workspace", "load_data_csv")
        for file in storage.list_files(folder, recursive=True):
            *above, name = file.removeprefix(folder).strip("/").split("/")
            if name in _TABLES and len(above) == 2:
                key, rank = (source, above[0], above[1]), (_TABLES.index(name), file)
                best[key] = min(best.get(key, rank), rank)
    if not best:
        raise DataError(
            f"{project.uri}: no load_data table; looked in workspace/load_data_csv/<batch>/<plate>/ of "
            f"{', '.join(project.sources)} for {', '.join(_TABLES)}"
        )
    batches = choose("batches", options.batches, {batch for _, batch, _ in best})
    plates = choose("plates", options.plates, {plate for _, _, plate in best})
    chosen = {key: rank for key, rank in best.items() if key[1] in batches and key[2] in plates}
    if not chosen:
        raise ConfigError("dataset.batches and dataset.plates together leave no plate of the data")
    return [PlateTable(*key, chosen[key][1]) for key in sorted(chosen)]


def path_map(project: Project, paths: Mapping[str, str]) -> Callable[[str], str]:
    """From a folder as the tables name it to where it is: by the longest prefix in `paths`.

    Else <the gallery's bucket>/<project>/<source>/... is looked for in the project's folder, and any other is
    left as it is.
    """

    def locate(path: str) -> str:
        for prefix in sorted(paths, key=len, reverse=True):
            if path.startswith(prefix):
                return absolute(join(paths[prefix], path.removeprefix(prefix)))
        for prefix in BUCKET:
            if path.startswith(prefix + "cpg"):
                rest = path.removeprefix(prefix).split("/")
                return join(project.uri, *rest[2 if project.alone else 1 :])
        return path

    return locate


def keep_wells(
    wells: Mapping[str, Perturbation | str], chosen: Collection[str] | None, controls: bool
) -> Wells:
    """The wells with None for perturbations that are not among the chosen ids; `controls` keeps those too."""

    def keep(found: Perturbation | str) -> bool:
        if isinstance(found, str):
            return chosen is None
        if found.is_control and controls:
            return True
        return not found.is_control if chosen is None else found.perturbation_id in chosen

    return {well: found if keep(found) else None for well, found in wells.items()}


def import_plates(
    name: str,
    project: Project,
    plates: Sequence[Plate],
    options: GalleryOptions,
    storage: Storage,
    notes: Sequence[str] = (),
) -> Imported:
    """SITES of the plates, by plate in the order of their tables; what can't be used is quarantined.

    Raises DataError when no site is left, ConfigError for options that match nothing.
    """
    locate = path_map(project, options.paths)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(lambda plate: _read(name, plate, locate, options, storage), plates))
    sites = pa.concat_tables([table for table, _ in found])
    rejected = [row for _, rows in found for row in rows]
    if not len(sites):
        return imported(name, sites, options, storage, rejected)
    chosen, more = select(sites, options, storage)
    notes = [*notes, *_uncorrected(chosen, options), *more]
    return imported(name, chosen, options, storage, rejected, notes, CHANNELS)


def _read(
    name: str, plate: Plate, locate: Callable[[str], str], options: GalleryOptions, storage: Storage
) -> tuple[pa.Table, list[Rejected]]:
    """The sites of a plate; a row that can't be used is rejected with the reason, as is a whole table."""
    table = plate.table
    rows: dict[str, tuple[Row, Perturbation]] = {}
    rejected: list[Rejected] = []
    try:
        if isinstance(plate.wells, str):
            raise DataError(plate.wells)
        for row in read_rows(table.uri, table.plate, locate, options.illumination, storage):
            found = plate.wells.get(row.well or "", f"no perturbation is known for well {row.well}")
            site_id = "__".join([plate.experiment, table.plate, row.well or "", row.site])
            reason = row.reason or ("there twice" if site_id in rows else found)
            if found is None:
                continue
            if isinstance(reason, str) or not isinstance(found, Perturbation):
                rejected.append(Rejected(site_id, row.channels[0] or table.uri, str(reason)))
                continue
            rows[site_id] = (row, found)
    except DataError as error:
        item = "/".join([table.source, table.batch, table.plate])
        return sites_table({"site_id": []}), [Rejected(item, table.uri, str(error))]
    return sites_table(_columns(name, plate, rows, options)), rejected


def _columns(
    name: str, plate: Plate, rows: Mapping[str, tuple[Row, Perturbation]], options: GalleryOptions
) -> dict[str, list[Any]]:
    """SITES' columns of a plate's sites, which `rows` has by id."""
    constant = {
        "dataset": name,
        "experiment": plate.experiment,
        "plate": plate.table.plate,
        "cell_type": plate.cell_type,
        "pixel_size_um": plate.pixel_size_um,
        "intensity_ranges": None if options.intensity == "image" else [*options.intensity] * len(CHANNELS),
    }
    found = [perturbation for _, perturbation in rows.values()]
    return {
        **{column: [value] * len(rows) for column, value in constant.items()},
        "site_id": list(rows),
        "well": [row.well for row, _ in rows.values()],
        "site": [row.site for row, _ in rows.values()],
        **{column: [getattr(item, own) for item in found] for column, own in _PERTURBATION.items()},
        "channel_uris": [row.channels for row, _ in rows.values()],
        "illumination_uris": [row.functions if any(row.functions) else None for row, _ in rows.values()],
    }


def _uncorrected(sites: pa.Table, options: GalleryOptions) -> list[str]:
    count = sites["illumination_uris"].null_count if options.illumination else 0
    return [f"illumination: {count} sites have no illumination functions in their tables"] if count else []
