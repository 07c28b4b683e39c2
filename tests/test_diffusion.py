"""The denoiser's condition, the objective's randomness, the samplers and bundles."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from morphoray.config import BundleConfig
from morphoray.diffusion.bundle import Bundle, load_bundle, new_bundle, save_bundle
from morphoray.diffusion.conditioning import Denoiser, MlpProjection, PadProjection
from morphoray.diffusion.generate import ImageRequest, SamplerSettings, generate, image_seed, sample_latents
from morphoray.diffusion.objective import (
    DataOrder,
    draw_noise,
    loss_weights,
    slot_seeds,
    target,
    weighted_mse,
)
from morphoray.diffusion.presets import PRESETS, SCHEDULE, SD_UNET, SD_VAE
from morphoray.diffusion.samplers import SAMPLERS, make_sampler
from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.projection import pad_to_token


def small_unet(cross: int = 64, channels: int = 4) -> UNet2DConditionModel:
    """Stable Diffusion's block layout, scaled down."""
    torch.manual_seed(0)
    values = SD_UNET | {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": [16, 32, 32, 32],
        "cross_attention_dim": cross,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "layers_per_block": 1,
    }
    return UNet2DConditionModel.from_config(values)


@pytest.fixture(scope="module")
def bundle(codec_folder: Path) -> Bundle:
    made = new_bundle(
        BundleConfig(preset="tiny", vae=str(codec_folder)),
        64,
        12,
        {"kind": "mlp", "tokens": 2, "hidden": 16},
        seed=3,
    )
    made.denoiser.eval()
    return made


@pytest.mark.parametrize("tokens", [77, 512])
def test_identical_tokens_predict_what_one_token_does(tokens: int) -> None:
    unet = small_unet(768).eval()
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    token = torch.randn(2, 1, 768, generator=generator)
    timesteps = torch.tensor([20, 700])
    with torch.inference_mode():
        one = unet(latents, timesteps, token).sample
        many = unet(latents, timesteps, token.expand(-1, tokens, -1)).sample
        other = unet(latents, timesteps, -token).sample
    assert (one - many).abs().max() < 1e-5
    # The condition does reach the output: the comparison above could fail.
    assert (one - other).abs().max() > 1e-3


def test_pad_projection_is_the_papers() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 173)).astype(np.float32)
    tokens = PadProjection(173, 768)(torch.from_numpy(vectors))
    assert tokens.shape == (3, 1, 768)
    np.testing.assert_array_equal(tokens[:, 0].numpy(), pad_to_token(vectors, 768))
    assert (tokens[:, 0, :297] == 1).all()
    assert (tokens[:, 0, 297 + 173 :] == 1).all()


def test_pad_projection_refuses_a_vector_that_is_too_wide() -> None:
    with pytest.raises(ConfigError, match="projection: mlp"):
        PadProjection(1000, 768)


@pytest.mark.parametrize("projection", [PadProjection(3, 8), MlpProjection(3, 8, tokens=2, hidden=4)])
def test_dropped_conditions_do_not_depend_on_the_vector(projection: PadProjection | MlpProjection) -> None:
    drop = torch.tensor([True, False])
    first, second = (projection(torch.full((2, 3), value), drop) for value in (0.3, -2.0))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_step_noise_is_a_function_of_the_slot() -> None:
    whole = draw_noise(slot_seeds(7, 30, range(8)), (2, 4, 4), 1000, 0.5)
    half = draw_noise(slot_seeds(7, 30, range(4, 8)), (2, 4, 4), 1000, 0.5)
    for name in ("posterior", "noise", "timesteps", "drop"):
        assert torch.equal(getattr(whole, name)[4:], getattr(half, name))
    later = draw_noise(slot_seeds(7, 31, range(8)), (2, 4, 4), 1000, 0.5)
    assert not torch.equal(whole.noise, later.noise)
    assert not torch.equal(whole.noise, whole.posterior)


