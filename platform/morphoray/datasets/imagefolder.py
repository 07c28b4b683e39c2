"""The original project's input: a folder of PNG or JPEG images with metadata.jsonl (or metadata.csv)."""

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from morphoray.datasets.base import Imported, Rejected, imported, select, sites_table
from morphoray.datasets.options import ImportOptions
from morphoray.datasets.tables import repeated
from morphoray.errors import DataError
from morphoray.perturbations.base import (
    Perturbation,
    dose_id,
    parse_concentration,
    read_csv,
    read_perturbations,
)
from morphoray.perturbations.table import normalise_id
from morphoray.storage import Storage, absolute, join

_BLOCK = 20_000  # rows of metadata held as Python objects at a time, some 40 MB
_TEXT_FIELDS = ("plate", "well", "site", "cell_type", "moa", "smiles", "gene")
NO_BATCH = "all"  # the experiment and plate of images whose metadata name none


class ImagefolderOptions(ImportOptions):
    """Options of the `imagefolder` importer."""

    split: str = Field(
        "train", description="the subfolder with the metadata, unless the source itself has it"
    )
    id_field: str = Field("additional_feature", description="the metadata field with the perturbation id")
    experiment_field: str = Field("plate", description="the metadata field that is the batch")
    dose_in_id: bool = Field(
        False, description="make the id <name>@<concentration_um>, so that each dose is a perturbation"
    )
    control_ids: tuple[str, ...] = Field(("dmso", "empty"), description="perturbation ids that are controls")
    kind: Literal["compound", "gene"] = Field(
        "compound", description="what perturbations are; a gene's id is its symbol"
    )
    perturbations: str | None = Field(
        None, description="CSV or Parquet: perturbation_id, smiles, gene, moa, ..."
    )
    smiles: dict[str, str] = Field(default_factory=dict, description="SMILES by perturbation id")


def read(source: str, storage: Storage, options: ImagefolderOptions) -> Imported:
    """SITES of an imagefolder, one site an image, in the metadata's order.

    A row that can't be used is quarantined. Raises DataError for metadata that break their contract,
    ConfigError for options that match nothing.
    """
    folder, rows = _read_metadata(absolute(source), options, storage)
    details = _details(options, storage)
    rejected: list[Rejected] = []
    blocks = [_block(block, folder, details, options, rejected) for block in _numbered(rows)]
    sites = pa.concat_tables(blocks)
    if twice := repeated(sites["site_id"]):
        raise DataError(
            f"{folder}: {len(twice)} images appear more than once in the metadata, such as {twice[:3]}; "
            "an image is called by its file_name without the ending"
        )
    if not len(sites):
        return imported("imagefolder", sites, options, storage, rejected)
    chosen, notes = select(sites, options, storage)
    if sites["experiment"].unique().to_pylist() == [NO_BATCH]:
        notes.append(f"no field {options.experiment_field!r}: all images are one batch")
    return imported("imagefolder", chosen, options, storage, rejected, notes)


def _numbered(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[tuple[int, dict[str, Any]], ...]]:
    """Blocks of rows with their numbers, so that a long table is never held as Python objects."""
    numbered = iter(enumerate(rows, start=1))
    while block := tuple(itertools.islice(numbered, _BLOCK)):
        yield block


def _block(
    block: Iterable[tuple[int, dict[str, Any]]],
    folder: str,
    details: Mapping[str, Perturbation],
    options: ImagefolderOptions,
    rejected: list[Rejected],
) -> pa.Table:
    """The sites of a block of metadata; a row that can't be used joins `rejected`."""
    sites: list[dict[str, Any]] = []
    for number, row in block:
        try:
            sites.append(_site(row, folder, details, options))
        except DataError as error:
            name = str(row.get("file_name") or f"row {number}").encode(errors="backslashreplace").decode()
            rejected.append(Rejected(name, join(folder, name) if row.get("file_name") else None, str(error)))
    columns = {name: [site[name] for site in sites] for name in (sites[0] if sites else ("site_id",))}
    return sites_table(columns)


