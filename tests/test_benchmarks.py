"""The benchmarks: each says what it measures, and each measures something at the smallest size."""

import ast
import importlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from morphoray.perturbations.base import Perturbation
from tinyrun import REAL_RAY

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "jobs" / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if not path.name.startswith("_"))

pytestmark = REAL_RAY


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import each other as they do when one of them is started."""
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_measures_and_does_nothing_when_imported(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert {"main"} <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    last = tree.body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"


def test_make_bench_runs_every_script_and_not_their_shared_module() -> None:
    told = subprocess.run(
        ["sh", "-c", "echo jobs/benchmarks/[!_]*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [ROOT / name for name in told.stdout.split()] == SCRIPTS
    assert "jobs/benchmarks/[!_]*.py" in (ROOT / "Makefile").read_text()


def test_simulator(benchmarks: None) -> None:
    assert module("simulator").draw(64, 3, 18.0, 0) > 0


def test_encode(benchmarks: None, ray_cluster: None, tmp_path: Path) -> None:
    figures = module("encode").measure(tmp_path, parts=2, sites_per_part=4, repeats=1)
    assert all(rate > 0 for rates in figures.rates.values() for rate in rates)
    assert figures.rates.keys() == {"bare", "pipeline"}
    assert len(figures.start_s) == 1
    assert all(value > 0 for value in figures.stages_ms.values())


def test_features(benchmarks: None, ray_cluster: None, tmp_path: Path) -> None:
    features = module("features")
    figures = features.measure(tmp_path, parts=2, sites_per_part=2, repeats=1)
    assert figures.rates.keys() == {"bare", "pipeline"}
    assert all(rate > 0 for rates in figures.rates.values() for rate in rates)
    assert len(figures.start_s) == 1


def test_memory_of_features(benchmarks: None, tmp_path: Path) -> None:
    peaks = module("features").measure_memory(tmp_path, images=4, images_per_part=2)
    assert 0 < peaks.driver_mib < peaks.all_mib
    assert 0 < peaks.actor_mib < peaks.all_mib
    assert f"{4 * 1280 * 4} bytes of features" in (tmp_path / "log.txt").read_text()


def test_train(benchmarks: None, tmp_path: Path) -> None:
    figures = module("train").measure(tmp_path, batch_size=2, steps=1, original_steps=1, repeats=1)
    assert figures.rates.keys() == figures.wall_rates.keys() == {"bare", "product", "original"}
    assert all(rate > 0 for rates in figures.rates.values() for rate in rates)
    assert 0 < figures.step_gflop < 100
    assert figures.matmul_gflops > 1


def test_generate(benchmarks: None, ray_cluster: None, tmp_path: Path) -> None:
    figures = module("generate").measure(tmp_path, parts=2, images_per_part=1, repeats=1, steps=2)
    assert figures.rates.keys() == {"bare", "stage", "original"}
    assert all(rate > 0 for rates in figures.rates.values() for rate in rates)


def test_cohorts(benchmarks: None) -> None:
    figures = module("cohorts").measure(images=20, width=32, columns=3, repeats=1)
    assert all(rate > 0 for rates in figures.rates.values() for rate in rates)
    assert figures.difference < 1e-6


def test_measurements(benchmarks: None) -> None:
    taken = module("measurements").seconds(64, 3, 1, ("sizeshape", "intensity"))
    assert taken.keys() == {"segment", "sizeshape", "intensity", "measure", "cells"}
    assert all(value > 0 for value in taken.values())


@pytest.fixture(scope="module")
def responses() -> dict[str, Any]:
    """The validation's table of 24 images a set, by row and metric, with mean and spread as features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        script = module("validation")
        return script.judge(script.validate(pixel_statistics, n=24, repeats=16))


