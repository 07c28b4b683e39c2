"""`evaluate` on a real Ray: this run, a folder made elsewhere, what is left out, nothing done twice."""

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from morphoray import schema
from morphoray.config import EvaluationConfig, ImageConfig, MethodConfig, build
from morphoray.errors import ConfigError, DataError
from morphoray.imaging.channels import MAPPINGS
from morphoray.imaging.png import encode_png
from morphoray.perturbations.base import Perturbation
from morphoray.pipelines.encode import ReadPlan
from morphoray.pipelines.evaluate import run_evaluate
from morphoray.pipelines.features import FeatureStore, ImageRow
from morphoray.pipelines.method_images import read_method, with_the_datas_names
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


def test_a_run_and_a_foreign_folder_are_measured_once(
    ray_cluster: None, tmp_path: Path, codec_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images", count=48)
    foreign(tmp_path / "impa", "DMSO", 10)
    foreign(tmp_path / "impa", "taxol", 10)
    foreign(tmp_path / "impa", "unheard-of", 1)
    (tmp_path / "impa" / "taxol" / "broken.png").write_bytes(b"no image")
    foreign(tmp_path / "impa" / "sizes", "taxol", 1, size=20)
    values: dict[str, Any] = settings(tmp_path / "run", images, codec_folder, max_steps=1, sample_every=None)
    values["generation"] |= {"n": 9}
    values["evaluation"] = {"n": 9, "methods": {"impa": {"images": str(tmp_path / "impa")}}, "repeats": 2}
    config = run_of(values)
    run_train(config)
    report = run_evaluate(config)
    out = tmp_path / "run" / "evaluation"
    assert report == str(out / "report.html")
    table = schema.conform(Storage().read_table(str(out / "metrics.parquet")), schema.METRICS, "metrics")
    rows = {(r["metric"], r["method"], r["perturbation_id"]): r for r in table.to_pylist()}
    for metric in ("frechet", "kid", "rank"):
        for method in ("conditional", "impa"):
            assert np.isfinite(rows[metric, method, "taxol"]["value"])
    assert rows["frechet", "copy_control", "taxol"]["n_generated"] == 9
    assert ("frechet", "copy_control", "dmso") not in rows  # nothing else is a control
    assert rows["frechet", "floor", "dmso"]["n_real"] == 9
    quarantine = Storage().read_table(str(out / "quarantine.parquet")).to_pylist()
    reasons = {Path(row["uri"]).name: row["reason"] for row in quarantine if "broken" in row["uri"]}
    assert "not an image" in reasons["broken.png"]
    assert any("expected (3, 16, 16) as most have" in row["reason"] for row in quarantine)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "impa: 1 perturbations that the data don&#x27;t have: unheard-of" in page
    features = {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.parquet")}
    capsys.readouterr()
    run_evaluate(run_of(values))
    assert features == {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.parquet")}
    assert "features  " not in capsys.readouterr().out


def test_a_driver_keeps_the_features_once(tmp_path: Path) -> None:
    """Of parts that are there: neither their tables nor what Arrow allocated for them stay."""
    settings_, count, width = EvaluationConfig(features_per_part=500), 4000, 1280
    plan = ReadPlan(ImageConfig(), MAPPINGS["rgb"], 1, 0)
    store = FeatureStore(Storage(), str(tmp_path), settings_, Storage(), plan, "test")
    rows = [
        ImageRow(origin, "taxol", "e", str(n), "file", {"uri": ""})
        for origin in "ab"
        for n in range(count // 2)
    ]
    for part in store.parts(rows):
        names = {name: [row[name] for row in part["rows"]] for name in ("origin", "perturbation_id", "item")}
        values = np.array([float(row["item"]) for row in part["rows"]], np.float32).repeat(width)
        columns = {**names, "experiment": ["e"] * len(part["rows"])}
        columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
        table = schema.conform(pa.table(columns), schema.features_schema(width), "features")
        Storage().write_table(str(tmp_path / f"{part['name']}.parquet"), schema.stamp(table, "test"))
    read = Storage().read_table(str(next(tmp_path.glob("*.parquet"))))
    del read, values, columns, table
    pa.default_memory_pool().release_unused()
    before = psutil.Process().memory_info().rss
    tables = store.measure(rows)
    held = psutil.Process().memory_info().rss - before
    assert list(tables) == ["a", "b"]
    for table in tables.values():
        assert table.features.shape == (count // 2, width)
        assert table.items[7] == "7" and (table.features[7] == 7).all()
    assert held < 2 * 4 * count * width


def test_too_few_images_are_told_and_no_image_is_an_error(
    ray_cluster: None, tmp_path: Path, codec_folder: Path
) -> None:
    images = make_images(tmp_path / "images", count=4)
    values: dict[str, Any] = settings(tmp_path / "run", images, codec_folder, max_steps=1, sample_every=None)
    run_train(run_of(values))
    with pytest.raises(DataError, match=r"dmso: 2 real images \(2 N are needed\) and 2 conditional"):
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
