"""BBBC021's three CSV tables, checked row by row: fields of view, structures and mechanisms."""

import re
from collections.abc import Mapping
from typing import Any

from morphoray.datasets.base import Rejected
from morphoray.datasets.tables import read_columns
from morphoray.errors import DataError, MissingObjectError
from morphoray.perturbations.base import parse_concentration
from morphoray.perturbations.table import normalise_id
from morphoray.storage import Storage, join

CHANNELS = ("dapi", "tubulin", "actin")
CONTROL = "dmso"
CELL_TYPE = "MCF7"
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
_PATH = re.compile(r"[^/\\]+/[^/\\]+")
_FILES = [
    re.compile(rf"(?:[^/\\]*_)?([A-Z]\d+)_s(\d+)_w{wavelength}[^/\\]*\.tiff?", re.IGNORECASE)
    for wavelength in _WAVELENGTHS
]


def read_images(root: str, storage: Storage) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """The sites of BBBC021_v1_image.csv (or .gz) in its order, and the rows that can't be used.

    A site has SITES' columns of this table; channel_uris are names of files, perturbation_id the compound's.
    Raises DataError when the table is absent or isn't one, or no row of it can be used.
    """
    names = [join(root, f"BBBC021_v1_image.csv{suffix}") for suffix in ("", ".gz")]
    uri = next((name for name in names if storage.exists(name)), None)
    if uri is None:
        raise DataError(f"{names[0]}: missing. The source must be the folder that holds BBBC021's CSV files.")
    rows = read_columns(uri, storage, COLUMNS[2:], may_be_empty=COLUMNS[2:]).to_pylist()
    sites: dict[str, dict[str, Any]] = {}
    rejected: list[Rejected] = []
    for number, row in enumerate(rows, start=1):
        try:
            site = _site({name: value.strip() for name, value in row.items()})
            if site["site_id"] in sites:
                raise DataError("the same plate, well and site as an earlier row")
            sites[site["site_id"]] = site
        except DataError as error:
            rejected.append(Rejected(row["Image_FileName_DAPI"], f"{uri} row {number}", str(error)))
    if not sites:
        raise DataError(f"{uri}: none of {len(rows)} rows can be used; the first: {rejected[0].reason}")
    return list(sites.values()), rejected


def _site(row: Mapping[str, str]) -> dict[str, Any]:
    """The site of a row. Raises DataError when the row can't be used."""
    plate, well = row["Image_Metadata_Plate_DAPI"], row["Image_Metadata_Well_DAPI"]
    compound, replicate = row["Image_Metadata_Compound"], row["Replicate"]
    values = {"plate": plate, "well": well, "replicate": replicate, "compound": compound}
    if empty := [what for what, value in values.items() if not value]:
        raise DataError(f"no {empty[0]}")
    week = _week(row["Image_PathName_DAPI"], plate)
    files, number = _files(row, well)
    name, dose = normalise_id(compound), row["Image_Metadata_Concentration"]
    concentration_um = parse_concentration(dose, "concentration")
    if concentration_um is None:
        raise DataError(f"concentration: found {dose!r}, expected micromolar of at least 0")
    return {
        "site_id": f"{plate}_{well}_s{number}",
        "experiment": week,
        "plate": plate,
        "well": well,
        "site": number,
        "replicate": replicate,
        "cell_type": CELL_TYPE,
        "perturbation_id": name,
        "perturbation_kind": "control" if name == CONTROL else "compound",
        "concentration_um": concentration_um,
        "is_control": name == CONTROL,
        "channel_uris": files,
    }


def _week(path: str, plate: str) -> str:
    week, _, folder = path.partition("/")
    if not _PATH.fullmatch(path) or {".", ".."} & {week, folder}:
        raise DataError(f"path {path!r} is not <week>/<plate>")
    if folder != plate:
        raise DataError(f"path {path!r} and plate {plate!r} differ")
    return week


def _files(row: Mapping[str, str], well: str) -> tuple[list[str], str]:
    """The names of the row's channel files, and the number of the site that they show."""
    files = [row[f"Image_FileName_{stain}"] for stain in _STAINS]
    if len({row[f"Image_PathName_{stain}"] for stain in _STAINS}) > 1:
        raise DataError("channel files in several folders")
    numbers: list[str] = []
    for name, channel, wavelength, form in zip(files, CHANNELS, _WAVELENGTHS, _FILES, strict=True):
        found = form.fullmatch(name)
        if found is None:
            raise DataError(f"{channel} file name is not <well>_s<site>_w{wavelength}….tif: {name!r}")
        numbers.append(found[2])
        if found[1] != well or found[2] != numbers[0]:
            raise DataError(f"{channel} file name of another well or site: {name!r}")
    return files, numbers[0]


def read_smiles(root: str, storage: Storage) -> dict[str, str] | None:
    """The SMILES of each compound's id in BBBC021_v1_compound.csv; None without that table.

    Raises DataError when a compound has two structures.
    """
    uri = join(root, "BBBC021_v1_compound.csv")
    try:
        table = read_columns(uri, storage, ("compound", "smiles"), may_be_empty=("smiles",))
    except MissingObjectError:
        return None
    smiles: dict[str, str] = {}
    for row in table.to_pylist():
        text = row["smiles"].strip()
        if text and smiles.setdefault(normalise_id(row["compound"].strip()), text) != text:
            raise DataError(f"{uri}: compound {row['compound']!r} has two structures, expected one")
    return smiles


def read_mechanisms(root: str, storage: Storage) -> dict[tuple[str, float], str] | None:
    """The mechanism by a compound's id and concentration in BBBC021_v1_moa.csv; None without that table.

    Raises DataError for a concentration that is none, and when a treatment has two mechanisms.
    """
    uri = join(root, "BBBC021_v1_moa.csv")
    try:
        table = read_columns(uri, storage, ("compound", "concentration", "moa"))
    except MissingObjectError:
        return None
    mechanisms: dict[tuple[str, float], str] = {}
    for number, row in enumerate(table.to_pylist(), start=1):
        dose = parse_concentration(row["concentration"], f"{uri} row {number}, concentration")
        if dose is None:
            continue
        treatment, moa = (normalise_id(row["compound"].strip()), dose), row["moa"].strip()
        if mechanisms.setdefault(treatment, moa) != moa:
            raise DataError(
                f"{uri} row {number}: {row['compound']!r} at {dose:g} has two mechanisms, "
                f"{mechanisms[treatment]!r} and {moa!r}, expected one"
            )
    return mechanisms
