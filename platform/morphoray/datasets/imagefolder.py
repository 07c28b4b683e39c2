"""The original project's input: a folder of PNG or JPEG images with metadata.jsonl (or metadata.csv)."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from morphoray.datasets import splits
from morphoray.datasets.base import Imported, Rejected, imported
from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.base import Perturbation, dose_id, parse_float, read_csv, read_perturbations
from morphoray.perturbations.table import normalise_id
from morphoray.storage import Storage, absolute, join

_TEXT_FIELDS = ("plate", "well", "site", "cell_type", "moa", "smiles", "gene")
NO_BATCH = "all"  # the experiment and plate of images whose metadata name none


class ImagefolderOptions(BaseModel):
    """Options of the `imagefolder` importer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    held_out_experiments: tuple[str, ...] = ()
    held_out_perturbations: tuple[str, ...] | str = Field((), description="ids, or a CSV perturbation,ood")
    limit: int | None = Field(
        None, ge=1, description="at most so many images, evenly spaced over the metadata"
    )
    check_files: bool = Field(True, description="list the folder and quarantine images that are missing")


def read(source: str, storage: Storage, options: ImagefolderOptions) -> Imported:
    """SITES of an imagefolder, one site an image, in the metadata's order.

    A row that can't be used is quarantined. Raises DataError for metadata that break their contract,
    ConfigError for options that match nothing.
    """
    folder, rows = _read_metadata(absolute(source), options.split, storage)
    if options.limit is not None and options.limit < len(rows):
        rows = [rows[index * len(rows) // options.limit] for index in range(options.limit)]
    listed = set(storage.list_files(folder, recursive=True)) if options.check_files else None
    details = _details(options, storage)
    sites: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    for number, row in enumerate(rows, start=1):
        try:
            sites.append(_site(row, folder, listed, details, options))
        except DataError as error:
            name = str(row.get("file_name") or f"row {number}")
            rejected.append(Rejected(name, join(folder, name) if row.get("file_name") else None, str(error)))
    _check_unique([site["site_id"] for site in sites], folder)
    columns = {name: [site[name] for site in sites] for name in (sites[0] if sites else {"site_id": None})}
    notes = _split(columns, options, storage) if sites else []
    return imported("imagefolder", columns, rejected, notes)


def _read_metadata(root: str, split: str, storage: Storage) -> tuple[str, list[dict[str, Any]]]:
    """The folder that holds the metadata, and their rows."""
    tried = [
        join(folder, name)
        for folder in (root, join(root, split))
        for name in ("metadata.jsonl", "metadata.csv")
    ]
    for uri in tried:
        if storage.exists(uri):
            rows = _read_lines(uri, storage) if uri.endswith(".jsonl") else list(read_csv(uri, storage))
            if not rows:
                raise DataError(f"{uri}: the file has no rows")
            return uri.rpartition("/")[0], rows
    raise DataError(f"{root}: no metadata; looked for {', '.join(tried)}")


def _read_lines(uri: str, storage: Storage) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(storage.read_text(uri).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{uri} line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{uri} line {number}: found {type(row).__name__}, expected an object with file_name"
            )
        rows.append(row)
    return rows


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
    listed: set[str] | None,
    details: Mapping[str, Perturbation],
    options: ImagefolderOptions,
) -> dict[str, Any]:
    """The site of a metadata row, without its split. Raises DataError when the row can't be used."""
    name = str(row.get("file_name") or "")
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise DataError(f"file_name {name!r}: expected a path below the folder")
    uri = join(folder, name)
    if listed is not None and uri not in listed:
        raise DataError("missing file")
    plain = _text(row.get(options.id_field))
    if plain is None:
        raise DataError(f"no {options.id_field}, which names the perturbation")
    found = details.get(normalise_id(plain))
    controls = {normalise_id(control) for control in options.control_ids}
    is_control = normalise_id(plain) in controls or (found is not None and found.is_control)
    kind = "control" if is_control else (found.kind if found else options.kind)
    concentration = parse_float(row.get("concentration_um"), "concentration_um")
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
    """A metadata value as text; None when it is absent, empty or no single value."""
    if value is None or isinstance(value, dict | list):
        return None
    return str(value).strip() or None


def _check_unique(site_ids: list[str], folder: str) -> None:
    repeated = [name for name, count in Counter(site_ids).items() if count > 1]
    if repeated:
        raise DataError(
            f"{folder}: {len(repeated)} images appear more than once in the metadata, such as {repeated[:3]}"
        )


def _split(columns: dict[str, Any], options: ImagefolderOptions, storage: Storage) -> list[str]:
    """Add the column `split`; returns notes for the summary."""
    known = set(columns["experiment"])
    absent = [name for name in options.held_out_experiments if name not in known]
    if absent:
        raise ConfigError(splits.unknown("held_out_experiments", absent, known))
    ids = columns["perturbation_id"]
    unseen, notes = splits.held_out(options.held_out_perturbations, set(ids), storage)
    columns["split"] = splits.assign(columns["experiment"], ids, options.held_out_experiments, unseen)
    if known == {NO_BATCH}:
        notes.append(f"no field {options.experiment_field!r}: all images are one batch")
    return notes
