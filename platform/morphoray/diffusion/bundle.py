"""A bundle: a diffusers-format model folder plus `morphoray.json`."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from morphoray.config import BundleConfig
from morphoray.diffusion.codec import load_codec
from morphoray.diffusion.codec_narrow import Narrowing, narrow_denoiser
from morphoray.diffusion.conditioning import Denoiser, PadProjection, make_projection, projection_spec
from morphoray.diffusion.presets import get_preset
from morphoray.diffusion.sources import source_folder, vae_folder
from morphoray.errors import ConfigError, DataError
from morphoray.imaging.channels import ChannelMapping, bundle_mapping

Weights = Literal["unet", "unet_ema"]
MANIFEST = "morphoray.json"


@dataclass
class Bundle:
    """A denoiser with its autoencoder and noise schedule.

    manifest: condition (the encoder's name and state), mapping, resolution, training data, fingerprint;
    empty for a folder that another program wrote.
    """

    denoiser: Denoiser
    vae: AutoencoderKL
    schedule: DDPMScheduler
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def scaling_factor(self) -> float:
        """Raw latents x this = scaled latents, of about unit variance."""
        return float(self.vae.config.scaling_factor)

    @property
    def fingerprint(self) -> str:
        """Names the weights and the manifest; 'unsaved' before the bundle is written."""
        return str(self.manifest.get("fingerprint", "unsaved"))

    @property
    def mapping(self) -> ChannelMapping:
        """Which channels its images have, and how they are shown."""
        return bundle_mapping(self.manifest)

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Shape (C, H, W) of the latents of a resolution x resolution image."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return int(self.vae.config.latent_channels), resolution // factor, resolution // factor


def vae_for(config: BundleConfig, seed: int, image_channels: int = 3) -> AutoencoderKL:
    """The autoencoder a run uses: bundle.vae, else the source's, else the preset's.

    A fresh one has `image_channels` and weights from `seed`; others have what they were trained with.
    """
    folder = vae_folder(config)
    if folder is not None:
        return load_codec(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sized = {"in_channels": image_channels, "out_channels": image_channels}
        return AutoencoderKL.from_config((get_preset(config.preset).vae or {}) | sized).eval()


def new_bundle(
    config: BundleConfig,
    resolution: int,
    vector_width: int,
    projection: dict[str, Any],
    seed: int,
    image_channels: int = 3,
) -> Bundle:
    """Start a model: fresh weights of the preset (from `seed`), or those of `config.source`; float32.

    projection: kind (pad or mlp), tokens and hidden. Raises ConfigError or DataError.
    """
    vae = vae_for(config, seed, image_channels)
    preset, source = get_preset(config.preset), source_folder(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source is not None:
            unet = _fitted(_load_unet(source, config.unet), vae, vae_folder(config))
            _check_channels(unet, vae, source)
        else:
            unet = _fresh_unet(preset.unet, vae, resolution)
        token_width = int(unet.config.cross_attention_dim)
        spec = projection | {"vector_width": vector_width, "token_width": token_width}
        denoiser = Denoiser(unet, make_projection(spec))
    schedule_values = dict(preset.schedule)
    if source is not None and (source / "scheduler").is_dir():
        schedule_values = _read_schedule(source)
    if config.prediction_type:
        schedule_values["prediction_type"] = config.prediction_type
    return Bundle(denoiser, vae, DDPMScheduler.from_config(schedule_values))


def _fitted(unet: UNet2DConditionModel, vae: AutoencoderKL, folder: Path | None) -> UNet2DConditionModel:
    """The denoiser, folded where the autoencoder is narrower than the one of its training."""
    by = Narrowing.load(folder) if folder is not None else None
    if by is None or by.down.shape != (vae.config.latent_channels, unet.config.in_channels):
        return unet
    return narrow_denoiser(unet, by)


def _check_channels(unet: UNet2DConditionModel, vae: AutoencoderKL, source: Path) -> None:
    found, wanted = int(unet.config.in_channels), int(vae.config.latent_channels)
    if found != wanted:
        raise ConfigError(
            f"bundle: the denoiser in {source} takes {found} latent channels, the autoencoder has {wanted}. "
            "Use the autoencoder it was trained with, or bundle.source: null for fresh weights."
        )


def _fresh_unet(values: dict[str, Any], vae: AutoencoderKL, resolution: int) -> UNet2DConditionModel:
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    steps = 2 ** (len(values["block_out_channels"]) - 1)
    if resolution % (factor * steps):
        raise ConfigError(
            f"image.resolution: {resolution} does not suit this preset; "
            f"expected a multiple of {factor * steps}."
        )
    channels = int(vae.config.latent_channels)
    return UNet2DConditionModel.from_config(
        values | {"in_channels": channels, "out_channels": channels, "sample_size": resolution // factor}
    )


def _load_unet(folder: Path, which: Weights) -> UNet2DConditionModel:
    """The UNet in folder/unet_ema or folder/unet; the EMA falls back to `unet` where there is none."""
    candidates = [which, "unet"] if which == "unet_ema" else [which]
    for name in candidates:
        if (folder / name / "config.json").is_file():
            try:
                return UNet2DConditionModel.from_pretrained(
                    folder / name, use_safetensors=True, low_cpu_mem_usage=False, local_files_only=True
                )
            except OSError as error:
                raise DataError(
                    f"{folder / name}: no safetensors weights ({error}). "
                    "Convert a .bin to safetensors first: pickles are never executed."
                ) from None
    raise DataError(f"{folder}: found no {' or '.join(candidates)} folder with a config.json.")


def _read_schedule(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    # Stable Diffusion v1-4 stores a PNDM schedule; its betas are the training schedule, its steps are not.
    values.pop("skip_prk_steps", None)
    return values


def save_bundle(bundle: Bundle, ema: dict[str, torch.Tensor], folder: Path) -> str:
    """Write the bundle, raw and averaged weights, into an empty folder; returns its fingerprint.

    ema: averaged values by the denoiser's state-dict names.
    """
    raw = {name: value.detach().cpu() for name, value in bundle.denoiser.state_dict().items()}
    for name, state in (("unet", raw), ("unet_ema", ema)):
        target = folder / name
        target.mkdir(parents=True)
        bundle.denoiser.unet.save_config(target)
        weights = {
            key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")
        }
        save_file(_contiguous(weights), target / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (folder / "condition").mkdir()
    for name, state in (("projection", raw), ("projection_ema", ema)):
        weights = {
            key.removeprefix("projection."): value
            for key, value in state.items()
            if key.startswith("projection.")
        }
        if weights:
            save_file(_contiguous(weights), folder / "condition" / f"{name}.safetensors")
    bundle.vae.save_pretrained(folder / "vae", safe_serialization=True)
    bundle.schedule.save_pretrained(folder / "scheduler")
    manifest = bundle.manifest | {"projection": projection_spec(bundle.denoiser.projection)}
    manifest["fingerprint"] = _fingerprint(folder, manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
    bundle.manifest = manifest
    return str(manifest["fingerprint"])


def _contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def _fingerprint(folder: Path, manifest: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    told = {key: value for key, value in manifest.items() if key != "fingerprint"}
    digest.update(json.dumps(told, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def load_bundle(folder: Path, weights: Weights = "unet_ema", vector_width: int | None = None) -> Bundle:
    """Read a bundle of ours, or a diffusers-format folder that the original project wrote.

    vector_width: width of the condition vectors for a folder without morphoray.json, whose projection is
    the paper's (default: the UNet's own width, that is vectors already padded). Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such bundle folder. Expected one with unet/, vae/ and scheduler/.")
    path = folder / MANIFEST
    manifest = json.loads(path.read_text()) if path.is_file() else {}
    unet = _load_unet(folder, weights)
    if "projection" in manifest:
        projection = make_projection(manifest["projection"])
        stem = "projection_ema" if weights == "unet_ema" else "projection"
        state = folder / "condition" / f"{stem}.safetensors"
        if state.is_file():
            projection.load_state_dict(load_file(state))
    else:
        width = int(unet.config.cross_attention_dim)
        projection = PadProjection(vector_width or width, width)
    schedule = DDPMScheduler.from_config(_read_schedule(folder))
    vae = load_codec(folder / "vae")
    manifest.setdefault("fingerprint", _fingerprint(folder, manifest))
    return Bundle(Denoiser(unet, projection).eval(), vae.eval(), schedule, manifest)
