"""Steps a second of the training loop beside a bare torch loop, and beside the original's procedure.

All three train the same model from the same weights with the same batch, optimizer and averaging. The
original encodes images inside every step, shows the denoiser 77 identical tokens, and for every sample reads
the whole table of perturbations and one image file again. Everything runs in this process, on one thread:
then CPU seconds tell the same as wall seconds, and other work on the machine doesn't change them.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import Rates, Spent, demo_values, interleave, machine, print_rates, print_target, ratio
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from morphoray.config import BundleConfig, TrainingConfig
from morphoray.diffusion.bundle import Bundle, new_bundle
from morphoray.imaging.png import encode_png
from morphoray.training.latents import LatentSet
from morphoray.training.loop import Hooks, make_accelerator, make_state, train
from morphoray.training.state import TrainingState

TARGET = 0.95
RESOLUTION, SAMPLES = 64, 512
COMPOUNDS, DESCRIPTORS = 113, 173  # rows of BBBC021's table of compounds, numbers in a row
TOKENS = 77


@dataclass(frozen=True)
class Figures:
    """rates: steps a CPU second, round by round; step_gflop: of one step; matmul_gflops: of a large product.

    wall_rates: steps a wall second. spent: where the bare loop's seconds go.
    """

    rates: Rates
    wall_rates: Rates
    batch_size: int
    step_gflop: float
    matmul_gflops: float
    spent: Spent


def measure(
    folder: Path, batch_size: int, steps: int, original_steps: int, repeats: int, threads: int = 1
) -> Figures:
    """Train `steps` steps at a time with each of the three loops, in turns."""
    torch.set_num_threads(threads)
    config = TrainingConfig(**demo_values()["training"]).model_copy(
        update={"batch_size": batch_size, "schedule": "constant", "max_steps": steps}
    )
    data = _data()
    bare = BareLoop(config, data)
    loops: dict[str, tuple[BareLoop | ProductLoop, int]] = {
        "bare": (bare, steps),
        "product": (ProductLoop(config, data), steps),
        "original": (OriginalLoop(config, folder), original_steps),
    }
    wall_rates: Rates = {name: [] for name in loops}

    def timed(name: str) -> float:
        loop, count = loops[name]
        wall, cpu = time.perf_counter(), time.process_time()
        loop.run(count)
        wall_rates[name].append(count / (time.perf_counter() - wall))
        return count / (time.process_time() - cpu)

    for loop, _ in loops.values():
        loop.run(1)
    rates = interleave({name: partial(timed, name) for name in loops}, repeats)
    return Figures(rates, wall_rates, batch_size, step_gflop(config), matmul_gflops(), bare.spent)


def _bundle() -> Bundle:
    projection = {"kind": "mlp", "tokens": 1, "hidden": 256}
    return new_bundle(BundleConfig(), RESOLUTION, DESCRIPTORS, projection, seed=0)


def _data() -> LatentSet:
    """Random posteriors of SAMPLES images in the tiny codec's shape, and random vectors."""
    generator = torch.Generator().manual_seed(0)
    shape = _bundle().latent_shape(RESOLUTION)
    return LatentSet(
        torch.randn(SAMPLES, *shape, generator=generator).half(),
        torch.rand(SAMPLES, *shape, generator=generator).half(),
        torch.arange(SAMPLES) % COMPOUNDS,
        torch.randn(COMPOUNDS, DESCRIPTORS, generator=generator),
    )


class ProductLoop:
    """The training loop that `morphoray train` runs in every worker."""

    def __init__(self, config: TrainingConfig, data: LatentSet) -> None:
        self._config, self._data, self._bundle = config, data, _bundle()
        self._state = make_state(self._bundle, config)
        self._accelerator = make_accelerator(config)

    def run(self, steps: int) -> None:
        """Train `steps` more steps; a record of metrics at log_every and at the end, nothing saved."""
        config = self._config.model_copy(update={"max_steps": self._state.step + steps})
        hooks = Hooks(lambda record: None, lambda state: None, lambda state: None)
        train(self._bundle, self._data, config, 0, 0.0, self._accelerator, self._state, hooks)


