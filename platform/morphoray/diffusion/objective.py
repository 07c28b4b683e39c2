"""The training objective and the randomness of a step, each sample's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from morphoray.seeds import derive_seed, numpy_generator


@dataclass(frozen=True)
class StepNoise:
    """What chance contributes to one step, for n samples.

    posterior, noise: standard normal, (n, C, H, W) float32; timesteps: (n,) int64; drop: (n,) bool, samples
    without their condition; hide: (n,) bool, samples without their context.
    """

    posterior: Tensor
    noise: Tensor
    timesteps: Tensor
    drop: Tensor
    hide: Tensor


def slot_seeds(seed: int, step: int, slots: range) -> list[int]:
    """The seeds of the samples at positions `slots` of step `step`'s global batch.

    Functions of (seed, step, slot) alone: not of the number of workers, nor of where a run resumed.
    """
    return [derive_seed("train", seed, step, slot) for slot in slots]


def draw_noise(
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    num_timesteps: int,
    dropout: float,
    context_dropout: float = 0.0,
) -> StepNoise:
    """The noise of samples, each a function of its own seed alone."""
    normals, timesteps, drop, hide = [], [], [], []
    generator = torch.Generator()
    for seed in seeds:
        generator.manual_seed(seed)
        normals.append(torch.randn((2, *shape), generator=generator))
        timesteps.append(torch.randint(num_timesteps, (), generator=generator))
        drop.append(torch.rand((), generator=generator) < dropout)
        hide.append(torch.rand((), generator=generator) < context_dropout)
    stacked = torch.stack(normals, dim=1)
    return StepNoise(stacked[0], stacked[1], torch.stack(timesteps), torch.stack(drop), torch.stack(hide))


class DataOrder:
    """Which sample stands where: a fresh seeded permutation of the n samples every epoch."""

    def __init__(self, seed: int, n: int) -> None:
        self._seed, self._n = seed, n
        self._epoch, self._permutation = -1, np.arange(0)

    def samples(self, step: int, batch_size: int, slots: range) -> np.ndarray:
        """Indices (int64, len(slots)) of the samples at `slots` of step `step`'s global batch."""
        indices = []
        for slot in slots:
            epoch, position = divmod(step * batch_size + slot, self._n)
            if epoch != self._epoch:
                self._permutation = numpy_generator("order", self._seed, epoch).permutation(self._n)
                self._epoch = epoch
            indices.append(self._permutation[position])
        return np.array(indices, dtype=np.int64)


def target(schedule: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network has to predict: the noise, or the velocity (Salimans & Ho 2022)."""
    if schedule.config.prediction_type == "v_prediction":
        velocity: Tensor = schedule.get_velocity(latents, noise, timesteps)
        return velocity
    return noise


def loss_weights(schedule: DDPMScheduler, timesteps: Tensor, min_snr_gamma: float | None) -> Tensor:
    """Per-sample weights (n,): ones, or min-SNR-gamma (Hang et al. 2023, equations 5 and 8).

    With SNR = a/(1-a): min(SNR, gamma)/SNR for epsilon, min(SNR, gamma)/(SNR + 1) for velocity.
    """
    if min_snr_gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    alphas = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alphas / (1 - alphas)
    divisor = snr + 1 if schedule.config.prediction_type == "v_prediction" else snr
    weights: Tensor = torch.clamp(snr, max=min_snr_gamma) / divisor
    return weights


def weighted_mse(prediction: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Mean over samples of weight x mean squared error (equation 4 of the paper for weights of one)."""
    error = (prediction.float() - wanted.float()).pow(2).mean(dim=tuple(range(1, prediction.ndim)))
    return (error * weights).mean()
