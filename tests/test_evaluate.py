"""`evaluate` on a real Ray: this run, a folder made elsewhere, what is left out, nothing done twice."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphoray import schema
from morphoray.config import EvaluationConfig, MethodConfig, build
from morphoray.errors import ConfigError, DataError
from morphoray.evaluation.cohorts import frechet_matrix, moments
from morphoray.imaging.png import encode_png
from morphoray.perturbations.base import Perturbation
from morphoray.pipelines.evaluate import run_evaluate
from morphoray.pipelines.method_images import read_method, with_the_datas_names
from morphoray.pipelines.ranks import pairwise
from morphoray.pipelines.run import run_train
from morphoray.storage import Storage
from tinyrun import REAL_RAY, make_images, run_of, settings

pytestmark = REAL_RAY


def foreign(folder: Path, name: str, count: int, size: int = 16) -> None:
    """A folder of image files, as any other program would leave them."""
    (folder / name).mkdir(parents=True)
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 256, (3, size, size), dtype=np.uint8)
        (folder / name / f"{number}.png").write_bytes(encode_png(image))


def test_a_run_and_a_foreign_folder_are_measured_once_in_each_group_of_batches(
    ray_cluster: None, tmp_path: Path, codec_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images", count=32)  # eight of each compound on each plate
    foreign(tmp_path / "impa", "DMSO", 10)
    foreign(tmp_path / "impa", "taxol", 10)
    foreign(tmp_path / "impa", "unheard-of", 1)
    (tmp_path / "impa" / "taxol" / "broken.png").write_bytes(b"no image")
    (tmp_path / "impa" / "taxol" / "notes.txt").write_text("no image")
    foreign(tmp_path / "impa" / "sizes", "taxol", 1, size=20)
    values: dict[str, Any] = settings(tmp_path / "run", images, codec_folder, max_steps=1, sample_every=None)
    values["dataset"]["held_out_experiments"] = ["p1"]
    values["generation"] |= {"n": 9}
    methods = {"impa": {"images": str(tmp_path / "impa")}}
    subsets = {"kid_subset_size": 3, "kid_subsets": 5}
    values["evaluation"] = {"n": 9, "methods": methods, "repeats": 2, "protocol": "paper"} | subsets
    config = run_of(values)
    run_train(config)
    report = run_evaluate(config)
    out = tmp_path / "run" / "evaluation"
    assert report == str(out / "report.html")
    table = schema.conform(Storage().read_table(str(out / "metrics.parquet")), schema.METRICS, "metrics")
    rows = {(r["experiment"], r["metric"], r["method"], r["perturbation_id"]): r for r in table.to_pylist()}
    seen, held_out = "imagefolder/seen", "imagefolder/held_out"
    assert {row["experiment"] for row in table.to_pylist()} == {seen, held_out}
    for metric in ("frechet", "kid", "kid_low", "kid_high", "rank", "frechet_paper", "kid_paper"):
        for method in ("conditional", "impa"):
            ours, theirs = (rows[where, metric, method, "taxol"]["value"] for where in (seen, held_out))
            assert np.isfinite(ours) and np.isfinite(theirs)
    padded = rows[seen, "frechet_paper", "conditional", "taxol"]
    assert (padded["n_real"], padded["n_generated"]) == (9, 9)  # of eight real images
    for where in (seen, held_out):
        assert rows[where, "frechet", "copy_control", "taxol"]["n_generated"] == 4
        assert (where, "frechet", "copy_control", "dmso") not in rows  # nothing else is a control
        assert rows[where, "frechet", "floor", "dmso"]["n_real"] == 4
        assert rows[where, "kid", "floor", "dmso"]["n_real"] == 3
    assert (seen, "frechet", "trained", "taxol") not in rows
    assert rows[held_out, "frechet", "trained", "taxol"]["n_generated"] == 4
    assert rows[held_out, "nearest_training_ratio", "impa", "taxol"]["value"] > 0
    quarantine = Storage().read_table(str(out / "quarantine.parquet")).to_pylist()
    reasons = {Path(row["uri"]).name: row["reason"] for row in quarantine if "broken" in row["uri"]}
    assert "not an image" in reasons["broken.png"]
    assert any("expected (3, 16, 16) as most have" in row["reason"] for row in quarantine)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "impa: 1 perturbations that the data don&#x27;t have: unheard-of" in page
    assert "impa: 1 files are left out" in page and "taxol/notes.txt" in page
    assert "for want of real images" in page and "In the paper&#x27;s form" in page
    features = {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.parquet")}
    capsys.readouterr()
    run_evaluate(run_of(values))
    assert features == {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.parquet")}
    assert "features  " not in capsys.readouterr().out


class Blind(torch.nn.Module):
    """The means of an image's channels, NaN where the image is darker than `least`."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = x.mean((1, 2, 3))[:, None] > self.least
        return torch.where(bright, x.mean((2, 3)), torch.full((1, 3), torch.nan))


