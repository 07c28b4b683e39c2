"""The codec: the shipped weights, its latents, its losses, and a training that a kill does not change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from morphoray.config import BundleConfig, RunConfig
from morphoray.diffusion.bundle import new_bundle
from morphoray.diffusion.codec import (
    WEIGHTS,
    CodecConfig,
    build_codec,
    channel_psnr,
    decode_latents,
    encode_posterior,
    load_codec,
    normalise_latents,
    psnr,
    read_card,
    reconstruct,
    save_codec,
    scale_latents,
    to_model_range,
    to_uint8,
    widen_channels,
)
from morphoray.diffusion.codec_losses import StatisticsLoss, log_spectra, posterior_divergence, spectrum_loss
from morphoray.diffusion.codec_narrow import Narrowing, find_narrowing, narrow_codec
from morphoray.diffusion.codec_start import linear_start
from morphoray.diffusion.sources import shipped_codec
from morphoray.errors import ConfigError, DataError, FingerprintError
from morphoray.evaluation.networks import activations, efficientnet
from morphoray.imaging.png import encode_png
from morphoray.pipelines.codec import CodecRun, parse_codec_run, run_codec
from morphoray.pipelines.layout import resolve
from morphoray.pipelines.sites import import_sites
from morphoray.sections import build
from morphoray.training.codec_data import ImageCrops, SimulatedCrops, draw_bank
from morphoray.training.codec_loop import CodecTraining, calibrate, train_codec

SMALL = {"block_out_channels": (16, 20, 24, 48), "latent_channels": 8, "norm_num_groups": 2}
Bank = list[np.ndarray]


@pytest.fixture(scope="module")
def bank() -> Bank:
    return draw_bank(12, seed=123, size=128)


@pytest.fixture(scope="module")
def crops(bank: Bank) -> np.ndarray:
    """Simulated crops of a seed that no shipped codec was trained on."""
    return SimulatedCrops(bank, 64)(9, 0)


def test_shipped_codec_is_small_and_safe() -> None:
    files = {path.name for path in shipped_codec().iterdir()}
    assert files == {"config.json", WEIGHTS, "card.json", "CARD.md"}
    assert sum(path.stat().st_size for path in shipped_codec().iterdir()) <= 4_000_000
    codec = load_codec(shipped_codec())
    assert codec.dtype == torch.float32 and not codec.training
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_shipped_codec_reconstructs_simulated_crops(crops: np.ndarray) -> None:
    assert psnr(crops, reconstruct(load_codec(shipped_codec()), crops)) > 28.0


def test_shipped_codec_reconstructs_real_crops(real_data: Path) -> None:
    from morphoray.pipelines.codec import sample_images

    config = CodecRun(run_dir="unused", test_data=str(real_data), card_images=60)
    codec = load_codec(shipped_codec())
    images = sample_images(config)
    assert psnr(images["bbbc021-crops"], reconstruct(codec, images["bbbc021-crops"])) > 32.0
    fields = images["rxrx1-sample"][::16]
    card = read_card(shipped_codec())["figures"]["rxrx1-sample"]
    assert psnr(fields, reconstruct(codec, fields)) > card["psnr_db"] - 1.5


def test_shipped_latents_are_standard(crops: np.ndarray) -> None:
    codec = load_codec(shipped_codec())
    mean, std = encode_posterior(codec, crops)
    scaled = mean * codec.config.scaling_factor
    assert scaled.shape == (64, 12, 8, 8) and scaled.dtype == np.float32
    assert abs(float(scaled.std()) - 1.0) < 0.25
    assert np.all(std > 0) and float(std.mean()) < 0.2


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((shipped_codec() / "config.json").read_text())
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(DataError, match=r"found no diffusion_pytorch_model\.safetensors"):
        load_codec(tmp_path)


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (40, 72)])
def test_any_multiple_of_eight(size: tuple[int, int]) -> None:
    codec = load_codec(shipped_codec())
    images = np.random.default_rng(0).integers(0, 256, (3, 3, *size), np.uint8)
    mean, std = encode_posterior(codec, images, batch_size=2)
    assert mean.shape == std.shape == (3, 12, size[0] // 8, size[1] // 8)
    decoded = decode_latents(codec, scale_latents(codec, torch.from_numpy(mean)), batch_size=2)
    assert decoded.dtype == np.uint8 and decoded.shape == images.shape


def test_no_images_give_no_latents() -> None:
    codec = load_codec(shipped_codec())
    mean, std = encode_posterior(codec, np.zeros((0, 3, 64, 64), np.uint8))
    assert mean.shape == std.shape == (0, 12, 8, 8)
    assert decode_latents(codec, torch.from_numpy(mean)).shape == (0, 3, 64, 64)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 60, 64), np.uint8),
        np.zeros((1, 4, 64, 64), np.uint8),
        np.zeros((1, 3, 64, 64), np.float32),
        np.zeros((3, 64, 64), np.uint8),
    ],
)
def test_wrong_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \(N, 3, H, W\)"):
        encode_posterior(load_codec(shipped_codec()), images)


def test_model_range_is_exact_for_every_byte() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_model_range(levels)
    assert values.min() == -1.0 and values.max() == 1.0
    assert torch.equal(to_uint8(values), levels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_psnr_by_hand() -> None:
    images = np.zeros((2, 1, 2, 2), np.uint8)
    other = images.copy()
    other[0] += 255  # 0 dB
    other[1, 0, 0, 0] = 51  # mean squared error 51^2 / 4: 10 log10(100) = 20 dB
    assert psnr(images, other) == pytest.approx(10.0)


def test_normalising_latents_keeps_reconstructions(crops: np.ndarray) -> None:
    codec = load_codec(shipped_codec())
    mean, std = encode_posterior(codec, crops[:4])
    before = reconstruct(codec, crops[:4])
    shift, scale = torch.linspace(-1, 1, 12), torch.linspace(0.5, 2, 12)
    normalise_latents(codec, shift, scale)
    new_mean, new_std = encode_posterior(codec, crops[:4])
    expected = (mean - shift.numpy()[:, None, None]) / scale.numpy()[:, None, None]
    np.testing.assert_allclose(new_mean, expected, atol=1e-4)
    np.testing.assert_allclose(new_std, std / scale.numpy()[:, None, None], rtol=1e-3)
    assert np.abs(reconstruct(codec, crops[:4]).astype(int) - before).max() <= 1


def test_calibration_gives_unit_latents(crops: np.ndarray) -> None:
    codec = build_codec(CodecConfig(**SMALL)).eval()
    calibrate(codec, crops)
    mean, _ = encode_posterior(codec, crops)
    np.testing.assert_allclose(mean.std(axis=(0, 2, 3)), 1.0, atol=0.02)
    np.testing.assert_allclose(mean.mean(axis=(0, 2, 3)), 0.0, atol=0.02)
    assert codec.config.scaling_factor == pytest.approx(1.0, abs=0.01)


def test_divergence_by_hand() -> None:
    mean, logvar = torch.tensor([0.0, 2.0]), torch.zeros(2)
    assert posterior_divergence(mean, logvar).item() == pytest.approx(1.0)  # (0 + 2^2 / 2) / 2


def test_spectrum_measures_amplitude_and_not_phase() -> None:
    noise = 0.5 * torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    amplitudes = log_spectra(noise, 8, floor=0.0)[..., 1:4]  # without the real-valued columns
    assert amplitudes.mul(2).exp().mean().sqrt().item() == pytest.approx(0.5, rel=0.03)
    grating = torch.sin(torch.arange(32) * (2 * np.pi / 4)).expand(1, 1, 32, 32).contiguous()
    moved, flat = grating.roll(1, dims=-1), torch.zeros_like(grating)
    assert spectrum_loss(grating, grating).item() == 0.0
    assert spectrum_loss(moved, grating) < 0.1 * spectrum_loss(flat, grating)


def test_linear_start_needs_no_training(crops: np.ndarray, bank: Bank) -> None:
    codec = build_codec(CodecConfig(**SMALL | {"latent_channels": 16}))
    linear_start(codec, to_model_range(torch.from_numpy(SimulatedCrops(bank, 96)(4, 0))))
    assert psnr(crops, reconstruct(codec.eval(), crops)) > 24.0


def test_linear_start_says_when_groups_are_too_many() -> None:
    codec = build_codec(CodecConfig(image_channels=6, norm_num_groups=4))
    with pytest.raises(ConfigError, match="carry 4 values, but 6 are needed"):
        linear_start(codec, torch.zeros(4, 6, 32, 32).uniform_(-1, 1))


def test_linear_start_says_when_widths_are_equal() -> None:
    codec = build_codec(CodecConfig(block_out_channels=(16, 16, 24, 48), latent_channels=16))
    with pytest.raises(ConfigError, match="the first two, and the last two, differ"):
        linear_start(codec, torch.zeros(4, 3, 32, 32))


def test_codec_config_names_widths_that_groups_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="expected multiples of norm_num_groups=5"):
        parse_codec_run("{run_dir: x, codec: {norm_num_groups: 5}}", "test")


def short(**changes: object) -> CodecTraining:
    """Four steps that exercise every loss."""
    values = {"max_steps": 4, "batch_size": 2, "warmup_steps": 2, "texture_from": 1, "texture_ramp": 1}
    return CodecTraining(**values | {"feature_weight": 1.0, "checkpoint_every": 2, "log_every": 2} | changes)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6])
def test_one_to_six_channels_train(channels: int, bank: Bank, tmp_path: Path) -> None:
    data = SimulatedCrops(bank, 2, channels, resolution=32)
    codec = build_codec(CodecConfig(image_channels=channels, **SMALL))
    before = codec.decoder.conv_out.weight.detach().clone()
    averaged = train_codec(codec, short(max_steps=2), data, tmp_path)
    assert not torch.equal(averaged.decoder.conv_out.weight, before)
    images = data(7, 0)
    assert reconstruct(averaged, images).shape == images.shape == (2, channels, 32, 32)


def test_stopped_and_resumed_training_equals_uninterrupted(bank: Bank, tmp_path: Path) -> None:
    data = SimulatedCrops(bank, 2, resolution=32)
    whole = train_codec(build_codec(CodecConfig(**SMALL)), short(), data, tmp_path / "whole")
    train_codec(build_codec(CodecConfig(**SMALL)), short(), data, tmp_path / "parts", stop_at=2)
    killed = tmp_path / "parts" / "checkpoints" / ".step-00000003.tmp"  # what a kill while writing leaves
    killed.mkdir()
    resumed = train_codec(build_codec(CodecConfig(**SMALL)), short(), data, tmp_path / "parts")
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


def test_training_with_other_settings_is_refused(bank: Bank, tmp_path: Path) -> None:
    data = SimulatedCrops(bank, 2, resolution=32)
    train_codec(build_codec(CodecConfig(**SMALL)), short(max_steps=2), data, tmp_path)
    with pytest.raises(FingerprintError, match="Use the settings it was made with"):
        train_codec(build_codec(CodecConfig(**SMALL)), short(kl_weight=1.0), data, tmp_path)


def test_training_the_decoder_leaves_the_latents(bank: Bank, crops: np.ndarray, tmp_path: Path) -> None:
    codec = load_codec(shipped_codec()).requires_grad_(True)
    tuned = train_codec(codec, short(trainable="decoder", max_steps=2), SimulatedCrops(bank, 2), tmp_path)
    for one, other in zip(
        encode_posterior(tuned, crops[:2]),
        encode_posterior(load_codec(shipped_codec()), crops[:2]),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert not torch.equal(tuned.decoder.conv_out.weight, load_codec(shipped_codec()).decoder.conv_out.weight)


def layers_by_hand(pixels: torch.Tensor) -> list[torch.Tensor]:
    """The pixels, and the differences of neighbours along x."""
    return [pixels, pixels.diff(dim=-1)]


def test_statistics_see_grain_and_not_where_it_lies() -> None:
    rng = np.random.default_rng(0)

    def grain(count: int, amplitude: float) -> torch.Tensor:
        return torch.from_numpy(rng.normal(0, amplitude, (count, 3, 32, 32)).astype(np.float32)).clamp(-1, 1)

    loss = StatisticsLoss(layers_by_hand, 1.0, torch.cat([grain(8, a) for a in (0.05, 0.1, 0.2, 0.4)]))
    real, smooth = grain(8, 0.2), torch.zeros(8, 3, 32, 32)
    assert loss(real, real).item() == 0.0
    assert loss(grain(8, 0.2), real) < 0.4 * loss(smooth, real)
    leaf = smooth.clone().requires_grad_()
    loss(leaf + 0.01 * grain(8, 1.0), real).backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_statistics_are_scaled_by_their_deviation_over_real_images() -> None:
    levels = torch.linspace(-0.5, 0.5, 9)[:, None, None, None].expand(9, 3, 8, 8)
    loss = StatisticsLoss(lambda pixels: [pixels], 1.0, levels)
    mean = levels[:, 0, 0, 0].std() * 127.5  # of the levels' means; their deviations over positions are all 0
    scale = mean + 0.05 * mean / 2  # half of the six statistics don't vary
    expected = 0.1 * 127.5 / scale / 2
    assert loss(levels[:1] + 0.1, levels[:1]).item() == pytest.approx(expected.item(), rel=1e-4)


def test_statistics_of_each_channel_are_those_of_it_alone() -> None:
    real = torch.rand(6, 5, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    made = real[:2] * 0.7
    together = StatisticsLoss(layers_by_hand, 1.0, real)(made, real[:2])
    alone = [StatisticsLoss(layers_by_hand, 1.0, real[:, [k]])(made[:, [k]], real[:2, [k]]) for k in range(5)]
    grey = [
        StatisticsLoss(layers_by_hand, 1.0, real[:, [k, k, k]])(made[:, [k, k, k]], real[:2, [k, k, k]])
        for k in range(5)
    ]
    torch.testing.assert_close(alone, grey)
    # The scales' floor is a share of their mean, here over all channels: alike but for noise.
    assert together.item() == pytest.approx(torch.stack(alone).mean().item(), rel=0.02)


def test_training_with_statistics_and_noise_resumes_exactly(bank: Bank, tmp_path: Path) -> None:
    data = SimulatedCrops(bank, 2, resolution=32)
    settings = short(statistics_weight=1.0, statistics_crop=24, latent_noise=0.3, adversarial_weight=0)
    real = to_model_range(torch.from_numpy(SimulatedCrops(bank, 16, resolution=32)(5, 0)))
    network = efficientnet("efficientnet_lite1")[0]

    def trained(folder: str, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        statistics = StatisticsLoss(lambda pixels: activations(network, pixels), 2.0, real)
        codec = build_codec(CodecConfig(**SMALL))
        run = tmp_path / folder
        return train_codec(codec, settings, data, run, stop_at=stop_at, statistics=statistics).state_dict()

    whole = trained("whole")
    trained("parts", stop_at=2)
    for (name, one), other in zip(whole.items(), trained("parts").values(), strict=True):
        assert torch.equal(one, other), name
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["statistics"] > 0


def test_the_judge_may_not_train(tmp_path: Path) -> None:
    text = f"{{run_dir: {tmp_path}, training: {{statistics_weight: 1}}, extractor: efficientnet_lite1}}"
    with pytest.raises(ConfigError, match="not the extractor that judges"):
        run_codec(parse_codec_run(text, "test", ["data.fields=8", "init=shipped", "training.max_steps=1"]))


def test_widening_keeps_the_old_channels(crops: np.ndarray) -> None:
    wide = widen_channels(load_codec(shipped_codec()), 5)
    assert wide.config.in_channels == wide.config.out_channels == 5
    state = load_codec(shipped_codec()).state_dict()
    assert torch.equal(wide.decoder.conv_out.weight[:3], state["decoder.conv_out.weight"])
    assert torch.equal(wide.encoder.conv_in.weight[:, :3], state["encoder.conv_in.weight"])


def test_batches_are_functions_of_seed_and_step(bank: Bank) -> None:
    data = SimulatedCrops(bank, 4)
    assert np.array_equal(data(1, 5), data(1, 5))
    assert not np.array_equal(data(1, 5), data(1, 6))
    assert not np.array_equal(data(1, 5), data(2, 5))
    assert data(1, 5).dtype == np.uint8 and data(1, 5).shape == (4, 3, 64, 64)


def test_images_too_small_are_named() -> None:
    with pytest.raises(DataError, match="1 smaller than 64 px"):
        ImageCrops([np.zeros((3, 64, 64), np.uint8), np.zeros((3, 40, 64), np.uint8)], 2)


def test_psnr_of_each_channel() -> None:
    images = np.full((2, 3, 4, 4), 100, np.uint8)
    made = images.copy()
    made[:, 1] += 1
    made[:, 2] += 10
    assert channel_psnr(images, made) == [
        np.inf,
        *(pytest.approx(10 * np.log10(255**2 / e)) for e in (1, 100)),
    ]


@pytest.mark.parametrize(
    ("channels", "mapping", "names"),
    [(5, "identity", None), (2, ["mito", "dna"], None), (1, ["a"], ["a", "b", "c", "d", "e"])],
)
def test_a_codec_run_on_sites(channels: int, mapping: object, names: object, tmp_path: Path) -> None:
    options = {"channels": 5, "perturbations": ["caffeine"], "held_out_perturbations": [], "size": 64}
    options |= {"experiments": 1, "held_out_experiments": 0, "sites_per_well": 4}
    run = {"run_dir": str(tmp_path / "data"), "dataset": {"name": "simulated", **options}}
    import_sites(resolve(build(RunConfig, run, "test")))
    data = {
        "kind": "sites",
        "source": str(tmp_path / "data/sites/sites.parquet"),
        "mapping": mapping,
        "channels": names or ["dna", "er", "rna", "agp", "mito"],
        "image": {"resolution": 32, "fit": "crop"},
        "held_out": 2,
    }
    values = {
        "run_dir": str(tmp_path / "run"),
        "data": data,
        "codec": {**SMALL, "image_channels": channels},
        "training": {"max_steps": 2, "batch_size": 2, "statistics_weight": 1, "statistics_crop": 24},
        "card_images": 4,
    }
    vae = Path(run_codec(parse_codec_run(json.dumps(values), "test")))
    figures = read_card(vae)["figures"]["held_out"]
    assert len(figures["channel_psnr_db"]) == channels
    label = "+".join(str(number + 1) for number in range(channels))
    assert figures["extractor"].startswith(f"efficientnet_lite0[{label}] clean-224 ")
    del data["channels"]
    with pytest.raises(ConfigError, match=r"data\.channels: .* has 5 files a site.*Name the 5 channels"):
        run_codec(parse_codec_run(json.dumps(values | {"run_dir": str(tmp_path / "other")}), "test"))


def test_half_precision_storage_round_trips(tmp_path: Path) -> None:
    codec = load_codec(shipped_codec())
    save_codec(codec, tmp_path, half=True)
    again = load_codec(tmp_path)
    assert again.dtype == torch.float32 and codec.dtype == torch.float32
    for one, other in zip(codec.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)  # the shipped weights are float16 numbers already


def test_a_codec_run_on_a_folder_of_images(crops: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(crops[:12]):
        (folder / f"{i}.png").write_bytes(encode_png(image))
    text = f"""