def _read_metadata(
    root: str, options: ImagefolderOptions, storage: Storage
) -> tuple[str, Iterator[dict[str, Any]]]:
    """The folder that holds the metadata, and their rows. Raises DataError for a CSV without a column."""
    tried = [
        join(folder, name)
        for folder in (root, join(root, options.split))
        for name in ("metadata.jsonl", "metadata.csv")
    ]
    for uri in tried:
        if storage.exists(uri):
            rows = _read_lines(uri, storage) if uri.endswith(".jsonl") else iter(read_csv(uri, storage))
            first = next(rows, None)
            if first is None:
                raise DataError(f"{uri}: the file has no rows")
            if uri.endswith(".csv") and (lacking := _lacking(first, options)):
                raise DataError(f"{uri}: {lacking}")
            return uri.rpartition("/")[0], itertools.chain([first], rows)
    if not storage.exists(root):
        raise DataError(f"{root}: there is no such folder. Check the path (dataset.source).")
    raise DataError(f"{root}: no metadata; looked for {', '.join(tried)}")


def _lacking(row: Mapping[str, Any], options: ImagefolderOptions) -> str | None:
    """Which of the two fields that no row is without isn't there at all, and what to do; None if both are."""
    if "file_name" not in row:
        return f"no column file_name among {list(row)}; expected one, the image's path below the folder"
    if options.id_field not in row:
        return (
            f"no {options.id_field}, which names the perturbation, among {list(row)}; expected it, or "
            "another column's name as dataset.id_field"
        )
    return None


def _read_lines(uri: str, storage: Storage) -> Iterator[dict[str, Any]]:
    with storage.open(uri) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8-sig")
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _read_line(line, f"{uri} line {number}")
        except UnicodeDecodeError as error:
            raise DataError(f"{uri}: expected UTF-8 text, but {error}. Convert the file to UTF-8.") from error


def _read_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of 5000 digits
        raise DataError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, expected an object with file_name")
    return row


def _details(options: ImagefolderOptions, storage: Storage) -> dict[str, Perturbation]:
    """What the options tell of perturbations, by id as the original project spells it."""
    known = read_perturbations(options.perturbations, storage) if options.perturbations else []
    details = {normalise_id(item.perturbation_id): item for item in known}
    for name, smiles in options.smiles.items():
        details[normalise_id(name)] = Perturbation(name, "compound", smiles=smiles)
    return details


def _site(
    row: Mapping[str, Any],
    folder: str,
    details: Mapping[str, Perturbation],
    options: ImagefolderOptions,
) -> dict[str, Any]:
    """The site of a metadata row, without its split. Raises DataError when the row can't be used."""
    if lacking := _lacking(row, options):
        raise DataError(lacking)
    name = _text(row.get("file_name")) or ""
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts or "://" in name:
        raise DataError(f"file_name {name!r}: expected a path below the folder")
    uri = join(folder, name)
    plain = _text(row.get(options.id_field))
    if plain is None:
        raise DataError(f"no {options.id_field}, which names the perturbation")
    found = details.get(normalise_id(plain))
    controls = {normalise_id(control) for control in options.control_ids}
    is_control = normalise_id(plain) in controls or (found is not None and found.is_control)
    kind = "control" if is_control else (found.kind if found else options.kind)
    concentration = parse_concentration(row.get("concentration_um"), "concentration_um")
    with_dose = options.dose_in_id and kind == "compound"
    text = {field: _text(row.get(field)) for field in _TEXT_FIELDS}
    own_gene = plain if options.kind == "gene" and not is_control else None
    return {
        **text,
        "site_id": str(path.with_suffix("")),
        "dataset": "imagefolder",
        "experiment": _text(row.get(options.experiment_field)) or NO_BATCH,
        "plate": text["plate"] or NO_BATCH,
        "well": text["well"] or "",
        "site": text["site"] or "",
        "perturbation_id": dose_id(plain, concentration) if with_dose else plain,
        "perturbation_kind": kind,
        "smiles": text["smiles"] or (found.smiles if found else None),
        "gene": text["gene"] or (found.gene if found else None) or own_gene,
        "concentration_um": concentration,
        "moa": text["moa"] or (found.moa if found else None),
        "is_control": is_control,
        "channel_uris": [uri],
    }


def _text(value: Any) -> str | None:
    """A metadata value as text; None when it is absent, empty, NaN or no single value.

    Raises DataError for what no file can hold: half of a surrogate pair, as JSON can write it.
    """
    if isinstance(value, dict | list) or value is None or value != value:
        return None
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"found {text!r}, expected Unicode text") from None
    return text or None