class BareLoop:
    """What a step can't do without, on tensors in memory and torch's one generator."""

    def __init__(self, config: TrainingConfig, data: LatentSet | None) -> None:
        self._config, self._data, self._bundle = config, data, _bundle()
        self._state: TrainingState = make_state(self._bundle, config)
        self._bundle.denoiser.train()
        self.spent = Spent()

    def run(self, steps: int) -> None:
        """Train `steps` more steps."""
        assert self._data is not None
        for _ in range(steps):
            with self.spent("latents from memory"):
                index = torch.randint(len(self._data), (self._config.batch_size,))
                mean, std = self._data.mean[index].float(), self._data.std[index].float()
                latents = (mean + std * torch.randn_like(mean)) * self._bundle.scaling_factor
            self._step(latents, self._bundle.denoiser.projection(self._data.vectors[self._data.row[index]]))

    def _step(self, latents: Tensor, tokens: Tensor) -> None:
        schedule, model, optimizer = self._bundle.schedule, self._bundle.denoiser, self._state.optimizer
        spent = self.spent
        with spent("noise and timesteps"):
            noise = torch.randn_like(latents)
            timesteps = torch.randint(int(schedule.config.num_train_timesteps), (len(latents),))
            noisy = schedule.add_noise(latents, noise, timesteps)
            wanted = schedule.get_velocity(latents, noise, timesteps)
        with spent("forward"):
            prediction = model.unet(noisy, timesteps, encoder_hidden_states=tokens, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(prediction, wanted)
        with spent("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with spent("clipping"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), self._config.max_grad_norm or 1.0)
        with spent("AdamW"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with spent("averaged weights"):
            self._state.ema.step(model.parameters())


class OriginalLoop(BareLoop):
    """The original project's data path around the same step."""

    def __init__(self, config: TrainingConfig, folder: Path) -> None:
        super().__init__(config, None)
        rng = np.random.default_rng(0)
        self._table = folder / "perturbations.csv"
        names = [f"compound-{number}" for number in range(COMPOUNDS)]
        columns = [f"latent_{number}" for number in range(DESCRIPTORS)]
        vectors = pd.DataFrame(rng.normal(size=(COMPOUNDS, DESCRIPTORS)), columns=columns)
        vectors.insert(0, "compound", names)
        vectors.to_csv(self._table, index=False)
        self._files = [folder / f"{number}.png" for number in range(64)]
        for path in self._files:
            path.write_bytes(encode_png(rng.integers(0, 256, (3, RESOLUTION, RESOLUTION), np.uint8)))
        self._names, self._rng = names, rng

    def run(self, steps: int) -> None:
        """Train `steps` more steps, from files."""
        for _ in range(steps):
            samples = [self._sample() for _ in range(self._config.batch_size)]
            pixels, vectors = (torch.stack(part) for part in zip(*samples, strict=True))
            with torch.no_grad():
                latents = self._bundle.vae.encode(pixels).latent_dist.sample() * self._bundle.scaling_factor
            self._step(latents, self._bundle.denoiser.projection(vectors).repeat(1, TOKENS, 1))

    def _sample(self) -> tuple[Tensor, Tensor]:
        image = np.asarray(Image.open(self._files[self._rng.integers(len(self._files))]).convert("RGB"))
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1
        table = pd.read_csv(self._table)
        row: Any = table[table["compound"] == self._names[self._rng.integers(COMPOUNDS)]].iloc[0, 1:]
        return pixels, torch.from_numpy(row.to_numpy(np.float32))


def step_gflop(config: TrainingConfig) -> float:
    """10^9 floating point operations of one bare step, as torch counts (a multiply and an add are two)."""
    loop = BareLoop(config, _data())
    with FlopCounterMode(display=False) as counter:
        loop.run(1)
    return float(counter.get_total_flops()) / 1e9


def matmul_gflops(side: int = 1536, repeats: int = 8) -> float:
    """GFLOP a CPU second of the fastest of some products of two float32 matrices."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        a @ b
        seconds.append(time.process_time() - start)
    return 2 * side**3 / min(seconds) / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--original-steps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = vars(parser.parse_args())
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), **arguments)
    speed = statistics.median(figures.rates["product"]) * figures.step_gflop
    print(f"train: tiny preset, {RESOLUTION} px, batch {figures.batch_size}, fp32, one thread")
    print_rates(figures.rates, "steps a CPU second")
    print_rates(figures.wall_rates, "steps a second")
    print_target("product / bare, CPU", ratio(figures.rates, "product", "bare"), TARGET)
    print(f"  product / bare, wall: {ratio(figures.wall_rates, 'product', 'bare'):.3f}")
    print(f"  product / original: {ratio(figures.rates, 'product', 'original'):.2f}")
    print(
        f"  {figures.step_gflop:.1f} GFLOP a step, {speed:.1f} GFLOP a CPU second: "
        f"{100 * speed / figures.matmul_gflops:.0f} % of the {figures.matmul_gflops:.0f} of a matrix product"
    )
    figures.spent.print("where the bare loop's time goes:")


if __name__ == "__main__":
    main()
