"""The embedded default dataset: a simulated screen, made where it is absent and read as its layout is.

The mapping from a compound's family, or a gene's pathway, to a phenotype is invented (simulator/effects.py);
the compounds and the gene symbols are real ones. A gene's effect follows from its vector in gene_vectors.csv,
written beside the images: an encoder with another table, for one scGPT's, has other vectors of these genes.
"""

from typing import Any

import pyarrow as pa

from morphoray.datasets import bbbc021, rxrx1
from morphoray.datasets.base import Imported, select, sites_table
from morphoray.datasets.bbbc021_tables import CHANNELS
from morphoray.datasets.options import ImportOptions, SelectionOptions
from morphoray.datasets.simulator.fields import LAYOUTS
from morphoray.datasets.simulator.layout import write_tree
from morphoray.datasets.simulator.plan import SimulatedOptions, experiment_names
from morphoray.errors import DataError
from morphoray.imaging.channels import CELL_PAINTING_CHANNELS
from morphoray.perturbations.base import parse_bool, parse_float, read_csv
from morphoray.schema import PERTURBATION_FIELDS
from morphoray.storage import Storage, join

__all__ = ["SimulatedOptions", "read"]


def read(source: str, storage: Storage, options: SimulatedOptions) -> Imported:
    """SITES of the simulated tree at `source`, which is made or completed first.

    Raises FingerprintError when `source` holds a tree of other options, ConfigError for wrong ones.
    """
    made = write_tree(source, storage, options)
    treatments = _perturbation_rows(join(source, "perturbations.csv"), storage)
    given = {name: getattr(options, name) for name in SelectionOptions.model_fields} | {
        "held_out_experiments": tuple(experiment_names(options)[1]),
        "held_out_perturbations": tuple(name for name, row in treatments.items() if row["held_out"]),
    }
    if options.layout == "bbbc021":
        tree = bbbc021.Bbbc021Options(dose_in_id=len(options.doses_um) > 1, **given)
        rows, rejected, _ = bbbc021.read_rows(source, storage, tree.dose_in_id)
        sites = sites_table(rows | _columns(rows["perturbation_id"], treatments))
        chosen, notes = select(sites, tree, storage)
        return bbbc021.with_files("simulated", source, sites, chosen, tree, storage, rejected, [made, *notes])
    plain = ImportOptions(**given)
    rows = rxrx1.read_rows(source, storage)
    sites = sites_table(rows | _columns(rows["perturbation_id"], treatments))
    chosen, notes = select(sites, plain, storage)
    return rxrx1.with_files("simulated", source, chosen, plain, options.channels, storage, [made, *notes])


def channel_names(options: SimulatedOptions) -> tuple[str, ...]:
    """What a site's files show, in their order."""
    if options.layout == "bbbc021":
        return CHANNELS
    count = options.channels
    return CELL_PAINTING_CHANNELS if count == 6 else tuple(name for name, _ in LAYOUTS[count])


def _perturbation_rows(uri: str, storage: Storage) -> dict[str, dict[str, Any]]:
    """perturbations.csv by id, typed. Raises DataError naming a column that is missing, or the row."""
    rows: dict[str, dict[str, Any]] = {}
    wanted = [field.name for field in PERTURBATION_FIELDS] + ["held_out"]
    for number, text in enumerate(read_csv(uri, storage), start=1):
        if missing := [name for name in wanted if name not in text]:
            raise DataError(f"{uri}: found columns {sorted(text)}, expected also {missing}")
        where = f"{uri} row {number}"
        row: dict[str, Any] = {name: value or None for name, value in text.items()}
        row["concentration_um"] = parse_float(text["concentration_um"], f"{where}, concentration_um")
        for name in ("is_control", "held_out"):
            row[name] = parse_bool(text[name], f"{where}, {name}")
        rows[text["perturbation_id"]] = row
    return rows


def _columns(ids: pa.ChunkedArray, treatments: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every perturbation column of sites with these `ids`, and their dataset's name."""
    names = ids.to_pylist()
    if unknown := sorted(set(names) - treatments.keys()):
        raise DataError(
            f"perturbations.csv has no row for {unknown[:5]}, which the sites name. Make both anew."
        )
    columns = {field.name: [treatments[name][field.name] for name in names] for field in PERTURBATION_FIELDS}
    return columns | {"dataset": ["simulated"] * len(names)}
