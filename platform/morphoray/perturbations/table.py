"""Vectors from a table: the original project's three CSV shapes, and Parquet."""

import base64
import csv
import difflib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types
from pydantic import BaseModel, ConfigDict, Field

from morphoray.errors import DataError
from morphoray.perturbations.base import Encoded, Perturbation, encoded, plain_id
from morphoray.storage import Storage

Vectors = npt.NDArray[np.float32]
Key = Literal["perturbation_id", "gene"]

_REPLACEMENTS = str.maketrans({" ": "-", "/": "-", "(": "-", ")": "-", "'": None, ",": None})
_MAX_CANDIDATES = 2000  # names compared when guessing what an unknown one meant


class TableOptions(BaseModel):
    """Options of the `table` encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(description="a CSV or Parquet file: perturbation id first, then the vector")
    key: Key = Field(
        "perturbation_id", description="what the table's ids are: perturbation ids or gene symbols"
    )


def normalise_id(name: str) -> str:
    """A name as the original project spells ids: lower case, each run of space / ( ) - as one -, no ' or ,

    Its table of BBBC021 has `cdk1-2-inhibitor-nu6102-` for the data's `Cdk1/2 inhibitor (NU6102)`.
    """
    return re.sub("-+", "-", name.lower().translate(_REPLACEMENTS))


@dataclass
class TableEncoder:
    """The vector of the row with the perturbation's id, or with its gene's symbol."""

    ids: list[str]
    vectors: Vectors
    key: Key = "perturbation_id"
    name: str = "table"
    _exact: dict[str, int] = field(init=False, repr=False)
    _spelled: dict[str, list[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._exact = {name: row for row, name in enumerate(self.ids)}
        self._spelled = {}
        for row, name in enumerate(self.ids):
            self._spelled.setdefault(normalise_id(name), []).append(row)

    @property
    def width(self) -> int:
        """The number of numbers in a vector."""
        return int(self.vectors.shape[1])

    @property
    def reads(self) -> frozenset[str]:
        """The key that the table is looked up by."""
        return frozenset({self.key})

    def encode(self, perturbations: Sequence[Perturbation]) -> Encoded:
        """Exact ids first, then the original's spelling of them, then both without an id's dose.

        A control without a row is all ones.
        """
        return encoded(self.width, [self._row(item) for item in perturbations])

    def _row(self, item: Perturbation) -> Vectors | str:
        wanted = item.perturbation_id if self.key == "perturbation_id" else item.gene
        rows = (self._find(wanted) or self._find(plain_id(wanted))) if wanted else []
        if len(rows) == 1:
            found: Vectors = self.vectors[rows[0]]
            return found
        if len(rows) > 1:
            return f"{item.perturbation_id}: ambiguous in the table: {[self.ids[row] for row in rows]}"
        if item.is_control:
            return np.ones(self.width, dtype=np.float32)
        if not wanted:
            return f"{item.perturbation_id}: no gene symbol, by which the table is looked up"
        label = f"{item.perturbation_id}: " if wanted != item.perturbation_id else ""
        return f"{label}{self.key} {wanted!r} is not in the table; nearest: {self._nearest(wanted)}"

    def _find(self, wanted: str) -> list[int]:
        if wanted in self._exact:
            return [self._exact[wanted]]
        return self._spelled.get(normalise_id(wanted), [])

    def _nearest(self, wanted: str) -> str:
        spelled = normalise_id(wanted)
        candidates = [name for name in self._spelled if name[:1] == spelled[:1]][:_MAX_CANDIDATES]
        close = difflib.get_close_matches(
            spelled, candidates or list(self._spelled)[:_MAX_CANDIDATES], 3, 0.3
        )
        return ", ".join(self.ids[self._spelled[name][0]] for name in close) or "none"

    def state(self) -> dict[str, Any]:
        """The whole table, so that a bundle stands alone; vectors as base64 of little-endian float32."""
        raw = self.vectors.astype("<f4").tobytes()
        return {
            "key": self.key,
            "ids": self.ids,
            "width": self.width,
            "vectors": base64.b64encode(raw).decode("ascii"),
        }


def fit(options: TableOptions, training: Sequence[Perturbation], storage: Storage) -> TableEncoder:
    """Read the table. Raises DataError naming the row that is wrong."""
    ids, vectors = read_vectors(options.uri, storage)
    return TableEncoder(ids, vectors, options.key)


def load(state: dict[str, Any]) -> TableEncoder:
    """The encoder that `state` came from."""
    flat = np.frombuffer(base64.b64decode(state["vectors"]), dtype="<f4").astype(np.float32)
    return TableEncoder(state["ids"], flat.reshape(len(state["ids"]), state["width"]), state["key"])


def read_vectors(uri: str, storage: Storage) -> tuple[list[str], Vectors]:
    """Ids and vectors (N, d) float32 of a CSV or Parquet file.

    CSV: an id and numbers in each row, with or without a header, or an id and the vector printed as text.
    Raises DataError naming the row that is ragged, NaN, infinite, not a number, or there twice.
    """
    if uri.lower().endswith((".parquet", ".pq")):
        ids, rows = _parquet_rows(storage.read_table(uri), uri)
        first = 1
    else:
        ids, rows, first = _csv_rows(storage.read_text(uri), uri)
    if not rows:
        raise DataError(f"{uri}: found no vectors, expected an id and numbers in each row")
    width = len(rows[0])
    seen: set[str] = set()
    for number, (name, row) in enumerate(zip(ids, rows, strict=True), start=first):
        where = f"{uri} row {number} ({name!r})"
        if not name or name in seen:
            raise DataError(f"{where}: {'this id is there twice' if name else 'the id is empty'}")
        seen.add(name)
        if len(row) != width or width == 0:
            raise DataError(
                f"{where}: {len(row)} numbers, expected {width or 'at least 1'} as in the first row"
            )
        if not np.isfinite(row).all():
            raise DataError(
                f"{where}: number {int(np.argmin(np.isfinite(row))) + 1} is NaN, infinite or missing"
            )
    return ids, np.stack(rows)


def _csv_rows(text: str, uri: str) -> tuple[list[str], list[Vectors], int]:
    """Ids, vectors, and the number of the first data row (2 below a header)."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise DataError(f"{uri} line {reader.line_num}: {error}") from None
    first = 2 if lines and _is_header(lines[0]) else 1
    ids, rows = [], []
    for number, line in enumerate(lines[first - 1 :], start=first):
        name = line[0].strip()
        if len(line) < 2:
            raise DataError(f"{uri} row {number} ({name!r}): only one value, expected an id and its vector")
        ids.append(name)
        rows.append(_numbers(line[1:], f"{uri} row {number} ({name!r})"))
    return ids, rows, first


