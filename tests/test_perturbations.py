"""Perturbations and their vectors: the encoders' contract, numbers by hand, and tables as users have them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from morphoray.errors import ConfigError, DataError, MissingExtraError
from morphoray.perturbations import ENCODERS, find_encoder, rdkit, table
from morphoray.perturbations.base import Encoder, Perturbation, from_rows, read_perturbations
from morphoray.perturbations.projection import pad_to_token
from morphoray.storage import Storage

STORAGE = Storage()
EMPTY = Perturbation("EMPTY", "control", is_control=True)
TRAINING = [
    Perturbation("ethanol", "compound", smiles="CCO", concentration_um=1.0),
    Perturbation("benzene", "compound", smiles="c1ccccc1", concentration_um=10.0),
    Perturbation("aspirin", "compound", smiles="CC(=O)Oc1ccccc1C(=O)O", concentration_um=100.0),
    EMPTY,
]
TABLE = "name,latent_1,latent_2\nethanol,1.5,-2\nbenzene,0.25,3\naspirin,0,1e-3\n"

Write = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file


def fitted(name: str, write: Write) -> Encoder:
    kind = ENCODERS[name]
    of_table = {"uri": write("vectors.csv", TABLE)}
    given: dict[str, dict[str, object]] = {
        "table": of_table,
        "concat": {"parts": [{"encoder": "rdkit"}, {"encoder": "dose"}, {"encoder": "table", **of_table}]},
    }
    return kind.fit(kind.options(**given.get(name, {})), TRAINING, STORAGE)


# The contract of every encoder in the registry.


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_contract(name: str, write: Write) -> None:
    encoder = fitted(name, write)
    assert encoder.name == name
    result = encoder.encode(TRAINING)
    assert result.vectors.dtype == np.float32
    assert result.vectors.shape == (4, encoder.width)
    assert result.reasons == [None] * 4
    assert np.isfinite(result.vectors).all()
    assert (result.vectors[3] == 1).all(), "a control without SMILES or vector is all ones"
    assert encoder.encode([]).vectors.shape == (0, encoder.width)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_comes_back_from_its_state(name: str, write: Write) -> None:
    encoder = fitted(name, write)
    state = encoder.state()
    again = ENCODERS[name].load(json.loads(json.dumps(state)))
    assert again.state() == state
    assert again.encode(TRAINING).vectors.tobytes() == encoder.encode(TRAINING).vectors.tobytes()


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_row_is_independent_of_its_batch(name: str, write: Write) -> None:
    encoder = fitted(name, write)
    together = encoder.encode(TRAINING).vectors
    for item, row in zip(TRAINING, together, strict=True):
        assert encoder.encode([item]).vectors.tobytes() == row.tobytes()


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_options_refuse_unknown_keys(name: str) -> None:
    with pytest.raises(ValidationError, match="no_such_key"):
        ENCODERS[name].options(uri="x", no_such_key=1)


def test_unknown_encoder_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="'rdkitt'; known: rdkit, morgan, dose, concat, table, constant"):
        find_encoder("rdkitt")


# rdkit


def test_rdkit_names_are_200_and_in_order() -> None:
    assert len(rdkit.DESCRIPTORS) == len(set(rdkit.DESCRIPTORS)) == 200
    assert list(rdkit.DESCRIPTORS) == sorted(rdkit.DESCRIPTORS)


def test_rdkit_scores_by_hand() -> None:
    """MolWt and heavy atoms of CO, CCO and CCCO: atoms 2, 3, 4 have mean 3 and sample sd 1."""
    training = [Perturbation(text, "compound", smiles=text) for text in ("CO", "CCO", "CCCO")]
    encoder = rdkit.fit(rdkit.RdkitOptions(), training, STORAGE)
    at = encoder.names.index("HeavyAtomCount")
    assert (encoder.mean[at], encoder.std[at]) == (3, 1)
    others = [*training, Perturbation("hexanol", "compound", smiles="CCCCCCO")]
    assert encoder.encode(others).vectors[:, at].tolist() == [-1, 0, 1, 4]
    assert "NumAromaticRings" not in encoder.names  # 0 in all three
    clipped = rdkit.fit(rdkit.RdkitOptions(clip=2.5), training, STORAGE)
    assert clipped.encode(others).vectors[:, at].tolist() == [-1, 0, 1, 2.5]
    assert np.abs(clipped.encode(others).vectors).max() == 2.5


def test_rdkit_min_std_decides_what_is_kept() -> None:
    widths = [
        rdkit.fit(rdkit.RdkitOptions(min_std=value), TRAINING, STORAGE).width for value in (0, 0.001, 10)
    ]
    assert widths[0] >= widths[1] > widths[2] > 0
    with pytest.raises(DataError, match="no descriptor varies"):
        rdkit.fit(rdkit.RdkitOptions(min_std=1e9), TRAINING, STORAGE)


def test_rdkit_statistics_count_a_structure_once() -> None:
    twice = [*TRAINING, Perturbation("alcohol", "compound", smiles="CCO")]
    assert (
        rdkit.fit(rdkit.RdkitOptions(), twice, STORAGE).state()
        == rdkit.fit(rdkit.RdkitOptions(), TRAINING, STORAGE).state()
    )


def test_rdkit_missing_descriptor_is_zero_and_told() -> None:
    """Gasteiger has no parameters for platinum: cisplatin has no partial charges."""
    encoder = rdkit.fit(rdkit.RdkitOptions(), TRAINING, STORAGE)
    values, reasons = rdkit.descriptors(["N[Pt](N)(Cl)Cl"], encoder.names)
    absent = [name for name, value in zip(encoder.names, values[0], strict=True) if not np.isfinite(value)]
    broken = Perturbation("odd", "compound", smiles="N[Pt](N)(Cl)Cl")
    result = encoder.encode([broken])
    assert reasons == [None]
    assert "MaxPartialCharge" in absent
    assert result.reasons == [None]
    assert np.isfinite(result.vectors).all()
    for name in absent:
        assert result.vectors[0, encoder.names.index(name)] == 0
        assert name in (result.notes[0] or "")


def test_rdkit_missing_values_stay_out_of_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values 1, 3 and one missing: mean 2, sample sd sqrt 2; the missing one scores 0 and is told."""
    from rdkit.Chem import Descriptors

    given = {2: 1.0, 3: 3.0, 4: float("inf")}
    listed = [("BalabanJ", lambda molecule: given[molecule.GetNumHeavyAtoms()])]
    listed += [(name, lambda molecule: 0.0) for name in rdkit.DESCRIPTORS if name != "BalabanJ"]
    monkeypatch.setattr(Descriptors, "descList", listed)
    training = [Perturbation(text, "compound", smiles=text) for text in ("CO", "CCO", "CCCO")]
    encoder = rdkit.fit(rdkit.RdkitOptions(), training, STORAGE)
    assert encoder.names == ("BalabanJ",)
    assert encoder.mean.tolist() == [2]
    result = encoder.encode(training)
    np.testing.assert_allclose(result.vectors[:, 0], [-(0.5**0.5), 0.5**0.5, 0])
    assert result.notes == [None, None, "CCCO: missing descriptors: BalabanJ"]


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        (None, "x: no SMILES, which the rdkit encoder needs"),
        ("", "x: empty SMILES"),
        ("   ", "x: empty SMILES"),
        ("C1CC", "x: invalid SMILES 'C1CC': can't be parsed"),
        ("hello", "x: invalid SMILES 'hello'"),
        ("F(C)C", "x: invalid SMILES 'F(C)C': Explicit valence"),
        ("[HH]", "no heavy atoms"),
        ("CCO\x00CC", "unprintable characters"),
        ("C" * 301, "has 301 heavy atoms, expected at most 300"),
        ("C" * 5001, "has 5001 characters, expected at most 5000"),
    ],
)
def test_rdkit_gives_a_reason(smiles: str | None, reason: str) -> None:
    encoder = rdkit.fit(rdkit.RdkitOptions(), TRAINING, STORAGE)
    result = encoder.encode([TRAINING[0], Perturbation("x", "compound", smiles=smiles), TRAINING[1]])
    assert reason in (result.reasons[1] or "")
    assert np.isnan(result.vectors[1]).all()
    assert np.isfinite(result.vectors[[0, 2]]).all()
    assert [result.reasons[0], result.reasons[2]] == [None, None]


