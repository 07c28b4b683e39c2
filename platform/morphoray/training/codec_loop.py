"""The codec's training loop: plain torch, deterministic in (seed, step), resumable after a kill."""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import nn

from morphoray.diffusion.codec import normalise_latents, to_model_range
from morphoray.diffusion.codec_losses import (
    PatchDiscriminator,
    StatisticsLoss,
    feature_matching,
    hinge_discriminator,
    posterior_divergence,
    spectrum_loss,
)
from morphoray.errors import FingerprintError
from morphoray.seeds import derive_seed, fingerprint, numpy_generator

log = logging.getLogger(__name__)
Batches = Callable[[int, int], npt.NDArray[np.uint8]]  # (seed, step) -> uint8 (B, K, H, W)


class CodecTraining(BaseModel):
    """How long and with which losses a codec is trained; weights are relative to the mean pixel error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trainable: Literal["all", "decoder"] = "all"  # decoder: the latents stay what they are
    max_steps: int = Field(default=2200, ge=1)
    batch_size: int = Field(default=8, ge=1)
    seed: int = 0
    learning_rate: float = Field(default=1.5e-4, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    final_learning_rate: float = Field(default=0.05, gt=0, le=1)  # as a share of learning_rate
    discriminator_learning_rate: float = Field(default=4e-4, gt=0)
    ema_decay: float = Field(default=0.995, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    squared_weight: float = Field(default=1.0, ge=0)
    kl_weight: float = Field(default=3e-5, ge=0)
    spectrum_weight: float = Field(default=0.1, ge=0)
    adversarial_weight: float = Field(default=0.5, ge=0)  # share of the other terms' gradient at the image
    feature_weight: float = Field(default=0.0, ge=0)
    statistics_weight: float = Field(default=0.0, ge=0)  # likewise a share; of activations' statistics
    statistics_crop: int = Field(default=40, ge=16)  # side of the cut-out that they are taken of, pixels
    latent_noise: float = Field(default=0.0, ge=0)  # of the decoder's input, in deviations of the latents
    texture_from: int = Field(default=500, ge=0)  # the step from which spectrum and discriminator count
    texture_ramp: int = Field(default=200, ge=1)  # steps over which their weights then grow
    checkpoint_every: int = Field(default=500, ge=1)
    log_every: int = Field(default=50, ge=1)
    num_threads: int | None = Field(default=None, ge=1)


@dataclass
class CodecState:
    """Everything that the next step depends on."""

    codec: AutoencoderKL
    ema: AutoencoderKL
    discriminator: PatchDiscriminator
    optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    step: int = 0


def new_state(codec: AutoencoderKL, training: CodecTraining) -> CodecState:
    """The state before the first step."""
    codec = codec.to(memory_format=torch.channels_last).train()
    ema = AutoencoderKL.from_config(codec.config)
    ema.load_state_dict(codec.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(training.seed, "discriminator"))
        discriminator = PatchDiscriminator(int(codec.config.in_channels))
    discriminator = discriminator.to(codec.device).to(memory_format=torch.channels_last)
    return CodecState(
        codec=codec,
        ema=ema.to(codec.device, memory_format=torch.channels_last).eval().requires_grad_(False),
        discriminator=discriminator,
        optimizer=torch.optim.Adam(codec.parameters(), lr=training.learning_rate, betas=(0.9, 0.99)),
        discriminator_optimizer=torch.optim.Adam(
            discriminator.parameters(), lr=training.discriminator_learning_rate, betas=(0.5, 0.9)
        ),
    )


def learning_rate(training: CodecTraining, step: int) -> float:
    """Linear warm-up, then a cosine down to final_learning_rate x learning_rate."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.max_steps - training.warmup_steps)
    floor = training.final_learning_rate
    return training.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def _image_gradient(
    state: CodecState,
    training: CodecTraining,
    images: torch.Tensor,
    reconstructions: torch.Tensor,
    statistics: StatisticsLoss | None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Gradient of all image losses at the reconstructions, and the losses.

    Those of statistics and discriminator are rescaled to their weight times the norm of the others' (the idea
    of Esser et al. 2021, equation 7, taken at the image instead of the last layer: no second backward pass).
    """
    leaf = reconstructions.detach().requires_grad_()
    pixel = F.l1_loss(leaf, images)
    squared = F.mse_loss(leaf, images)
    terms = pixel + training.squared_weight * squared
    losses = {"pixel": pixel.item(), "squared": squared.item()}
    ramp = min(1.0, (state.step - training.texture_from) / training.texture_ramp)
    textured = ramp > 0
    if textured and training.spectrum_weight:
        spectrum = spectrum_loss(leaf, images)
        terms = terms + ramp * training.spectrum_weight * spectrum
        losses["spectrum"] = spectrum.item()
    (gradient,) = torch.autograd.grad(terms, leaf)
    pulls = []
    if textured and statistics is not None:
        window = _window(training, state.step, images)
        term = statistics(leaf[window], images[window])
        losses["statistics"] = term.item()
        pulls.append((training.statistics_weight, torch.autograd.grad(term, leaf)[0]))
    if textured and training.adversarial_weight:
        term = _adversarial(state, training, leaf, images)
        losses["adversarial"] = term.item()
        pulls.append((training.adversarial_weight, torch.autograd.grad(term, leaf)[0]))
    norm = gradient.norm()
    for weight, pull in pulls:
        gradient = gradient + ramp * weight * norm / (pull.norm() + 1e-12) * pull
    return gradient, losses


def _adversarial(
    state: CodecState, training: CodecTraining, leaf: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    features = state.discriminator.features(leaf)
    adversarial: torch.Tensor = -state.discriminator.head(features[-1]).mean()
    if training.feature_weight:
        with torch.no_grad():
            real = state.discriminator.features(images)
        adversarial = adversarial + training.feature_weight * feature_matching(features, real)
    return adversarial


def _window(training: CodecTraining, step: int, images: torch.Tensor) -> tuple[Any, ...]:
    """Where the statistics of a step are taken: the same square of every image."""
    generator = numpy_generator("statistics", training.seed, step)
    cuts = []
    for length in images.shape[2:]:
        side = min(training.statistics_crop, length)
        start = int(generator.integers(length - side + 1))
        cuts.append(slice(start, start + side))
    return (..., *cuts)


def _decoder_input(
    posterior: DiagonalGaussianDistribution, training: CodecTraining, step: int
) -> torch.Tensor:
    """Draws from the posterior, and with latent_noise as unsure as a denoiser's output is.

    Each image's noise has its own deviation, |N(0, 1)| x latent_noise x that of its latents (as Zheng et al.
    2025 draw it for representation autoencoders): the decoder learns to paint from imprecise latents.
    """
    mean = posterior.mean
    generator = torch.Generator().manual_seed(derive_seed(training.seed, "posterior", step))
    drawn = torch.randn(mean.shape, generator=generator).to(mean.device)
    latents: torch.Tensor = mean + posterior.std * drawn
    if training.latent_noise:
        sigma = training.latent_noise * torch.randn((len(mean), 1, 1, 1), generator=generator).abs()
        noise = (sigma * torch.randn(mean.shape, generator=generator)).to(mean.device)
        latents = latents + noise * mean.detach().std(dim=(1, 2, 3), keepdim=True)
    return latents


def train_step(
    state: CodecState,
    training: CodecTraining,
    batch: npt.NDArray[np.uint8],
    statistics: StatisticsLoss | None = None,
) -> dict[str, float]:
    """One step on uint8 images (B, K, H, W); returns its losses (pixel errors in the -1..1 range)."""
    device = state.codec.device
    images = to_model_range(torch.from_numpy(batch).to(device)).contiguous(memory_format=torch.channels_last)
    for optimizer in (state.optimizer, state.discriminator_optimizer):
        optimizer.zero_grad(set_to_none=True)
    state.optimizer.param_groups[0]["lr"] = learning_rate(training, state.step)
    with torch.set_grad_enabled(training.trainable == "all"):
        posterior = state.codec.encode(images).latent_dist
    reconstructions = state.codec.decode(_decoder_input(posterior, training, state.step)).sample
    divergence = posterior_divergence(posterior.mean, posterior.logvar)
    gradient, losses = _image_gradient(state, training, images, reconstructions, statistics)
    if training.trainable == "all":
        weight = torch.as_tensor(training.kl_weight, device=device)
        torch.autograd.backward([reconstructions, divergence], [gradient, weight])
    else:
        torch.autograd.backward([reconstructions], [gradient])
    nn.utils.clip_grad_norm_(state.codec.parameters(), training.clip_norm, error_if_nonfinite=True)
    state.optimizer.step()
    if training.adversarial_weight and state.step >= training.texture_from:
        logits = state.discriminator(torch.cat([images, reconstructions.detach()]))
        loss = hinge_discriminator(*logits.chunk(2))
        loss.backward()  # type: ignore[no-untyped-call]
        state.discriminator_optimizer.step()
        losses["discriminator"] = loss.item()
    state.step += 1
    _follow(state.ema, state.codec, min(training.ema_decay, (1 + state.step) / (10 + state.step)))
    return losses | {"divergence": divergence.item(), "posterior_std": posterior.std.mean().item()}


@torch.no_grad()
def _follow(ema: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1.0 - decay)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    states: dict[int, dict[str, torch.Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entry in states.items() for key, value in entry.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(state: CodecState, folder: Path, made_by: str) -> Path:
    """Write folder/step-N as safetensors (aside, then renamed); the checkpoints before the last two go."""
    target = folder / f"step-{state.step:08d}"
    aside = folder / f".{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in ("codec", "ema", "discriminator"):
        tensors = {key: value.contiguous() for key, value in getattr(state, name).state_dict().items()}
        save_file(tensors, aside / f"{name}.safetensors")
    for name in ("optimizer", "discriminator_optimizer"):
        tensors = {key: value.contiguous() for key, value in _optimizer_tensors(getattr(state, name)).items()}
        save_file(tensors, aside / f"{name}.safetensors")
    (aside / "state.json").write_text(json.dumps({"step": state.step, "made_by": made_by}))
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    for old in sorted(folder.glob("step-*"))[:-2]:
        shutil.rmtree(old)
    return target


def load_checkpoint(state: CodecState, folder: Path, made_by: str) -> bool:
    """Restore the newest checkpoint into `state`; False when there is none.

    Raises FingerprintError when it was made by other settings.
    """
    found = sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())
    if not found:
        return False
    meta = json.loads((found[-1] / "state.json").read_text())
    if meta["made_by"] != made_by:
        raise FingerprintError(
            f"{found[-1]} was made by {meta['made_by']}, but the current settings are {made_by}. "
            "Use the settings it was made with, or another run_dir."
        )
    for name in ("codec", "ema", "discriminator"):
        getattr(state, name).load_state_dict(load_file(found[-1] / f"{name}.safetensors"))
    for name in ("optimizer", "discriminator_optimizer"):
        _load_optimizer(getattr(state, name), load_file(found[-1] / f"{name}.safetensors"))
    state.step = int(meta["step"])
    return True


def train_codec(
    codec: AutoencoderKL,
    training: CodecTraining,
    batches: Batches,
    folder: Path,
    data: dict[str, Any] | None = None,
    stop_at: int | None = None,
    checkpointed: Callable[[Path], None] = lambda checkpoint: None,
    statistics: StatisticsLoss | None = None,
) -> AutoencoderKL:
    """Train, or resume from `folder`, up to max_steps (or `stop_at`); returns the averaged codec.

    Checkpoints go to folder/checkpoints, one line per log_every steps to folder/metrics.jsonl. Batches are
    functions of (seed, step), so a killed run that is started again ends in the same weights (CPU, float32,
    the same number of threads). `data` is the data's description, part of the run's fingerprint;
    `checkpointed` is told the folder of every new checkpoint.
    """
    if training.num_threads:
        torch.set_num_threads(training.num_threads)
    state = new_state(codec, training)
    settings = training.model_dump(exclude={"log_every", "checkpoint_every", "num_threads"})
    made_by = fingerprint({"codec": json.loads(codec.to_json_string()), "training": settings, "data": data})
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    if load_checkpoint(state, checkpoints, made_by):
        log.info("resumed at step %d of %d", state.step, training.max_steps)
    last = min(training.max_steps, stop_at or training.max_steps)
    started, since, sums = time.monotonic(), state.step, dict[str, float]()
    while state.step < last:
        losses = train_step(state, training, batches(training.seed, state.step), statistics)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value
        if state.step % training.log_every == 0:
            rate = (state.step - since) * training.batch_size / (time.monotonic() - started)
            _log_line(
                folder, state.step, {k: v / training.log_every for k, v in sums.items()}, rate, training
            )
            sums.clear()
        if state.step % training.checkpoint_every == 0 or state.step == last:
            checkpointed(save_checkpoint(state, checkpoints, made_by))
    return state.ema


def _log_line(
    folder: Path, step: int, losses: dict[str, float], rate: float, training: CodecTraining
) -> None:
    eta = (training.max_steps - step) * training.batch_size / rate
    line = {"step": step, "images_per_s": round(rate, 2)} | {k: round(v, 6) for k, v in losses.items()}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    log.info(
        "codec %d/%d  %.1f images/s  ETA %.0f s  %s", step, training.max_steps, rate, eta, json.dumps(line)
    )


def calibrate(
    codec: AutoencoderKL, images: npt.NDArray[np.uint8], batch_size: int = 32
) -> dict[str, list[float]]:
    """Give the codec's raw latents zero mean and unit deviation per channel over `images`, in place.

    Returns what they were before; afterwards scaling_factor is 1 / (overall deviation), 1 up to rounding.
    """
    means = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            values = to_model_range(torch.from_numpy(images[start : start + batch_size]).to(codec.device))
            means.append(codec.encode(values).latent_dist.mean)
    latents = torch.cat(means).transpose(0, 1).flatten(1).clone()
    mean, std = latents.mean(dim=1), latents.std(dim=1)
    normalise_latents(codec, mean, std)
    scaled = (latents - mean[:, None]) / std[:, None]
    codec.register_to_config(scaling_factor=float(1.0 / scaled.std()))
    return {"mean": mean.tolist(), "std": std.tolist()}