def _is_header(line: list[str]) -> bool:
    """Whether the second field of a first row is a column's name: no number, and no printed vector."""
    cell = line[1].strip() if len(line) > 1 else ""
    if cell.startswith("["):
        return False
    try:
        float(cell)
    except ValueError:
        return cell != ""
    return False


def _numbers(cells: list[str], where: str) -> Vectors:
    """Numbers from cells, or from the one cell that holds a vector as NumPy or a list prints it."""
    if len(cells) == 1 and cells[0].strip().startswith("["):
        if "..." in cells[0]:
            raise DataError(f"{where}: the vector was printed shortened with '...'; write all its numbers")
        cells = cells[0].strip().strip("[]").replace(",", " ").split()
    try:
        with np.errstate(over="ignore"):  # beyond float32 it is infinite, which is refused below
            return np.array([float(cell) if cell.strip() else np.nan for cell in cells], dtype=np.float32)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _parquet_rows(table: pa.Table, uri: str) -> tuple[list[str], list[Vectors]]:
    """Ids from `perturbation_id` or the first text column; vectors from a list column or numeric columns."""
    texts = [f.name for f in table.schema if types.is_string(f.type) or types.is_large_string(f.type)]
    column = "perturbation_id" if "perturbation_id" in table.column_names else next(iter(texts), None)
    lists = [f.name for f in table.schema if _is_list(f.type) and _is_number(f.type.value_type)]
    numeric = [f.name for f in table.schema if _is_number(f.type)]
    numeric = [name for name in numeric if name != column]
    if column is None or not (len(lists) == 1 or (not lists and numeric)):
        raise DataError(
            f"{uri}: found columns {table.column_names}; "
            "expected perturbation_id, and one list column of numbers or numeric columns"
        )
    ids = ["" if name is None else str(name) for name in table.column(column).to_pylist()]
    if lists:
        found = table.column(lists[0]).to_pylist()
        with np.errstate(over="ignore"):
            return ids, [np.array([] if row is None else row, dtype=np.float32) for row in found]
    matrix = np.stack([table.column(name).to_numpy().astype(np.float32) for name in numeric], axis=1)
    return ids, list(matrix)


def _is_list(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def _is_number(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (types.is_floating, types.is_integer))
