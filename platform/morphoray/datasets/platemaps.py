"""Platemaps of the Cell Painting Gallery: which well of which plate got what."""

import re
from collections.abc import Mapping

from morphoray.errors import DataError, MissingObjectError
from morphoray.perturbations.base import read_csv
from morphoray.storage import Storage, join

Platemap = Mapping[str, Mapping[str, str]]  # rows by well

_WELL = re.compile(r"([A-Z]{1,2})([0-9]{1,2})")


def well_name(text: str) -> str | None:
    """A well as A01, from a1, A01 or a01; None for another form."""
    match = _WELL.fullmatch(text.strip().upper())
    return f"{match[1]}{int(match[2]):02d}" if match else None


def read_platemaps(folder: str, storage: Storage, everywhere: str | None = None) -> dict[str, Platemap]:
    """The platemap of each plate: rows by well.

    `folder` holds barcode_platemap.csv (Assay_Plate_Barcode, Plate_Map_Name) and platemap/<name>.txt;
    `everywhere` is the one platemap of all plates instead, found under the plate "". Raises DataError for
    what is missing there or broken.
    """
    if everywhere is not None:
        return {"": read_platemap(everywhere, storage)}
    uri = join(folder, "barcode_platemap.csv")
    try:
        rows = read_csv(uri, storage)
    except MissingObjectError:
        raise DataError(
            f"{uri}: missing. It names the platemap of each plate (Assay_Plate_Barcode, Plate_Map_Name)."
        ) from None
    wanted = ("Assay_Plate_Barcode", "Plate_Map_Name")
    if missing := [name for name in wanted if name not in rows[0]]:
        raise DataError(f"{uri}: found columns {sorted(rows[0])}, expected also {missing}")
    names: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        plate, name = (row[column] for column in wanted)
        if names.setdefault(plate, name) != name:
            raise DataError(f"{uri} row {number}: plate {plate} has two platemaps, {names[plate]} and {name}")
        if "/" in name:
            raise DataError(
                f"{uri} row {number}: Plate_Map_Name {name!r}, expected a file's name without .txt"
            )
    maps = {
        name: read_platemap(join(folder, "platemap", f"{name}.txt"), storage)
        for name in sorted(set(names.values()))
    }
    return {plate: maps[name] for plate, name in names.items()}


def read_platemap(uri: str, storage: Storage) -> Platemap:
    """The rows of a tab-separated platemap by well; any line endings, wells in any case.

    Raises DataError naming a column that is missing, or a well that is none or has two rows.
    """
    try:
        rows = read_csv(uri, storage, delimiter="\t")
    except MissingObjectError:
        raise DataError(f"{uri}: missing platemap") from None
    found: dict[str, Mapping[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        if "well_position" not in row:
            raise DataError(f"{uri}: found columns {sorted(row)}, expected well_position and tabs between")
        well = well_name(row["well_position"])
        if well is None or well in found:
            what = "no well such as A01" if well is None else "there already"
            raise DataError(f"{uri} row {number}: well_position {row['well_position']!r} is {what}")
        found[well] = row
    return found
