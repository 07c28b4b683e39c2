"""The table from siRNA ids to gene symbols (ThermoFisher's export)."""

from morphoray.errors import DataError
from morphoray.perturbations.base import read_csv
from morphoray.storage import Storage

SIRNA_COLUMN, GENE_COLUMN = "siRNA ID", "Gene Symbol"


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
