"""Memory and seconds of preset `sd` (Stable Diffusion's size) at 512 px on a CPU: a step and a sample.

Fresh weights, nothing is downloaded. Each measurement has a process of its own. The step is the training
loop's, batch 1, fp32, gradient checkpointing as in jobs/configs/rxrx1_single_batch.yaml; the sample is two
steps and the decoder. Beside each peak stands the floor: the tensors that must be there at once.

With --spill DIR the averaged weights and Adam's two moments lie in files that are mapped into memory. The
numbers are the same, but the system may write those pages out when memory is short: the peak of anonymous
pages, which it can't write out, is told apart.
"""

import argparse
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import torch
from _common import machine
from torch import Tensor

from morphoray.config import BundleConfig, TrainingConfig
from morphoray.diffusion.bundle import Bundle, new_bundle
from morphoray.diffusion.generate import ImageRequest, SamplerSettings, generate
from morphoray.training.latents import LatentSet
from morphoray.training.loop import Hooks, make_accelerator, make_state, train
from morphoray.training.state import TrainingState

GIB = 2**30
WIDTH = 256  # of the condition vectors, padded to a token of the preset's width
ACTIVATIONS_GIB = 2.0  # of one step and of a decoder's pass, and the libraries: what a free machine must add


@dataclass(frozen=True)
class Figures:
    """Seconds of the work, peaks of resident memory in GiB, and the floor: bytes that must be there at once.

    all_gib counts anonymous and file-mapped pages together, at their common peak.
    """

    seconds: float
    all_gib: float
    anonymous_gib: float
    floor_gib: float
    parameters: int


def resident_gib() -> tuple[float, float]:
    """(all, anonymous) resident memory of this process."""
    told = Path("/proc/self/status").read_text()
    kib = {name: int(value) for name, value in re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB", told, re.M)}
    return kib["VmRSS"] * 1024 / GIB, kib["RssAnon"] * 1024 / GIB


@contextmanager
def watched(every_s: float = 0.05) -> Iterator[list[float]]:
    """Peaks of (all, anonymous) resident memory during the block, in GiB."""
    peaks, ended = list(resident_gib()), threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            peaks[:] = [max(pair) for pair in zip(peaks, resident_gib(), strict=True)]

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def measured(work: Callable[[], object], parameters: int, floor_bytes: int) -> Figures:
    """Figures of one call."""
    with watched() as peaks:
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
    resident, anonymous = peaks
    return Figures(seconds, resident, anonymous, floor_bytes / GIB, parameters)


def fresh(config: BundleConfig, resolution: int) -> Bundle:
    """The preset's bundle with random weights and the paper's projection."""
    return new_bundle(config, resolution, WIDTH, {"kind": "pad", "tokens": 1, "hidden": 256}, seed=0)


def spill(state: TrainingState, folder: Path) -> None:
    """Move the averaged weights and Adam's moments, zero at first, into files mapped into memory."""
    parameters = list(state.model.parameters())
    averaged, first, second = (_mapped(parameters, folder / name) for name in ("ema", "first", "second"))
    for target, source in zip(averaged, state.ema.shadow_params, strict=True):
        target.copy_(source)
    state.ema.shadow_params = averaged
    for parameter, *moments in zip(parameters, first, second, strict=True):
        values = dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))
        state.optimizer.state[parameter] = {"step": torch.tensor(0.0), **values}


def _mapped(like: list[torch.nn.Parameter], path: Path) -> list[Tensor]:
    """Tensors of these shapes, one after the other in one sparse file."""
    sizes = [tensor.numel() for tensor in like]
    flat = torch.from_file(str(path), shared=True, size=sum(sizes), dtype=torch.float32)
    return [part.view(tensor.shape) for part, tensor in zip(torch.split(flat, sizes), like, strict=True)]


def training_step(config: BundleConfig, resolution: int, folder: str | None) -> Figures:
    """One step of the training loop on one latent. Floor: weights, gradient, two moments, average."""
    bundle = fresh(config, resolution)
    shape = bundle.latent_shape(resolution)
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(1, *shape, generator=generator), torch.ones(1, *shape)
    data = LatentSet(mean.half(), std.half(), torch.zeros(1, dtype=torch.long), torch.ones(1, WIDTH))
    training = TrainingConfig(max_steps=1, batch_size=1, gradient_checkpointing=True)
    parameters = sum(value.numel() for value in bundle.denoiser.parameters())
    codec = sum(value.numel() for value in bundle.vae.parameters())
    state = make_state(bundle, training)
    if folder is not None:
        spill(state, Path(folder))
    hooks = Hooks(lambda record: None, lambda state: None, lambda state: None)
    accelerator = make_accelerator(training)
    return measured(
        lambda: train(bundle, data, training, 0, 0.0, accelerator, state, hooks),
        parameters,
        4 * (5 * parameters + codec),
    )


def sample(config: BundleConfig, resolution: int, steps: int = 2) -> Figures:
    """One image in `steps` steps, decoded. Floor: the weights of denoiser and autoencoder."""
    bundle = fresh(config, resolution)
    bundle.denoiser.eval()
    settings = SamplerSettings(steps=steps, resolution=resolution, batch_size=1)
    request = ImageRequest("any", np.ones(WIDTH, np.float32), 0)
    parameters = sum(value.numel() for value in bundle.denoiser.parameters())
    codec = sum(value.numel() for value in bundle.vae.parameters())
    return measured(lambda: list(generate(bundle, [request], settings)), parameters, 4 * (parameters + codec))


def apart(work: Callable[..., Figures], *arguments: object) -> Figures:
    """The work's figures from a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def show(name: str, figures: Figures) -> None:
    """Two lines of figures."""
    print(f"  {name}: {figures.seconds:.1f} s, {figures.parameters / 1e6:.1f} M parameters in the denoiser")
    print(
        f"    resident at most {figures.all_gib:.2f} GiB, anonymous at most {figures.anonymous_gib:.2f} GiB; "
        f"floor {figures.floor_gib:.2f} GiB",
        flush=True,
    )


def main() -> int:
    """Measure and print; says so where memory is too small for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--spill", metavar="DIR", help="where averages and moments go, 9.6 GiB at preset sd")
    arguments = parser.parse_args()
    config = BundleConfig(preset="sd")
    print(machine(), flush=True)
    needed = (6.8 if arguments.spill else 16.4) + ACTIVATIONS_GIB
    free = psutil.virtual_memory().available / GIB
    if free < needed:
        print(f"sd: skipped, needs {needed:.1f} GiB of memory, {free:.1f} are free (--spill DIR needs less)")
        return 0
    print(f"sd at {arguments.resolution} px, batch 1, fp32, {torch.get_num_threads()} threads:")
    show("sample, 2 steps and decoder", apart(sample, config, arguments.resolution))
    with tempfile.TemporaryDirectory(dir=arguments.spill) as folder:
        where = folder if arguments.spill else None
        show("training step", apart(training_step, config, arguments.resolution, where))
    return 0


if __name__ == "__main__":
    sys.exit(main())
