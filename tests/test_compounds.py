"""Encoders of compounds: standardised SMILES, fingerprints, doses, and several side by side."""

import json
import math
from typing import Any

import numpy as np
import pytest

from morphoray.errors import ConfigError, DataError
from morphoray.perturbations import ENCODERS, concat, find_encoder, rdkit
from morphoray.perturbations.base import (
    Encoder,
    Perturbation,
    dose_id,
    plain_id,
    takes_molecules,
)
from morphoray.sections import build
from morphoray.storage import Storage

STORAGE = Storage()
CONTROL = Perturbation("DMSO", "control", is_control=True)


def compound(name: str, smiles: str | None = None, dose_um: float | None = None) -> Perturbation:
    return Perturbation(name, "compound", smiles=smiles, concentration_um=dose_um)


TRAINING = [
    compound("ethanol", "CCO", 1.0),
    compound("benzene", "c1ccccc1", 10.0),
    compound("aspirin", "CC(=O)Oc1ccccc1C(=O)O", 100.0),
    CONTROL,
]


def fit(name: str, training: list[Perturbation] = TRAINING, **options: Any) -> Encoder:
    kind = find_encoder(name)
    return kind.fit(build(kind.options, options, "perturbations"), training, STORAGE)


# Standardised SMILES


@pytest.mark.parametrize(
    ("given", "parent"),
    [
        ("OCC", "CCO"),
        ("CCCC([O-])=O.[Na+]", "CCCC(=O)O"),
        ("N[C@@H](C)C(=O)O.Cl", "C[C@H](N)C(=O)O"),
        ("[NH3+]CC([O-])=O", "NCC(=O)O"),
        ("c1cc[nH+]cc1.[Cl-]", "c1ccncc1"),
        ("O.O.CC(=O)O", "CC(=O)O"),
        ("CCO.CCO", "CCO"),
        ("F/C=C/F", "F/C=C/F"),
        ("CC[N+](=O)[O-]", "CC[N+](=O)[O-]"),
        ("C[N+](C)(C)CC(=O)[O-]", "C[N+](C)(C)CC(=O)[O-]"),
        ("C[N+](C)(C)C.[Cl-]", "C[N+](C)(C)C"),
        ("[F-].[Na+]", "[F-].[Na+]"),  # no carbon: nothing to keep rather than the whole
        ("hello", "hello"),
        ("", ""),
        ("C" * 301, "C" * 301),
    ],
)
def test_standardised(given: str, parent: str) -> None:
    assert rdkit.standardised([given, "OC"]) == [parent, "CO"]
    assert rdkit.standardised([parent]) == [parent]


@pytest.mark.parametrize("name", ["rdkit", "morgan"])
def test_a_salt_has_its_parents_vector_unless_told_otherwise(name: str) -> None:
    forms = [compound("acid", "CCCC(=O)O"), compound("salt", "[Na+].[O-]C(=O)CCC")]
    acid, salt = fit(name).encode(forms).vectors
    assert acid.tobytes() == salt.tobytes()
    acid, salt = fit(name, standardise=False).encode(forms).vectors
    assert not np.array_equal(acid, salt)


def test_rdkit_fit_counts_a_structure_once_however_it_is_written() -> None:
    again = [*TRAINING, compound("alcohol", "OCC"), compound("ion", "[Na+].[O-]CC")]
    assert fit("rdkit", again).state() == fit("rdkit").state()
    assert fit("rdkit", again, standardise=False).state() != fit("rdkit", standardise=False).state()


def test_rdkit_states_from_before_there_was_standardise_take_smiles_as_given() -> None:
    given = fit("rdkit", standardise=False)
    state = given.state()
    assert state.pop("standardise") is False
    salt = [compound("salt", "CCCC([O-])=O.[Na+]")]
    assert rdkit.load(state).encode(salt).vectors.tobytes() == given.encode(salt).vectors.tobytes()
    assert rdkit.load(fit("rdkit").state()).standardise is True


# morgan


def test_morgan_by_hand() -> None:
    """Radius 0 sees atoms alone: the three carbons of propane are two kinds, CH3 twice and CH2 once."""
    item = [compound("propane", "CCC")]
    counts = fit("morgan", radius=0, bits=4096, counts=True).encode(item).vectors[0]
    assert sorted(counts[counts > 0].tolist()) == [1, 2]
    binary = fit("morgan", radius=0, bits=4096).encode(item).vectors[0]
    np.testing.assert_array_equal(binary, counts > 0)
    assert fit("morgan", bits=4096).encode(item).vectors.sum() > binary.sum()


