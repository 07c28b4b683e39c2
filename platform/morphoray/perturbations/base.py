"""What was done to the cells, and the interface that turns it into a vector."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel

from morphoray.config import ContextColumn
from morphoray.errors import DataError
from morphoray.schema import PERTURBATION_FIELDS
from morphoray.storage import Storage

KINDS = ("compound", "gene", "control")
CONTEXT_COLUMNS: tuple[str, ...] = get_args(ContextColumn)  # of SITES and LATENTS, fields of Perturbation
_ID_COLUMNS = ("perturbation_id", "perturbation", "compound", "additional_feature")


@dataclass(frozen=True)
class Perturbation:
    """One perturbation: a compound (SMILES, concentration in micromolar), a gene or a control."""

    perturbation_id: str
    kind: str
    smiles: str | None = None
    gene: str | None = None
    concentration_um: float | None = None
    moa: str | None = None
    is_control: bool = False
    cell_type: str | None = None  # as asked for at generation, like experiment; None: the mixture of all
    experiment: str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What its images are named by: perturbation_id, then `column=value` of a context that is given."""
        values = [(name, getattr(self, name)) for name in CONTEXT_COLUMNS]
        return (self.perturbation_id, *(f"{name}={value}" for name, value in values if value is not None))


@dataclass
class Encoded:
    """Vectors (N, width) float32, and per row why it failed (None when it didn't; else its vector is NaN).

    `notes` tells of rows that are usable but incomplete, such as descriptors that were missing.
    """

    vectors: npt.NDArray[np.float32]
    reasons: list[str | None]
    notes: list[str | None] = field(default_factory=list)


class Encoder(Protocol):
    """From perturbations to vectors of one width."""

    @property
    def name(self) -> str:
        """The registry's name."""

    @property
    def width(self) -> int:
        """The length of a vector."""

    @property
    def reads(self) -> frozenset[str]:
        """The fields of a Perturbation that its vector is a function of, besides is_control."""

    def encode(self, perturbations: Sequence[Perturbation]) -> Encoded:
        """One row a perturbation, in their order; a row that fails is NaN with a reason."""

    def state(self) -> dict[str, Any]:
        """All that `load` needs, JSON-serialisable: it is stored in the bundle."""


def takes_molecules(encoder: Encoder) -> bool:
    """Whether it has vectors of any molecule, given by SMILES (and a concentration): what a screen needs."""
    return "smiles" in encoder.reads and encoder.reads <= {"smiles", "concentration_um"}


@dataclass(frozen=True)
class EncoderKind:
    """A registry entry: options, how to fit on the training perturbations, how to load from a bundle."""

    options: type[BaseModel]
    fit: Callable[[Any, Sequence[Perturbation], Storage], Encoder]
    load: Callable[[dict[str, Any]], Encoder]


def dose_id(name: str, concentration_um: float | None) -> str:
    """The id of a compound at one of several doses: `<name>@<dose>`, in micromolar to 6 digits.

    Raises DataError for a concentration that is missing, negative or not finite.
    """
    if concentration_um is None or not 0 <= concentration_um < float("inf"):
        raise DataError(
            f"{name}: found the concentration {concentration_um}, expected 0 or more micromolar in an id"
        )
    return f"{name}@{concentration_um:g}"


def plain_id(perturbation_id: str) -> str:
    """The compound's name in an id of `dose_id`; any other id as it is."""
    name, separator, dose = perturbation_id.rpartition("@")
    try:
        float(dose)
    except ValueError:
        return perturbation_id
    return name if separator and name else perturbation_id


def from_rows(table: pa.Table) -> list[Perturbation]:
    """The distinct perturbations of a table with SITES' perturbation columns, sorted by id.

    A perturbation with several concentrations or mechanisms has None there: the model's condition is the
    perturbation, not the dose. Raises DataError when one id names two different structures or genes.
    """
    names = [field.name for field in PERTURBATION_FIELDS]
    distinct = table.select(names).group_by(names).aggregate([])
    merged: dict[str, Perturbation] = {}
    for row in distinct.to_pylist():
        row["kind"] = row.pop("perturbation_kind")
        found = Perturbation(**row)
        known = merged.setdefault(found.perturbation_id, found)
        merged[found.perturbation_id] = _merge(known, found)
    return [merged[key] for key in sorted(merged)]


def _merge(a: Perturbation, b: Perturbation) -> Perturbation:
    for name in ("kind", "smiles", "gene", "is_control"):
        if getattr(a, name) != getattr(b, name):
            raise DataError(
                f"perturbation {a.perturbation_id!r} has two values of {name}: "
                f"{getattr(a, name)!r} and {getattr(b, name)!r}; expected one. Give them different ids."
            )
    concentration = a.concentration_um if a.concentration_um == b.concentration_um else None
    moa = a.moa if a.moa == b.moa else None
    return Perturbation(a.perturbation_id, a.kind, a.smiles, a.gene, concentration, moa, a.is_control)


