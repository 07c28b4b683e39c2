"""Cell type and batch as conditions on a real Ray: from SITES to the images that a file asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from morphoray.imaging.png import decode_png
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.generate import known_perturbations, read_images
from morphoray.pipelines.run import run_generate, run_train
from morphoray.storage import Storage
from tinyrun import REAL_RAY, make_images, run_of, settings

pytestmark = REAL_RAY
CELLS = ("HUVEC", "U2OS")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, codec_folder: Path) -> Iterator[dict[str, Any]]:
    """24 images of two cell types in three batches, one held out; a bundle, on a cluster."""
    folder = tmp_path_factory.mktemp("run")
    images = make_images(folder / "images", 24)
    file = images / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"cell_type": CELLS[number // 2 % 2], "plate": f"p{number % 3}"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = settings(folder / "run", images, codec_folder, sample_every=None)
    made["dataset"]["held_out_experiments"] = ["p2"]
    made["perturbations"] |= {"context": ["cell_type", "experiment"], "context_dropout": 0.3}
    with connected():
        run_train(run_of(made))
        yield made


def test_a_run_with_context_from_training_to_images(values: dict[str, Any], tmp_path: Path) -> None:
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
    images = [decode_png(row["image"]) for row in (alone[0], found["taxol", "HUVEC", "p1", 0])]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1  # in another batch: rounding
    assert all(item.cell_type is item.experiment is None for item in known_perturbations(manifest))
