"""What all importers share: filter and limit, the split, missing files, and what a summary warns of."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from morphoray.datasets import DATASETS, splits
from morphoray.datasets.base import Rejected, imported, select, sites_table
from morphoray.datasets.files import missing_files
from morphoray.datasets.options import ImportOptions
from morphoray.datasets.selection import FILTERED
from morphoray.datasets.summary import warnings
from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.rdkit import scaffolds
from morphoray.schema import SITES
from morphoray.sections import build
from morphoray.storage import Storage

STORAGE = Storage()

# Benzene twice (as its own two doses once more), pyridine, cyclohexane, and two acyclic ones.
SMILES = {
    "toluene": "Cc1ccccc1", "phenol@1": "Oc1ccccc1", "phenol@10": "Oc1ccccc1", "picoline": "Cc1ccncc1",
    "cyclohexanol": "OC1CCCCC1", "ethanol": "CCO", "acetone": "CC(C)=O",
}  # fmt: skip


def table(rows: list[tuple[str, str, str]], **more: Any) -> pa.Table:
    """Sites of (experiment, plate, perturbation); dmso is the control."""
    experiments, plates, names = (list(column) for column in zip(*rows, strict=True))
    columns = {
        "site_id": [str(number) for number in range(len(rows))],
        "dataset": ["test"] * len(rows),
        "experiment": experiments,
        "plate": plates,
        "well": ["B02"] * len(rows),
        "site": ["1"] * len(rows),
        "perturbation_id": names,
        "perturbation_kind": ["control" if name == "dmso" else "compound" for name in names],
        "smiles": [SMILES.get(name) for name in names],
        "is_control": [name == "dmso" for name in names],
        "channel_uris": [[f"/none/{number}.png"] for number in range(len(rows))],
    }
    return sites_table(columns | more)


def crossed(*names: str, experiments: int = 2) -> pa.Table:
    """Every perturbation on two plates of every experiment."""
    return table([(f"E{e}", f"P{p}", name) for e in range(experiments) for p in (1, 2) for name in names])


def split(sites: pa.Table, **options: Any) -> dict[tuple[str, str, str], str]:
    """The split by experiment, plate and perturbation."""
    chosen, _ = select(sites, ImportOptions(**options), STORAGE)
    keys = zip(
        *(chosen[name].to_pylist() for name in ("experiment", "plate", "perturbation_id")), strict=True
    )
    return dict(zip(keys, chosen["split"].to_pylist(), strict=True))


def unseen(sites: pa.Table, **options: Any) -> set[str]:
    """The perturbations that the options hold out."""
    return {name for (_, _, name), value in split(sites, **options).items() if value in splits.UNSEEN}


# The four cells


def test_the_four_cells_by_hand() -> None:
    found = split(crossed("dmso", "toluene"), held_out_experiments=["E1"], held_out_perturbations=["toluene"])
    assert found == {
        ("E0", "P1", "dmso"): "train", ("E0", "P2", "dmso"): "train",
        ("E0", "P1", "toluene"): "held_out_perturbation", ("E0", "P2", "toluene"): "held_out_perturbation",
        ("E1", "P1", "dmso"): "held_out_batch", ("E1", "P2", "dmso"): "held_out_batch",
        ("E1", "P1", "toluene"): "held_out_both", ("E1", "P2", "toluene"): "held_out_both",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plates", "held"),
    [
        (["P2"], {("E0", "P2"), ("E1", "P2")}),
        (["E1/P2"], {("E1", "P2")}),
        (["E0/P1", "P2"], {("E0", "P1"), ("E0", "P2"), ("E1", "P2")}),
    ],
)
def test_plates_are_held_out_in_one_or_every_experiment(
    plates: list[str], held: set[tuple[str, str]]
) -> None:
    found = split(crossed("dmso"), held_out_plates=plates)
    assert {(e, p) for (e, p, _), value in found.items() if value == "held_out_batch"} == held


def test_plates_of_yaml_may_be_numbers() -> None:
    found = split(table([("E0", "1", "dmso"), ("E0", "2", "dmso")]), held_out_plates=[2])
    assert found == {("E0", "1", "dmso"): "train", ("E0", "2", "dmso"): "held_out_batch"}


def test_held_out_by_gene() -> None:
    sites = table(
        [("E0", "P", name) for name in ("s1", "s2", "s3", "dmso")], gene=["TAB1", "TAB1", "RAC1", None]
    )
    assert unseen(sites, held_out_perturbations=["TAB1"]) == {"s1", "s2"}
    with pytest.raises(ConfigError, match=r"held_out_perturbations: found \['TAB2'\]"):
        unseen(sites, held_out_perturbations=["TAB2"])


def finished(sites: pa.Table, **options: Any) -> Any:
    """The whole way of an importer, its files not looked for."""
    chosen, notes = select(sites, ImportOptions(check_files=False, **options), STORAGE)
    return imported("test", chosen, ImportOptions(check_files=False, **options), STORAGE, notes=notes)


def test_a_perturbation_of_held_out_batches_alone_is_unseen() -> None:
    sites = table([("E0", "P", "dmso"), ("E1", "P", "dmso"), ("E1", "P", "toluene")])
    found = finished(sites, held_out_experiments=["E1"])
    assert found.sites["split"].to_pylist() == ["train", "held_out_batch", "held_out_both"]
    assert "unseen, since only in held-out batches: 1 (toluene)" in found.summary
    assert found.sites.schema.equals(SITES)


def test_the_summary_counts_the_four_cells() -> None:
    found = finished(
        crossed("dmso", "toluene", "phenol@1"), held_out_plates=["E1/P2"], held_out_perturbations=["toluene"]
    )
    lines = [line.split() for line in found.summary.splitlines()]
    assert ["seen", "2,", "6", "sites", "(train)", "2,", "2", "sites", "(held_out_batch)"] in lines
    assert [
        "unseen", "1,", "3", "sites", "(held_out_perturbation)", "1,", "1", "sites", "(held_out_both)"
    ] in lines  # fmt: skip


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(DataError, match="all 4 sites are held out"):
        finished(crossed("dmso"), held_out_plates=["P1", "P2"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"held_out_experiments": ["E2"]}, r"dataset\.held_out_experiments.*known: E0, E1"),
        ({"held_out_plates": ["E2/P1"]}, r"dataset\.held_out_plates.*known: E0/P1, E0/P2, .*, P1, P2"),
        ({"held_out_perturbations": ["aspirin"]}, r"dataset\.held_out_perturbations.*known: dmso, toluene"),
        ({"held_out_scaffolds": ["c1ccncc1"]}, r"dataset\.held_out_scaffolds.*known: c1ccccc1"),
        ({"held_out_scaffolds": ["benzene"]}, r"dataset\.held_out_scaffolds: found \['benzene'\]"),
        ({"held_out_scaffolds": 0.3}, "holds no whole scaffold; the smallest of 1 has 1"),
        ({"held_out_fraction": {"perturbations": 0.5}}, "0.5 of 1 is 1, which leaves none to train on"),
        ({"held_out_fraction": {"experiments": 0.9}}, "0.9 of 2 is 2, which leaves none to train on"),
    ],
)
def test_held_out_options_that_match_nothing(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        split(crossed("dmso", "toluene"), **options)


# At random, and by scaffold


def test_a_random_share_is_a_function_of_seed_and_names() -> None:
    names = [f"c{number}" for number in range(40)]
    share: dict[str, Any] = {"held_out_fraction": {"perturbations": 0.25}}
    first = unseen(crossed(*names), **share)
    assert len(first) == 10
    assert unseen(crossed(*reversed(names), experiments=3), **share) == first
    other = unseen(crossed(*names), **share, held_out_seed=1)
    assert len(other) == 10 and other != first
    assert len(unseen(crossed(*names, "dmso"), **share)) == 10  # the control is never drawn


def test_all_doses_of_a_compound_fall_on_one_side() -> None:
    names = ("toluene", "phenol@1", "phenol@10", "picoline")
    sides = {
        frozenset(unseen(crossed(*names), held_out_fraction={"perturbations": 0.34}, held_out_seed=seed))
        for seed in range(30)
    }
    assert sides == {frozenset({"toluene"}), frozenset({"phenol@1", "phenol@10"}), frozenset({"picoline"})}


def test_a_random_share_of_experiments() -> None:
    found = split(crossed("dmso", experiments=8), held_out_fraction={"experiments": 0.25})
    assert len({e for (e, _, _), value in found.items() if value == "held_out_batch"}) == 2


def test_scaffolds_by_hand() -> None:
    assert scaffolds([*SMILES.values(), "not a molecule", ""]) == [
        "c1ccccc1", "c1ccccc1", "c1ccccc1", "c1ccncc1", "C1CCCCC1", "", "", None, None,
    ]  # fmt: skip
    # rings and their linker stay, the side chain and the stereocentre go
    assert scaffolds(["C[C@H](c1ccccc1)C1CC1", "CC(c1ccccc1)C1CC1"]) == ["c1ccc(CC2CC2)cc1"] * 2


def test_scaffolds_are_held_out_whole() -> None:
    sites = crossed("dmso", *SMILES)
    assert unseen(sites, held_out_scaffolds=["c1ccccc1"]) == {"toluene", "phenol@1", "phenol@10"}
    assert unseen(sites, held_out_scaffolds=["Clc1ccncc1", "CCCC"]) == {"picoline", "ethanol", "acetone"}
    groups = [{"toluene", "phenol@1", "phenol@10"}, {"picoline"}, {"cyclohexanol"}, {"ethanol", "acetone"}]
    drawn = set()
    for seed in range(20):
        held = unseen(sites, held_out_scaffolds=0.34, held_out_seed=seed)  # 2 of 6 compounds
        assert all(group <= held or not group & held for group in groups)
        assert len(held - {"phenol@10"}) == 2
        drawn.add(frozenset(held))
    assert len(drawn) == 3
    _, notes = select(sites, ImportOptions(held_out_scaffolds=["c1ccccc1"]), STORAGE)
    assert notes == ["scaffolds: 1 of 4 held out, 2 of 6 compounds; the first: c1ccccc1"]


def test_compounds_without_smiles_are_named() -> None:
    sites = crossed("toluene", "picoline", "mystery")
    _, notes = select(sites, ImportOptions(held_out_scaffolds=0.5), STORAGE)
    assert notes[1] == "scaffolds: no valid SMILES, so seen: 1 (mystery)"
    assert "mystery" not in unseen(sites, held_out_scaffolds=0.5)


def test_the_seed_is_the_runs() -> None:
    from morphoray.config import parse
    from morphoray.pipelines.layout import resolve

    text = "{run_dir: r, seed: 7, dataset: {name: imagefolder, source: s}}"
    plain = resolve(parse(text, "test")).dataset.options
    assert plain["held_out_seed"] is None  # or runs of other seeds would not share SITES' settings
    overrides = ["dataset.held_out_fraction.perturbations=0.2"]
    assert resolve(parse(text, "test", overrides)).dataset.options["held_out_seed"] == 7
    overrides.append("dataset.held_out_seed=3")
    assert resolve(parse(text, "test", overrides)).dataset.options["held_out_seed"] == 3


@pytest.mark.parametrize("name", DATASETS)
def test_every_importer_takes_the_shared_options(name: str) -> None:
    shared = {
        "filter": {"plate": 1, "is_control": True}, "limit": 3, "held_out_plates": [1],
        "held_out_scaffolds": 0.2, "held_out_fraction": {"perturbations": 0.1},
    }  # fmt: skip
    options: Any = build(DATASETS[name].options, shared, "dataset")
    assert options.filter == {"plate": ("1",), "is_control": ("True",)}
    assert (options.held_out_plates, options.held_out_scaffolds) == (("1",), 0.2)
    assert options.is_random and not DATASETS[name].options().is_random  # type: ignore[attr-defined]
    again = build(DATASETS[name].options, options.model_dump(mode="json"), "dataset")
    assert again == options


@pytest.mark.parametrize("share", [1.0, -0.1, "many"])
def test_a_share_lies_between_0_and_1(share: Any) -> None:
    with pytest.raises(ValidationError):
        ImportOptions(held_out_scaffolds=share)
    with pytest.raises(ValidationError):
        ImportOptions(held_out_fraction={"perturbations": share})  # type: ignore[arg-type]


# The original's lists


def test_a_name_holds_out_all_its_doses() -> None:
    doses = [f"{name}@{dose}" for name in ("tkk", "az-a", "az-b", "az-c") for dose in (0.1, 1, 10)]
    sites = crossed("dmso", *doses)
    assert unseen(sites, held_out_perturbations=["TKK"]) == {"tkk@0.1", "tkk@1", "tkk@10"}
    assert unseen(sites, held_out_perturbations=["tkk@1"]) == {"tkk@1"}
    drawn = unseen(sites, held_out_fraction={"perturbations": 0.4})  # none has a SMILES
    assert len(drawn) == 6 and len({name.partition("@")[0] for name in drawn}) == 2


def test_a_damaged_archive_is_the_reason_of_its_sites(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("0.png", b"x")
    (tmp_path / "b.zip").write_bytes(archive.read_bytes()[:-9])
    uris = [[f"{tmp_path}/{name}.zip!/0.png"] for name in "ab"]
    sites, _ = select(table([("E", "P", "dmso")] * 2, channel_uris=uris), ImportOptions(), STORAGE)
    found = imported("test", sites, ImportOptions(), STORAGE)
    assert found.sites["site_id"].to_pylist() == ["0"]
    (lost,) = found.quarantine.to_pylist()
    assert lost["uri"] == uris[1][0] and "truncated one. Copy it again" in lost["reason"]
    with pytest.raises(DataError, match=r"no site could be imported, 1 were rejected.*truncated"):
        imported("test", sites.slice(1), ImportOptions(), STORAGE)


def test_held_out_list_of_the_original(real_data: Path) -> None:
    uri = str(real_data / "original-tables/BBBC021_14_compounds_pert_ood_info.csv")
    seen = {"Taxol", "AZ138", "Cytochalasin B", "vinblastine", "AG-1478"}
    found, notes = splits.held_out(uri, seen, STORAGE)
    assert found == {"vinblastine", "AG-1478"}
    assert "2 perturbations" in notes[0]


def test_held_out_unknown_of_many_shows_the_nearest() -> None:
    known = [f"s{number}" for number in range(1000, 1100)]
    with pytest.raises(ConfigError, match=r"nearest of 100 known: .*s1042"):
        splits.held_out(["s10422"], known, STORAGE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,ood\nx,True\n", "expected perturbation and ood"),
        ("perturbation,ood\nx,perhaps\n", "row 1, ood"),
    ],
)
def test_held_out_list_gives_a_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "ood.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        splits.held_out(str(path), ["x"], STORAGE)


# Filter and limit


def test_filter_then_limit() -> None:
    doses = [0.5, None, 5, 5, 50, 50, 50, 50]
    sites = crossed("dmso", "toluene").set_column(
        SITES.get_field_index("concentration_um"), "concentration_um", pa.array(doses, pa.float64())
    )

    def ids(**options: Any) -> list[str]:
        chosen, _ = select(sites, ImportOptions(**options), STORAGE)
        found: list[str] = chosen["site_id"].to_pylist()
        return found

    assert ids(filter={"experiment": "E1", "plate": ["P1", "P2"]}) == ["4", "5", "6", "7"]
    assert ids(filter={"is_control": True}) == ["0", "2", "4", "6"]
    assert ids(filter={"concentration_um": ["5.0", 0.5]}) == ["0", "2", "3"]
    assert ids(limit=3) == ["0", "2", "5"]
    assert ids(filter={"experiment": "E1"}, limit=2) == ["4", "6"]
    assert ids(limit=100) == list("01234567")
    _, notes = select(sites, ImportOptions(filter={"experiment": ["E1"]}, limit=2), STORAGE)
    assert notes == ["selected: 2 of 8 sites, by filter (4) and limit"]


def test_a_compound_is_all_its_doses_and_an_id_is_one_of_them() -> None:
    sites = crossed("dmso", "phenol@1", "phenol@10", "toluene")

    def kept(**wanted: Any) -> set[str]:
        chosen, _ = select(sites, ImportOptions(filter=wanted), STORAGE)
        return set(chosen["perturbation_id"].to_pylist())

    assert kept(compound="phenol") == {"phenol@1", "phenol@10"}
    assert kept(perturbation_id="phenol@10") == {"phenol@10"}
    assert kept(compound=["dmso", "toluene"]) == {"dmso", "toluene"}
    assert kept(compound="phenol", perturbation_id=["phenol@1", "toluene"]) == {"phenol@1"}
    with pytest.raises(
        ConfigError, match=r"filter\.compound: found \['phenol@1'\].*known: dmso, phenol, toluene"
    ):
        kept(compound="phenol@1")


def test_a_limit_changes_no_sites_split() -> None:
    sites = crossed(*SMILES, "dmso", experiments=4)
    options: dict[str, Any] = {"held_out_fraction": {"perturbations": 0.3, "experiments": 0.25}}
    whole, few = split(sites, **options), split(sites, **options, limit=9)
    assert len(few) == 9
    assert few.items() <= whole.items()


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"plat": "P1"}, r"dataset\.filter: found column 'plat'; known: site_id, .*plate"),
        ({"channel_uris": "x"}, "found column 'channel_uris'"),
        ({"split": "train"}, "found column 'split'"),
        ({"plate": ["P1", "P3"]}, r"dataset\.filter\.plate: found \['P3'\].*known: P1, P2"),
        ({"plate": []}, r"dataset\.filter\.plate: found \[\].*known: P1, P2"),
        ({"moa": "Eg5"}, r"dataset\.filter\.moa: found \['Eg5'\]"),
        ({"concentration_um": "high"}, "concentration_um: found 'high', expected a number"),
        ({"is_control": "perhaps"}, "is_control: found 'perhaps', expected True or False"),
        ({"perturbation_id": "dmso", "is_control": False}, "no site of the data matches all of it"),
    ],
)
def test_filters_that_match_nothing(wanted: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        select(crossed("dmso", "toluene"), ImportOptions(filter=wanted), STORAGE)


def test_what_a_filter_may_name() -> None:
    assert set(FILTERED) == set(SITES.names) - {
        field.name for field in SITES if pa.types.is_list(field.type)
    } - {"split"} | {"compound"}


# Files


def test_missing_files_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphoray.datasets.files.BLOCK", 2)  # rows of one folder fall into two blocks
    uris = [[f"{tmp_path}/{folder}/{row}_w{n}.png" for n in (1, 2)] for row, folder in enumerate("abab")]
    for path in [uris[0][0], uris[0][1], uris[2][1], uris[3][0]]:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    sites = table([("E", "P", "dmso")] * 4, channel_uris=uris)
    assert list(missing_files(sites, STORAGE)) == [
        (1, [0, 1], uris[1][0], None),
        (2, [0], uris[2][0], None),
        (3, [1], uris[3][1], None),
    ]
    chosen, _ = select(sites, ImportOptions(), STORAGE)
    found = imported(
        "test", chosen, ImportOptions(), STORAGE, [Rejected("x", None, "no dose")], files=("w1", "w2")
    )
    assert found.sites["site_id"].to_pylist() == ["0"]
    assert [(row["item"], row["reason"]) for row in found.quarantine.to_pylist()] == [
        ("x", "no dose"),
        ("1", "missing channel files: w1, w2"),
        ("2", "missing channel files: w1"),
        ("3", "missing channel files: w2"),
    ]
    assert "missing files: 3 sites lack one" in found.summary


def test_missing_illumination_functions_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites without functions need none; one that lacks an image too has both reasons."""
    monkeypatch.setattr("morphoray.datasets.files.BLOCK", 2)
    uris = [[f"{tmp_path}/{row}_w{n}.png" for n in (1, 2)] for row in range(5)]
    functions = [[f"{tmp_path}/illum/{plate}_{n}.npy" for n in (1, 2)] for plate in "AB"]
    for path in [*uris[0], *uris[1], *uris[2], *uris[4], *functions[0], functions[1][0]]:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    light = [None, functions[1], functions[0], functions[1], None]
    sites = table([("E", "P", "dmso")] * 5, channel_uris=uris, illumination_uris=light)
    assert list(missing_files(sites, STORAGE, "illumination_uris")) == [
        (1, [1], functions[1][1], None),
        (3, [1], functions[1][1], None),
    ]
    chosen, _ = select(sites, ImportOptions(), STORAGE)
    found = imported("test", chosen, ImportOptions(), STORAGE, files=("w1", "w2"))
    assert found.sites["site_id"].to_pylist() == ["0", "2", "4"]
    assert [(row["item"], row["uri"], row["reason"]) for row in found.quarantine.to_pylist()] == [
        ("1", functions[1][1], "missing illumination functions: w2"),
        ("3", uris[3][0], "missing channel files: w1, w2; missing illumination functions: w2"),
    ]


