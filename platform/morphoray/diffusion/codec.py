"""The codec: a diffusers AutoencoderKL between uint8 images and raw or scaled latents."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from pydantic import BaseModel, ConfigDict, Field, model_validator

from morphoray.errors import DataError

WEIGHTS = "diffusion_pytorch_model.safetensors"
Uint8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class CodecConfig(BaseModel):
    """The shape of a small AutoencoderKL; it down-samples by 2 ** (len(block_out_channels) - 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_channels: int = Field(default=3, ge=1, le=6)
    latent_channels: int = Field(default=12, ge=1)
    block_out_channels: tuple[int, ...] = (16, 32, 64, 96)
    layers_per_block: int = Field(default=1, ge=1)
    norm_num_groups: int = Field(default=4, ge=1)
    mid_attention: bool = False

    @model_validator(mode="after")
    def _groups_divide(self) -> "CodecConfig":
        wrong = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if wrong or not self.block_out_channels:
            raise ValueError(
                f"block_out_channels: found {self.block_out_channels}; expected multiples of "
                f"norm_num_groups={self.norm_num_groups}"
            )
        return self


def build_codec(config: CodecConfig, seed: int = 0) -> AutoencoderKL:
    """A randomly initialised codec, the same for the same seed; scaling_factor is 1 until it is measured."""
    levels = len(config.block_out_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            in_channels=config.image_channels,
            out_channels=config.image_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            mid_block_add_attention=config.mid_attention,
            sample_size=64,
            scaling_factor=1.0,
            force_upcast=False,
        )


def load_codec(folder: str | Path, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The codec in a local diffusers VAE folder, in evaluation mode, its parameters frozen.

    Only safetensors are read. Raises DataError when config.json or the weights are absent.
    """
    path = Path(folder)
    missing = [name for name in ("config.json", WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise DataError(
            f"{path}: found no {' and no '.join(missing)}; expected a diffusers VAE folder with "
            f"config.json and {WEIGHTS}. Save pickled weights as safetensors first."
        )
    codec = AutoencoderKL.from_pretrained(
        path, use_safetensors=True, torch_dtype=dtype, local_files_only=True
    )
    # Channels last is a third faster on CPUs (measured on the shipped codec) and what tensor cores want.
    return codec.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def save_codec(codec: AutoencoderKL, folder: str | Path, half: bool = False) -> None:
    """Write a diffusers VAE folder; `half` stores float16, which load_codec widens again."""
    if half:
        twin = AutoencoderKL.from_config(codec.config)
        twin.load_state_dict(codec.state_dict())
        codec = twin.half()
    codec.save_pretrained(folder, safe_serialization=True)


def downsampling(codec: AutoencoderKL) -> int:
    """Image pixels per latent pixel, along each side."""
    return int(2 ** (len(codec.config.block_out_channels) - 1))


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return images.float() / 127.5 - 1.0


def to_uint8(values: torch.Tensor) -> torch.Tensor:
    """float -1..1 -> uint8 0..255, rounded to the nearest and clipped."""
    return ((values.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _check_images(codec: AutoencoderKL, images: Uint8) -> None:
    channels, step = int(codec.config.in_channels), downsampling(codec)
    fits = images.ndim == 4 and images.shape[1] == channels
    if images.dtype != np.uint8 or not fits or images.shape[2] % step or images.shape[3] % step:
        raise DataError(
            f"images: found {images.dtype} of shape {images.shape}; expected uint8 (N, {channels}, H, W) "
            f"with H and W multiples of {step}. Map and resize or crop them before encoding."
        )


@torch.inference_mode()
def encode_posterior(codec: AutoencoderKL, images: Uint8, batch_size: int = 16) -> tuple[Float32, Float32]:
    """Mean and standard deviation of the raw latents of uint8 images (N, K, H, W).

    Both are float32 (N, L, H/8, W/8), before the scaling factor. Raises DataError for images of another
    type, channel count or size.
    """
    _check_images(codec, images)
    means, stds = [], []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
        values = to_model_range(batch.to(codec.device)).to(codec.dtype)
        posterior = codec.encode(values).latent_dist
        means.append(posterior.mean.float().cpu().numpy())
        stds.append(posterior.std.float().cpu().numpy())
    if not means:
        empty = (0, codec.config.latent_channels, *(side // downsampling(codec) for side in images.shape[2:]))
        return np.zeros(empty, np.float32), np.zeros(empty, np.float32)
    return np.concatenate(means), np.concatenate(stds)


def scale_latents(codec: AutoencoderKL, raw_latents: torch.Tensor) -> torch.Tensor:
    """Raw latents -> scaled latents, the denoiser's (unit variance over the codec's training data)."""
    shift, factor = float(codec.config.shift_factor or 0.0), float(codec.config.scaling_factor)
    return (raw_latents - shift) * factor


@torch.inference_mode()
def decode_latents(codec: AutoencoderKL, scaled_latents: torch.Tensor, batch_size: int = 16) -> Uint8:
    """Scaled latents (N, L, h, w) -> uint8 images (N, K, 8h, 8w)."""
    images = []
    for start in range(0, len(scaled_latents), batch_size):
        batch = scaled_latents[start : start + batch_size].to(codec.device, torch.float32)
        raw = batch / codec.config.scaling_factor + (codec.config.shift_factor or 0.0)
        images.append(to_uint8(codec.decode(raw.to(codec.dtype)).sample).cpu().numpy())
    if not images:
        step = downsampling(codec)
        height, width = (side * step for side in scaled_latents.shape[2:])
        return np.zeros((0, codec.config.out_channels, height, width), np.uint8)
    return np.concatenate(images)


def reconstruct(codec: AutoencoderKL, images: Uint8, batch_size: int = 16) -> Uint8:
    """decode(encode(images)) through the posterior's mean; uint8 (N, K, H, W)."""
    mean, _ = encode_posterior(codec, images, batch_size)
    return decode_latents(codec, scale_latents(codec, torch.from_numpy(mean)), batch_size)


def psnr(images: Uint8, reconstructions: Uint8) -> float:
    """Mean over images of 10 log10(255^2 / mean squared error), in dB; infinite for a perfect image."""
    errors = images.astype(np.float64) - reconstructions
    mean_squared = (errors**2).reshape(len(images), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return float(np.mean(10 * np.log10(255.0**2 / mean_squared)))


def channel_psnr(images: Uint8, reconstructions: Uint8) -> list[float]:
    """`psnr` of each channel of images (N, K, H, W) alone."""
    return [psnr(images[:, k], reconstructions[:, k]) for k in range(images.shape[1])]


@torch.no_grad()
def normalise_latents(codec: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Fold a per-channel affine map into the 1 x 1 convolutions on both sides of the latents, in place.

    Afterwards the raw latents are (old - mean) / std and the reconstructions are what they were: the
    posterior's log-variance moves by -2 log std, and post_quant_conv undoes the map. `mean` and `std`: (L,).
    """
    count = len(mean)
    quant, post = codec.quant_conv, codec.post_quant_conv
    quant.weight[:count] /= std[:, None, None, None]
    quant.bias[:count] = (quant.bias[:count] - mean) / std
    quant.bias[count:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(dim=1)
    post.weight *= std[None, :, None, None]


def widen_channels(codec: AutoencoderKL, image_channels: int) -> AutoencoderKL:
    """The codec for another number of image channels, its first and last layers' new channels averaged in.

    Channels that both have keep their weights; new ones start from the mean over the old ones.
    """
    config: dict[str, Any] = dict(codec.config)
    config.update(in_channels=image_channels, out_channels=image_channels)
    twin = AutoencoderKL.from_config(config)
    state = codec.state_dict()
    shared = min(image_channels, int(codec.config.in_channels))
    for name, axis in (
        ("encoder.conv_in.weight", 1),
        ("decoder.conv_out.weight", 0),
        ("decoder.conv_out.bias", 0),
    ):
        old = state[name]
        new = old.mean(dim=axis, keepdim=True).repeat_interleave(image_channels, dim=axis)
        new.narrow(axis, 0, shared).copy_(old.narrow(axis, 0, shared))
        state[name] = new
    twin.load_state_dict(state)
    return twin


def read_card(folder: str | Path) -> dict[str, Any]:
    """The figures measured when the codec was trained (card.json); empty when it has none."""
    path = Path(folder) / "card.json"
    if not path.is_file():
        return {}
    card = json.loads(path.read_text())
    if not isinstance(card, dict):
        raise DataError(f"{path}: found {type(card).__name__}, expected an object of figures")
    return card
