"""The JUMP pilot's metadata (cpg0000): platemaps with constructs, and what each construct is."""

from collections.abc import Mapping, Sequence

from morphoray.datasets.gallery import PlateTable, Project
from morphoray.datasets.platemaps import read_platemaps
from morphoray.errors import DataError
from morphoray.perturbations.base import Perturbation, read_csv
from morphoray.storage import Storage, join

_SAMPLE = "broad_sample"


def read_wells(
    project: Project, tables: Sequence[PlateTable], metadata: str, given: bool, storage: Storage
) -> dict[str, dict[str, Perturbation | str]]:
    """What each well of each plate got, or the reason why that isn't known.

    The constructs are described in the .tsv files of `metadata` if that was given, else of a source's
    workspace/metadata/external_metadata. Raises DataError where there are no platemaps.
    """
    wells: dict[str, dict[str, Perturbation | str]] = {}
    for source, batch in sorted({(table.source, table.batch) for table in tables}):
        folder = join(project.sources[source], "workspace", "metadata")
        platemaps = join(folder, "platemaps", batch)
        if not storage.exists(join(platemaps, "barcode_platemap.csv")):
            raise DataError(
                f"{metadata}: no well.csv.gz, and no barcode_platemap.csv in {platemaps}. Set "
                "dataset.metadata to the folder of the consortium's tables: plate, well, compound, orf and "
                "crispr .csv.gz."
            )
        described = metadata if given else join(folder, "external_metadata")
        constructs = _read_constructs(described, storage)
        for plate, platemap in read_platemaps(platemaps, storage).items():
            wells[plate] = {well: _treatment(row, constructs, described) for well, row in platemap.items()}
    return wells


def _read_constructs(folder: str, storage: Storage) -> dict[str, dict[str, str]]:
    """What the tables in a folder say of each construct; of several values the first file's."""
    found: dict[str, dict[str, str]] = {}
    for uri in storage.list_files(folder, suffix=".tsv"):
        for row in read_csv(uri, storage, delimiter="\t"):
            if sample := row.get(_SAMPLE):
                known = found.setdefault(sample, {})
                found[sample] = {name: value for name, value in row.items() if value} | known
    return found


def _treatment(
    row: Mapping[str, str], constructs: Mapping[str, Mapping[str, str]], folder: str
) -> Perturbation | str:
    """A well of a platemap; without a construct it is the solvent's control, or untreated."""
    name = row.get(_SAMPLE, "")
    if not name:
        return Perturbation(row.get("solvent") or "untreated", "control", is_control=True)
    known = constructs.get(name)
    if known is None:
        return f"{name} is in no .tsv table of {folder}"
    smiles, gene = known.get("smiles"), known.get("gene")
    if known.get("control_type") == "negcon":
        return Perturbation(name, "control", smiles, is_control=True)
    if smiles or known.get("InChIKey"):
        return Perturbation(name, "compound", smiles)  # its `gene` is what it is thought to target
    return Perturbation(name, "gene", gene=gene) if gene else f"{name} has no gene in {folder}"