def test_rdkit_score_beyond_float32_is_a_reason() -> None:
    encoder = rdkit.RdkitEncoder(("MolWt",), np.array([0.0]), np.array([1e-40]))
    result = encoder.encode([TRAINING[0]])
    assert "descriptor MolWt lies 5e+41 standard deviations" in (result.reasons[0] or "")


def test_rdkit_needs_two_structures() -> None:
    with pytest.raises(DataError, match="found 1 valid SMILES among 3 training perturbations"):
        broken = Perturbation("b", "compound", smiles="((")
        rdkit.fit(rdkit.RdkitOptions(), [TRAINING[0], broken, EMPTY], STORAGE)


def test_rdkit_descriptors_of_many() -> None:
    values, reasons = rdkit.descriptors(["CCO", "bad", "C"])
    assert values.shape == (3, 200)
    assert values.dtype == np.float64
    assert values[0, rdkit.DESCRIPTORS.index("MolWt")] == pytest.approx(46.069, abs=1e-3)
    assert np.isnan(values[1]).all()
    assert [reason is None for reason in reasons] == [True, False, True]


def test_rdkit_absent_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'morphoray\[chem\]'"):
        rdkit.descriptors(["CCO"])


# table

SHAPES = {
    "header": TABLE,
    "headerless": "ethanol,1.5,-2\nbenzene,0.25,3\naspirin,0,1e-3\n",
    "printed": 'perturbation,vector\nethanol,"[ 1.5\n  -2.  ]"\nbenzene,"[0.25, 3]"\naspirin,[0. 1e-3]\n',
    "printed_headerless": 'ethanol,[ 1.5 -2. ]\nbenzene,"[0.25\n 3.]"\naspirin,[0 1e-3]\n',
    "bom": "\ufeff" + TABLE,
    "crlf": TABLE.replace("\n", "\r\n"),
    "cr": TABLE.replace("\n", "\r"),
    "blank_lines": TABLE.replace("\n", "\n\n"),
    "no_last_newline": TABLE.rstrip(),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_table_shapes(shape: str, write: Write) -> None:
    ids, vectors = table.read_vectors(write("vectors.csv", SHAPES[shape]), STORAGE)
    assert ids == ["ethanol", "benzene", "aspirin"]
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.array([[1.5, -2], [0.25, 3], [0, 1e-3]], np.float32))


