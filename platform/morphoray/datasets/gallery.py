"""Cell Painting Gallery projects: the sources' plates, where their files are, and their sites as SITES.

A project's folder has one folder a source (broad/, source_4/): images/<batch>/{images,illum}/<plate>/, and
workspace/load_data_csv/<batch>/<plate>/load_data_with_illum.parquet, .csv.gz or .csv.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from morphoray.datasets import splits
from morphoray.datasets.base import Imported, Rejected, imported
from morphoray.datasets.load_data import CHANNELS, read_rows
from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.base import Perturbation
from morphoray.schema import SITES
from morphoray.storage import Storage, absolute, join

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
_COLUMNS = pa.schema([field for field in SITES if field.name != "split"])

Wells = Mapping[str, Perturbation | str | None]
"""What each well of a plate got: a perturbation, the reason why that isn't known, or None to leave it out."""


class GalleryOptions(BaseModel):
    """What the importers of the gallery's projects have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    paths: dict[str, str] = Field(
        default_factory=dict,
        description="what the tables' paths begin with: what to read instead (the gallery's own: the source)",
    )
    batches: tuple[str, ...] | None = Field(None, description="keep these; null: all")
    plates: tuple[str, ...] | None = Field(None, description="keep these; null: all")
    controls: bool = Field(True, description="keep the control wells beside chosen perturbations")
    illumination: bool = Field(
        True, description="take the illumination functions along, which sites then need"
    )
    held_out_experiments: tuple[str, ...] = ()
    held_out_perturbations: tuple[str, ...] | str = Field((), description="ids, or a CSV perturbation,ood")
    limit: int | None = Field(None, ge=1, description="at most so many sites, evenly spaced over the tables")
    check_files: bool = Field(True, description="list the folders and quarantine sites that lack a file")


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


@dataclass(frozen=True)
class _Found:
    sites: pa.Table  # SITES without the split
    rejected: list[Rejected]


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
        raise ConfigError(splits.unknown(key, absent, known))
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
        read = list(threads.map(lambda plate: _read(name, plate, locate, options, storage), plates))
        found = _thin(read, options.limit)
        if options.check_files:
            found = list(threads.map(lambda each: _check_files(each, storage), found))
    sites = pa.concat_tables([each.sites for each in found])
    rejected = [row for each in found for row in each.rejected]
    known = sites["experiment"].unique().to_pylist()
    choose("held_out_experiments", options.held_out_experiments, known)
    ids = sites["perturbation_id"].to_pylist()
    unseen, more = splits.held_out(options.held_out_perturbations, set(ids), storage)
    columns: dict[str, Any] = {column: sites[column] for column in sites.column_names}
    columns["split"] = splits.assign(
        sites["experiment"].to_pylist(), ids, options.held_out_experiments, unseen
    )
    return imported(name, columns, rejected, [*notes, *_uncorrected(sites, options), *more])


def _read(
    name: str, plate: Plate, locate: Callable[[str], str], options: GalleryOptions, storage: Storage
) -> _Found:
    """The sites of a plate; a row that can't be used is rejected with the reason, as is a whole table."""
    table = plate.table
    rows: dict[str, dict[str, Any]] = {}
    rejected: list[Rejected] = []
    try:
        if isinstance(plate.wells, str):
            raise DataError(plate.wells)
        constant = {
            "dataset": name,
            "experiment": plate.experiment,
            "plate": table.plate,
            "cell_type": plate.cell_type,
            "pixel_size_um": plate.pixel_size_um,
        }
        for row in read_rows(table.uri, table.plate, locate, options.illumination, storage):
            found = plate.wells.get(row.well or "", f"no perturbation is known for well {row.well}")
            site_id = "__".join([plate.experiment, table.plate, row.well or "", row.site])
            reason = row.reason or ("there twice" if site_id in rows else found)
            if found is None:
                continue
            if isinstance(reason, str) or not isinstance(found, Perturbation):
                rejected.append(Rejected(site_id, row.channels[0] or table.uri, str(reason)))
                continue
            rows[site_id] = {
                **constant,
                **_perturbation(found),
                "site_id": site_id,
                "well": row.well,
                "site": row.site,
                "channel_uris": row.channels,
                "illumination_uris": row.functions if any(row.functions) else None,
            }
    except DataError as error:
        item = "/".join([table.source, table.batch, table.plate])
        return _Found(_COLUMNS.empty_table(), [Rejected(item, table.uri, str(error))])
    return _Found(pa.Table.from_pylist(list(rows.values()), schema=_COLUMNS), rejected)


def _perturbation(found: Perturbation) -> dict[str, Any]:
    values = dict(vars(found))
    return {"perturbation_kind": values.pop("kind"), **values}


def _thin(found: Sequence[_Found], limit: int | None) -> list[_Found]:
    """At most `limit` sites, evenly spaced over all plates."""
    total = sum(len(each.sites) for each in found)
    if limit is None or limit >= total:
        return list(found)
    chosen = np.arange(limit) * total // limit
    starts = np.cumsum([0, *(len(each.sites) for each in found)])
    return [
        _Found(each.sites.take(chosen[(chosen >= start) & (chosen < stop)] - start), each.rejected)
        for each, start, stop in zip(found, starts[:-1], starts[1:], strict=True)
    ]


def _check_files(found: _Found, storage: Storage) -> _Found:
    """A plate's sites without those that lack an image or a function; each folder is listed once."""
    columns = [found.sites[name].to_pylist() for name in ("channel_uris", "illumination_uris")]
    folders = {uri.rpartition("/")[0] for column in columns for uris in column for uri in uris or ()}
    there = {uri for folder in sorted(folders) for uri in storage.list_files(folder)}
    complete, rejected = [], list(found.rejected)
    for site_id, channels, functions in zip(found.sites["site_id"].to_pylist(), *columns, strict=True):
        lacking = [
            (f"missing {what}: {', '.join(names)}", uri)
            for what, uris in (("channel files", channels), ("illumination functions", functions or ()))
            if (names := [name for name, uri in zip(CHANNELS, uris, strict=False) if uri not in there])
            for uri in [next(uri for uri in uris if uri not in there)]
        ]
        complete.append(not lacking)
        if lacking:
            rejected.append(Rejected(site_id, lacking[0][1], "; ".join(reason for reason, _ in lacking)))
    return _Found(found.sites.filter(pa.array(complete, pa.bool_())), rejected)


def _uncorrected(sites: pa.Table, options: GalleryOptions) -> list[str]:
    count = sites["illumination_uris"].null_count if options.illumination else 0
    return [f"illumination: {count} sites have no illumination functions in their tables"] if count else []
