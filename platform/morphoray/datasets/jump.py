"""JUMP Cell Painting (cpg0016): compounds, over-expressed and knocked-out genes of many laboratories."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from morphoray.datasets import jump_pilot
from morphoray.datasets.base import Imported
from morphoray.datasets.gallery import (
    GalleryOptions,
    Plate,
    PlateTable,
    choose,
    find_project,
    find_tables,
    import_plates,
    keep_wells,
)
from morphoray.datasets.platemaps import well_name
from morphoray.datasets.tables import rows_where
from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.base import Perturbation
from morphoray.storage import Storage, absolute, join

# Negative controls: DMSO; no guide, non-targeting guides (CRISPR); BFP, HcRed, luciferase, LacZ (ORF).
CONTROLS = (
    "JCP2022_033924",
    *("JCP2022_800001", "JCP2022_800002"),
    *("JCP2022_915128", "JCP2022_915129", "JCP2022_915130", "JCP2022_915131"),
)
EMPTY = "JCP2022_999999"
# Micrometres a pixel, as the consortium's table of microscopes has them.
PIXEL_SIZES_UM = {
    **dict.fromkeys(("source_1", "source_3", "source_4", "source_9", "source_11", "source_15"), 0.597976),
    **dict.fromkeys(("source_2", "source_7", "source_13"), 0.65),
    "source_5": 0.64974,
    "source_6": 0.646187,
    "source_8": 0.7032,
    "source_10": 0.6516944,
}
CELL_TYPE = "U2OS"  # of all of cpg0016
_TABLES = (("compound", "Metadata_SMILES"), ("orf", "Metadata_Symbol"), ("crispr", "Metadata_Symbol"))
_ID = "Metadata_JCP2022"


PixelSize = Annotated[float, Field(gt=0)]


class JumpOptions(GalleryOptions):
    """Options of the `jump` importer."""

    sources: tuple[str, ...] | None = Field(None, description="keep these, for one source_4; null: all")
    plate_types: tuple[str, ...] | None = Field(
        None, description="keep these, as plate.csv.gz has them: COMPOUND, ORF, CRISPR, TARGET2, DMSO, ..."
    )
    perturbations: tuple[str, ...] | None = Field(None, description="keep these perturbation ids; null: all")
    metadata: str | None = Field(
        None, description="folder of plate, well, compound, orf and crispr .csv.gz; null: SOURCE/metadata"
    )
    control_ids: tuple[str, ...] = Field(CONTROLS, description="perturbation ids that are negative controls")
    pixel_sizes_um: dict[str, PixelSize] = Field(
        default_factory=dict, description="by source, where it isn't the consortium's"
    )
    cell_type: str | None = Field(None, description="null: U2OS, which the pilot's plates need not be")


def read(source: str, storage: Storage, options: JumpOptions) -> Imported:
    """SITES of the project's folder, or of one source's: an experiment is <source>__<batch>.

    The perturbation is the JCP2022 id, which tells over-expression (9...) from knock-out (8...). Without the
    metadata tables the layout is the pilot's (cpg0000): platemaps, and the construct as the perturbation.
    Raises DataError for metadata that break their contract, ConfigError for options that match nothing.
    """
    project = find_project(source, storage, options.sources)
    tables = find_tables(project, options, storage)
    metadata = absolute(options.metadata or join(project.uri, "metadata"))
    well_table = _find(metadata, "well", storage)
    if well_table is None:
        if options.plate_types is not None:
            raise ConfigError(f"dataset.plate_types: no plate.csv.gz in {metadata}, which has the types")
        wells = jump_pilot.read_wells(project, tables, metadata, options.metadata is not None, storage)
    else:
        tables = _of_types(tables, metadata, options, storage)
        wells = _read_wells(tables, metadata, well_table, options, storage)
    _check_perturbations(wells, options)
    cell_type = options.cell_type or (CELL_TYPE if well_table else None)
    sizes = PIXEL_SIZES_UM | options.pixel_sizes_um
    plates = [
        Plate(
            table,
            f"{table.source}__{table.batch}",
            keep_wells(wells[table.plate], options.perturbations, options.controls)
            if table.plate in wells
            else f"plate {table.plate} has no wells in the metadata",
            cell_type,
            sizes.get(table.source),
        )
        for table in tables
    ]
    return import_plates("jump", project, plates, options, storage, _notes(plates))


def _find(folder: str, name: str, storage: Storage) -> str | None:
    uris = (join(folder, f"{name}.csv.gz"), join(folder, f"{name}.csv"))
    return next((uri for uri in uris if storage.exists(uri)), None)


def _of_types(
    tables: list[PlateTable], metadata: str, options: JumpOptions, storage: Storage
) -> list[PlateTable]:
    """The tables of the plates whose type is wanted."""
    if options.plate_types is None:
        return tables
    uri = _find(metadata, "plate", storage)
    if uri is None:
        raise ConfigError(f"dataset.plate_types: no plate.csv.gz in {metadata}, which has the types")
    columns = ("Metadata_Plate", "Metadata_PlateType")
    rows = rows_where(uri, storage, columns, {table.plate for table in tables})
    types = {row[0]: row[1] for row in rows}
    wanted = choose("plate_types", options.plate_types, set(types.values()))
    return [table for table in tables if types.get(table.plate) in wanted]


def _read_wells(
    tables: list[PlateTable], metadata: str, uri: str, options: JumpOptions, storage: Storage
) -> dict[str, dict[str, Perturbation | str]]:
    """What each well of each of the plates got, or the reason why that isn't known."""
    plates = {table.plate for table in tables}
    ids: dict[str, dict[str, str]] = {}
    twice: dict[tuple[str, str], str] = {}
    for plate, text, name in rows_where(uri, storage, ("Metadata_Plate", "Metadata_Well", _ID), plates):
        well = well_name(text) or text
        first = ids.setdefault(plate, {}).setdefault(well, name)
        if name != first:
            twice[plate, well] = f"two perturbations are named for well {well}: {first} and {name}"
    known = _read_perturbations(
        {name for wells in ids.values() for name in wells.values()}, metadata, storage
    )
    known |= {
        name: Perturbation(name, "control", known[name].smiles if name in known else None, is_control=True)
        for name in options.control_ids
    }
    reason = f"is in no table of {metadata}: compound, orf, crispr"
    return {
        plate: {
            well: twice[plate, well]
            if (plate, well) in twice
            else known.get(name, f"empty well ({name})" if name == EMPTY else f"{name or 'nothing'} {reason}")
            for well, name in wells.items()
        }
        for plate, wells in ids.items()
    }