@pytest.mark.parametrize("shape", ["list", "fixed", "numeric"])
def test_table_parquet(shape: str, tmp_path: Path) -> None:
    rows = [[1.5, -2.0], [0.25, 3.0]]
    columns: dict[str, pa.Array | list[object]] = {"perturbation_id": ["a", "b"], "note": ["x", "y"]}
    if shape == "numeric":
        columns |= {"latent_1": [1.5, 0.25], "latent_2": pa.array([-2.0, 3.0], pa.float32())}
    else:
        columns["vector"] = pa.array(rows, pa.list_(pa.float32(), 2 if shape == "fixed" else -1))
    uri = str(tmp_path / "vectors.parquet")
    STORAGE.write_table(uri, pa.table(columns))
    ids, vectors = table.read_vectors(uri, STORAGE)
    assert ids == ["a", "b"]
    assert vectors.tolist() == rows


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"x": [1.0]}, r"found columns \['x'\]"),
        ({"perturbation_id": ["a"]}, "one list column of numbers or numeric columns"),
        ({"perturbation_id": ["a"], "v": [[1.0]], "w": [[1.0]]}, "one list column"),
        ({"perturbation_id": ["a", "b"], "v": [[1.0], None]}, r"row 2 \('b'\): 0 numbers, expected 1"),
        ({"perturbation_id": ["a", None], "v": [1.0, 2.0]}, "row 2.*the id is empty"),
        ({"perturbation_id": ["a", "b"], "v": [1.0, None]}, "row 2.*NaN, infinite or missing"),
    ],
)
def test_table_parquet_gives_a_reason(columns: dict[str, list[object]], reason: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "vectors.parquet")
    STORAGE.write_table(uri, pa.table(columns))
    with pytest.raises(DataError, match=reason):
        table.read_vectors(uri, STORAGE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "found no vectors"),
        ("name,a,b\n", "found no vectors"),
        ("x,1,2\ny,1\n", r"row 2 \('y'\): 1 numbers, expected 2"),
        ("name,a\nx,1\ny,nan\n", r"row 3 \('y'\): number 1 is NaN"),
        ("x,1,inf\n", "number 2 is NaN, infinite"),
        ("x,1,\n", "number 2 is NaN, infinite or missing"),
        ("x,1,two\n", r"row 1 \('x'\): could not convert"),
        ("x,1\nx,2\n", r"row 2 \('x'\): this id is there twice"),
        (",1\n", "the id is empty"),
        ("x\n", "only one value"),
        ("x,[1 2]\ny,[1 2 3]\n", "row 2.*3 numbers, expected 2"),
        ("x,[0.1 0.2 ... 0.3]\n", "printed shortened"),
        ("x,[]\n", "0 numbers, expected at least 1"),
        ('x,"[1 2]\ny,[3 4]\n', "line 2: unexpected end of data"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_table_gives_a_reason(text: str | bytes, reason: str, write: Write) -> None:
    with pytest.raises(DataError, match=reason):
        table.read_vectors(write("vectors.csv", text), STORAGE)


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("Cytochalasin B", "cytochalasin-b"),
        ("PP-2", "pp-2"),
        ("Cdk1/2 inhibitor (NU6102)", "cdk1-2-inhibitor-nu6102-"),
        ("caspase inhibitor 1 (ZVAD)", "caspase-inhibitor-1-zvad-"),
        ("mevinolin/lovastatin", "mevinolin-lovastatin"),
        ("3,3'-diaminobenzidine", "33-diaminobenzidine"),
        ("ICI-182,780", "ici-182780"),
        ("ici-182780", "ici-182780"),
    ],
)
def test_original_spelling(name: str, spelled: str) -> None:
    assert table.normalise_id(name) == spelled