# Warnings


def test_perturbations_of_one_batch_are_named() -> None:
    rows = [("E0", "P", name) for name in ("dmso", "toluene", "picoline")]
    sites = table([*rows, ("E1", "P", "dmso"), ("E1", "P", "toluene"), ("E1", "P", "ethanol")])
    (warning,) = warnings(finished(sites, held_out_perturbations=["toluene"]).sites)
    assert warning.startswith(
        "confounding: of 3 perturbations (controls aside) these occur in one of 2 experiments only: "
        "2 (ethanol, picoline)."
    )
    alone = finished(table(rows), held_out_perturbations=["toluene"]).sites  # one batch confounds nothing
    assert warnings(alone) == []


def test_batches_without_a_control_are_named() -> None:
    rows = [("E0", "P", "dmso"), ("E0", "P", "toluene"), ("E1", "P", "toluene"), ("E2", "P", "toluene")]
    sites = finished(table(rows), held_out_experiments=["E2"]).sites
    assert warnings(sites) == ["no control in experiments 1 (E1), where perturbations 1 (toluene) are"]
    bare = finished(crossed("toluene", "ethanol"), held_out_perturbations=["ethanol"])
    assert warnings(bare.sites) == [
        "no control sites: nothing tells a perturbation's effect from its batch's"
    ]
    assert "warning: no control sites" in bare.summary


def test_a_split_that_holds_nothing_out_is_told() -> None:
    sites = table([("E", "P", "dmso")] * 3, well=["B02", "B02", "B03"])
    (warning,) = warnings(finished(sites).sites)
    assert "drawn at random would leak" in warning and "(1 of 2 wells have several)" in warning


def test_many_values_are_counted_in_short() -> None:
    rows = [("E", f"P{number}", "dmso") for number in np.repeat(np.arange(9), 2)]
    assert "plates: 9, 2 sites each" in finished(table(rows)).summary
    assert "plates: 9, 1 to 2 sites each (median 2)" in finished(table(rows[:-1])).summary
    bad = [Rejected("x", None, f"reason {number}") for number in range(8)]
    chosen, _ = select(table(rows), ImportOptions(), STORAGE)
    found = imported("test", chosen, ImportOptions(check_files=False), STORAGE, bad)
    assert "quarantined: 3 for other reasons" in found.summary
