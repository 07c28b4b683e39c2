"""The shipped denoiser: what it learns from, its job, and a model that starts from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from morphoray.config import SHIPPED, BundleConfig
from morphoray.datasets.simulator.phenotype import PARAMETERS, Phenotype
from morphoray.diffusion.bundle import new_bundle
from morphoray.errors import ConfigError
from morphoray.pipelines.entry import run_job
from morphoray.pipelines.start import parse_start_run, run_start
from morphoray.training.codec_data import BankField, draw_bank_fields
from morphoray.training.start_data import WIDTH, phenotype_vector, start_crops

MLP = {"kind": "mlp", "tokens": 1, "hidden": 8}


@pytest.fixture(scope="module")
def fields() -> list[BankField]:
    return draw_bank_fields(6, seed=5, size=128)


def test_a_phenotype_is_its_place_in_the_ranges() -> None:
    vector = dict(zip(PARAMETERS, phenotype_vector(Phenotype()), strict=True))
    assert vector["nucleoli"] == pytest.approx(0.0)  # 0.5 in 0..1
    low, high = PARAMETERS["cell_count"].low, PARAMETERS["cell_count"].high
    assert vector["cell_count"] == pytest.approx(2 * np.log(1 / low) / np.log(high / low) - 1)
    assert all(-1 <= value <= 1 for value in vector.values())


def test_crops_are_functions_of_seed_and_index(fields: list[BankField]) -> None:
    first = list(start_crops(fields, 24, 64, seed=1))
    again = list(start_crops(fields, 12, 64, seed=1))
    for (image, condition), (other, same) in zip(again, first, strict=False):
        assert np.array_equal(image, other) and np.array_equal(condition, same)
    assert all(image.shape == (3, 64, 64) and image.dtype == np.uint8 for image, _ in first)
    conditions = np.stack([condition for _, condition in first])
    assert conditions.shape == (24, WIDTH) and conditions.dtype == np.float32
    three = conditions[:, len(PARAMETERS)]
    assert {0.0, 1.0} == set(three.tolist())
    look = conditions[:, -5:]
    assert not look[three == 0].any() and look[three == 1].all()


def test_a_model_starts_from_the_shipped_denoiser() -> None:
    config = BundleConfig(preset="tiny", source=SHIPPED)
    first, second = (new_bundle(config, 64, 9, MLP, seed) for seed in (0, 1))
    fresh = new_bundle(BundleConfig(preset="tiny"), 64, 9, MLP, 0)
    name = "down_blocks.0.resnets.0.conv1.weight"
    weights = [bundle.denoiser.unet.state_dict()[name] for bundle in (first, second, fresh)]
    assert weights[0].dtype == torch.float32
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert (
        first.denoiser.unet.config["block_out_channels"] == fresh.denoiser.unet.config["block_out_channels"]
    )
    assert first.schedule.config.prediction_type == "v_prediction"


def test_only_the_tiny_preset_has_a_shipped_start() -> None:
    with pytest.raises(ConfigError, match="ships a start for preset tiny, not for small"):
        new_bundle(BundleConfig(preset="small", source=SHIPPED), 64, 9, MLP, 0)


def test_another_autoencoder_is_refused(tiny_bundle: Path) -> None:
    config = BundleConfig(preset="tiny", source=SHIPPED, vae=str(tiny_bundle / "vae"))
    with pytest.raises(ConfigError, match="takes 12 latent channels, the autoencoder has 4"):
        new_bundle(config, 64, 9, MLP, 0)


def test_the_job_writes_a_start_and_says_when_it_is_finished(tmp_path: Path) -> None:
    text = f"""
run_dir: {tmp_path}
fields: 6
crops: 8
resolution: 32
training: {{max_steps: 2, batch_size: 4, checkpoint_every: 1}}
"""
    start = Path(run_start(parse_start_run(text, "test", [])))
    card = json.loads((start / "card.json").read_text())
    assert card["images_seen"] == 8 and card["parameters"] > 1e6
    assert "8 images seen" in (start / "CARD.md").read_text()
    written = (start / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert run_start(parse_start_run(text, "test", [])) == str(start)
    assert (start / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == written
    (start / "card.json").unlink()  # stopped after the last checkpoint, before the card
    run_start(parse_start_run(text, "test", []))
    assert "not recorded" in (start / "CARD.md").read_text()
    bundle = new_bundle(BundleConfig(preset="tiny", source=str(start)), 32, 9, MLP, 0)
    assert next(bundle.denoiser.unet.parameters()).dtype == torch.float32


def test_a_remote_run_dir_is_refused() -> None:
    with pytest.raises(ConfigError, match="trained in a local folder"):
        run_start(parse_start_run("run_dir: s3://bucket/start", "test", []))


def test_a_job_script_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "start.yaml"
    file.write_text("{run_dir: x, training: {steps: 3}}")
    assert run_job("text", parse_start_run, run_start, ["--config", str(file)]) == 1
    assert "training.steps: unknown key" in capsys.readouterr().err
    assert run_job("text", parse_start_run, run_start, ["--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: there is no such file" in capsys.readouterr().err
    assert run_job("text", parse_start_run, run_start, ["--config", str(tmp_path)]) == 1
    assert "it is a folder, expected a file" in capsys.readouterr().err
    file.write_text("run_dir: x")
    assert run_job("text", parse_start_run, run_start, ["--config", str(file), "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["run_dir"] == "x"
