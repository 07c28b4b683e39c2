"""Our encoders against the original project's own tables: 87 compounds' descriptors, three shapes of CSV."""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bbbc021_compounds import COMPOUNDS
from morphoray.perturbations import rdkit, table
from morphoray.perturbations.base import Perturbation
from morphoray.storage import Storage

STORAGE = Storage()

# The 173 columns are the 200 descriptors without those that are constant over its 98 compounds.
_ABSENT = """
NumRadicalElectrons SMR_VSA8 SlogP_VSA9 fr_Ar_COO fr_SH fr_amidine fr_azide fr_azo fr_barbitur
fr_benzodiazepine fr_diazo fr_dihydropyridine fr_hdrzine fr_hdrzone fr_isocyan fr_isothiocyan
fr_lactam fr_nitroso fr_oxazole fr_oxime fr_phos_acid fr_phos_ester fr_prisulfonamd fr_quatN
fr_sulfone fr_term_acetylene fr_thiocyan
"""
COLUMNS = [name for name in rdkit.DESCRIPTORS if name not in _ABSENT.split()]

# Descriptors whose definition changed since, by the older SMARTS; RDKit's Lipinski still has the first.
OLDER = {
    "NumHAcceptors": (
        "[$([O,S;H1;v2]-[!$(*=[O,N,P,S])]),$([O,S;H0;v2]),$([O,S;-]),$([N;v3;!$(N-*=!@[O,N,P,S])]),"
        "$([nH0,o,s;+0])]"
    ),
    "fr_unbrch_alkane": "[R0;D2][R0;D2][R0;D2][R0;D2]",
}
# Columns that one compound makes: bleomycin's Ipc dwarfs all others; az235's structure is not public, and
# its column may as well be fr_sulfone or fr_term_acetylene, the neighbours in the order.
OF_ONE = {"Ipc": "bleomycin", "fr_tetrazole": "az235"}

# Forms in which chemists sell or draw some of them, for which the table has the neutral parent.
SALTS = {
    "sodium-butyrate": "CCCC([O-])=O.[Na+]",
    "doxorubicin": COMPOUNDS["doxorubicin"][0] + ".Cl",
    "y-27632": COMPOUNDS["y-27632"][0] + ".Cl.Cl",
    "vinblastine": COMPOUNDS["vinblastine"][0] + ".OS(O)(=O)=O",
    "emetine": "CCC1C[NH+]2CCc3cc(OC)c(OC)cc3C2CC1CC1[NH2+]CCc2cc(OC)c(OC)cc12.[Cl-].[Cl-]",
    "taurocholate": COMPOUNDS["taurocholate"][0].replace("S(O)(=O)=O", "S([O-])(=O)=O") + ".[Na+]",
}

Float64 = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def original(real_data: Path) -> tuple[list[str], Float64]:
    """Ids and vectors (98, 173) of the original's table of compounds."""
    uri = str(real_data / "original-tables/perturbation_embedding_bbbc021.csv")
    ids, vectors = table.read_vectors(uri, STORAGE)
    return ids, vectors.astype(np.float64)


def descriptors_of(smiles: list[str], standardise: bool) -> Float64:
    """(N, 173), in the table's order."""
    texts = rdkit.standardised(smiles) if standardise else smiles
    values, reasons = rdkit.descriptors(texts, COLUMNS)
    assert reasons == [None] * len(smiles)
    return values


def correlations(ours: Float64, theirs: Float64) -> dict[str, float]:
    """Pearson's r by descriptor over the compounds that have it: the table's z-scores are linear in it."""
    found = {}
    for name, x, y in zip(COLUMNS, ours.T, theirs.T, strict=True):
        present = np.isfinite(x)
        if np.ptp(y[present]) > 0 and np.ptp(x[present]) > 0:
            found[name] = float(np.corrcoef(x[present], y[present])[0, 1])
    return found


def test_the_structures_are_the_compounds() -> None:
    from rdkit import Chem
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula

    assert len(COMPOUNDS) == 87
    for name, (smiles, formula) in COMPOUNDS.items():
        assert CalcMolFormula(Chem.MolFromSmiles(smiles)) == formula, name


@pytest.mark.parametrize("standardise", [False, True])
def test_descriptors_equal_the_original_table(original: tuple[list[str], Float64], standardise: bool) -> None:
    """r > 0.99999 for 169 of 173; the other four are the two of OLDER and the two of OF_ONE."""
    ids, vectors = original
    theirs = vectors[[ids.index(name) for name in COMPOUNDS]]
    found = correlations(descriptors_of([smiles for smiles, _ in COMPOUNDS.values()], standardise), theirs)
    assert set(COLUMNS) - found.keys() == OF_ONE.keys()
    assert {name for name, r in found.items() if r <= 0.99999} == OLDER.keys()


def test_descriptors_that_differ_do_so_for_the_reason_told(original: tuple[list[str], Float64]) -> None:
    from rdkit import Chem

    ids, vectors = original
    theirs = vectors[[ids.index(name) for name in COMPOUNDS]]
    molecules = [Chem.MolFromSmiles(smiles) for smiles, _ in COMPOUNDS.values()]
    for name, smarts in OLDER.items():
        pattern = Chem.MolFromSmarts(smarts)
        counts = [len(molecule.GetSubstructMatches(pattern)) for molecule in molecules]
        assert np.corrcoef(counts, theirs[:, COLUMNS.index(name)])[0, 1] > 0.99999, name
    for name, compound in OF_ONE.items():
        column = vectors[:, COLUMNS.index(name)]
        others = np.delete(column, ids.index(compound))
        assert column[ids.index(compound)] == pytest.approx(97 / 98**0.5, abs=1e-5)  # one of 98, sd of n - 1
        assert np.ptp(others) == 0