def test_order_takes_every_sample_once_an_epoch_whatever_the_workers() -> None:
    order, n, batch = DataOrder(1, 10), 10, 4
    slots = [order.samples(step, batch, range(batch)) for step in range(5)]
    epochs = np.concatenate(slots).reshape(2, n)
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert not np.array_equal(epochs[0], epochs[1])
    other = DataOrder(1, 10)
    split = [
        np.concatenate([other.samples(step, batch, range(2)), other.samples(step, batch, range(2, 4))])
        for step in range(5)
    ]
    np.testing.assert_array_equal(np.stack(slots), np.stack(split))


def test_targets_and_weights_by_hand() -> None:
    schedule = DDPMScheduler(num_train_timesteps=2, trained_betas=[0.2, 0.5])
    alphas = [0.8, 0.4]  # 1 - 0.2, then x (1 - 0.5)
    latents, noise = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 0.5)
    timesteps = torch.tensor([0, 1])
    assert torch.equal(target(schedule, latents, noise, timesteps), noise)
    snr = [alpha / (1 - alpha) for alpha in alphas]  # 4 and 2/3
    weights = loss_weights(schedule, timesteps, 1.0)
    torch.testing.assert_close(weights, torch.tensor([1.0 / snr[0], 1.0]))
    velocity = DDPMScheduler(num_train_timesteps=2, trained_betas=[0.2, 0.5], prediction_type="v_prediction")
    expected = torch.tensor([a**0.5 * 0.5 - (1 - a) ** 0.5 * 3.0 for a in alphas])
    torch.testing.assert_close(target(velocity, latents, noise, timesteps).flatten(), expected)
    torch.testing.assert_close(
        loss_weights(velocity, timesteps, 1.0), torch.tensor([1.0 / 5.0, (2 / 3) / (5 / 3)])
    )
    loss = weighted_mse(
        torch.zeros(2, 1, 1, 1), torch.tensor([2.0, 4.0]).view(2, 1, 1, 1), torch.tensor([1.0, 0.5])
    )
    assert loss.item() == pytest.approx((4 * 1.0 + 16 * 0.5) / 2)


def test_ddpm_step_is_equation_5() -> None:
    sampler = make_sampler("ddpm", DDPMScheduler(**SCHEDULE), 1000)
    generator = torch.Generator().manual_seed(0)
    latents, prediction = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    timestep = 500
    result = sampler.step(prediction, timestep, latents, generator=generator).prev_sample
    beta, alpha_bar = sampler.betas[timestep], sampler.alphas_cumprod[timestep]
    mean = (latents - beta / (1 - alpha_bar).sqrt() * prediction) / (1 - beta).sqrt()
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    posterior = beta * (1 - sampler.alphas_cumprod[timestep - 1]) / (1 - alpha_bar)
    torch.testing.assert_close(result, mean + posterior.sqrt() * noise, atol=1e-5, rtol=1e-5)