def pixel_statistics(images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of 8 x 8 blocks of every channel, (N, 384) float32."""
    blocks = images.astype(np.float32).reshape(len(images), 3, 8, 8, 8, 8)
    moments = [blocks.mean((3, 5)), blocks.std((3, 5))]
    return np.concatenate([each.reshape(len(images), -1) for each in moments], axis=1) / 16


def test_validation_has_every_metric_of_small_sets_in_every_row(
    benchmarks: None, responses: dict[str, Any]
) -> None:
    script, expected = module("validation"), module("_responses")
    assert list(responses) == list(expected.ROWS)
    small = {*expected.METRICS} - {"frechet_infinity", "profile_correlation"}  # from 100 images on; apart
    assert all(cells.keys() == small for cells in responses.values())
    lines = script.markdown(responses).splitlines()
    assert len(lines) == 2 + len(expected.ROWS) and {line.count("|") for line in lines} == {len(small) + 2}
    failed = [cell for cells in responses.values() for cell in cells.values() if not cell.passed]
    assert len(script.findings(responses)) == len(failed)


def test_validation_sees_what_the_faults_are(benchmarks: None, responses: dict[str, Any]) -> None:
    """Even 24 images and block means tell these apart; what is passed by chance isn't asserted."""
    for row, metrics in {
        "real against real": ("frechet", "kid", "precision", "recall", "nearest_training_ratio"),
        "dose ladder": ("kid", "rank"),
        "other batch": ("frechet", "kid"),
        "mode collapse": ("frechet", "precision", "recall", "coverage"),
        "copies of training": ("frechet", "kid", "nearest_training_ratio", "nearest_training_share"),
        "a fifth copied": ("nearest_training_share",),
        "wrong perturbation": ("frechet", "kid", "rank", "recognised"),
    }.items():
        assert {metric for metric in metrics if not responses[row][metric].passed} == set(), row
    assert responses["copies of training"]["nearest_training_ratio"].seen.values == [0]
    assert responses["real against real"]["nearest_training_ratio"].seen.values[0] > 0.9
    assert responses["mode collapse"]["recall"].seen.values == [0]


def test_validation_sees_what_the_faults_do_to_profiles(benchmarks: None) -> None:
    """Block means stand for the cells' measurements: quick, and as much of a profile."""

    def measured(images: np.ndarray) -> pd.DataFrame:
        values = pixel_statistics(images).astype(np.float64)
        values[::7] = np.nan  # images without cells
        return pd.DataFrame(values, columns=[f"Cells_Intensity_{k}" for k in range(values.shape[1])])

    script, profiles = module("validation"), module("_profiles")
    seen = profiles.profile_correlations(measured, n=24, repeats=16)
    assert seen.keys() == module("_responses").ROWS.keys()
    assert seen["real against real"].values[0] > 2 * seen["wrong perturbation"].values[0]
    assert seen["dose ladder"].values[-1] > seen["dose ladder"].values[0]
    table = script.judge({row: {"profile_correlation": each} for row, each in seen.items()})
    for row in ("real against real", "copies of training", "wrong perturbation"):
        assert table[row]["profile_correlation"].passed


def test_validation_measures_cells_of_images_in_their_order(benchmarks: None) -> None:
    faults, profiles = module("_faults"), module("_profiles")
    images = faults.draw(faults.Phenotype(), "SIM-01", "control", 5)
    images[2] = 0
    found = profiles.measure_images(images)
    assert np.isfinite(found.loc[3]).mean() > 0.9 and np.isnan(found.loc[2]).all()
    alone = profiles.measure_images(images[3:4])
    pd.testing.assert_frame_equal(found.iloc[[3]].reset_index(drop=True), alone)


def test_validation_tells_what_did_not_respond(benchmarks: None, responses: dict[str, Any]) -> None:
    """Block means hardly change under blur: the Fréchet distance of these features misses it."""
    assert not responses["blur ladder"]["precision"].passed
    found = module("validation").findings(responses)
    assert any(line.startswith("precision, blur ladder: expected falls with the level") for line in found)


@pytest.mark.parametrize(
    ("expected", "passing", "failing"),
    [
        ("AS_REAL", [1.4], [1.5]),
        ("AS_REAL", [0.6], [0.5]),
        ("ABOVE", [1.5], [1.4]),
        ("BELOW", [0.5], [0.6]),
        ("NOT_ABOVE", [1.4, 0.0], [1.4, 1.5]),
        ("NOT_BELOW", [0.6, 9.0], [0.6, 0.5]),
        ("STAYS", [0.75], [0.74]),
        ("RISES", [0, 2, 1, 3, 4, 5], [0, 3, 2, 1, 4, 5]),
        ("FALLS", [5, 4, 3, 1, 2, 0], [0, 1, 2, 3, 4, 5]),
        ("RISES", [0, 1, 2], [1, 1, 1]),
        ("FALLS", [4, 5, 3, 2, 1], [3, 5, 4, 2, 1]),  # -0.9 and -0.7
        ("FIRST", [1], [1.25]),
        ("FIRST_WHEN_WEAK", [1, 1, 4], [1, 2, 1]),
        ("NOT_FIRST", [2], [1.75]),
        ("LEAVES_FIRST", [1, 1, 3], [1, 3, 2]),
        ("LEAVES_FIRST", [1, 2], [1, 1]),
        ("FAR_BELOW_ONE", [0.49], [0.5]),
    ],
)
def test_a_response_is_what_its_words_say(
    benchmarks: None, expected: str, passing: list[float], failing: list[float]
) -> None:
    """Against 24 splits of real images, 0.9 or 1.1: mean 1, standard deviation 0.102, Student's t 4.07."""
    script, null = module("_responses"), np.tile([0.9, 1.1], 12)
    for values, holds in ((passing, True), (failing, False)):
        seen = script.Seen(np.array(values, float), np.arange(len(values), dtype=float), null)
        assert bool(getattr(script, expected).holds(seen)) is holds


def test_memory(benchmarks: None, tmp_path: Path) -> None:
    peaks = module("memory").measure(tmp_path, sites=4, sites_per_part=2)
    assert 0 < peaks.driver_mib < peaks.all_mib
    assert 0 < peaks.actor_mib < peaks.all_mib


def test_imports(benchmarks: None, tmp_path: Path) -> None:
    imports = module("imports")
    lines = list(imports.metadata(126_000))
    assert len(lines) == 126_001
    assert len({line.split(",")[0] for line in lines}) == 126_001
    assert len({line.split(",")[4] for line in lines[1:125_665]}) == 51  # RxRx1 has some wells less
    cost = imports.measure(tmp_path, rows=2000)
    assert cost.cpu_s > 0 and 50 < cost.peak_mib < 1000


def test_doses(benchmarks: None) -> None:
    doses = module("doses")
    known = [
        Perturbation("dmso", "control", is_control=True),
        *(
            Perturbation(f"a@{dose}", "compound", smiles="CCO", concentration_um=dose)
            for dose in (16.0, 1.0, 4.0)
        ),
    ]
    (items,) = doses.series(known).values()
    assert [item.concentration_um for item in items] == [1, 2, 4, 8, 16]
    assert [item.perturbation_id for item in items][1] == "a@2"
    generator = np.random.default_rng(0)
    control, top = generator.normal(0, 0.1, (40, 5)), generator.normal(0, 0.1, (40, 5)) + 3
    assert abs(doses.positions(control, control, top).mean()) < 1e-6
    assert abs(doses.positions((control + top) / 2, control, top).mean() - 0.5) < 0.05
    truth = np.array([0.1, 0.4, 0.6, 0.9])
    rising = [doses.Dose(1, "", each, each + np.array([0.0, 0.01]), None) for each in truth]
    assert doses.rank_correlation(rising) == (1, 1)
    falling = [doses.Dose(1, "", each, -each * np.ones(2), None) for each in truth]
    assert doses.rank_correlation(falling) == (-1, -1)


@pytest.mark.parametrize(
    ("channels", "sets", "sites"), [(6, 8, 24), (5, 1, 1), (3, 4, 12), (1, 4, 12), (4, 0, 0)]
)
def test_codec_has_real_fields_of_each_number_of_channels(
    benchmarks: None, real_data: Path, channels: int, sets: int, sites: int
) -> None:
    codec = module("codec")
    found = codec.real_fields(real_data, channels)
    assert (len(found), sum(len(fields.images) for fields in found)) == (sets, sites)
    for fields in found:
        assert fields.images.shape[1:] == (channels, 512, 512) and len(fields.channels) == channels
        assert (np.ptp(fields.images, axis=(2, 3)) > 20).all()
        told = codec.field_row(fields, fields.images // 2 * 2)
        assert all(f"{name} " in told for name in fields.channels)


def test_the_jump_field_keeps_its_order_of_stains(benchmarks: None, real_data: Path) -> None:
    """Nuclei are what DNA shows: bright in few places, unlike the cytoplasm's stains."""
    field = module("codec").jump_field(real_data)
    shares = dict(zip(field.channels, (field.images[0] > 60).mean(axis=(1, 2)), strict=True))
    assert min(shares, key=shares.__getitem__) == "dna"


def test_descriptors(benchmarks: None) -> None:
    script = module("descriptors")
    rates = script.measure(count=4, repeats=1)
    assert {"bare", "rdkit", "as given", "bare morgan", "bare parent", "morgan"} < rates.keys()
    assert all(rate > 0 for values in rates.values() for rate in values)
    assert script.measure_processes(count=4, repeats=1, processes=1).keys() == {"bare", "rdkit"}
    assert len(script.molecules(40)) >= 39


def test_descriptors_refuse_a_molecule_without_a_vector(benchmarks: None) -> None:
    script = module("descriptors")
    with pytest.raises(AssertionError, match="invalid SMILES"):
        script.encode(script.encoders(["C", "CC", "CCO"])["morgan"], ["C1CC"])


def test_sd(benchmarks: None, tmp_path: Path) -> None:
    from morphoray.config import BundleConfig

    sd, tiny = module("sd"), BundleConfig(preset="tiny")
    for figures in (sd.sample(tiny, 64), sd.training_step(tiny, 64, None)):
        assert 0 < figures.floor_gib < figures.anonymous_gib <= figures.all_gib
        assert figures.seconds > 0
    spilled = sd.training_step(tiny, 64, str(tmp_path))
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {4 * spilled.parameters}


@pytest.mark.slow
def test_stream(benchmarks: None, ray_cluster: None, tmp_path: Path) -> None:
    figures = module("stream").measure(
        tmp_path, sites=8, sites_per_part=2, epochs=1, repeats=1, batch_size=4, cpus_per_worker=0.5
    )
    assert figures.rates.keys() == {"encode", "cached", "streamed"}
    assert all(rate > 0 for rates in figures.rates.values() for rate in rates)
    assert figures.images == 64
    assert figures.cache_bytes > 64 * 2 * 12 * 8 * 8  # a float16 mean an image; deviations compress well


def test_the_cache_pays_from_the_epochs_that_streaming_loses(benchmarks: None) -> None:
    pays_from = module("stream").pays_from
    # Encoding 100 images takes 1 s, an epoch 2 s from the cache and 2.5 s streamed: two epochs lose 1 s.
    assert pays_from(100, 50, 40) == pytest.approx(2)
    assert pays_from(100, 50, 50) == float("inf")


def test_startup(benchmarks: None, tmp_path: Path) -> None:
    startup = module("startup")
    folder = startup.prepare(tmp_path)
    start = startup.measure(folder, "help", 0)
    assert 0 < start.first_line_s <= start.end_s


def test_rates_are_compared_round_by_round(benchmarks: None) -> None:
    common = module("_common")
    calls: list[str] = []

    def measure(name: str, values: Iterator[float]) -> float:
        calls.append(name)
        return next(values)

    first, second = iter([2.0, 4.0, 9.0]), iter([1.0, 4.0, 3.0])
    rates = common.interleave({"a": lambda: measure("a", first), "b": lambda: measure("b", second)}, 3)
    assert calls == ["a", "b"] * 3
    assert common.ratio(rates, "a", "b") == 2.0  # the median of 2, 1 and 3
    assert len(common.interleave({"a": lambda: 1.0}, 5, budget_s=0)["a"]) == 1