def test_the_table_is_normalised_as_ours(original: tuple[list[str], Float64]) -> None:
    """Sample standard deviations (n - 1) of 1 over what was present, and missing values at the mean."""
    _, vectors = original
    deviation = vectors.std(axis=0, ddof=1)
    charges = [COLUMNS.index(name) for name in COLUMNS if name.endswith("PartialCharge")]
    np.testing.assert_allclose(np.delete(deviation, charges), 1, atol=1e-5)
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=1e-5)


def test_what_our_fit_keeps_are_the_tables_columns() -> None:
    """Two names differ: az235 is not among ours, and RDKit counts primary sulfonamides since (NU6102)."""
    training = [Perturbation(name, "compound", smiles) for name, (smiles, _) in COMPOUNDS.items()]
    encoder = rdkit.fit(rdkit.RdkitOptions(), training, STORAGE)
    assert set(encoder.names) ^ set(COLUMNS) == {"fr_tetrazole", "fr_prisulfonamd"}


def test_standardising_finds_the_tables_form_of_a_salt(original: tuple[list[str], Float64]) -> None:
    ids, vectors = original
    forms = [SALTS.get(name, smiles) for name, (smiles, _) in COMPOUNDS.items()]
    theirs = vectors[[ids.index(name) for name in COMPOUNDS]]
    close = {
        standardise: sum(r > 0.999 for r in correlations(descriptors_of(forms, standardise), theirs).values())
        for standardise in (False, True)
    }
    assert close == {False: 111, True: 169}


def test_standardising_changes_no_neutral_compound() -> None:
    smiles = [smiles for smiles, _ in COMPOUNDS.values()]
    given, standard = (descriptors_of(smiles, standardise) for standardise in (False, True))
    np.testing.assert_allclose(standard, given, rtol=1e-9, atol=1e-9)


# The three shapes of CSV, and ids as the data spell them.


def printed(source: Path, folder: Path) -> Path:
    """The original's third shape, of its own numbers: an id, and the vector as NumPy prints it."""
    ids, vectors = table.read_vectors(str(source), STORAGE)
    path = folder / "printed.csv"
    with path.open("w", newline="") as file, np.printoptions(threshold=10_000, floatmode="unique"):
        csv.writer(file).writerows(zip(ids, map(str, vectors), strict=True))
    return path


@pytest.mark.parametrize("shape", ["header", "headerless", "printed"])
def test_table_reads_the_originals_shapes(shape: str, real_data: Path, tmp_path: Path) -> None:
    tables = real_data / "original-tables"
    compounds, genes = (
        tables / "perturbation_embedding_bbbc021.csv",
        tables / "perturbation_embedding_rohban.csv",
    )
    uri = {"header": compounds, "headerless": genes, "printed": printed(genes, tmp_path)}[shape]
    encoder = table.fit(table.TableOptions(uri=str(uri)), [], STORAGE)
    if shape == "header":
        assert (len(encoder.ids), encoder.width) == (98, 173)
        wanted = ["Leupeptin", "AG-1478", "raloxifene", "AZ138", "Sodium Butyrate"]
    else:
        assert (len(encoder.ids), encoder.width) == (189, 512)
        assert encoder.vectors[0, 0] == np.float32(0.3208344)
        wanted = ["FURIN", "rac1", "Pak1", "KRAS"]
    result = encoder.encode([Perturbation(name, "compound") for name in wanted])
    assert result.reasons == [None] * len(wanted)
    rows = [encoder.ids.index(name.lower().replace(" ", "-")) for name in wanted]
    np.testing.assert_array_equal(result.vectors, encoder.vectors[rows])


def test_the_printed_shape_has_the_same_numbers(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "original-tables/perturbation_embedding_rohban.csv"
    ids, vectors = table.read_vectors(str(source), STORAGE)
    same_ids, same = table.read_vectors(str(printed(source, tmp_path)), STORAGE)
    assert same_ids == ids
    np.testing.assert_array_equal(same, vectors)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Cdk1/2 inhibitor (NU6102)", "cdk1-2-inhibitor-nu6102-"),
        ("calpain inhibitor 2 (ALLM)", "calpain-inhibitor-2-allm-"),
        ("caspase inhibitor 1 (ZVAD)", "caspase-inhibitor-1-zvad-"),
        ("3,3'-diaminobenzidine", "33-diaminobenzidine"),
        ("ICI-182,780", "ici-182780"),
        ("mevinolin/lovastatin", "mevinolin-lovastatin"),
        ("cyclohexamide", "cyclohexamide"),
        ("cyclohexamide@15", "cyclohexamide"),
    ],
)
def test_table_has_the_rows_of_bbbc021s_own_names(
    name: str, row: str, original: tuple[list[str], Float64]
) -> None:
    """As BBBC021_v1_image.csv spells them."""
    ids, vectors = original
    encoder = table.TableEncoder(ids, vectors.astype(np.float32))
    result = encoder.encode([Perturbation(name, "compound")])
    assert result.reasons == [None]
    np.testing.assert_array_equal(result.vectors[0], encoder.vectors[ids.index(row)])