def test_morgan_equals_rdkit_itself() -> None:
    from rdkit import Chem
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=3, fpSize=1024)
    theirs = generator.GetFingerprint(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
    ours = fit("morgan", radius=3, bits=1024).encode([TRAINING[2]]).vectors[0]
    assert np.flatnonzero(ours).tolist() == list(theirs.GetOnBits())


def test_morgan_reasons_and_controls() -> None:
    items = [CONTROL, compound("x"), compound("y", "C1CC"), Perturbation("d", "control", "CS(C)=O")]
    result = fit("morgan", bits=64).encode(items)
    assert (result.vectors[0] == 1).all()
    assert result.reasons[1] == "x: no SMILES, which the morgan encoder needs"
    assert (result.reasons[2] or "").startswith("y: invalid SMILES 'C1CC'")
    assert np.isnan(result.vectors[1:3]).all()
    assert result.reasons[3] is None and 0 < result.vectors[3].sum() < 64


# dose


def test_dose_by_hand() -> None:
    """Trained on 1 to 100 uM: log10 from 0 to 2, so that 10 is the middle and 1000 lies one more beyond."""
    doses = [0.1, 1, 10, 100, 1000]
    result = fit("dose").encode([compound("x", dose_um=value) for value in doses])
    np.testing.assert_allclose(result.vectors, [[-2, 0], [-1, 0], [0, 0], [1, 0], [2, 0]], atol=1e-6)
    assert result.reasons == [None] * 5


def test_dose_held_out_doses_lie_between_their_neighbours() -> None:
    doses = np.geomspace(1, 100, 201)
    scaled = fit("dose").encode([compound("x", dose_um=value) for value in doses]).vectors[:, 0]
    steps = np.diff(scaled)
    np.testing.assert_allclose(steps, 2 / 200, rtol=1e-3)


def test_dose_of_a_single_dose_is_in_decades() -> None:
    encoder = fit("dose", [compound("x", dose_um=5.0)])
    vectors = encoder.encode([compound("x", dose_um=value) for value in (5.0, 50.0)]).vectors
    np.testing.assert_allclose(vectors, [[0, 0], [1, 0]], atol=1e-6)


def test_no_dose() -> None:
    """A control, whatever its concentration, and a compound at 0 uM."""
    items = [
        CONTROL,
        Perturbation("DMSO", "control", concentration_um=0.0, is_control=True),
        Perturbation("DMSO", "control", concentration_um=10.0, is_control=True),
        compound("x", dose_um=0.0),
        compound("x", dose_um=-0.0),
    ]
    result = fit("dose").encode(items)
    assert result.reasons == [None] * 5
    assert (result.vectors == 1).all()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "x: no concentration_um, or several under one id"),
        (-1.0, "x: concentration_um -1, expected a finite number of 0 or more"),
        (math.nan, "x: concentration_um nan, expected a finite number"),
        (math.inf, "x: concentration_um inf, expected a finite number"),
    ],
)
def test_dose_gives_a_reason(value: float | None, reason: str) -> None:
    result = fit("dose").encode([TRAINING[0], compound("x", dose_um=value)])
    assert result.reasons[0] is None
    assert reason in (result.reasons[1] or "")
    assert np.isnan(result.vectors[1]).all()


def test_dose_needs_a_dose() -> None:
    bad = [
        compound("a"),
        compound("b", dose_um=0),
        compound("c", dose_um=-3),
        compound("d", dose_um=math.inf),
    ]
    with pytest.raises(DataError, match="no positive concentration_um among 5 training perturbations"):
        fit("dose", [*bad, Perturbation("e", "control", concentration_um=1.0, is_control=True)])
    assert fit("dose", [*bad, *TRAINING]).state() == {"low": 0.0, "high": 2.0}


# concat

PARTS = [{"encoder": "rdkit", "clip": 1.5}, {"encoder": "dose"}]


def test_concat_is_its_parts_side_by_side() -> None:
    encoder = fit("concat", parts=[*PARTS, {"encoder": "morgan", "bits": 32}])
    one, two, three = fit("rdkit", clip=1.5), fit("dose"), fit("morgan", bits=32)
    assert encoder.width == one.width + 2 + 32
    np.testing.assert_array_equal(
        encoder.encode(TRAINING).vectors,
        np.concatenate([part.encode(TRAINING).vectors for part in (one, two, three)], axis=1),
    )


def test_concat_row_has_the_first_parts_reason_and_all_notes() -> None:
    encoder = fit("concat", parts=PARTS)
    items = [compound("a", dose_um=-1), compound("b", "CCO"), compound("c", "N[Pt](N)(Cl)Cl", 1), TRAINING[0]]
    result = encoder.encode(items)
    assert result.reasons[0] == "a: no SMILES, which the rdkit encoder needs"
    assert "b: no concentration_um" in (result.reasons[1] or "")
    assert np.isnan(result.vectors[:2]).all() and np.isfinite(result.vectors[2:]).all()
    assert result.reasons[2:] == [None, None]
    assert (result.notes[2] or "").startswith("c: missing descriptors")
    assert result.notes[3] is None


