"""A library's lines as molecules to screen, every line kept: what can't be screened has a reason."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from morphoray.errors import DataError
from morphoray.seeds import fingerprint
from morphoray.storage import Storage

TEXT = (".smi", ".smiles", ".txt")
PARQUET = (".parquet", ".pq")
NAMES = ("molecule_id", "name", "id", "perturbation_id", "compound")


@dataclass(frozen=True)
class Molecule:
    """One input line: its number (from 1, a header counted), a name, and why it is not screened (or None)."""

    line: int
    molecule_id: str
    smiles: str
    reason: str | None = None


def read_library(uri: str, storage: Storage) -> list[Molecule]:
    """The molecules of a library, one a line, in its order; local or s3://.

    .smi: SMILES, white space, name (optional); a first line that starts with the word "smiles" is a header.
    .csv and Parquet: a column `smiles` in any case, and optionally one of NAMES; of Parquet, `line` is the
    row's number. A molecule without a name is called "line N".

    A blank line, a ragged row and an empty SMILES are molecules with a reason. So is a SMILES that stands
    in an earlier line, letter by letter: its result is that line's. Two spellings of one molecule are two.
    Raises DataError for another kind of file, no `smiles` column or no lines at all.
    """
    name = uri.lower()
    if name.endswith(TEXT):
        molecules = _from_text(storage.read_text(uri))
    elif name.endswith(".csv"):
        molecules = _from_csv(storage.read_text(uri), uri)
    elif name.endswith(PARQUET):
        molecules = _from_parquet(uri, storage)
    else:
        raise DataError(
            f"{uri}: expected a library that ends in .smi, .csv or .parquet. Rename or convert it."
        )
    found = list(_without_duplicates(molecules))
    if not found:
        raise DataError(f"{uri}: found no molecules, expected a SMILES a line.")
    return found


def library_fingerprint(molecules: Iterable[Molecule]) -> str:
    """Names a library by its lines."""
    return fingerprint([[item.line, item.molecule_id, item.smiles] for item in molecules])


def _molecule(line: int, smiles: object, name: str | None) -> Molecule:
    smiles = "" if smiles is None or smiles != smiles else str(smiles).strip()
    return Molecule(line, (name or "").strip() or f"line {line}", smiles, None if smiles else "empty SMILES")


def _blank(line: int) -> Molecule:
    return Molecule(line, f"line {line}", "", "blank line")


def _from_text(text: str) -> Iterator[Molecule]:
    for line, content in enumerate(text.splitlines(), start=1):
        words = content.split(maxsplit=1)
        if not words:
            yield _blank(line)
        elif line > 1 or words[0].lower() != "smiles":
            yield _molecule(line, words[0], words[1] if len(words) > 1 else None)


def _from_csv(text: str, uri: str) -> Iterator[Molecule]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        smiles, name = _columns(header, uri)
        for values in reader:
            line = reader.line_num
            if not any(value.strip() for value in values):
                yield _blank(line)
            elif len(values) != len(header):
                reason = f"found {len(values)} values, expected {len(header)}"
                told = values[smiles].strip() if smiles < len(values) else ""
                yield Molecule(line, f"line {line}", told, reason)
            else:
                yield _molecule(line, values[smiles], None if name is None else values[name])
    except csv.Error as error:
        raise DataError(f"{uri} line {reader.line_num}: {error}. Correct the quotes there.") from None


def _from_parquet(uri: str, storage: Storage) -> Iterator[Molecule]:
    table = storage.read_table(uri)
    smiles, name = _columns([column.lower() for column in table.column_names], uri)
    texts = table.column(smiles).to_pylist()
    names = [None] * len(texts) if name is None else table.column(name).to_pylist()
    for line, (text, label) in enumerate(zip(texts, names, strict=True), start=1):
        yield _molecule(line, text, None if label is None else str(label))


def _columns(header: list[str], uri: str) -> tuple[int, int | None]:
    if header.count("smiles") > 1:
        raise DataError(f"{uri}: found columns {header}, expected one called smiles, not several.")
    if "smiles" not in header:
        raise DataError(f"{uri}: found columns {header}, expected one called smiles.")
    name = next((name for name in NAMES if name in header), None)
    return header.index("smiles"), None if name is None else header.index(name)


def _without_duplicates(molecules: Iterable[Molecule]) -> Iterator[Molecule]:
    first: dict[str, int] = {}
    for item in molecules:
        known = first.setdefault(item.smiles, item.line) if item.reason is None else item.line
        yield item if known == item.line else replace(item, reason=f"duplicate of line {known}")