def blind(path: Path, least: float) -> str:
    """The extractor of that network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.script and save are deprecated
        torch.jit.script(Blind(least)).save(str(path))
    return f"torchscript:{path}"


def test_features_that_are_not_finite_are_counted_and_none_at_all_is_an_error(
    ray_cluster: None, tmp_path: Path, codec_folder: Path
) -> None:
    images = make_images(tmp_path / "images", count=24)
    foreign(tmp_path / "impa", "taxol", 5)
    (tmp_path / "impa" / "taxol" / "dark.png").write_bytes(
        encode_png(np.eye(16, dtype=np.uint8)[None].repeat(3, 0))
    )
    values: dict[str, Any] = settings(tmp_path / "run", images, codec_folder, max_steps=1, sample_every=None)
    values["generation"] |= {"n": 6}
    methods = {"impa": {"images": str(tmp_path / "impa")}}
    values["evaluation"] = {"n": 3, "methods": methods, "repeats": 2}
    values["evaluation"]["extractor"] = blind(tmp_path / "blind.pt", 5)
    run_train(run_of(values))
    run_evaluate(run_of(values))
    page = (tmp_path / "run/evaluation/report.html").read_text()
    assert "impa: 1 of 6 images are left out, whose features are not finite." in page
    values["evaluation"]["extractor"] = blind(tmp_path / "blinder.pt", 300)
    with pytest.raises(DataError, match=r"(?s)no perturbation can be measured.*are not finite"):
        run_evaluate(run_of(values))


def test_too_few_images_are_told_and_no_image_is_an_error(
    ray_cluster: None, tmp_path: Path, codec_folder: Path
) -> None:
    images = make_images(tmp_path / "images", count=4)
    values: dict[str, Any] = settings(tmp_path / "run", images, codec_folder, max_steps=1, sample_every=None)
    run_train(run_of(values))
    with pytest.raises(
        DataError, match=r"dmso, seen batches: 2 real images \(2 N are needed\) and 2 conditional"
    ):
        run_evaluate(run_of(values))
    values["evaluation"] = {"experiments": ["p7"]}
    with pytest.raises(ConfigError, match=r"evaluation.experiments: found \['p7'\], the data have p0, p1"):
        run_evaluate(run_of(values))


def test_a_method_has_one_source() -> None:
    with pytest.raises(ConfigError, match="exactly one of run, bundle and images, found none"):
        build(MethodConfig, {}, "evaluation.methods.x")
    with pytest.raises(ConfigError, match=r"found \['run', 'images'\]"):
        build(MethodConfig, {"run": "a", "images": "b"}, "evaluation.methods.x")


def test_names_are_found_by_the_originals_spelling(tmp_path: Path) -> None:
    foreign(tmp_path, "cytochalasin-b", 2)
    foreign(tmp_path, "other", 1)
    method = read_method(Storage(), "m", str(tmp_path))
    known = [Perturbation("Cytochalasin B", "compound")]
    found, unknown = with_the_datas_names(method, known)
    assert found.counts == {"Cytochalasin B": 2} and unknown == ["other"]
    with pytest.raises(DataError, match=r"found images of \['cytochalasin-b', 'other'\]"):
        with_the_datas_names(method, [Perturbation("taxol", "compound")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found no images under"):
        read_method(Storage(), "m", str(tmp_path / "empty"))


@pytest.mark.parametrize("rows", [3, 40])
def test_ranks_on_the_cluster_are_the_same(ray_cluster: None, rows: int) -> None:
    rng = np.random.default_rng(5)
    sets = [moments(rng.normal(size=(6 + k % 3, 12)).astype(np.float32)) for k in range(40)]
    found = pairwise(sets[:rows], sets, EvaluationConfig(cpus_per_actor=0.5))
    np.testing.assert_allclose(found, frechet_matrix(sets[:rows], sets), rtol=1e-6)