def test_concat_with_a_table_keeps_its_id_rules(tmp_path: Any) -> None:
    path = tmp_path / "vectors.csv"
    path.write_text("pp-2,1,2\ntaxol,3,4\n")
    encoder = fit("concat", parts=[{"encoder": "table", "uri": str(path)}, {"encoder": "dose"}])
    items = [
        compound("PP 2", dose_um=1),
        compound("Taxol@10", dose_um=10),
        compound("pp-3", dose_um=1),
        CONTROL,
    ]
    result = encoder.encode(items)
    np.testing.assert_allclose(
        result.vectors[[0, 1, 3]], [[1, 2, -1, 0], [3, 4, 0, 0], [1, 1, 1, 1]], atol=1e-6
    )
    assert "'pp-3' is not in the table" in (result.reasons[2] or "")


def test_concat_nests_and_its_state_is_json() -> None:
    encoder = fit(
        "concat", parts=[{"encoder": "concat", "parts": PARTS}, {"encoder": "constant", "width": 3}]
    )
    state = json.loads(json.dumps(encoder.state()))
    assert [part["encoder"] for part in state["parts"]] == ["concat", "constant"]
    again = ENCODERS["concat"].load(state)
    assert again.encode(TRAINING).vectors.tobytes() == encoder.encode(TRAINING).vectors.tobytes()


def test_concat_options_are_completed() -> None:
    options = build(concat.ConcatOptions, {"parts": PARTS}, "perturbations")
    assert options.model_dump(mode="json") == {
        "parts": [
            {"encoder": "rdkit", "min_std": 0.001, "clip": 1.5, "standardise": True},
            {"encoder": "dose"},
        ]
    }
    assert build(concat.ConcatOptions, options.model_dump(mode="json"), "") == options


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], r"perturbations\.parts: expected at least one part"),
        (
            [PARTS[1], {"encoder": "rdkit", "clip": -1}],
            r"parts\.1: rdkit\.clip: Input should be greater than 0",
        ),
        ([{"encoder": "rdkitt"}], r"parts\.0: unknown encoder 'rdkitt'; known: rdkit, "),
        (
            [{"encoder": "morgan", "bit": 3}],
            r"parts\.0: morgan\.bit: unknown key, found 3\. Known keys here: bits",
        ),
        ([{"encoder": "table"}], r"parts\.0: table\.uri: missing\. Add it to the configuration\.$"),
        ([{"clip": 1}], r"parts\.0: encoder: found None, expected an encoder's name"),
        (["rdkit"], r"parts\.0: expected a mapping of keys to values, found 'rdkit'"),
        (
            [{"encoder": "concat", "parts": [{"encoder": "dose", "x": 1}]}],
            r"concat\.parts\.0: dose\.x: unknown key",
        ),
    ],
)
def test_concat_names_the_part_that_is_wrong(parts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        fit("concat", parts=parts)
    assert "\n" not in str(raised.value)


def test_which_encoders_take_new_molecules() -> None:
    taking = {name for name in ENCODERS if name not in ("concat", "table") and takes_molecules(fit(name))}
    assert taking == {"rdkit", "morgan"}
    assert takes_molecules(fit("concat", parts=PARTS))
    assert not takes_molecules(fit("concat", parts=[{"encoder": "dose"}, {"encoder": "constant"}]))
    by_id = {"encoder": "table", "state": {"key": "perturbation_id", "ids": [], "width": 1, "vectors": ""}}
    with_table = concat.load({"parts": [{"encoder": "rdkit", "state": fit("rdkit").state()}, by_id]})
    assert not takes_molecules(with_table)


# Ids of doses


def test_dose_ids() -> None:
    assert [dose_id("taxol", value) for value in (5.0, 0.3, 1e-5, 0.0)] == [
        "taxol@5",
        "taxol@0.3",
        "taxol@1e-05",
        "taxol@0",
    ]
    for name in ("taxol", "a@b", "me@"):
        assert plain_id(dose_id(name, 0.3)) == name
    assert [plain_id(name) for name in ("taxol", "x@y", "@5", "a@")] == ["taxol", "x@y", "@5", "a@"]


@pytest.mark.parametrize("value", [None, -1.0, math.nan, math.inf])
def test_dose_id_needs_a_dose(value: float | None) -> None:
    with pytest.raises(DataError, match="taxol: found the concentration"):
        dose_id("taxol", value)
