"""What a report tells of profiles: from simulated fields to the table, maps, words and rows of METRICS."""

import dataclasses
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphoray import schema
from morphoray.datasets.simulator.fields import draw_fields
from morphoray.datasets.simulator.phenotype import BatchEffect, Phenotype
from morphoray.evaluation.distances import Distance
from morphoray.evaluation.measurements import feature_names, image_means, measure
from morphoray.evaluation.profile_analysis import profile_results
from morphoray.evaluation.profile_chart import HUES, furthest, map_chart
from morphoray.evaluation.profile_recognition import split
from morphoray.evaluation.profile_results import ProfileMap, ProfileResults, profile_metrics
from morphoray.evaluation.profile_section import profile_caveats, profile_table, profile_words
from morphoray.evaluation.report import PerturbationResult, ReportData, RunFacts, markdown, write_report
from morphoray.evaluation.segmentation import SegmentationOptions, segment
from morphoray.evaluation.words import summary
from morphoray.storage import Storage

CHANNELS = ("actin", "tubulin", "dna")
FAMILIES = ("sizeshape", "intensity", "pearson")
OPTIONS = SegmentationOptions(nuclei="dna", cell_body=("tubulin", "actin"), nucleus_diameter_px=18)
PLACES = ("Metadata_experiment", "Metadata_batch", "Metadata_plate", "Metadata_well")  # of real images
DRUGS = {
    "dmso": (Phenotype(), None, True),
    "large": (Phenotype(nuclear_area=1.8), "growth", False),
    "larger": (Phenotype(nuclear_area=2.0), "growth", False),
    "bright": (Phenotype(tubulin_intensity=1.8), "bundling", False),
    "brighter": (Phenotype(tubulin_intensity=2.2), "bundling", False),
}


def described(image: np.ndarray, source: str, name: str, number: int) -> pd.DataFrame:
    """The profile of one image, a row with all Metadata_ columns; a real one is of one of two plates."""
    _, moa, control = DRUGS[name]
    plate = f"p{number % 2}" if source == "real" else None
    metadata = {
        "source": source,
        "image": f"{name}/{number}",
        "perturbation_id": name,
        "compound": name,
        "concentration_um": 1.0,
        "moa": moa,
        "is_control": control,
        "experiment": plate,
        "batch": plate,
        "plate": plate,
        "well": None if plate is None else f"{name}-{number % 2}",
    }
    found = segment(image, CHANNELS, OPTIONS)
    return image_means(measure(image, CHANNELS, found, {}, FAMILIES), found, metadata)


@lru_cache
def profiles() -> pd.DataFrame:
    """Simulated fields: real ones; `good` of the right perturbation; `poor`, controls under every name."""
    rows = []
    for source, count in (("real", 8), ("good", 4)):
        for name, (phenotype, _, _) in DRUGS.items():
            keys = [("profile results", source, name, index) for index in range(count)]
            fields = draw_fields(
                [phenotype] * count, [BatchEffect()] * count, 128, 3, keys=keys, nucleus_diameter_px=18
            ).images
            rows += [described(image, source, name, number) for number, image in enumerate(fields)]
    rows.append(described(np.zeros((3, 128, 128), np.uint8), "good", "large", 4))
    table = pd.concat(rows, ignore_index=True)
    controls = table[(table["Metadata_source"] == "good") & table["Metadata_is_control"]]
    head = [column for column in table if column.startswith("Metadata_")]
    for name in DRUGS:
        of = table[table["Metadata_perturbation_id"] == name].iloc[0]
        same = {column: of[column] for column in head if not column.endswith("_count")}
        rows.append(controls.assign(**same | {"Metadata_source": "poor"} | dict.fromkeys(PLACES)))
    return pd.concat(rows, ignore_index=True)


@lru_cache
def results() -> ProfileResults:
    return profile_results(profiles(), ["good", "poor"], CHANNELS, by=None, umap=False, made_by="abc")


def report(found: ProfileResults, models: tuple[str, ...] = ("good", "poor")) -> ReportData:
    """A report of these methods with these profiles."""
    image = np.zeros((1, 3, 16, 16), np.uint8)
    distances = {"frechet": {name: Distance(1.0, 4, 4) for name in (*models, "copy_control")}}
    return ReportData(
        title="Profiles",
        experiment="simulated",
        facts=RunFacts(1, 1),
        perturbations=[PerturbationResult(name, image, distances) for name in DRUGS],
        losses={},
        extractor="e",
        weights_hash="h",
        mode="clean-224",
        seed=3,
        made_by="feedbeef",
        data_statement="Simulated.",
        models=models,
        profiles=found,
    )