def read_perturbations(uri: str, storage: Storage) -> list[Perturbation]:
    """The perturbations in a file, in its order: Parquet, CSV, or text with one id a line.

    Columns: perturbation_id (or perturbation, compound), and optionally kind, smiles, gene,
    concentration_um, moa, is_control, cell_type, experiment. An id may come again in another cell type or
    experiment. Raises DataError naming the column or row.
    """
    if uri.lower().endswith((".parquet", ".pq")):
        rows: Iterable[Mapping[str, Any]] = storage.read_table(uri).to_pylist()
    elif uri.lower().endswith(".csv"):
        rows = read_csv(uri, storage)
    else:
        lines = storage.read_text(uri).splitlines()
        rows = [{"perturbation_id": line.strip()} for line in lines if line.strip()]
    found = [_perturbation(row, f"{uri} row {number}") for number, row in enumerate(rows, start=1)]
    if not found:
        raise DataError(f"{uri}: found no perturbations, expected at least one")
    seen: set[tuple[str, ...]] = set()
    first: dict[str, Perturbation] = {}
    for number, item in enumerate(found, start=1):
        where = f"{uri} row {number}: perturbation {item.perturbation_id!r}"
        if item.identity in seen:
            raise DataError(f"{where} appears twice")
        seen.add(item.identity)
        known = first.setdefault(item.perturbation_id, item)
        if replace(item, cell_type=known.cell_type, experiment=known.experiment) != known:
            raise DataError(
                f"{where} differs from the one above in more than its context; give it another id"
            )
    return found


def _perturbation(row: Mapping[str, Any], where: str) -> Perturbation:
    column = next((name for name in _ID_COLUMNS if name in row), None)
    if column is None:
        raise DataError(f"{where}: found columns {sorted(row)}, expected one of {_ID_COLUMNS}")
    name = _text(row[column])
    if name is None:
        raise DataError(f"{where}: the {column} is empty")
    is_control = parse_bool(row.get("is_control"), f"{where}, is_control")
    smiles, gene, moa = (_text(row.get(name)) for name in ("smiles", "gene", "moa"))
    kind = _text(row.get("kind") or row.get("perturbation_kind")) or _infer_kind(is_control, gene)
    if kind not in KINDS:
        raise DataError(f"{where}: kind {kind!r}, expected one of {KINDS}")
    concentration = parse_concentration(row.get("concentration_um"), f"{where}, concentration_um")
    is_control = is_control or kind == "control"
    context = {name: _text(row.get(name)) for name in CONTEXT_COLUMNS}
    return Perturbation(name, kind, smiles, gene, concentration, moa, is_control, **context)


def _text(value: Any) -> str | None:
    """A cell as text; None when it is empty or NaN, which pandas writes for it."""
    return None if value is None or value != value else str(value).strip() or None


def _infer_kind(is_control: bool, gene: str | None) -> str:
    if is_control:
        return "control"
    return "gene" if gene else "compound"


def parse_bool(value: Any, where: str) -> bool:
    """True or False from a bool or its usual spellings; empty is False. Raises DataError naming `where`."""
    text = str(value).strip().lower()
    if value is None or text in ("", "false", "0", "no"):
        return False
    if text in ("true", "1", "yes"):
        return True
    raise DataError(f"{where}: found {value!r}, expected True or False")


def parse_float(value: Any, where: str) -> float | None:
    """A finite number, or None when empty. Raises DataError naming `where`."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float("nan" if isinstance(value, bool) or "_" in str(value) else value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not np.isfinite(number):
        raise DataError(f"{where}: found {value!r}, expected a number")
    return number


def parse_concentration(value: Any, where: str) -> float | None:
    """Micromolar, or None when empty. Raises DataError naming `where` for what is no number of 0 or more."""
    number = parse_float(value, where)
    if number is not None and number < 0:
        raise DataError(f"{where}: found {value!r}, expected micromolar of at least 0")
    return number


def read_csv(uri: str, storage: Storage, delimiter: str = ",") -> list[dict[str, str]]:
    """Rows of a CSV with a header, any line endings.

    Raises DataError naming a column that is there twice, the row that is ragged, or a file without rows.
    """
    text = storage.read_text(uri)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise DataError(f"{uri} line {reader.line_num}: {error}") from None
    if not lines:
        raise DataError(f"{uri}: the file is empty, expected a header and rows")
    header = [name.strip() for name in lines[0]]
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise DataError(f"{uri}: found the columns {twice} more than once, expected each once")
    if len(lines) == 1:
        raise DataError(f"{uri}: no rows below the header {header}")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise DataError(f"{uri} row {number}: {len(line)} values, expected {len(header)} ({header})")
    return [dict(zip(header, (value.strip() for value in line), strict=True)) for line in lines[1:]]


def encoded(width: int, rows: Sequence[npt.NDArray[np.floating[Any]] | str]) -> Encoded:
    """Encoded from rows that are either a vector or the reason why there is none."""
    vectors = np.full((len(rows), width), np.nan, dtype=np.float32)
    reasons: list[str | None] = [None] * len(rows)
    for index, row in enumerate(rows):
        if isinstance(row, str):
            reasons[index] = row
        else:
            vectors[index] = row
    return Encoded(vectors, reasons, [None] * len(rows))
