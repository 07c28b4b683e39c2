"""How fast this machine trains the tiny preset, measured for a few seconds."""

import os
import time
from dataclasses import dataclass

from morphoray.config import BundleConfig


@dataclass(frozen=True)
class MachineSpeed:
    """images_per_s: training images through the denoiser, forward and backward; gflops: in GFLOP/s."""

    images_per_s: float
    gflops: float
    threads: int


def measure(config: BundleConfig, resolution: int, batch_size: int, seconds: float = 4.0) -> MachineSpeed:
    """Time training steps of the configured preset on random latents, on all CPUs.

    FLOPs are torch's own count of one step (a multiply and an add are two).
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from morphoray.diffusion.bundle import new_bundle

    threads = os.cpu_count() or 1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bundle = new_bundle(config, resolution, 16, {"kind": "mlp", "tokens": 1, "hidden": 64}, 0)
        latents = torch.randn(batch_size, *bundle.latent_shape(resolution))
        timesteps, vectors = torch.zeros(batch_size, dtype=torch.long), torch.randn(batch_size, 16)

        def step() -> None:
            bundle.denoiser(latents, timesteps, vectors).square().mean().backward()

        with FlopCounterMode(display=False) as counter:
            step()
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            step()
            steps += 1
        rate = steps / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return MachineSpeed(rate * batch_size, rate * counter.get_total_flops() / 1e9, threads)