def test_a_good_method_agrees_with_real_profiles_and_controls_do_not() -> None:
    found = results()
    assert found.problem is None
    assert found.cells["good"].images == 21 and found.cells["good"].without_cells == 1
    assert found.cells["real"].without_cells == found.cells["real"].incomplete == 0
    good, poor, real = (found.sources[name] for name in ("good", "poor", "real"))
    control = found.sources["copy_control"]
    estimates = [each.correlation for each in (good, poor, real, control)]
    assert all(each is not None and each.n == 4 for each in estimates), "treatments only"
    means = [each.mean for each in estimates if each is not None]
    assert means[0] > means[1] + 0.1 and means[2] > means[3] + 0.2
    assert set(good.agreements) == set(DRUGS) and set(control.agreements) == set(DRUGS) - {"dmso"}
    assert good.agreements["large"].n == 4 and good.agreements["large"].n_real == 8
    for name in ("large", "bright"):
        assert good.distances[name].value < poor.distances[name].value, name
    assert min(good.recognised["moa"][name] for name in ("growth", "bundling")) > 0.8
    assert poor.recognised["moa"]["growth"] + poor.recognised["moa"]["bundling"] == 1, "one answer for all"
    assert good.mechanisms is not None and good.mechanisms.nsc == (1.0, 4)
    assert np.isnan(good.mechanisms.nscb[0]) and good.mechanisms.nscb[1] == 0, "all are in both batches"


def test_moved_features_have_the_methods_beside_the_real_ones() -> None:
    moved = [each for each in results().moved if each.perturbation_id == "brighter"]
    assert len(moved) == 3 and {each.perturbation_id for each in results().moved} == set(DRUGS) - {"dmso"}
    assert all("tubulin" in each.words for each in moved)
    assert abs(moved[0].real) > 2 and moved[0].methods["good"] * moved[0].real > 0
    assert abs(moved[0].methods["poor"]) < abs(moved[0].methods["good"])


def test_metrics_are_rows_of_every_method_and_perturbation() -> None:
    table = schema.conform(profile_metrics(results(), "simulated", 3), schema.METRICS, "metrics")
    schema.check_stamp(profile_metrics(results(), "simulated", 3).schema.metadata, "abc", "metrics")
    rows = {(row["metric"], row["method"], row["perturbation_id"]): row for row in table.to_pylist()}
    row = rows["profile_correlation", "good", "large"]
    assert row["extractor"] == "cellprofiler@abc" and row["n_real"] == row["n_generated"] == 4
    assert row["mode"] == "image means, all real controls" and row["seed"] == 3
    assert row["unseen"] is None
    told = profile_metrics(results(), "simulated", 3, {"large": True, "dmso": False}).to_pylist()
    assert {(row["perturbation_id"], row["unseen"]) for row in told} == {
        *(("large", True), ("dmso", False)),
        *((name, None) for name in set(DRUGS) - {"large", "dmso"}),
    }
    whole = rows["profile_correlation_all", "good", "large"]
    assert (whole["n_real"], whole["n_generated"]) == (8, 4)
    floor = rows["profile_correlation", "floor", "large"]["value"]
    assert floor == results().sources["real"].agreements["large"].halves.mean
    for source, method in (("copy_control", "copy_control"), ("real", "floor")):
        distance = results().sources[source].distances["large"]
        assert rows["frechet", method, "large"]["value"] == distance.value
    counts = profiles().groupby(["Metadata_source", "Metadata_perturbation_id"])["Metadata_cell_count"].mean()
    assert rows["cell_count", "good", "large"]["value"] == counts["good", "large"]
    assert rows["cell_count", "good", "large"]["n_generated"] == 5, "the image without cells counts"
    assert (
        rows["profile_recall", "good", "large"]["value"]
        == results().sources["good"].recognised["perturbation"]["large"]
    )


def test_the_section_stands_in_page_and_text(tmp_path: Path) -> None:
    data = report(results())
    page = Path(write_report(data, str(tmp_path), Storage())).read_text(encoding="utf-8")
    assert "What the cells look like" in page and page.count('class="map"') == 1
    assert "1 of 21 images without" in page and "<script" not in page
    text = markdown(data)
    head, rows = profile_table(data, results())
    assert head[0] == "Correlation with real profiles ↑" and head[-1] == "Cells an image"
    assert {cells[0].small for _, cells in rows} == {""}  # of 4 treatments no interval
    assert any("of fewer than 6 none" in each for each in profile_caveats(results()))
    assert [source for source, _ in rows] == ["good", "poor", "copy_control", "real"]
    assert "NSC ↑" in head and "NSCB ↑" not in head, "no treatment can be answered"
    assert "| Real images |" in text
    told = "Correlation with the profiles of real cells, over 4 treatments: "
    assert text.count(told) == 2, "in the summary and in the section"
    note = next(each for each in summary(data).notes if each.startswith(told))
    shown = {source: str(cells[0]) for source, cells in rows}
    assert f"good {shown['good']}; poor {shown['poor']}; Copy control {shown['copy_control']}; " in note
    assert note.endswith(f"Real images, half against half {shown['real']}.")
    assert any("confounder" in each for each in profile_caveats(results()))
    table = Storage().read_table(str(tmp_path / "metrics.parquet")).to_pylist()
    assert {row["unseen"] for row in table} == {False}, "of profiles too"
    assert {"clean-224", "image means, all real controls"} == {row["mode"] for row in table}


