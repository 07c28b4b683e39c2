"""A real run that takes seconds: noisy images, a tiny configuration, and the command line in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from morphoray.config import RunConfig, parse
from morphoray.imaging.png import encode_png

ROOT = Path(__file__).parent.parent
# Ray and torch leave sockets and warnings of their own behind.
REAL_RAY = [
    pytest.mark.timeout(900),  # a cluster's start alone can take a minute on a busy machine
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
COMPOUNDS = ("dmso", "taxol")


def make_images(folder: Path, count: int = 12) -> Path:
    """An imagefolder of noisy 20 × 20 images of two compounds on two plates."""
    train = folder / "train"
    train.mkdir(parents=True)
    lines = []
    for number in range(count):
        rng = np.random.default_rng(number)
        (train / f"{number}.png").write_bytes(encode_png(rng.integers(0, 256, (3, 20, 20), dtype=np.uint8)))
        plate = f"p{2 * number // count}"
        lines.append(
            {"file_name": f"{number}.png", "additional_feature": COMPOUNDS[number % 2], "plate": plate}
        )
    (train / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def settings(run_dir: str | Path, images: Path, codec: Path, **training: Any) -> dict[str, Any]:
    """A complete run's values; keywords go to its training section."""
    return {
        "run_dir": str(run_dir),
        "dataset": {"name": "imagefolder", "source": str(images)},
        "image": {"resolution": 16, "fit": "crop"},
        "perturbations": {"encoder": "constant", "projection": "mlp", "hidden": 8},
        "bundle": {"preset": "tiny", "vae": str(codec)},
        "encode": {"sites_per_part": 4, "batch_size": 4},
        "training": {
            "max_steps": 4,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "checkpoint_every": 2,
            "log_every": 1,
            "sample_every": 4,
        }
        | training,
        "generation": {"sampler": "ddim", "steps": 2, "n": 2, "batch_size": 4},
        "evaluation": {"extractor": "efficientnet_lite0"},
    }


def run_of(values: dict[str, Any], *overrides: str) -> RunConfig:
    """The configuration of such values."""
    return parse(yaml.safe_dump(values), "test", overrides)


class Command:
    """`morphoray WORDS` in a process of its own, which is killed with all it started at the block's end."""

    def __init__(self, log: Path, *words: str | Path, **environment: str) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "morphoray", *map(str, words)],
                stdout=file,
                stderr=file,
                env=os.environ | {"PYTHONPATH": "platform", "PYTHONUNBUFFERED": "1"} | environment,
                cwd=ROOT,
                start_new_session=True,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        for each in [*descendants(self.process.pid), self.process]:
            each.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text(errors="replace")

    def until(self, ready: Callable[[], Any], timeout_s: float = 200) -> Any:
        """Wait until `ready()` is true and return it; fails when the command ends before."""
        deadline = time.monotonic() + timeout_s
        while not (found := ready()):
            assert self.process.poll() is None, self.said[-4000:]
            assert time.monotonic() < deadline, self.said[-4000:]
            time.sleep(0.005)
        return found

    def succeed(self, timeout_s: float = 300) -> str:
        """Wait for its end; fails unless it ended well. Returns what it printed."""
        assert self.process.wait(timeout_s) == 0, self.said[-4000:]
        return self.said

    def fail(self, timeout_s: float = 300) -> str:
        """Wait for its end; fails if it ended well. Returns what it printed."""
        assert self.process.wait(timeout_s) not in (0, None), self.said[-4000:]
        return self.said


def start(
    stage: str, config: Path, run_dir: str | Path, log: Path, *words: str, **environment: str
) -> Command:
    """`morphoray STAGE CONFIG` with that run_dir."""
    return Command(log, stage, config, "--set", f"run_dir={run_dir}", *words, **environment)


def descendants(pid: int, title: str = "") -> list[psutil.Process]:
    """The processes below `pid` whose command line holds `title`: never those of another's cluster."""
    found = []
    for process in psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else []:
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def weights(bundle: Path) -> list[bytes]:
    """The bytes of a bundle's raw and averaged weights."""
    names = ("unet", "unet_ema")
    return [(bundle / name / "diffusion_pytorch_model.safetensors").read_bytes() for name in names]


def losses(run: Path) -> dict[int, float]:
    """A run's logged losses by step."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records}