def requests_for(bundle: Bundle, n: int) -> list[ImageRequest]:
    vectors = np.random.default_rng(5).normal(size=(2, 12)).astype(np.float32)
    return [ImageRequest(f"p{i % 2}", vectors[i % 2], i // 2) for i in range(n)]


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_an_image_is_the_same_alone_in_a_batch_and_in_another_order(bundle: Bundle, sampler: str) -> None:
    settings = SamplerSettings(sampler=sampler, steps=4, resolution=64, seed=11, batch_size=16)
    requests = requests_for(bundle, 16)
    together = list(generate(bundle, requests, settings))
    alone = next(generate(bundle, requests[5:6], settings))
    backwards = list(generate(bundle, requests[::-1], settings))[::-1]
    # Kernels sum in another order for another batch size: at most one grey level.
    assert np.abs(together[5].astype(int) - alone.astype(int)).max() <= 1
    assert np.mean(together[5] != alone) < 0.01
    for first, second in zip(together, backwards, strict=True):
        assert np.abs(first.astype(int) - second.astype(int)).max() <= 1
    again = list(generate(bundle, requests, settings))
    assert all(np.array_equal(first, second) for first, second in zip(together, again, strict=True))
    assert not np.array_equal(together[0], together[2])  # another index is another image


def test_image_seed_depends_on_every_part_of_the_key() -> None:
    vector = np.zeros(2, np.float32)
    keys = {
        image_seed(SamplerSettings(seed=seed), ImageRequest(name, vector, index))
        for seed in (0, 1)
        for name in ("a", "b")
        for index in (0, 1)
    }
    assert len(keys) == 8


def test_guidance_of_one_is_the_plain_conditional_and_zero_the_null(bundle: Bundle) -> None:
    requests = requests_for(bundle, 2)
    other = [ImageRequest(r.perturbation_id, r.vector + 1, r.index) for r in requests]
    settings = {"sampler": "ddim", "steps": 3, "resolution": 64}
    null = [
        sample_latents(bundle, wanted, SamplerSettings(**settings, guidance_scale=0.0))
        for wanted in (requests, other)
    ]
    torch.testing.assert_close(null[0], null[1])
    plain = sample_latents(bundle, requests, SamplerSettings(**settings))
    guided = sample_latents(bundle, requests, SamplerSettings(**settings, guidance_scale=3.0))
    assert not torch.allclose(plain, guided)


def test_bundle_round_trip_keeps_raw_and_averaged_weights(bundle: Bundle, tmp_path: Path) -> None:
    ema = {name: value * 0.5 for name, value in bundle.denoiser.state_dict().items()}
    made = save_bundle(bundle, ema, tmp_path / "b")
    assert not list((tmp_path / "b").rglob("*.bin")) + list((tmp_path / "b").rglob("*.pt"))
    raw, averaged = (load_bundle(tmp_path / "b", which) for which in ("unet", "unet_ema"))
    for name, value in bundle.denoiser.state_dict().items():
        assert torch.equal(raw.denoiser.state_dict()[name], value)
        assert torch.equal(averaged.denoiser.state_dict()[name], value * 0.5)
    assert raw.fingerprint == averaged.fingerprint == made
    changed = load_file(tmp_path / "b" / "vae" / "diffusion_pytorch_model.safetensors")
    assert changed
    json.loads((tmp_path / "b" / "morphoray.json").read_text())


def test_a_folder_of_the_original_project_loads_and_samples(tmp_path: Path) -> None:
    """vae, unet, unet_ema and scheduler as Stable Diffusion v1-4 lays them out, scaled down."""
    torch.manual_seed(2)
    small_unet(64).save_pretrained(tmp_path / "unet")
    averaged = small_unet(64)
    torch.nn.init.zeros_(averaged.conv_out.weight)
    averaged.save_pretrained(tmp_path / "unet_ema")
    vae = SD_VAE | {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
    AutoencoderKL.from_config(vae).save_pretrained(tmp_path / "vae")
    (tmp_path / "scheduler").mkdir()
    scheduler = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.2.2",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    loaded = load_bundle(tmp_path, vector_width=20)
    assert loaded.scaling_factor == pytest.approx(0.18215)
    assert (loaded.denoiser.unet.conv_out.weight == 0).all()  # unet_ema, not unet
    settings = SamplerSettings(steps=2, resolution=64)
    image = next(generate(loaded, [ImageRequest("s1", np.zeros(20, np.float32), 0)], settings))
    assert image.shape == (3, 64, 64)
    assert image.dtype == np.uint8
    shutil.rmtree(tmp_path / "unet_ema")
    assert (load_bundle(tmp_path).denoiser.unet.conv_out.weight != 0).any()  # falls back to unet


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    small_unet(64).save_pretrained(tmp_path / "unet", safe_serialization=False)
    with pytest.raises(DataError, match="pickles are never executed"):
        load_bundle(tmp_path)


def test_sd_preset_is_stable_diffusion_v1_4() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(PRESETS["sd"].unet)
        vae = AutoencoderKL.from_config(PRESETS["sd"].vae)
    # The published parameter counts of v1-4's UNet and VAE.
    assert sum(value.numel() for value in unet.parameters()) == 859_520_964
    assert sum(value.numel() for value in vae.parameters()) == 83_653_863
    assert Denoiser(unet, PadProjection(512, 768)).projection.left == 128