def test_table_ids() -> None:
    encoder = table.TableEncoder(["pp-2", "PP-3", "pp 3"], np.array([[1], [2], [3]], np.float32))
    wanted = ["pp-2", "PP 2", "PP-3", "pp/3", "pp-4"]
    result = encoder.encode([Perturbation(name, "compound") for name in wanted])
    assert result.vectors[:3, 0].tolist() == [1, 1, 2]
    assert result.reasons[:3] == [None] * 3
    assert "ambiguous in the table: ['PP-3', 'pp 3']" in (result.reasons[3] or "")
    assert "'pp-4' is not in the table; nearest: " in (result.reasons[4] or "")
    assert "pp-2" in (result.reasons[4] or "")
    assert np.isnan(result.vectors[3:]).all()


def test_table_ids_of_doses() -> None:
    """A row for the very dose comes before the compound's, which stands for all its doses."""
    encoder = table.TableEncoder(["pp-2", "taxol@3", "taxol"], np.array([[1], [2], [3]], np.float32))
    wanted = ["PP 2@0.5", "taxol@3", "taxol@10", "pp-2@high"]
    result = encoder.encode([Perturbation(name, "compound") for name in wanted])
    assert result.vectors[:3, 0].tolist() == [1, 2, 3]
    assert "'pp-2@high' is not in the table" in (result.reasons[3] or "")


def test_table_by_gene() -> None:
    encoder = table.TableEncoder(["furin", "rac1"], np.array([[1], [2]], np.float32), key="gene")
    wanted = [
        Perturbation("s1", "gene", gene="FURIN"),
        Perturbation("s2", "gene", gene="RAC1"),
        Perturbation("s3", "gene", gene="RAC2"),
        Perturbation("s4", "gene"),
        EMPTY,
    ]
    result = encoder.encode(wanted)
    assert result.vectors[[0, 1, 4], 0].tolist() == [1, 2, 1]
    assert result.reasons[2] == "s3: gene 'RAC2' is not in the table; nearest: rac1"
    assert result.reasons[3] == "s4: no gene symbol, by which the table is looked up"


# projection


def test_pad_by_hand() -> None:
    tokens = pad_to_token(np.array([[2, 3]], np.float32), 5)
    assert tokens.tolist() == [[1, 2, 3, 1, 1]]
    assert tokens.dtype == np.float32


