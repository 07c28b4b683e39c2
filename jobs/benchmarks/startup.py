"""How long the command takes to answer: `--help`, and each stage until its first useful line and its end.

The stages work on a tiny prepared run (8 sites, 1 training step, 1 image), so nearly all of it is start-up:
imports, Ray, its workers, and the model. No round starts once 40 s have passed.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from _common import machine, simulated_run, write_bundle

BUDGET_S = 40
# A stage's first line that tells what it does.
COMMANDS = {"help": "usage:", "encode": "encode", "train": "train:", "generate": "generate"}


@dataclass(frozen=True)
class Start:
    """Seconds from the command to its first useful line and to its end."""

    first_line_s: float
    end_s: float


def prepare(folder: Path) -> Path:
    """A run of 8 sites with its SITES and configuration, and an untrained bundle; returns the folder."""
    config = simulated_run(
        folder / "run",
        8,
        encode={"splits": None},
        training={"max_steps": 1, "batch_size": 4},
        generation={"steps": 2, "cpus_per_actor": 1},
    )
    write_bundle(folder / "bundle", config)
    return folder


def measure(folder: Path, name: str, number: int) -> Start:
    """Run one command of a prepared folder, repeat `number`. Raises CalledProcessError when it fails.

    `encode` makes latents anew every time; `train` uses those of the same repeat.
    """
    run = folder / "run"
    data = folder / f"data-{number}"
    if name == "encode":
        (data / "sites").mkdir(parents=True)
        for path in (run / "sites").iterdir():
            (data / "sites" / path.name).write_bytes(path.read_bytes())
    configured = [f"{run}/config.yaml", "--set", f"data_dir={data}"]
    words = {
        "help": ["--help"],
        "encode": ["encode", *configured],
        "train": ["train", *configured, "--set", f"run_dir={folder}/trained-{number}"],
        "generate": [
            *("generate", f"{folder}/bundle", f"{folder}/images-{number}", "--n", "1"),
            *("--set", "generation.steps=2"),
        ],
    }[name]
    return _timed([sys.executable, "-u", "-m", "morphoray", *words], COMMANDS[name])


def _timed(command: list[str], first_word: str) -> Start:
    start = time.perf_counter()
    first: float | None = None
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            lines.append(line)
            if first is None and first_word in line:
                first = time.perf_counter() - start
    if running.returncode or first is None:
        print("".join(lines[-20:]), file=sys.stderr)
        raise subprocess.CalledProcessError(running.returncode, command)
    return Start(first, time.perf_counter() - start)


def main() -> None:
    """Measure and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = prepare(Path(scratch))
        found: dict[str, list[Start]] = {name: [] for name in COMMANDS}
        begun, number = time.perf_counter(), 0
        while number < arguments.repeats and (not number or time.perf_counter() - begun < BUDGET_S):
            for name in COMMANDS:
                found[name].append(measure(folder, name, number))
            number += 1
    print(f"start-up, medians of {number} rounds:")
    for name, starts in found.items():
        first = statistics.median(start.first_line_s for start in starts)
        end = statistics.median(start.end_s for start in starts)
        print(f"  morphoray {name:9s} first useful line {first:6.2f} s, end {end:6.2f} s")


if __name__ == "__main__":
    main()
