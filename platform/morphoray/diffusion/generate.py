"""Sampling: images as a pure function of bundle, perturbation, seed, index and settings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from morphoray.diffusion.bundle import Bundle
from morphoray.diffusion.codec import decode_latents
from morphoray.diffusion.samplers import make_sampler
from morphoray.seeds import derive_seed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SHARED_NOISE = ""  # instead of a perturbation's name: image i starts from the same noise whatever the vector


@dataclass(frozen=True)
class ImageRequest:
    """One image to make: the perturbation's name, its condition vector (width,) float32, and an index.

    seed: instead of the settings', so that requests with different seeds can share a batch.
    """

    perturbation_id: str
    vector: np.ndarray
    index: int
    seed: int | None = None


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample; every field is part of an image's identity except batch_size and precision."""

    sampler: str = "ddpm"
    steps: int = 50
    guidance_scale: float = 1.0
    seed: int = 0
    resolution: int = 512
    batch_size: int = 16
    precision: str = "fp32"


def image_seed(settings: SamplerSettings, request: ImageRequest) -> int:
    """The seed of one image's noise: a function of (run seed, perturbation, index)."""
    seed = settings.seed if request.seed is None else request.seed
    return derive_seed("generate", seed, request.perturbation_id, request.index)


@torch.inference_mode()
def sample_latents(bundle: Bundle, requests: Sequence[ImageRequest], settings: SamplerSettings) -> Tensor:
    """Scaled latents (N, C, H, W) float32 of the requests, in one batch, on the bundle's device.

    Guidance (Ho & Salimans 2022): null + scale x (conditional - null); a scale of 1 skips the null pass.
    Noise is drawn on the CPU, so that a GPU starts from the same numbers.
    """
    device = next(bundle.denoiser.parameters()).device
    shape = bundle.latent_shape(settings.resolution)
    generators = [torch.Generator().manual_seed(image_seed(settings, request)) for request in requests]
    latents: Tensor = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(
        device
    )
    vectors = torch.from_numpy(np.stack([request.vector for request in requests])).to(device)
    sampler = make_sampler(settings.sampler, bundle.schedule, settings.steps)
    latents = latents * sampler.init_noise_sigma
    takes_generator = settings.sampler == "ddpm"
    for timestep in sampler.timesteps:
        prediction = _predict(bundle, latents, timestep, vectors, settings)
        extra = {"generator": generators} if takes_generator else {}
        latents = sampler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
    return latents


def _predict(
    bundle: Bundle, latents: Tensor, timestep: Tensor, vectors: Tensor, settings: SamplerSettings
) -> Tensor:
    n = len(latents)
    guided = settings.guidance_scale != 1.0
    if guided:
        latents, vectors = torch.cat([latents, latents]), torch.cat([vectors, vectors])
    drop = torch.arange(len(latents), device=latents.device) >= n if guided else None
    timesteps = timestep.to(latents.device).expand(len(latents))
    with torch.autocast(latents.device.type, DTYPES[settings.precision], settings.precision != "fp32"):
        prediction: Tensor = bundle.denoiser(latents, timesteps, vectors, drop)
    prediction = prediction.float()
    if guided:
        conditional, null = prediction[:n], prediction[n:]
        prediction = null + settings.guidance_scale * (conditional - null)
    return prediction


def generate(
    bundle: Bundle, requests: Sequence[ImageRequest], settings: SamplerSettings
) -> Iterator[np.ndarray]:
    """Yield one uint8 image (channels, resolution, resolution) a request, in their order.

    Requests of different perturbations share batches. Across batch sizes an image may differ by rounding in
    the last bits of a float, which `tests/test_diffusion.py` bounds at one grey level.
    """
    for start in range(0, len(requests), settings.batch_size):
        latents = sample_latents(bundle, requests[start : start + settings.batch_size], settings)
        yield from decode_latents(bundle.vae, latents)
