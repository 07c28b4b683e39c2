"""Models of five and six channels on a real Ray: they train, generate, are drawn and measured."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pytest
from PIL import Image

from morphoray.config import RunConfig
from morphoray.diffusion.codec import CodecConfig, build_codec, save_codec
from morphoray.imaging.channels import bundle_mapping
from morphoray.imaging.png import decode_channels, decode_png
from morphoray.pipelines.evaluate import run_evaluate
from morphoray.pipelines.generate import load, read_images, read_manifest
from morphoray.pipelines.run import run_everything, run_generate
from morphoray.storage import Storage
from tinyrun import REAL_RAY, run_of

pytestmark = REAL_RAY
CHANNELS = {5: ("dna", "er", "rna", "agp", "mito"), 6: ("nuclei", "er", "actin", "rna", "mito", "golgi")}


def run_config(folder: Path, channels: int, **sections: dict[str, Any]) -> RunConfig:
    codec = build_codec(
        CodecConfig(
            image_channels=channels, latent_channels=8, block_out_channels=(8, 8, 8, 16), norm_num_groups=8
        )
    )
    save_codec(codec, folder / "vae")
    values = {
        "run_dir": str(folder / "run"),
        "dataset": {
            "name": "simulated",
            "channels": channels,
            "perturbations": ["caffeine"],
            "held_out_perturbations": [],
            "experiments": 1,
            "held_out_experiments": 0,
            "wells_per_perturbation": 1,
            "sites_per_well": 6,
            "size": 64,
        },
        "image": {"mapping": "identity", "resolution": 32, "fit": "crop"},
        "perturbations": {"encoder": "constant", "projection": "mlp", "hidden": 8},
        "bundle": {"preset": "tiny", "vae": str(folder / "vae")},
        "encode": {"batch_size": 4},
        "training": {"max_steps": 2, "batch_size": 4, "checkpoint_every": 2, "sample_every": 2},
        "generation": {"sampler": "ddim", "steps": 2, "n": 4, "batch_size": 4, "format": "png"},
        "evaluation": {"extractor": "efficientnet_lite0", "n": 3},
    }
    return run_of({**values, **sections})


@pytest.mark.parametrize("channels", [5, 6])
def test_a_model_of_real_channels_trains_and_generates(
    ray_cluster: None, tmp_path: Path, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config, names = run_config(tmp_path, channels), CHANNELS[channels]
    grid = run_everything(config)
    assert f"channels: {names[0]} #1300f9, er #2aff1f" in capsys.readouterr().out
    for picture in (Path(grid), tmp_path / "run/samples/step-00000002.png"):
        assert decode_png(picture.read_bytes()).shape[0] == 3
        with Image.open(picture) as image:
            assert image.text["Channels"].startswith(f"{names[0]} #1300f9, er ")
    bundle = str(tmp_path / "run" / "bundle")
    manifest = read_manifest(Storage(), bundle)
    assert manifest["channels"] == list(names)
    assert bundle_mapping(manifest).inputs == bundle_mapping(manifest).outputs == names
    assert load(Storage(), bundle).vae.config.in_channels == channels
    out = str(tmp_path / "out")
    run_generate(config, bundle, out, None)
    stored = read_images(Storage(), out, "caffeine")["image"].to_pylist()
    assert len(stored) == 4
    image, found = decode_channels(stored[3])
    assert found == names and image.shape == (channels, 32, 32)
    files = sorted((tmp_path / "out" / "png" / "caffeine").glob("00003_*"))
    assert [file.name for file in files] == [f"00003_w{k + 1}_{name}.png" for k, name in enumerate(names)]
    planes = [decode_png(file.read_bytes()) for file in files]
    np.testing.assert_array_equal(np.concatenate(planes), image)


def test_an_evaluation_of_five_channels_tells_each_of_them(ray_cluster: None, tmp_path: Path) -> None:
    config = run_config(tmp_path, 5)
    run_everything(config)
    report = run_evaluate(config)
    out = tmp_path / "run" / "evaluation"
    rows = pyarrow.csv.read_csv(out / "metrics.csv").to_pylist()
    labels = {row["extractor"].partition("@")[0] for row in rows if row["metric"] == "frechet"}
    assert labels == {
        "efficientnet_lite0[dna+er+rna+agp+mito]",
        *(f"efficientnet_lite0[{name}]" for name in CHANNELS[5]),
    }
    for method in ("conditional", "codec", "floor"):
        whole, *alone = (
            row["value"]
            for row in rows
            if (row["metric"], row["method"], row["perturbation_id"]) == ("frechet", method, "caffeine")
        )
        assert len(alone) == 5 and all(value > 0 for value in alone)
        # Means and traces add over columns; only the last trace, of the square root, does not.
        assert 0.5 * sum(alone) < whole < 2 * sum(alone)
    assert r"efficientnet_lite0\[agp\]: conditional model" in (out / "report.md").read_text()
    assert "dna #1300f9, er #2aff1f" in Path(report).read_text()
    assert decode_png((out / "montage.png").read_bytes()).shape[0] == 3


def test_one_channel_of_six(ray_cluster: None, tmp_path: Path) -> None:
    image = {"mapping": ["mito"], "resolution": 32, "fit": "crop"}
    dataset = run_config(tmp_path, 1).dataset.model_dump() | {"channels": 6}
    run_everything(run_config(tmp_path, 1, image=image, dataset=dataset))
    manifest = json.loads((tmp_path / "run/bundle/morphoray.json").read_text())
    assert manifest["channels"] == ["mito"]
    part = next((tmp_path / "run/samples").glob("final-*/parts/*.parquet"))
    data = read_images(Storage(), str(part.parents[1]))["image"].to_pylist()[0]
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.mode == "L"
    names = {file.name for file in part.parents[1].glob("png/caffeine/*")}
    assert names == {f"{number:05d}.png" for number in range(4)}