run_dir: {tmp_path / "run"}
init: shipped
test_data: null
extractor: null
card_images: 4
data: {{kind: folder, source: {folder}, held_out: 4, image: {{resolution: 64}}}}
training: {{max_steps: 2, batch_size: 2, texture_from: 0}}
"""
    vae = Path(run_codec(parse_codec_run(text, "test")))
    card = read_card(vae)
    assert card["figures"]["held_out"]["psnr_db"] > 15
    assert "| held_out | 4 |" in (vae / "CARD.md").read_text()
    written = (vae / WEIGHTS).stat().st_mtime_ns
    assert run_codec(parse_codec_run(text, "test")) == str(vae)
    assert (vae / WEIGHTS).stat().st_mtime_ns == written
    assert load_codec(vae).config.latent_channels == 12


def test_a_run_narrows_the_files_that_match_and_keeps_what_it_narrowed_by(
    crops: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for i, image in enumerate(crops[:12]):
        (tmp_path / "images" / f"{'ab'[i % 2]}_{i}.png").write_bytes(encode_png(image))

    def run(name: str, init: str, *more: str) -> Path:
        text = (
            f"{{run_dir: {tmp_path / name}, init: {init}, extractor: null, card_images: 4, test_data: null}}"
        )
        data = f"data={{kind: folder, source: {tmp_path / 'images'}, files: ['a_*'], held_out: 2}}"
        training = "training={trainable: decoder, max_steps: 1, batch_size: 2, texture_from: 0}"
        words = [data, training, "codec.latent_channels=6", *more]
        return Path(run_codec(parse_codec_run(text, "test", words)))

    first = run("first", "shipped")
    by = Narrowing.load(first)
    assert by is not None and by.down.shape == (6, 12)
    assert load_codec(first).config.latent_channels == 6
    (tmp_path / "other" / "narrowing").mkdir(parents=True)  # found by another machine, with other signs
    (kept,) = (tmp_path / "first" / "narrowing").iterdir()
    turned = Narrowing(-by.down, -by.up, by.mean)
    (tmp_path / "other" / "narrowing" / kept.name).mkdir()
    turned.save(tmp_path / "other" / "narrowing" / kept.name)
    resumed = Narrowing.load(run("other", "shipped"))
    assert resumed is not None and torch.equal(resumed.down, turned.down)
    again = Narrowing.load(run("again", str(first)))
    assert again is not None and torch.equal(again.down, by.down)
    assert Narrowing.load(run("moved", str(first), "training.trainable=all")) is None
    with pytest.raises(DataError, match=r"no images of \['c_\*'\]"):
        run("none", "shipped", "data.files=[c_*]")


def test_unknown_key_of_a_codec_run_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"training.steps: unknown key.*max_steps"):
        parse_codec_run("{run_dir: x, training: {steps: 3}}", "test")


def test_a_narrowed_codec_keeps_what_the_image_depends_on(crops: np.ndarray) -> None:
    wide = load_codec(shipped_codec())
    by = find_narrowing(wide, crops, 6)
    narrow = narrow_codec(wide, by)
    latents, _ = encode_posterior(narrow, crops)
    assert latents.shape == (len(crops), 6, 8, 8) and narrow.config.scaling_factor == 1.0
    np.testing.assert_allclose(latents.std(axis=(0, 2, 3)), 1.0, atol=0.05)
    scaled = scale_latents(wide, torch.from_numpy(encode_posterior(wide, crops)[0]))
    expected = torch.einsum("kl,nlij->nkij", by.down, scaled - by.mean[:, None, None])
    np.testing.assert_allclose(latents, expected, atol=2e-3)
    inner = (slice(None), slice(None), slice(16, -16), slice(16, -16))
    few, many = (psnr(crops[inner], reconstruct(codec, crops)[inner]) for codec in (narrow, wide))
    assert 24 < few < many


def test_a_turn_of_the_latents_is_folded_exactly(crops: np.ndarray) -> None:
    codec = build_codec(CodecConfig(**SMALL)).eval()
    torch.nn.init.zeros_(codec.post_quant_conv.bias)  # with no mean either, the border sees what it saw
    codec.register_to_config(scaling_factor=0.5)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    turned = narrow_codec(codec, Narrowing(turn, turn.T, torch.zeros(8)))
    images = to_model_range(torch.from_numpy(crops[:4]))
    with torch.no_grad():
        raw = codec.encode(images).latent_dist.mean
        latents = turned.encode(images).latent_dist.mean
        torch.testing.assert_close(latents, torch.einsum("kl,nlij->nkij", turn, 0.5 * raw))
        torch.testing.assert_close(
            turned.decode(latents).sample, codec.decode(raw).sample, atol=1e-4, rtol=1e-4
        )


def test_the_shipped_denoiser_is_folded_for_a_narrowed_codec(crops: np.ndarray, tmp_path: Path) -> None:
    wide = load_codec(shipped_codec())
    by = find_narrowing(wide, crops, 6)
    save_codec(narrow_codec(wide, by), tmp_path)
    projection = {"kind": "mlp", "tokens": 1, "hidden": 8}
    with pytest.raises(ConfigError, match="takes 12 latent channels, the autoencoder has 6"):
        new_bundle(BundleConfig(preset="tiny", source="shipped", vae=str(tmp_path)), 64, 4, projection, 0)
    by.save(tmp_path)
    config = BundleConfig(preset="tiny", source="shipped", vae=str(tmp_path))
    narrow = new_bundle(config, 64, 4, projection, 0).denoiser.eval()
    full = new_bundle(BundleConfig(preset="tiny", source="shipped"), 64, 4, projection, 0).denoiser.eval()
    y = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    steps, vectors = torch.tensor([20, 700]), torch.zeros(2, 4)
    with torch.no_grad():
        z = torch.einsum("lk,nkij->nlij", by.up, y) + by.mean[:, None, None]
        wanted = torch.einsum("kl,nlij->nkij", by.down, full(z, steps, vectors))
        found = narrow(y, steps, vectors)
    assert (found - wanted).abs().mean() < 0.1 * wanted.std()  # the border sees no mean
