"""BBBC021's own layout: three CSV tables, and Week<n>/<plate>/ folders or one zip archive a plate.

BBBC021v1 (Caie et al. 2010; Ljosa et al. 2012): MCF7 cells, 113 compounds, three stains in 16 bits.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from morphoray.datasets import splits
from morphoray.datasets.base import Imported, Rejected, imported
from morphoray.datasets.bbbc021_tables import CHANNELS, read_images, read_mechanisms, read_smiles
from morphoray.datasets.files import check_files, evenly, uri_lists
from morphoray.datasets.ranges import plate_ranges
from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.table import normalise_id
from morphoray.storage import Storage, absolute, join

CELL_TYPE = "MCF7"
_LISTINGS = 8  # plates looked for at once

# The original project's lists: 98 compounds with a public structure, of which it trained on 14 (or on all).
SEEN_14 = (
    "az138", "az841", "az258", "cytochalasin-b", "cytochalasin-d", "latrunculin-b", "pp-2", "demecolcine",
    "nocodazole", "colchicine", "vincristine", "epothilone-b", "taxol", "docetaxel",
)  # fmt: skip
UNLISTED = (*(f"az-{letter}" for letter in "abchijklmnou"), "tkk", "unknown")


class Bbbc021Options(BaseModel):
    """Options of the `bbbc021` importer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["bbbc021_14", "bbbc021_all"] | None = Field(
        None, description="the original's 98 compounds; _14: all but its 14 are held out"
    )
    weeks: tuple[str, ...] | None = Field(None, description="keep these, such as Week4; null: all")
    plates: tuple[str, ...] | None = Field(None, description="keep these, such as Week4_27481; null: all")
    compounds: tuple[str, ...] | None = Field(None, description="keep these beside DMSO; null: all")
    controls: bool = Field(True, description="keep the DMSO fields")
    moa_only: bool = Field(False, description="keep treatments with a mechanism in BBBC021_v1_moa.csv")
    dose_in_id: bool = Field(False, description="ids are <compound>@<micromolar> instead of <compound>")
    held_out_experiments: tuple[str, ...] = Field((), description="weeks")
    held_out_perturbations: tuple[str, ...] | str = Field(
        (), description="ids or compounds, or a CSV perturbation,ood"
    )
    limit: int | None = Field(None, ge=1, description="at most so many sites, evenly spaced over the table")
    check_files: bool = Field(True, description="quarantine sites without all their files")
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

    Without any image the tables are imported all the same, and the summary says so. Raises DataError for a
    table that breaks its contract, ConfigError for options that match nothing.
    """
    root = absolute(source)
    table, rejected = read_images(root, storage)
    smiles, smiles_notes = read_smiles(root, storage, table)
    mechanisms, moa_notes = read_mechanisms(root, storage, table)
    table["moa"] = pd.Series(mechanisms, dtype=object)
    rows = _select(table, options)
    plates = table[table["plate"].isin(rows["plate"].unique())]
    folders = _plate_folders(root, plates["path"].unique(), storage)
    uris = _channel_uris(rows, folders)
    notes = [*smiles_notes, *moa_notes]
    if not any(plate.files or plate.problem for plate in folders.values()):
        notes.append(
            f"images: none of {len(rows)} sites has files. Expected {root}/{rows['path'].iloc[0]}/ or "
            f"BBBC021_v1_images_{rows['plate'].iloc[0]}.zip; SITES name the files that should be there"
        )
    elif options.check_files:
        complete, lacking = _check_files(rows, uris, folders)
        rows, uris, rejected = rows[complete], uris[complete], [*rejected, *lacking]
    ranges, range_notes = _ranges(plates, folders, storage, options)
    split, split_notes = _split(rows, options, storage)
    columns = _columns(rows, smiles, ranges, options) | {"channel_uris": uri_lists(uris), "split": split}
    return imported("bbbc021", columns, rejected, [*notes, *range_notes, *split_notes])


def _select(table: pd.DataFrame, options: Bbbc021Options) -> pd.DataFrame:
    """The rows that the filters keep, evenly thinned to `limit`."""
    control = table["is_control"].to_numpy(bool)
    keep = np.ones(len(table), dtype=bool)
    for key, column in (("weeks", "week"), ("plates", "plate")):
        if (wanted := getattr(options, key)) is not None:
            keep &= _matches(key, wanted, table[column])
    if options.compounds is not None:
        wanted = [normalise_id(name) for name in options.compounds]
        keep &= _matches("compounds", wanted, table["compound_id"]) | control
    if options.preset is not None:
        keep &= ~table["compound_id"].isin(UNLISTED).to_numpy()
    if options.moa_only:
        keep &= table["moa"].notna().to_numpy()
    if not options.controls:
        keep &= ~control
    if not keep.any():
        raise ConfigError("dataset: weeks, plates, compounds and moa_only together leave no site of the data")
    rows = table[keep]
    _matches("held_out_experiments", options.held_out_experiments, rows["week"])
    return rows.iloc[evenly(len(rows), options.limit)]


def _matches(key: str, wanted: Any, column: "pd.Series[str]") -> Any:
    known = set(column)
    if absent := [name for name in wanted if name not in known]:
        raise ConfigError(splits.unknown(key, absent, known))
    return column.isin(wanted).to_numpy()


class PlateFiles(NamedTuple):
    """A plate's folder (where it should be, without files), the files in it, and why it can't be read."""

    folder: str
    files: list[str]
    problem: str | None = None


def _plate_folders(root: str, paths: Any, storage: Storage) -> dict[str, PlateFiles]:
    """Where each plate lies, by its path in the table."""

    def find(path: str) -> PlateFiles:
        plate = path.rpartition("/")[2]
        archive = f"BBBC021_v1_images_{plate}.zip!"
        for place in (path, plate, f"{archive}/{plate}", f"{archive}/{path}", archive):
            folder = join(root, place)
            try:
                if files := storage.list_files(folder):
                    return PlateFiles(folder, files)
            except DataError as error:  # an archive that is none
                return PlateFiles(folder, [], str(error))
        return PlateFiles(join(root, path), [])

    with ThreadPoolExecutor(_LISTINGS) as threads:
        return dict(zip(paths, threads.map(find, paths), strict=True))


def _check_files(
    rows: pd.DataFrame, uris: Any, folders: Mapping[str, PlateFiles]
) -> tuple[Any, list[Rejected]]:
    """Which rows have all their files (bool array), and the others with the reason."""
    files = [plate.files for plate in folders.values()]
    complete, rejected = check_files(rows["site_id"].to_numpy(object), uris, CHANNELS, files)
    problems = [folders[path].problem for path in rows["path"][~complete]]
    return complete, [
        row if problem is None else replace(row, reason=problem)
        for row, problem in zip(rejected, problems, strict=True)
    ]


def _channel_uris(rows: pd.DataFrame, folders: Mapping[str, PlateFiles]) -> Any:
    """An object array (sites, channels) of URIs."""
    stem = rows["path"].map({path: plate.folder for path, plate in folders.items()}) + "/"
    return np.stack([(stem + rows[f"file_{name}"]).to_numpy(object) for name in CHANNELS], axis=1)


def _ranges(
    table: pd.DataFrame,
    folders: Mapping[str, PlateFiles],
    storage: Storage,
    options: Bbbc021Options,
) -> tuple[dict[str, list[float] | None], list[str]]:
    """Every plate's intensity ranges (none: each image's own) and what to tell of them."""
    if options.intensity == "image":
        return {}, ["intensity: each image's own 0.1 and 99.9 percentiles"]
    if isinstance(options.intensity, tuple):
        fixed = list(options.intensity) * len(CHANNELS)
        return dict.fromkeys(table["plate"], fixed), [f"intensity: fixed, {options.intensity}"]
    samples = {}
    for plate, rows in table.groupby("plate", sort=False):
        if folders[rows["path"].iloc[0]].files:
            kinds = (rows[rows["is_control"]], rows)
            samples[plate] = [
                _channel_uris(kind.iloc[evenly(len(kind), options.intensity_sites)], folders).tolist()
                for kind in kinds
            ]
    ranges, used = plate_ranges(samples, options.percentiles, storage)
    low, high = options.percentiles
    controls = sum(number == 0 for number in used.values())
    notes = []
    if controls:
        notes.append(
            f"intensity: {low:g} and {high:g} percentiles of up to {options.intensity_sites} DMSO fields on "
            f"each of {controls} plates"
        )
    other = [plate for plate, number in used.items() if number == 1]
    if other:
        notes.append(f"intensity: of fields of any kind, for want of readable DMSO, on {', '.join(other)}")
    none = sorted(set(table["plate"]) - {plate for plate, found in ranges.items() if found})
    if none:
        notes.append(f"intensity: each image's own percentiles on {len(none)} plates without readable fields")
    return ranges, notes


def _split(rows: pd.DataFrame, options: Bbbc021Options, storage: Storage) -> tuple[list[str], list[str]]:
    """The split of each row; a compound's name holds out all its doses."""
    ids = perturbation_ids(rows, options.dose_in_id)
    if options.preset is not None:
        trained = SEEN_14 if options.preset == "bbbc021_14" else tuple(rows["compound_id"])
        unseen = set(rows["compound_id"][~rows["is_control"]]) - set(trained)
        notes = [f"{options.preset}: {len(unseen)} compounds are held out, the original's unseen ones"]
    else:
        known = {*ids, *rows["compound_id"]}
        unseen, notes = splits.held_out(options.held_out_perturbations, known, storage)
    unseen |= {name for name, compound in zip(ids, rows["compound_id"], strict=True) if compound in unseen}
    return splits.assign(rows["week"], ids, options.held_out_experiments, unseen), notes


