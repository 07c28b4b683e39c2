"""Fewer latent channels: the directions of a codec's latents that its images depend on most."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from morphoray.diffusion.codec import encode_posterior, scale_latents

NARROWING = "narrowing.safetensors"  # beside the narrow codec's weights
STEP = 0.3  # of one latent, to see what it does to the image
BATCH = 16
LOG_VARIANCE = -8.0  # of every narrow channel: a deviation of 0.018, as the wide codec has


@dataclass(frozen=True)
class Narrowing:
    """Scaled latents of the wide codec, z (L,), to those of the narrow one, y (K,), at every position.

    y = down · (z − mean), and z ≈ mean + up · y, which drops what the image hardly depends on. down: (K, L),
    up: (L, K), mean: (L,).
    """

    down: torch.Tensor
    up: torch.Tensor
    mean: torch.Tensor

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        tensors = {name: value.contiguous() for name, value in vars(self).items()}
        data: bytes = safetensors.torch.save(tensors)
        return data

    def save(self, folder: Path) -> None:
        """Write it beside the narrow codec's weights."""
        (folder / NARROWING).write_bytes(self.to_bytes())

    @staticmethod
    def from_bytes(data: bytes) -> "Narrowing":
        """What `to_bytes` made a file of."""
        return Narrowing(**safetensors.torch.load(data))

    @staticmethod
    def load(folder: Path) -> "Narrowing | None":
        """What the codec in `folder` was narrowed by; None when it wasn't, or was changed since."""
        path = folder / NARROWING
        return Narrowing.from_bytes(path.read_bytes()) if path.is_file() else None


@torch.no_grad()
def find_narrowing(codec: AutoencoderKL, images: npt.NDArray[np.uint8], channels: int) -> Narrowing:
    """The `channels` directions that contribute most to the variance of `images` (N, K, H, W) uint8.

    With C the covariance of a position's latents and J the decoder's Jacobian for one in the middle, they are
    the leading eigenvectors of C^½ JᵀJ C^½, JᵀJ summed over images; each gets unit variance over `images`.
    """
    raw = torch.from_numpy(encode_posterior(codec, images)[0])
    latents = scale_latents(codec, raw).movedim(1, -1).flatten(0, 2)
    mean = latents.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((latents - mean).T))
    values = values.clamp(min=1e-8)
    root, inverse = (vectors @ torch.diag(values**power) @ vectors.T for power in (0.5, -0.5))
    effect = sum((_effect(codec, part) for part in torch.split(raw, BATCH)), torch.zeros(()))
    directions = torch.linalg.eigh(root @ effect @ root)[1].flip(1)[:, :channels]
    return Narrowing(directions.T @ inverse, root @ directions, mean)


def _effect(codec: AutoencoderKL, raw: torch.Tensor) -> torch.Tensor:
    """JᵀJ (L, L) of the decoder at raw latents (N, L, h, w), for the position in the middle."""
    base = codec.decode(raw).sample
    row, column = (length // 2 for length in raw.shape[2:])
    moved = []
    for channel in range(raw.shape[1]):
        latents = raw.clone()
        latents[:, channel, row, column] += STEP
        moved.append((codec.decode(latents).sample - base).flatten() / STEP)
    jacobian = torch.stack(moved)
    return jacobian @ jacobian.T


@torch.no_grad()
def narrow_codec(codec: AutoencoderKL, by: Narrowing) -> AutoencoderKL:
    """The codec whose scaled latents are the narrow ones, folded into its weights; scaling_factor is 1.

    Near the border the decoder sees zeros where the wide one saw minus its mean: train it afterwards.
    """
    (narrow, wide), factor = by.down.shape, float(codec.config.scaling_factor)
    config = dict(codec.config) | {"latent_channels": narrow, "scaling_factor": 1.0}
    twin = AutoencoderKL.from_config(config)
    state = {name: value.clone() for name, value in codec.state_dict().items()}
    outwards = by.down * factor @ state["quant_conv.weight"][:wide, :, 0, 0]
    weight = torch.einsum("kc,cijl->kijl", outwards, state["encoder.conv_out.weight"])
    constant = by.down @ (state["quant_conv.bias"][:wide] * factor - by.mean)
    bias = outwards @ state["encoder.conv_out.bias"] + constant
    state["encoder.conv_out.weight"] = torch.cat([weight, torch.zeros_like(weight)])
    state["encoder.conv_out.bias"] = torch.cat([bias, torch.full((narrow,), LOG_VARIANCE)])
    inwards = state["post_quant_conv.weight"][:, :, 0, 0] / factor
    kernel = state["decoder.conv_in.weight"]
    state["decoder.conv_in.weight"] = torch.einsum("abij,bk->akij", kernel, inwards @ by.up)
    offset = inwards @ by.mean + state["post_quant_conv.bias"]
    state["decoder.conv_in.bias"] = state["decoder.conv_in.bias"] + torch.einsum("abij,b->a", kernel, offset)
    for name, channels in (("quant_conv", 2 * narrow), ("post_quant_conv", narrow)):
        state[f"{name}.weight"] = torch.eye(channels)[:, :, None, None]
        state[f"{name}.bias"] = torch.zeros(channels)
    twin.load_state_dict(state)
    return twin.eval()


@torch.no_grad()
def narrow_denoiser(unet: UNet2DConditionModel, by: Narrowing) -> UNet2DConditionModel:
    """A denoiser of wide latents as a start for narrow ones: its first and last layer folded.

    Exact but for the noise that the dropped channels no longer carry, which training makes up for.
    """
    narrow = by.down.shape[0]
    config = dict(unet.config) | {"in_channels": narrow, "out_channels": narrow}
    twin = UNet2DConditionModel.from_config(config)
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    kernel = state["conv_in.weight"]
    state["conv_in.bias"] = state["conv_in.bias"] + torch.einsum("abij,b->a", kernel, by.mean)
    state["conv_in.weight"] = torch.einsum("abij,bk->akij", kernel, by.up)
    state["conv_out.weight"] = torch.einsum("ka,abij->kbij", by.down, state["conv_out.weight"])
    state["conv_out.bias"] = by.down @ state["conv_out.bias"]
    twin.load_state_dict(state)
    return twin
