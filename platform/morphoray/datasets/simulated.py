"""The embedded default dataset: a simulated screen, made where it is absent and read as its layout is.

The mapping from a compound's family, or a gene's pathway, to a phenotype is invented (simulator/effects.py);
the compounds are real ones.
"""

from typing import Any

import pyarrow as pa

from morphoray.datasets import bbbc021, rxrx1
from morphoray.datasets.base import Imported
from morphoray.datasets.simulator.layout import write_tree
from morphoray.datasets.simulator.plan import SimulatedOptions, experiment_names
from morphoray.perturbations.base import parse_bool, parse_float, read_csv
from morphoray.schema import PERTURBATION_FIELDS, SITES
from morphoray.storage import Storage, join

__all__ = ["SimulatedOptions", "read"]


def read(source: str, storage: Storage, options: SimulatedOptions) -> Imported:
    """SITES of the simulated tree at `source`, which is made or completed first.

    Raises FingerprintError when `source` holds a tree of other options, ConfigError for wrong ones.
    """
    made = write_tree(source, storage, options)
    rows = _perturbation_rows(join(source, "perturbations.csv"), storage)
    held_out = {
        "held_out_experiments": tuple(experiment_names(options)[1]),
        "held_out_perturbations": tuple(name for name, row in rows.items() if row["held_out"]),
    }
    if options.layout == "bbbc021":
        several = len(options.doses_um) > 1
        found = bbbc021.read(source, storage, bbbc021.Bbbc021Options(dose_in_id=several, **held_out))
    else:
        found = rxrx1.read(source, storage, rxrx1.Rxrx1Options(channels=options.channels, **held_out))
    return Imported(_join(found.sites, rows), found.quarantine, f"{made}\n{found.summary}")


def _perturbation_rows(uri: str, storage: Storage) -> dict[str, dict[str, Any]]:
    """perturbations.csv by id, typed."""
    rows: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(read_csv(uri, storage), start=1):
        where = f"{uri} row {number}"
        row: dict[str, Any] = {name: value or None for name, value in text.items()}
        row["concentration_um"] = parse_float(text["concentration_um"], f"{where}, concentration_um")
        for name in ("is_control", "held_out"):
            row[name] = parse_bool(text[name], f"{where}, {name}")
        rows[text["perturbation_id"]] = row
    return rows


def _join(sites: pa.Table, rows: dict[str, dict[str, Any]]) -> pa.Table:
    """The sites with every perturbation column from `rows`, and their dataset's name."""
    ids = sites.column("perturbation_id").to_pylist()
    columns = {
        field.name: pa.array([rows[i][field.name] for i in ids], field.type) for field in PERTURBATION_FIELDS
    }
    columns["dataset"] = pa.array(["simulated"] * len(ids), pa.string())
    for name, values in columns.items():
        sites = sites.set_column(sites.schema.get_field_index(name), SITES.field(name), values)
    return sites
