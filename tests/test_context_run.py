"""Cell type and batch as conditions on a real Ray: from SITES to images, by latents or streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from morphoray.pipelines.cluster import connected
from morphoray.pipelines.conditions import fit_conditions
from morphoray.pipelines.generate import known_perturbations, read_images
from morphoray.pipelines.run import run_encode, run_generate, run_import, run_train
from morphoray.pipelines.train import manifest_of
from morphoray.storage import Storage
from tinyrun import REAL_RAY, losses, make_images, run_of, settings

pytestmark = REAL_RAY
CELLS = ("HUVEC", "U2OS")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, codec_folder: Path) -> Iterator[dict[str, Any]]:
    """24 images of two cell types in three batches, one held out; the latents encoded, on a cluster."""
    folder = tmp_path_factory.mktemp("run")
    images = make_images(folder / "images", 24)
    file = images / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"cell_type": CELLS[number // 2 % 2], "plate": f"p{number % 3}"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = settings(folder / "run", images, codec_folder, sample_every=None)
    made["data_dir"] = str(folder / "data")
    made["dataset"]["held_out_experiments"] = ["p2"]
    made["perturbations"] |= {"context": ["cell_type", "experiment"], "context_dropout": 0.3}
    with connected():
        run_encode(run_of(made))
        yield made


def test_a_run_with_context_from_training_to_images(values: dict[str, Any], tmp_path: Path) -> None:
    run_train(run_of(values))
    run = Path(values["run_dir"])
    manifest = json.loads((run / "bundle" / "morphoray.json").read_text())
    levels = {"cell_type": ["HUVEC", "U2OS"], "experiment": ["p0", "p1"]}
    assert manifest["condition"]["context"] == levels
    assert manifest["projection"]["vector_width"] == 1 + 4
    table = "perturbation_id,cell_type,experiment\n"
    asked = ["taxol,,", "taxol,U2OS,", "taxol,HUVEC,p1", "taxol,HUVEC,p2", "dmso,HUVEC,p1"]
    (tmp_path / "ask.csv").write_text(table + "\n".join(asked))
    config = run_of(values, "generation.format=png")
    out = tmp_path / "out"
    summary = run_generate(config, str(run / "bundle"), str(out), str(tmp_path / "ask.csv"))
    assert (summary.images, summary.quarantined) == (8, 1)
    (bad,) = pq.read_table(out / "quarantine.parquet").to_pylist()
    assert bad["item"] == "taxol" and "experiment 'p2': unknown" in bad["reason"]
    assert "p0, p1" in bad["reason"]
    rows = read_images(Storage(), str(out)).to_pylist()
    found = {(r["perturbation_id"], r["cell_type"], r["experiment"], r["index"]): r for r in rows}
    contexts = [(None, None), ("U2OS", None), ("HUVEC", "p1")]
    taxol = [found["taxol", *context, 0] for context in contexts]
    assert len({row["image"] for row in taxol}) == 3
    assert len({row["seed"] for row in taxol}) == 1  # they start from the same noise
    for place in ("taxol", "taxol/cell_type%3DU2OS", "taxol/cell_type%3DHUVEC/experiment%3Dp1"):
        assert sorted(path.name for path in (out / "png" / place).glob("*.png")) == [
            "00000.png",
            "00001.png",
        ]
    # Alone in its file it is the same image, and the known perturbations are in no context.
    (tmp_path / "one.csv").write_text(table + asked[2])
    run_generate(config, str(run / "bundle"), str(tmp_path / "one"), str(tmp_path / "one.csv"))
    alone = read_images(Storage(), str(tmp_path / "one")).to_pylist()
    assert alone[0]["image"] == found["taxol", "HUVEC", "p1", 0]["image"]
    assert all(item.cell_type is item.experiment is None for item in known_perturbations(manifest))


def test_two_workers_have_the_losses_of_one(values: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        made = values | {"run_dir": str(tmp_path / str(workers))}
        run_train(run_of(made, f"training.num_workers={workers}", "training.batch_size=7"))
        found.append(list(losses(tmp_path / str(workers)).values()))
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_stream_brings_the_context(values: dict[str, Any], tmp_path: Path) -> None:
    made = values | {"run_dir": str(tmp_path / "run")}
    overrides = ["mode=stream", "cpus_per_worker=0.5"]
    config = run_of(made, *(f"training.{each}" for each in overrides), "encode.cpus_per_actor=0.5")
    run_train(config)
    manifest = json.loads((tmp_path / "run" / "bundle" / "morphoray.json").read_text())
    assert manifest["condition"]["context"]["cell_type"] == ["HUVEC", "U2OS"]


def test_a_run_without_context_says_nothing_of_it(values: dict[str, Any], tmp_path: Path) -> None:
    made = values | {"run_dir": str(tmp_path / "run"), "perturbations": {"encoder": "constant"}}
    config = run_import(run_of(made))
    conditions = fit_conditions(config)
    assert manifest_of(config, conditions)["condition"].keys() == {"encoder", "state"}
    stored = json.loads((tmp_path / "run" / "conditions" / "conditions.json").read_text())
    assert stored.keys() == {"encoder", "state", "vectors", "width"}
    told = (tmp_path / "run" / "conditions" / "settings.json").read_text()
    assert "context" not in told
    assert conditions.without_context("taxol").tobytes() == conditions.vectors["taxol"].tobytes()
