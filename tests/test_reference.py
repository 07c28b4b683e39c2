"""What an evaluation measures against, without Ray: groups of batches, padding, bad input, novelty, scale."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from morphoray import schema
from morphoray.config import RunConfig
from morphoray.datasets.splits import HELD_OUT_BATCH, HELD_OUT_BOTH, HELD_OUT_PERTURBATION, TRAIN
from morphoray.errors import ConfigError, DataError
from morphoray.evaluation.distances import half_size
from morphoray.evaluation.measures import Cohort, Sampling, measure
from morphoray.evaluation.novelty import COSINE, TANIMOTO, novelties
from morphoray.evaluation.results import HELD_OUT, SEEN
from morphoray.imaging.channels import find_mapping
from morphoray.imaging.crops import VIEWS
from morphoray.imaging.png import encode_png
from morphoray.imaging.scale_bar import bar_length
from morphoray.perturbations.base import Perturbation
from morphoray.pipelines.encode import ReadPlan
from morphoray.pipelines.evaluate import methods_of
from morphoray.pipelines.features import FeatureTable
from morphoray.pipelines.image_parts import ImageRow, read_images_part
from morphoray.pipelines.layout import resolve
from morphoray.pipelines.method_images import folder_notes, read_method, run_of
from morphoray.pipelines.reference import (
    Place,
    Reference,
    by_batches,
    finite,
    limits,
    mixed,
    places_of,
    real_rows,
)
from morphoray.pipelines.shown import um_per_pixel
from morphoray.sections import build
from morphoray.storage import Storage


def config_of(tmp_path: Path, **evaluation: Any) -> RunConfig:
    values = {
        "run_dir": str(tmp_path / "run"),
        "dataset": {"name": "imagefolder", "source": str(tmp_path)},
        "image": {"resolution": 16},
        "evaluation": {"extractor": "efficientnet_lite0", "n": 8} | evaluation,
    }
    return resolve(build(RunConfig, values, ""))


def sites(*rows: tuple[str, str, str, int]) -> pa.Table:
    """SITES of (experiment, perturbation, split, count)."""
    found = []
    for experiment, name, split, count in rows:
        for number in range(count):
            site = {field.name: None for field in schema.SITES} | {
                "site_id": f"{experiment}/{name}/{split}/{number}",
                "dataset": "d",
                "experiment": experiment,
                "plate": "p",
                "well": "w",
                "site": "1",
                "perturbation_id": name,
                "perturbation_kind": "compound",
                "is_control": name == "dmso",
                "channel_uris": [f"{number}.png"],
                "split": split,
            }
            found.append(site)
    return pa.Table.from_pylist(found, schema=schema.SITES)


DATA = sites(
    ("a", "dmso", TRAIN, 5),
    ("a", "taxol", TRAIN, 5),
    ("a", "new", HELD_OUT_PERTURBATION, 5),
    ("b", "dmso", TRAIN, 2),
    ("b", "taxol", HELD_OUT_BATCH, 3),  # a plate of b
    ("c", "taxol", HELD_OUT_BATCH, 5),
    ("c", "new", HELD_OUT_BOTH, 5),
)
NAMES = ["dmso", "taxol", "new"]


def counts(rows: list[ImageRow]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        found[row.origin, row.perturbation_id] = found.get((row.origin, row.perturbation_id), 0) + 1
    return found


def test_batches_are_told_apart_by_what_training_saw(tmp_path: Path) -> None:
    groups = by_batches(config_of(tmp_path), DATA)
    assert {name: table.num_rows for name, table in groups.items()} == {SEEN: 17, HELD_OUT: 13}
    assert counts(real_rows(config_of(tmp_path), DATA, NAMES, 16)) == {
        ("real/seen", "dmso"): 7,
        ("real/seen", "taxol"): 5,
        ("real/seen", "new"): 5,
        ("real/held_out", "taxol"): 8,
        ("real/held_out", "new"): 5,
    }


def test_uneven_fields_draw_more_images_until_either_half_has_enough(tmp_path: Path) -> None:
    """20 images of one field and 30 of fields of their own."""
    table = sites(("a", "taxol", TRAIN, 50))
    numbers = pa.array(["0"] * 20 + [str(number) for number in range(1, 31)])
    table = table.set_column(table.schema.get_field_index("site"), "site", numbers)

    def half(n: int) -> tuple[int, int]:
        rows = real_rows(config_of(tmp_path), table, ["taxol"], 20, n)
        places = places_of(table)
        return len(rows), half_size(np.array([places[row.item].field for row in rows]))

    drawn, enough = half(0)
    assert drawn == 20 and enough < 10
    drawn, enough = half(10)
    assert 20 < drawn < 50 and enough >= 10
    assert half(16)[0] == half(100)[0] == 50, "all that there are"


@pytest.mark.parametrize(
    ("experiments", "groups"),
    [
        (["a"], {"real/seen"}),
        (["c"], {"real/held_out", "training"}),
        (["a", "c"], {"real/seen", "real/held_out", "training"}),
    ],
)
def test_experiments_are_classed_by_whether_they_were_trained_on(
    tmp_path: Path, experiments: list[str], groups: set[str]
) -> None:
    rows = real_rows(config_of(tmp_path, experiments=experiments), DATA, NAMES, 16)
    assert {row.origin for row in rows} == groups
    assert {row.experiment for row in rows if row.origin.startswith("real")} == set(experiments)
    warned = mixed(config_of(tmp_path, experiments=experiments), DATA)
    assert len(warned) == (len(experiments) - 1) and mixed(config_of(tmp_path), DATA) == []
    assert all("trained on (a) with held-out ones (c)" in text for text in warned)
    with pytest.raises(ConfigError, match=r"found \['z'\], the data have a, b, c"):
        by_batches(config_of(tmp_path, experiments=["z"]), DATA)


def test_the_papers_protocol_pads_by_flips_and_turns(tmp_path: Path) -> None:
    rows = real_rows(config_of(tmp_path, protocol="paper"), DATA, ["taxol", "dmso"], 16)
    found = counts(rows)
    assert found["padding/seen", "taxol"] == 3 and found["padding/seen", "dmso"] == 1  # up to n = 8
    assert ("padding/held_out", "taxol") not in found  # there are eight real ones
    padding = [row for row in rows if row.origin == "padding/seen"]
    assert {row.row["view"] for row in padding} <= {*VIEWS} - {"identity"}
    assert len({row.item for row in padding}) == len(padding)
    assert rows == real_rows(config_of(tmp_path, protocol="paper"), DATA, ["taxol", "dmso"], 16)


def test_a_padded_image_is_the_real_one_turned(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    (tmp_path / "0.png").write_bytes(encode_png(image))
    config = config_of(tmp_path)
    plan = ReadPlan(config.image, find_mapping("rgb", ("red", "green", "blue"), "rgb"), 1, 0)
    site = {
        "site_id": "s",
        "channel_uris": [str(tmp_path / "0.png")],
        "illumination_uris": None,
        "intensity_ranges": None,
        "pixel_size_um": None,
    }
    rows = [vars(ImageRow("o", "p", "e", view, "site", site | {"view": view})) for view in VIEWS]
    read = read_images_part({"name": "n", "rows": rows}, plan, Storage(), Storage())
    images = np.frombuffer(read["images"], np.uint8).reshape(read["shape"])
    for found, view in zip(images, VIEWS, strict=True):
        assert np.array_equal(found, VIEWS[view](image))


def table(*rows: tuple[str, str, float]) -> FeatureTable:
    """Features of (perturbation, experiment, value), two alike columns."""
    values = np.array([[value, value] for _, _, value in rows], np.float32).reshape(-1, 2)
    names, experiments = (np.array([row[k] for row in rows], object) for k in (0, 1))
    return FeatureTable(values, names, experiments, np.array([f"i{k}#0" for k in range(len(rows))], object))


NAN = float("nan")


@pytest.mark.parametrize(
    ("real", "codec", "kept", "notes"),
    [
        ([1, 2, 3], [1, 2, 3], [1, 2, 3], 0),
        ([1, NAN, 3], [1, 2, 3], [1, 3], 1),
        ([1, 2, 3], [float("inf"), 2, 3], [2, 3], 1),
        ([1, 2, NAN], [NAN, 2, 3], [2], 2),
        ([NAN, NAN], [1, 2], [], 1),
    ],
)
def test_features_that_are_not_finite_go_in_pairs_and_are_counted(
    real: list[float], codec: list[float], kept: list[float], notes: int
) -> None:
    tables = {
        "real/seen": table(*(("p", "e", value) for value in real)),
        "codec/seen": table(*(("p", "e", value) for value in codec)),
        "impa": table(("p", "e", 4)),
    }
    found, told = finite(tables)
    assert found["real/seen"].features[:, 0].tolist() == kept
    assert found["codec/seen"].features[:, 0].tolist() == kept
    assert len(found["impa"].features) == 1 and len(told) == notes
    assert all("whose features are not finite" in note for note in told)


def reference(tmp_path: Path, **evaluation: Any) -> Reference:
    tables = {
        "real/seen": table(*(("dmso", "a", 0),) * 4, *(("taxol", "a", 1),) * 6, *(("new", "a", 2),) * 6),
        "real/held_out": table(*(("taxol", "c", 3),) * 6, *(("new", "c", 4),) * 6, *(("dmso", "d", 5),) * 2),
        "conditional": table(*(("dmso", "", 6),) * 5, *(("taxol", "", 6),) * 5, *(("new", "", 6),) * 2),
        "padding/seen": table(*(("taxol", "a", 7),) * 4),
    }
    tables |= {f"codec/{batches}": tables[f"real/{batches}"] for batches in (SEEN, HELD_OUT)}
    shared = [Perturbation(name, "compound", is_control=name == "dmso") for name in ("dmso", "new", "taxol")]
    config = config_of(tmp_path, **evaluation)
    places = {owner: Place(owner, owner[:1]) for table in tables.values() for owner in table.owners}
    return Reference(config, tables, ["conditional", "impa"], shared, ["dmso"], {"new"}, places)


def test_each_group_has_its_own_reference_and_baselines(tmp_path: Path) -> None:
    found = {each.perturbation_id: each for each in reference(tmp_path).cohorts(SEEN)}
    taxol = found["taxol"]
    assert taxol.real[:, 0].tolist() == [1] * 6 and taxol.reconstructed is not None
    assert taxol.control is not None and taxol.control[:, 0].tolist() == [0] * 4
    assert taxol.other is not None and taxol.other[0, 0] == 2
    assert taxol.trained is None and taxol.padded is None
    assert taxol.groups is not None and sorted(set(taxol.groups)) == [f"i{number}" for number in range(4, 10)]
    assert taxol.wells is not None and set(taxol.wells) == {"i"}
    assert taxol.generated["impa"].shape == (0, 2) and taxol.n == 0  # no image of that method could be read
    held_out = {each.perturbation_id: each for each in reference(tmp_path).cohorts(HELD_OUT)}
    assert held_out["taxol"].real[0, 0] == 3
    assert held_out["taxol"].trained is not None and held_out["taxol"].trained[0, 0] == 1
    assert held_out["new"].trained is None  # never trained on, though it is in seen batches
    assert held_out["taxol"].control is not None and len(held_out["taxol"].control) == 0  # other batches only
    padded = {
        each.perturbation_id: each.padded for each in reference(tmp_path, protocol="paper").cohorts(SEEN)
    }
    assert padded["taxol"] is not None and padded["taxol"][:, 0].tolist() == [1] * 6 + [7] * 2


def test_crops_of_one_field_and_fields_of_one_well_are_told_from_others() -> None:
    table = sites(("a", "taxol", TRAIN, 2), ("b", "taxol", TRAIN, 2))
    table = table.set_column(table.schema.get_field_index("site"), "site", pa.array(["1", "2", "1", "1"]))
    found = list(places_of(table).values())
    assert [each.well for each in found] == ["a/p/w", "a/p/w", "b/p/w", "b/p/w"]
    assert [each.field for each in found] == ["a/p/w/1", "a/p/w/2", "b/p/w/1", "b/p/w/1"]
    bare = table.set_column(table.schema.get_field_index("well"), "well", pa.array([""] * 4))
    assert places_of(bare) == {name: Place(name, name) for name in table["site_id"].to_pylist()}


def test_what_keeps_n_low_is_told(tmp_path: Path) -> None:
    made = reference(tmp_path)
    ours = replace(made, methods=["conditional"])
    assert limits(ours.cohorts(SEEN), 3, "seen batches") == [
        "In seen batches N is below evaluation.n = 3 for 1 perturbations, for want of real images "
        "(2 N are needed, no field on both sides).",
        "In seen batches N is below evaluation.n = 3 for 1 perturbations, for want of images of conditional.",
    ]
    assert limits(ours.cohorts(SEEN), 2, "seen batches") == []


@pytest.mark.parametrize(
    ("real", "ours", "impa", "n", "subset"),
    [
        (40, 20, 20, 12, 5),  # enough: evaluation.n, and the subset asked for
        (40, 20, 4, 4, 3),  # one method has few images, so all are measured with as many
        (8, 20, 20, 4, 3),
        (5, 20, 20, 2, 2),
        (40, 20, 1, None, None),
        (40, 0, 20, None, None),
        (3, 20, 20, None, None),
    ],
)
def test_too_few_images_lower_n_or_leave_the_perturbation_out(
    real: int, ours: int, impa: int, n: int | None, subset: int | None
) -> None:
    rng = np.random.default_rng(2)
    sets = [rng.normal(size=(count, 6)).astype(np.float32) for count in (real, ours, impa, 7)]
    cohort = Cohort("p", sets[0], {"ours": sets[1], "impa": sets[2]}, sets[0], padded=sets[3])
    found = measure([cohort], Sampling(12, 3, kid_subset_size=5, kid_subsets=4))
    if n is None:
        counts = (
            f"{real} real images of {real} fields (2 N are needed, no field on both sides) and {ours} ours, "
            f"{impa} impa: enough for N = "
        )
        assert found.excluded["p"].startswith(counts) and found.distances == {}
        return
    frechet, kid = found.distances["p"]["frechet"]["ours"], found.distances["p"]["kid"]["impa"]
    assert (frechet.n_a, frechet.n_b, frechet.draws) == (n, n, 3)
    assert (kid.n_a, kid.n_b, kid.draws) == (subset, subset, 4) and found.excluded == {}
    paper = found.distances["p"]["frechet_paper"]
    assert {name: (each.n_a, each.n_b) for name, each in paper.items()} == {
        "ours": (min(ours, 12), 7),
        "impa": (min(impa, 12), 7),
    }


def picture(path: Path, shape: tuple[int, int, int] = (3, 16, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)))


def test_a_folder_with_other_files_and_sizes(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / f"m/taxol/{number}.png")
    picture(tmp_path / "m/taxol/large.png", (3, 24, 24))
    picture(tmp_path / "m/alone.png")
    (tmp_path / "m/taxol/notes.txt").write_text("no image")
    (tmp_path / "m/taxol/broken.png").write_bytes(b"no image")
    made = read_method(Storage(), "m", str(tmp_path / "m"))
    assert sorted(made.ignored) == ["alone.png", "taxol/notes.txt"] and made.counts == {"taxol": 7}
    assert {tuple(row.row["shape"]) for row in made.rows} == {(3, 16, 16)}
    assert folder_notes(config_of(tmp_path), made) == [
        "m: 2 files are left out, which lie in no perturbation's folder or are no images by their names: "
        + ", ".join(made.ignored)
        + "."
    ]
    plan = ReadPlan(config_of(tmp_path).image, find_mapping("rgb", ("red", "green", "blue"), "rgb"), 1, 0)
    alone = [row for row in made.rows if row.item == "taxol/large.png"]  # a part of its own
    read = read_images_part({"name": "x", "rows": [vars(row) for row in alone]}, plan, Storage(), Storage())
    bad = pa.ipc.open_stream(read["bad"]).read_all().to_pylist()
    assert read["shape"][0] == 0 and "expected (3, 16, 16) as most have" in bad[0]["reason"]


@pytest.mark.parametrize(
    ("shape", "word"),
    [((3, 20, 20), "its images are 20 × 20 pixels, the real ones 16 × 16"), ((1, 16, 16), "1 channels")],
)
def test_a_folder_of_another_size_or_kind(tmp_path: Path, shape: tuple[int, int, int], word: str) -> None:
    for number in range(3):
        picture(tmp_path / f"m/taxol/{number}.png", shape)
    made = read_method(Storage(), "m", str(tmp_path / "m"))
    if shape[0] == 3:
        assert word in folder_notes(config_of(tmp_path), made)[0]
    else:
        with pytest.raises(DataError, match=f"evaluation.methods.m: found images of {word}, expected 3: red"):
            folder_notes(config_of(tmp_path), made)


@pytest.mark.parametrize("name", ["floor", "conditional", "real"])
def test_names_of_the_reports_own_rows_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"evaluation.methods: {name}: the report has other rows"):
        methods_of(config_of(tmp_path, methods={name: {"images": "x"}}))


def test_what_a_call_sets_holds_for_its_own_run(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config = config.model_copy(update={"generation": config.generation.model_copy(update={"n": 7})})
    own = methods_of(config)["conditional"]
    found = run_of(config, own)  # no file is there to be read
    assert found is not None and found.generation.n == 7


def test_an_extractors_file_means_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        config_of(tmp_path, extractor="inception:w.pt").evaluation.extractor == f"inception:{tmp_path}/w.pt"
    )
    uri = "torchscript:s3://b/w.pt"
    assert config_of(tmp_path, extractor=uri).evaluation.extractor == uri
    assert RunConfig.model_fields["evaluation"].default.extractor == "inception"  # what papers use


# distance from training


def compound(name: str, smiles: str | None, **more: Any) -> Perturbation:
    return Perturbation(name, "compound", smiles, **more)


def test_the_nearest_training_compound_by_structure() -> None:
    training = [compound("ethanol@1", "CCO"), compound("benzene", "c1ccccc1"), compound("dmso", "CS(C)=O")]
    training[2] = compound("dmso", "CS(C)=O", is_control=True)
    unseen = [
        compound("ethanol@3", "OCC"),
        compound("toluene", "Cc1ccccc1"),
        compound("salt", "CC[O-].[Na+]"),
        compound("sulfoxide", "CS(C)=O"),
    ]
    found = novelties(unseen, training, {})
    assert (found["ethanol@3"].nearest, found["ethanol@3"].distance) == ("ethanol@1", 0)  # whatever the dose
    # Morgan bits of radius 2: benzene has 3 (CH, its two spheres), toluene 11, of which 3 are shared.
    toluene = found["toluene"]
    assert (toluene.nearest, toluene.kind) == ("benzene", TANIMOTO)
    assert toluene.distance == pytest.approx(1 - 3 / 11)
    assert found["salt"].distance == 0  # its neutral parent
    assert found["sulfoxide"].distance > 0  # the control is no training perturbation


def test_genes_and_bad_smiles_are_compared_by_condition() -> None:
    training = [Perturbation("g1", "gene", gene="A"), Perturbation("g2", "gene", gene="B")]
    unseen = [Perturbation("g3", "gene", gene="C"), compound("bad", "no molecule"), compound("none", None)]
    vectors = {
        name: np.array(vector, np.float32)
        for name, vector in {"g1": (1, 0), "g2": (1, 1), "g3": (0, 2), "bad": (-1, 0), "none": (0, 0)}.items()
    }
    found = novelties(unseen, training, vectors)
    assert (found["g3"].nearest, found["g3"].kind) == ("g2", COSINE)
    assert found["g3"].distance == pytest.approx(1 - 1 / np.sqrt(2))
    assert found["bad"].distance == pytest.approx(1 + 1 / np.sqrt(2))  # the less opposite one
    assert "none" not in found  # a vector of zeros has no direction
    assert novelties(unseen, [], vectors) == {} and novelties([], training, vectors) == {}


# the size of a pixel


@pytest.mark.parametrize(
    ("image", "known", "expected"),
    [
        ({"resolution": 16, "fit": "resize"}, 0.5, 1.0),  # 32 pixels become 16
        ({"resolution": 16, "fit": "crop"}, 0.5, 0.5),
        ({"resolution": 16, "fit": "crop", "scale_to": 24}, 0.6, 0.8),
        ({"resolution": 16, "fit": "crop", "um_per_pixel": 0.7}, 0.5, 0.7),
        ({"resolution": 16, "fit": "resize"}, None, None),
    ],
)
def test_a_pixels_size_follows_the_image_settings(
    tmp_path: Path, image: dict[str, Any], known: float | None, expected: float | None
) -> None:
    picture(tmp_path / "0.png", (3, 32, 40))
    site = {
        "site_id": "s",
        "channel_uris": [str(tmp_path / "0.png")],
        "illumination_uris": None,
        "intensity_ranges": None,
        "pixel_size_um": known,
    }
    settings = build(RunConfig, {"run_dir": "r", "image": image}, "").image
    plan = ReadPlan(settings, find_mapping("rgb", ("red", "green", "blue"), "rgb"), 1, 0)
    assert um_per_pixel(site, plan, Storage()) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("width", "size", "length"),
    [(64, 0.65, 10), (100, 0.5, 20), (100, 1.25, 50), (512, 0.02, 2), (8, 0.1, 0.2)],
)
def test_a_scale_bar_is_round_and_fills_two_fifths_at_most(width: int, size: float, length: float) -> None:
    assert bar_length(width, size) == pytest.approx(length)