@pytest.mark.parametrize(
    ("d", "left", "right"), [(512, 128, 128), (173, 297, 298), (768, 0, 0), (1, 383, 384)]
)
def test_pad_as_the_paper(d: int, left: int, right: int) -> None:
    tokens = pad_to_token(np.full((2, d), 7, np.float32), 768)
    assert tokens.shape == (2, 768)
    assert (tokens[:, :left] == 1).all()
    assert (tokens[:, left : left + d] == 7).all()
    assert tokens[:, left + d :].shape[1] == right
    assert (tokens[:, left + d :] == 1).all()


def test_pad_refuses_a_wider_vector() -> None:
    with pytest.raises(
        DataError, match=r"769 numbers doesn't fit a condition token of 768\. Use the learned"
    ):
        pad_to_token(np.zeros((1, 769), np.float32), 768)


# lists of perturbations


def test_from_rows_merges_and_sorts() -> None:
    def row(name: str, dose: float | None, moa: str | None) -> dict[str, object]:
        return {
            "perturbation_id": name, "perturbation_kind": "compound", "smiles": "CCO", "gene": None,
            "concentration_um": dose, "moa": moa, "is_control": False,
        }  # fmt: skip

    rows = [
        row("b", 1.0, "x"),
        row("a", 1.0, "x"),
        row("a", 5.0, "x"),
        row("b", 1.0, "y"),
        row("a", 1.0, "x"),
    ]
    found = from_rows(pa.Table.from_pylist(rows))
    assert [(item.perturbation_id, item.concentration_um, item.moa) for item in found] == [
        ("a", None, "x"),
        ("b", 1.0, None),
    ]
    rows[0]["smiles"] = "CCC"
    with pytest.raises(DataError, match="'b' has two values of smiles"):
        from_rows(pa.Table.from_pylist(rows))


def test_read_perturbations_text_and_csv(write: Write, tmp_path: Path) -> None:
    assert [p.perturbation_id for p in read_perturbations(write("a.txt", "taxol\n\n dmso \n"), STORAGE)] == [
        "taxol",
        "dmso",
    ]
    text = (
        "compound,smiles,concentration_um,is_control,gene\ntaxol,CCO,0.3,False,\ndmso,,,True,\nrac1,,,,RAC1\n"
    )
    found = read_perturbations(write("a.csv", text), STORAGE)
    assert found == [
        Perturbation("taxol", "compound", "CCO", None, 0.3),
        Perturbation("dmso", "control", is_control=True),
        Perturbation("rac1", "gene", gene="RAC1"),
    ]
    uri = str(tmp_path / "a.parquet")
    STORAGE.write_table(uri, pa.table({"perturbation_id": ["x"], "kind": ["gene"], "gene": ["X"]}))
    assert read_perturbations(uri, STORAGE) == [Perturbation("x", "gene", gene="X")]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.txt", "", "found no perturbations"),
        ("a.csv", "", "empty"),
        ("a.csv", "name\nx\n", "expected one of"),
        ("a.csv", "perturbation_id\n \n", "perturbation_id is empty"),
        ("a.csv", "perturbation_id,kind\nx,protein\n", "kind 'protein'"),
        ("a.csv", "perturbation_id,concentration_um\nx,high\n", "found 'high', expected a number"),
        ("a.csv", "perturbation_id,concentration_um\nx,nan\n", "expected a number"),
        ("a.csv", "perturbation_id,is_control\nx,maybe\n", "expected True or False"),
        ("a.csv", "perturbation_id,smiles\nx\n", "row 1: 1 values, expected 2"),
        ("a.csv", b"\xff\xfex", "UTF-8"),
        ("a.csv", "perturbation_id,cell_type\nx,U2OS\nx,U2OS\n", "row 2: perturbation 'x' appears twice"),
        (
            "a.csv",
            "perturbation_id,cell_type,smiles\nx,U2OS,C\nx,,CC\n",
            "row 2: perturbation 'x' differs from the one above in more than its context",
        ),
    ],
)
def test_read_perturbations_gives_a_reason(name: str, text: str | bytes, reason: str, write: Write) -> None:
    with pytest.raises(DataError, match=reason):
        read_perturbations(write(name, text), STORAGE)
