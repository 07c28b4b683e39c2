"""BBBC021's three CSV tables, checked row by row: fields of view, structures and mechanisms."""

import re
from typing import Any

import numpy as np
import pandas as pd

from morphoray.datasets.base import Rejected
from morphoray.datasets.files import first_existing, read_columns
from morphoray.errors import DataError, MissingObjectError
from morphoray.imaging.channels import BBBC021_CHANNELS as CHANNELS
from morphoray.perturbations.base import parse_float
from morphoray.perturbations.table import normalise_id
from morphoray.storage import Storage, join

__all__ = ["CHANNELS", "COLUMNS", "CONTROL", "read_images", "read_mechanisms", "read_smiles"]

CONTROL = "dmso"
_STAINS = ("DAPI", "Tubulin", "Actin")  # the table's names for CHANNELS
_WAVELENGTHS = (1, 2, 4)
COLUMNS = (
    "TableNumber",
    "ImageNumber",
    *(f"Image_{kind}Name_{stain}" for stain in _STAINS for kind in ("File", "Path")),
    "Image_Metadata_Plate_DAPI",
    "Image_Metadata_Well_DAPI",
    "Replicate",
    "Image_Metadata_Compound",
    "Image_Metadata_Concentration",
)
_PATH = re.compile(r"(?P<week>[^/\\]+)/(?P<plate>[^/\\]+)")


def read_images(root: str, storage: Storage) -> tuple[pd.DataFrame, list[Rejected]]:
    """BBBC021_v1_image.csv (or .gz) row by row, and the rows that can't be used.

    Columns: site_id, week, plate, well, site, replicate, compound, compound_id, concentration_um, is_control,
    path, file_<channel>. Raises DataError when the table is absent or isn't one.
    """
    names = [join(root, f"BBBC021_v1_image.csv{suffix}") for suffix in ("", ".gz")]
    uri = first_existing(names, storage)
    if uri is None:
        raise DataError(f"{names[0]}: missing. The source must be the folder that holds BBBC021's CSV files.")
    table = read_columns(uri, COLUMNS[2:], storage).apply(lambda column: column.str.strip())
    rows = pd.DataFrame(
        {
            "plate": table["Image_Metadata_Plate_DAPI"],
            "well": table["Image_Metadata_Well_DAPI"],
            "replicate": table["Replicate"],
            "compound": table["Image_Metadata_Compound"],
            "path": table["Image_PathName_DAPI"],
            **{f"file_{name}": table[f"Image_FileName_{stain}"] for name, stain in _pairs()},
        }
    )
    rows["week"] = rows["path"].str.partition("/")[0]
    rows["compound_id"] = rows["compound"].map(
        {name: normalise_id(name) for name in rows["compound"].unique()}
    )
    rows["is_control"] = rows["compound_id"] == CONTROL
    dose = pd.to_numeric(table["Image_Metadata_Concentration"], errors="coerce")
    rows["concentration_um"] = dose
    rows["site"] = rows[f"file_{CHANNELS[0]}"].str.extract(r"_s(\d+)_w1", expand=False).fillna("")
    rows["site_id"] = rows["plate"] + "_" + rows["well"] + "_s" + rows["site"]
    reasons = _problems(table, rows)
    bad = np.flatnonzero(reasons != "")
    labels = [f"{uri} row {row + 1}" for row in bad]
    rejected = [
        Rejected(rows["site_id"].iloc[row], label, reasons[row])
        for row, label in zip(bad, labels, strict=True)
    ]
    good = rows[reasons == ""].reset_index(drop=True)
    if good.empty:
        raise DataError(f"{uri}: none of {len(rows)} rows can be used; the first: {reasons[0]}")
    return good, rejected


def _pairs() -> Any:
    return zip(CHANNELS, _STAINS, strict=True)


def _problems(table: pd.DataFrame, rows: pd.DataFrame) -> Any:
    """Why each row can't be used, "" for one that can (object array)."""
    reasons = np.full(len(rows), "", dtype=object)

    def because(wrong: Any, reason: str) -> None:
        reasons[np.asarray(wrong, bool) & (reasons == "")] = reason

    for name in ("plate", "well", "replicate", "compound"):
        because(rows[name] == "", f"no {name}")
    folder = rows["path"].str.extract(f"^{_PATH.pattern}$")
    because(
        folder["week"].isna() | (rows["path"].str.contains(r"(?:^|/)\.\.?(?:/|$)")),
        "path is not <week>/<plate>",
    )
    because(folder["plate"] != rows["plate"], "path and plate differ")
    for (name, stain), wavelength in zip(_pairs(), _WAVELENGTHS, strict=True):
        because(table[f"Image_PathName_{stain}"] != rows["path"], "channel files in several folders")
        found = rows[f"file_{name}"].str.extract(
            rf"^(?:[^/\\]*_)?([A-Z]\d+)_s(\d+)_w{wavelength}[^/\\]*\.tiff?$", flags=re.I
        )
        because(found[0].isna(), f"{name} file name is not <well>_s<site>_w{wavelength}….tif")
        because(
            (found[0] != rows["well"]) | (found[1] != rows["site"]),
            f"{name} file name of another well or site",
        )
    dose = rows["concentration_um"]
    because(~np.isfinite(dose) | (dose < 0), "concentration is no number of at least 0")
    because(rows["site_id"].duplicated(), "the same plate, well and site as an earlier row")
    return reasons


def read_smiles(root: str, storage: Storage, table: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """The SMILES of each compound id in BBBC021_v1_compound.csv, which may be absent, and what to tell.

    Raises DataError when a compound has two structures.
    """
    uri = join(root, "BBBC021_v1_compound.csv")
    try:
        listed = read_columns(uri, ("compound", "smiles"), storage)
    except MissingObjectError:
        return {}, ["SMILES: none, since there is no BBBC021_v1_compound.csv"]
    smiles: dict[str, str] = {}
    for name, text in zip(listed["compound"], listed["smiles"].str.strip(), strict=True):
        if text and smiles.setdefault(normalise_id(name.strip()), text) != text:
            raise DataError(f"{uri}: compound {name!r} has two structures, expected one")
    wanted = set(table["compound_id"][~table["is_control"]])
    lacking = sorted(wanted - set(smiles))
    note = f"SMILES: {len(wanted) - len(lacking)} of {len(wanted)} compounds"
    return smiles, [f"{note}; without one: {', '.join(lacking[:20])}" if lacking else note]


def read_mechanisms(root: str, storage: Storage, table: pd.DataFrame) -> tuple[list[str | None], list[str]]:
    """The mechanism of each row's compound and concentration in BBBC021_v1_moa.csv, and what to tell."""
    uri = join(root, "BBBC021_v1_moa.csv")
    try:
        listed = read_columns(uri, ("compound", "concentration", "moa"), storage)
    except MissingObjectError:
        return [None] * len(table), ["mechanisms: none, since there is no BBBC021_v1_moa.csv"]
    known: dict[tuple[str, float | None], str] = {}
    for number, row in enumerate(listed.itertuples(index=False), start=1):
        dose = parse_float(row.concentration, f"{uri} row {number}, concentration")
        known[normalise_id(row.compound.strip()), dose] = row.moa.strip()
    keys = list(zip(table["compound_id"], table["concentration_um"], strict=True))
    found = {key for key in keys if key in known}
    treatments = sum(name != CONTROL for name, _ in found)
    mechanisms = {known[key] for key in found if key[0] != CONTROL}
    return [known.get(key) for key in keys], [f"mechanisms: {len(mechanisms)}, of {treatments} treatments"]
