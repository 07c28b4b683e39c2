"""Rohban et al. 2017 (cpg0017-rohban-pathways): over-expressed genes and alleles in U2OS cells."""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, model_validator

from morphoray.datasets.base import Imported
from morphoray.datasets.gallery import (
    GalleryOptions,
    Plate,
    Wells,
    choose,
    find_project,
    find_tables,
    import_plates,
)
from morphoray.datasets.platemaps import Platemap, read_platemaps
from morphoray.errors import DataError
from morphoray.perturbations.base import Perturbation
from morphoray.storage import Storage, join

CONTROLS = ("EMPTY", "Luciferase", "LacZ", "eGFP")  # as gene_name: untreated wells, and genes of no human

# The MorphoDiff paper's. Its list of twelve names alleles too, but the original merges a gene's alleles. The
# genes that it left out of these clusters are not among them, and not published.
PRESETS = {
    "rohban_5": ("RAC1", "KRAS", "CDC42", "RHOA", "PAK1"),
    "rohban_12": (
        *("XBP1", "MAPK14"),  # cytokine secretion
        *("RAC1", "AKT1", "AKT3"),  # lymphocyte costimulation
        *("RHOA", "PRKACA"),  # cell-cell junction assembly
        *("SMAD4", "RPS6KB1"),  # ureteric bud development
        *("KRAS", "BRAF", "RAF1"),  # activation of MAPKK activity
    ),
}
_COLUMNS = ("gene_name", "pert_name")


class RohbanOptions(GalleryOptions):
    """Options of the `rohban` importer."""

    preset: Literal["rohban_5", "rohban_12"] | None = Field(
        None, description="the paper's genes, merged and without controls unless the options say otherwise"
    )
    genes: tuple[str, ...] | None = Field(
        None, description="keep these genes (gene_name) or constructs (pert_name); null: the preset's, or all"
    )
    merge_alleles: bool = Field(
        False, description="a gene's wild types and mutants are one perturbation, as in the original"
    )
    platemap: str | None = Field(
        None, description="one platemap for every plate; null: as barcode_platemap.csv has it"
    )
    cell_type: str = "U2OS"
    pixel_size_um: float | None = Field(None, gt=0, description="null: not known, see image.um_per_pixel")

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, values: object) -> object:
        preset = values.get("preset") if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(preset, str) and preset in PRESETS:
            return {"merge_alleles": True, "controls": False, "genes": PRESETS[preset]} | values
        return values


def read(source: str, storage: Storage, options: RohbanOptions) -> Imported:
    """SITES of the project's folder, or of the one source's in it; a batch is an experiment.

    The perturbation is the construct (pert_name), its gene the gene_name. Raises DataError for platemaps that
    break their contract, ConfigError for options that match nothing.
    """
    project = find_project(source, storage)
    tables = find_tables(project, options, storage)
    maps = {
        key: read_platemaps(
            join(project.sources[key[0]], "workspace", "metadata", "platemaps", key[1]),
            storage,
            options.platemap,
        )
        for key in {(table.source, table.batch): None for table in tables}
    }
    _check_genes(maps.values(), options)
    plates = [
        Plate(
            table,
            table.batch,
            _wells(table.plate, maps[table.source, table.batch], options),
            options.cell_type,
            options.pixel_size_um,
        )
        for table in tables
    ]
    return import_plates("rohban", project, plates, options, storage)


def _check_genes(maps: Iterable[Mapping[str, Platemap]], options: RohbanOptions) -> None:
    """Raise DataError for platemaps without genes, ConfigError for chosen ones that none of them has."""
    known: set[str] = set()
    for rows in (row for plates in maps for platemap in plates.values() for row in platemap.values()):
        if missing := [name for name in _COLUMNS if name not in rows]:
            raise DataError(f"platemap: found columns {sorted(rows)}, expected also {missing}")
        known |= {rows[name] for name in _COLUMNS}
    choose("genes", options.genes, known)


def _wells(plate: str, maps: Mapping[str, Platemap], options: RohbanOptions) -> Wells | str:
    platemap = maps.get(plate, maps.get(""))
    if platemap is None:
        return f"plate {plate} has no platemap; barcode_platemap.csv names {', '.join(sorted(maps))}"
    return {well: _treatment(row, options) for well, row in platemap.items()}


def _treatment(row: Mapping[str, str], options: RohbanOptions) -> Perturbation | str | None:
    """What a well got, or the reason why that isn't known; None if it isn't wanted."""
    gene, construct = (row[name] for name in _COLUMNS)
    is_control = gene in CONTROLS
    chosen = options.genes is None or gene in options.genes or construct in options.genes
    if not (options.controls if is_control and gene not in (options.genes or ()) else chosen):
        return None
    if is_control:
        return Perturbation(gene, "control", is_control=True)
    if not (gene and construct):
        return "the platemap has no gene_name or no pert_name for this well"
    return Perturbation(gene if options.merge_alleles else construct, "gene", gene=gene)