def _read_perturbations(ids: set[str], metadata: str, storage: Storage) -> dict[str, Perturbation]:
    """The perturbations with these ids in the tables of compounds, ORFs and CRISPR guides that are there.

    Raises DataError for an id that has two structures or genes.
    """
    found: dict[str, Perturbation] = {}
    for table, column in _TABLES:
        uri = _find(metadata, table, storage)
        for name, value in rows_where(uri, storage, (_ID, column), ids) if uri else ():
            item = (
                Perturbation(name, "compound", smiles=value or None)
                if table == "compound"
                else Perturbation(name, "gene", gene=value or None)
            )
            if found.setdefault(name, item) != item:
                raise DataError(f"{uri}: {name} is there twice, with two values of {column}; expected one")
    return found


def _check_perturbations(wells: Mapping[str, Mapping[str, Perturbation | str]], options: JumpOptions) -> None:
    found = (item for plate in wells.values() for item in plate.values())
    choose(
        "perturbations",
        options.perturbations,
        {item.perturbation_id for item in found if not isinstance(item, str)},
    )


def _notes(plates: Sequence[Plate]) -> list[str]:
    notes = []
    if unknown := sorted({plate.table.source for plate in plates if plate.pixel_size_um is None}):
        notes.append(f"pixel size: unknown of {', '.join(unknown)}; set dataset.pixel_sizes_um")
    if any(plate.cell_type is None for plate in plates):
        notes.append("cell type: unknown, since the tables don't have it; set dataset.cell_type")
    return notes
