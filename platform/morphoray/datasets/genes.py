"""Lists of genes, and the table from siRNA ids to gene symbols (ThermoFisher's export)."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from morphoray.errors import DataError
from morphoray.perturbations.base import read_csv
from morphoray.storage import Storage

SIRNA_COLUMN, GENE_COLUMN = "siRNA ID", "Gene Symbol"
_LIST_COLUMNS = ("gene", GENE_COLUMN)


@dataclass(frozen=True)
class GeneList:
    """Distinct symbols as written, in their order, and how many entries were empty or repeated."""

    symbols: tuple[str, ...]
    empty: int
    repeated: int


def read_genes(uri: str, storage: Storage) -> GeneList:
    """The genes of a text file with a symbol a line, or of a CSV or Parquet file with a column of them.

    The column is `gene`, as in SITES, or `Gene Symbol`, where of several separated by `;` the first counts.
    Raises DataError for another column, or when no symbol is left.
    """
    if uri.lower().endswith((".parquet", ".pq")):
        entries = _parquet_column(uri, storage)
    elif uri.lower().endswith(".csv"):
        rows = read_csv(uri, storage)
        column = _column(list(rows[0]), uri)
        entries = [_first(row[column], column) for row in rows]
    else:
        entries = storage.read_text(uri).splitlines()
    written = [entry.strip() for entry in entries]
    filled = [entry for entry in written if entry]
    symbols = tuple(dict.fromkeys(filled))
    if not symbols:
        raise DataError(f"{uri}: found no gene symbol in {len(written)} entries, expected at least one")
    return GeneList(symbols, len(written) - len(filled), len(filled) - len(symbols))


def _parquet_column(uri: str, storage: Storage) -> list[str]:
    with storage.open(uri) as file:
        try:
            names = pq.read_schema(file).names
        except pa.ArrowException as error:
            raise DataError(f"{uri}: expected a Parquet file, but {error}") from error
    column = _column(names, uri)
    entries = storage.read_table(uri, [column])[column].to_pylist()
    return ["" if entry is None else _first(str(entry), column) for entry in entries]


def _column(names: list[str], uri: str) -> str:
    found = next((name for name in _LIST_COLUMNS if name in names), None)
    if found is None:
        raise DataError(f"{uri}: found columns {names}, expected one of {_LIST_COLUMNS}")
    return found


def _first(entry: str, column: str) -> str:
    """The first of an export's several symbols."""
    return entry.split(";")[0] if column == GENE_COLUMN else entry


def read_sirna_genes(uri: str, storage: Storage) -> dict[str, str]:
    """siRNA id to gene symbol; of several ids or symbols, separated by `;`, the first counts.

    A row without a symbol is left out. Raises DataError naming a column that is missing, or an id that has
    two genes.
    """
    genes: dict[str, str] = {}
    for number, row in enumerate(read_csv(uri, storage), start=1):
        if SIRNA_COLUMN not in row or GENE_COLUMN not in row:
            raise DataError(
                f"{uri}: found columns {sorted(row)}, expected {SIRNA_COLUMN!r} and {GENE_COLUMN!r}"
            )
        sirna, gene = (row[name].split(";")[0].strip() for name in (SIRNA_COLUMN, GENE_COLUMN))
        if sirna and gene and genes.setdefault(sirna, gene) != gene:
            raise DataError(
                f"{uri} row {number}: siRNA {sirna!r} has two genes, {genes[sirna]!r} and {gene!r}"
            )
    return genes