def test_images_without_cells_leave_the_counts_and_a_reason() -> None:
    empty = profiles().assign(Metadata_cell_count=0)
    features = [name for name in empty if not name.startswith("Metadata_")]
    empty[features] = np.nan
    found = profile_results(empty, ["good", "poor"], CHANNELS, by=None, umap=False)
    assert found.problem is not None and "fewer than two real controls" in found.problem
    assert found.cells["good"].without_cells == 21 and found.sources == {}
    data = report(found)
    assert "nothing could be told" in profile_words(data, found)[0]
    assert "Cells an image" in markdown(data)
    assert {row["metric"] for row in profile_metrics(found, "x", 0).to_pylist()} == {"cell_count"}


def test_a_method_without_cells_leaves_the_others_and_the_bounds() -> None:
    images = profiles()
    nothing = dict.fromkeys([name for name in images if not name.startswith("Metadata_")], np.nan)
    poor = images[images["Metadata_source"] == "poor"]
    empty = pd.DataFrame({**poor, "Metadata_source": "empty", "Metadata_cell_count": 0, **nothing})
    both = pd.concat([images[images["Metadata_source"] != "poor"], empty], ignore_index=True)
    found = profile_results(both, ["empty", "good"], CHANNELS, by=None, umap=False)
    assert found.sources["empty"].correlation is None and found.sources["empty"].agreements == {}
    np.testing.assert_equal(
        vars(found.sources["real"].correlation), vars(results().sources["real"].correlation)
    )
    good, alone = found.sources["good"], results().sources["good"]
    assert (good.agreements, good.distances) == (alone.agreements, alone.distances)
    said = profile_words(report(found, ("empty", "good")), found)
    assert said[1:] == ["empty: too few images have cells to compare profiles."]


def test_groups_without_controls_are_left_out_and_said() -> None:
    images = profiles()
    lone = images["Metadata_is_control"] & (images["Metadata_plate"] == "p1")
    found = profile_results(images[~lone].reset_index(drop=True), ["good"], CHANNELS, umap=False)
    assert found.problem is None
    assert found.notes == [
        "16 real images of 1 plates without two controls that have cells are left out: p1."
    ]
    assert found.sources["good"].agreements["large"].n_real == 4


def test_halves_share_no_batch_where_classes_allow_it() -> None:
    images = profiles()
    real = images[(images["Metadata_source"] == "real") & ~images["Metadata_is_control"]]
    halves = split(real, "Metadata_perturbation_id", 0)
    assert halves is not None
    first, second, column = halves
    assert set(first["Metadata_batch"]) | set(second["Metadata_batch"]) == {"p0", "p1"}
    assert not set(first["Metadata_batch"]) & set(second["Metadata_batch"])
    assert not set(first[column]) & set(second[column])
    # each perturbation in one batch only: apart by wells then
    lone = real[(real["Metadata_batch"] == "p0") == real["Metadata_perturbation_id"].str.startswith("l")]
    lone = lone.assign(Metadata_well=[f"w{place % 2}" for place in range(len(lone))])
    wells = split(lone, "Metadata_perturbation_id", 0)
    assert wells is not None and wells[0]["Metadata_perturbation_id"].nunique() == 4
    assert not set(wells[0][wells[2]]) & set(wells[1][wells[2]])
    assert split(lone.assign(Metadata_well="w"), "Metadata_perturbation_id", 0) is None
    assert (
        split(lone.assign(Metadata_batch="b", Metadata_plate="p", Metadata_well="w"), "Metadata_moa", 0)
        is None
    )


def test_maps_number_the_furthest_and_escape_names() -> None:
    names = np.array([f"<b>{place}" for place in range(HUES + 3)] * 4, object)
    points = np.array([[int(name[3:]) * 1.0, 0.0] for name in names])
    found = ProfileMap(
        "T", ("a", "b"), {"real": points, "m": points[:5] + 1e6}, {"real": names, "m": names[:5]}
    )
    chart = map_chart(found, {"real": "Real", "m": "<i>"}, furthest(found))
    assert "<b>" not in chart and "<i>" not in chart and chart.count('class="frame"') == 2
    # the middle of 0 … 14 is 7: 6, 7 and 8 lie nearest and have no number
    assert all(f"&lt;b&gt;{place}<" in chart for place in (0, 14, 5, 9))
    assert not any(f"&lt;b&gt;{place}<" in chart for place in (6, 7, 8))
    numbers = [float(part) for part in chart.replace("M", " ").split() if part.replace(".", "").isdigit()]
    assert max(numbers) <= 1100
    single = dataclasses.replace(found, coordinates={"real": points}, perturbation_ids={"real": names})
    assert map_chart(single, {"real": "Real"}, []).count('class="frame"') == 1


def test_feature_names_are_those_that_are_measured() -> None:
    row = described(np.zeros((3, 64, 64), np.uint8), "real", "dmso", 0)
    assert [name for name in row if not name.startswith("Metadata_")] == feature_names(CHANNELS, FAMILIES)


@pytest.mark.slow
def test_umap_is_a_second_map() -> None:
    found = profile_results(profiles(), ["good"], CHANNELS, by=None, umap=True)
    assert [each.title for each in found.maps] == ["Principal components", "UMAP"]
    assert {name: len(points) for name, points in found.maps[1].coordinates.items()} == {
        "real": 40,
        "good": 20,
    }