def perturbation_ids(rows: pd.DataFrame, dose_in_id: bool) -> list[str]:
    """The perturbation id of each row of the table; a control has no dose."""
    if not dose_in_id:
        return list(rows["compound_id"])
    triples = zip(rows["compound_id"], rows["concentration_um"], rows["is_control"], strict=True)
    return [name if is_control else f"{name}@{dose:g}" for name, dose, is_control in triples]


def _columns(
    rows: pd.DataFrame,
    smiles: Mapping[str, str],
    ranges: Mapping[str, list[float] | None],
    options: Bbbc021Options,
) -> dict[str, Any]:
    """SITES' columns but the files and the split."""
    control = rows["is_control"].to_numpy(bool)
    plain = ("site_id", "plate", "well", "site", "replicate", "moa")
    return {name: rows[name].to_numpy(object) for name in plain} | {
        "dataset": ["bbbc021"] * len(rows),
        "experiment": rows["week"].to_numpy(object),
        "cell_type": [CELL_TYPE] * len(rows),
        "perturbation_id": perturbation_ids(rows, options.dose_in_id),
        "perturbation_kind": np.where(control, "control", "compound").astype(object),
        "smiles": [smiles.get(name) for name in rows["compound_id"]],
        "concentration_um": rows["concentration_um"].to_numpy(float),
        "is_control": control,
        "intensity_ranges": [ranges.get(plate) for plate in rows["plate"]],
        "pixel_size_um": pa.array([options.pixel_size_um] * len(rows), pa.float64()),
    }
