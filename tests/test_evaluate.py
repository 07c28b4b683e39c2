"""`evaluate` on a real Ray: this run, a folder made elsewhere, what is left out, nothing done twice."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from morphoray import schema
from morphoray.config import EvaluationConfig, ImageConfig, MethodConfig
from morphoray.datasets.simulator.fields import draw_fields
from morphoray.datasets.simulator.phenotype import BatchEffect, Phenotype
from morphoray.errors import ConfigError, DataError, MissingObjectError
from morphoray.evaluation.cohorts import frechet_matrix, moments
from morphoray.evaluation.features import load_extractor
from morphoray.imaging.channels import MAPPINGS
from morphoray.imaging.png import decode_png, encode_png
from morphoray.perturbations.base import Perturbation
from morphoray.pipelines.cells import cell_finder
from morphoray.pipelines.encode import ReadPlan
from morphoray.pipelines.evaluate import feature_parts, run_evaluate
from morphoray.pipelines.features import measure_features
from morphoray.pipelines.image_parts import ImageParts, ImageRow
from morphoray.pipelines.layout import resolve
from morphoray.pipelines.method_images import read_method, with_the_datas_names
from morphoray.pipelines.ranks import pairwise
from morphoray.pipelines.reference import real_rows
from morphoray.pipelines.run import run_train
from morphoray.pipelines.sites import read_sites
from morphoray.sections import build
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
    foreign(tmp_path / "sizes", "taxol", 1, size=20)
    (tmp_path / "sizes/taxol/0.png").rename(tmp_path / "impa/taxol/large.png")
    values: dict[str, Any] = settings(tmp_path / "run", images, codec_folder, max_steps=1, sample_every=None)
    values["dataset"]["held_out_experiments"] = ["p1"]
    values["generation"] |= {"n": 9}
    methods = {"impa": {"images": str(tmp_path / "impa")}}
    subsets = {"kid_subset_size": 3, "kid_subsets": 5}
    values["evaluation"] |= {"n": 9, "methods": methods, "repeats": 2, "protocol": "paper"} | subsets
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
        assert rows[where, "kid", "floor", "dmso"]["mode"].endswith("-16px")
    assert (seen, "frechet", "trained", "taxol") not in rows
    assert rows[held_out, "frechet", "trained", "taxol"]["n_generated"] == 4
    assert rows[held_out, "nearest_training_ratio", "impa", "taxol"]["value"] > 0
    quarantine = Storage().read_table(str(out / "quarantine.parquet")).to_pylist()
    reasons = {Path(row["uri"]).name: row["reason"] for row in quarantine if "broken" in row["uri"]}
    assert "not an image" in reasons["broken.png"]
    assert any("expected (3, 16, 16) as most have" in row["reason"] for row in quarantine)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "impa: the data have no such perturbations: unheard-of" in page
    assert "impa: 1 files are left out" in page and "taxol/notes.txt" in page
    assert "for want of real images" in page and "In the paper&#x27;s form" in page
    features = {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.parquet")}
    capsys.readouterr()
    run_evaluate(run_of(values))
    assert features == {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.parquet")}
    assert "features  " not in capsys.readouterr().out
    for name in ("broken", "large"):
        (tmp_path / "impa" / "taxol" / f"{name}.png").unlink()
    run_evaluate(run_of(values))
    assert not (out / "quarantine.parquet").exists(), "it told of images that are gone"


def test_folders_made_elsewhere_are_compared_without_a_model_of_ones_own(
    ray_cluster: None, tmp_path: Path, codec_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images", count=32)
    for method, names in {"impa": ("DMSO", "taxol"), "phendiff": ("dmso", "taxxol")}.items():
        for name in names:
            foreign(tmp_path / method, name, 6)
    values: dict[str, Any] = settings(tmp_path / "run", images, codec_folder, max_steps=1, sample_every=None)
    methods = {name: {"images": str(tmp_path / name)} for name in ("impa", "phendiff")}
    values["evaluation"] |= {"n": 4, "repeats": 2, "own_model": False, "methods": methods}
    report = run_evaluate(run_of(values))
    told = capsys.readouterr().out
    assert "evaluate: phendiff: the data have no such perturbations: taxxol (taxol?)." in told
    assert "evaluate: taxol is left out: no images of phendiff." in told
    assert not (tmp_path / "run" / "bundle").exists() and not (tmp_path / "run" / "images").exists()
    table = Storage().read_table(str(tmp_path / "run" / "evaluation" / "metrics.parquet")).to_pylist()
    methods_found = {row["method"] for row in table if row["metric"] == "frechet"}
    assert {"impa", "phendiff", "floor"} <= methods_found and not {"conditional", "codec"} & methods_found
    page = Path(report).read_text(encoding="utf-8")
    assert "taxol (no images of phendiff)" in page and "reconstructed" not in page
    with pytest.raises(ConfigError, match=r"without own_model expected methods, such as \{impa"):
        run_of(values, "evaluation.methods={}")


def test_a_driver_keeps_the_features_once(tmp_path: Path) -> None:
    """Of parts that are there: neither their tables nor what Arrow allocated for them stay."""
    settings_, count, width = EvaluationConfig(), 4000, 1280
    plan = ReadPlan(ImageConfig(), MAPPINGS["rgb"], 1, 0)
    store = ImageParts("features", Storage(), str(tmp_path), settings_, 500, Storage(), plan, "test")
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
    tables = measure_features(store, rows)
    held = psutil.Process().memory_info().rss - before
    assert list(tables) == ["a", "b"]
    for table in tables.values():
        assert table.features.shape == (count // 2, width)
        assert table.items[7] == "7" and (table.features[7] == 7).all()
    assert held < 2 * 4 * count * width


def simulated_folders(folder: Path, real: int, made: int) -> tuple[Path, Path]:
    """An imagefolder of simulated fields on two plates, and a folder of others as a method makes them."""
    treatments = {
        "dmso": Phenotype(),
        "large": Phenotype(nuclear_area=1.8),
        "bright": Phenotype(tubulin_intensity=2.0),
    }
    train, method, lines = folder / "images" / "train", folder / "method", []
    train.mkdir(parents=True)
    for name, phenotype in treatments.items():
        count = real + made
        keys = [("evaluate", name, number) for number in range(count)]
        fields = draw_fields(
            [phenotype] * count, [BatchEffect()] * count, 96, 3, keys=keys, nucleus_diameter_px=18
        ).images
        (method / name).mkdir(parents=True)
        for number, field in enumerate(fields):
            if number < real:
                file = f"{name}-{number}.png"
                (train / file).write_bytes(encode_png(field))
                lines.append({"file_name": file, "additional_feature": name, "plate": f"p{number % 2}"})
            else:
                (method / name / f"{number}.png").write_bytes(encode_png(field))
    (train / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "images", method


def test_profiles_are_measured_once_and_cells_are_cut_alike(
    ray_cluster: None, tmp_path: Path, codec_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, method = simulated_folders(tmp_path, real=8, made=4)
    (method / "large" / "broken.png").write_bytes(b"no image")
    values: dict[str, Any] = settings(tmp_path / "run", images, codec_folder, max_steps=1, sample_every=None)
    values["image"] = {"resolution": 96, "fit": "crop"}
    values["evaluation"] |= {
        "n": 4,
        "repeats": 2,
        "methods": {"simulated": {"images": str(method)}},
        "segmentation": {"nuclei": "blue", "cell_body": ["green", "red"], "nucleus_diameter_px": 18},
        "profiles": {"n": 8, "controls": 4, "families": ["sizeshape", "intensity"], "umap": False},
    }
    run_train(run_of(values))
    run_evaluate(run_of(values))
    out = tmp_path / "run" / "evaluation"
    rows = Storage().read_table(str(out / "metrics.parquet")).to_pylist()
    found = {(row["metric"], row["method"], row["perturbation_id"]): row for row in rows}
    row = found["profile_correlation", "simulated", "large"]
    assert (row["n_real"], row["n_generated"]) == (4, 4) and row["extractor"].startswith("cellprofiler@")
    assert row["value"] > 0.3 and row["mode"] == "image means, real controls of each plate"
    assert found["cell_count", "conditional", "large"]["n_generated"] == 2
    table = Storage().read_table(str(out / "profiles.parquet")).to_pandas()
    counts = table.groupby(["Metadata_source", "Metadata_perturbation_id"]).size()
    assert counts["real", "large"] == 8 and counts["simulated", "large"] == 4, "the broken one is left out"
    real = table[table["Metadata_source"] == "real"]
    assert set(real["Metadata_plate"]) == {f"{name}/{name}" for name in ("p0", "p1")}
    assert real["Metadata_cell_count"].min() > 0 and real["Nuclei_AreaShape_Area"].notna().all()
    assert table[table["Metadata_source"] != "real"]["Metadata_plate"].isna().all()
    assert "What the cells look like" in (out / "report.html").read_text(encoding="utf-8")
    assert len(Storage().read_table(str(out / "quarantine.parquet"))) == 1, "told once"
    parts = {path: path.stat().st_mtime_ns for path in (out / "measurements").rglob("*.parquet")}
    measured = [path for path in parts if path.parent.name != "quarantine"]
    assert len(measured) == 4, "16 and 8 real images, 6 and 13 of methods"
    capsys.readouterr()
    run_evaluate(run_of(values, "evaluation.profiles.normalise_by=null"))
    assert parts == {path: path.stat().st_mtime_ns for path in (out / "measurements").rglob("*.parquet")}
    assert "profiles  " not in capsys.readouterr().out

    config = resolve(run_of(values, "evaluation.cells={size: 24}"))
    sites = read_sites(config)
    cells = cell_finder(config, sites)
    assert cells is not None and cells.mode.startswith("cells-24px-")
    storage = Storage()
    extractor = load_extractor(config.evaluation.extractor, storage=storage)
    stored = feature_parts(config, storage, extractor, cells, str(out))
    chosen = [row for row in real_rows(config, sites, ["large"], 8) if row.origin == "real/seen"]
    cut = measure_features(stored, chosen, cells)["real/seen"]
    of_codec = [replace(row, origin="codec") for row in chosen]
    coded = measure_features(stored, of_codec, cells, codec_of=config)["codec"]
    assert len(cut.items) > 8 and list(cut.items) == list(coded.items), "row by row, at the same places"
    assert not np.array_equal(cut.features, coded.features)
    (tmp_path / "black.png").write_bytes(encode_png(np.zeros((3, 96, 96), np.uint8)))
    black = ImageRow("black", "large", "", "black.png", "file", {"uri": str(tmp_path / "black.png")})
    assert measure_features(stored, [black], cells)["black"].of("large").shape == (0, extractor.width)
    first = Storage().read_bytes(chosen[0].row["channel_uris"][0])
    crops = cells.cut(decode_png(first), cells.places(decode_png(first)))
    mine = [item.startswith(f"{chosen[0].item}#") for item in cut.items]
    np.testing.assert_allclose(cut.features[mine], extractor(crops), rtol=1e-4, atol=1e-4)


def test_segmentation_must_fit_the_images(tmp_path: Path, codec_folder: Path) -> None:
    images = make_images(tmp_path / "images", count=4)
    values: dict[str, Any] = settings(tmp_path / "run", images, codec_folder)
    with pytest.raises(ConfigError, match="profiles and cells need segmentation"):
        run_of(values | {"evaluation": {"profiles": {}}})
    cases = {
        "no channels \\['dna'\\], the run's images have red, green, blue": {
            "nuclei": "dna",
            "nucleus_diameter_px": 9,
        },
        "evaluation.segmentation.radius: unknown key": {"nuclei": "blue", "radius": 9},
        "the pixel size of the run's images is unknown": {"nuclei": "blue", "nucleus_diameter_um": 9},
    }
    sites = pa.table({"pixel_size_um": pa.array([None], pa.float64())})
    for message, given in cases.items():
        section = {"segmentation": {"cell_body": ["red"], **given}, "cells": {"size": 8}}
        config = resolve(run_of(values | {"evaluation": section}))
        with pytest.raises(ConfigError, match=message):
            cell_finder(config, sites)
    section = {"segmentation": {"nuclei": "blue", "cell_body": ["red"], "nucleus_diameter_um": 9}}
    config = resolve(run_of(values | {"evaluation": section | {"cells": {"size": 8}}}))
    found = cell_finder(config, pa.table({"pixel_size_um": [0.5, 0.5]}))
    assert found is not None and found.options.nucleus_diameter_px == 18
    config = resolve(run_of(values | {"evaluation": section | {"cells": {"size": 17}}}))
    with pytest.raises(ConfigError, match="found 17 pixels, the run's images have 16"):
        cell_finder(config, sites)


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
    values["evaluation"] |= {"n": 3, "methods": methods, "repeats": 2}
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
    with pytest.raises(MissingObjectError, match=r"absent\.pt"):
        run_evaluate(run_of(values, f"evaluation.extractor=inception:{tmp_path}/absent.pt"))
    assert not (tmp_path / "run" / "images").exists()  # told before anything is generated
    with pytest.raises(
        DataError, match=r"dmso, seen batches: 2 real images of 2 fields \(2 N are needed, .*\) and 2 condit"
    ):
        run_evaluate(run_of(values))
    values["evaluation"]["experiments"] = ["p7"]
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


@pytest.mark.parametrize("rows", [3, 40])
def test_ranks_on_the_cluster_are_the_same(ray_cluster: None, rows: int) -> None:
    rng = np.random.default_rng(5)
    sets = [moments(rng.normal(size=(6 + k % 3, 12)).astype(np.float32)) for k in range(40)]
    found = pairwise(sets[:rows], sets, EvaluationConfig(cpus_per_actor=0.5))
    np.testing.assert_allclose(found, frechet_matrix(sets[:rows], sets), rtol=1e-6)
