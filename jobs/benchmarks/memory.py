"""Peak memory of `morphoray encode` at 1, 4 and 16 times the input: it must not grow with the input.

Each size is one run of the command, watched from outside. Of every process in its tree what counts is the
resident memory less its shared-memory pages (VmRSS - RssShmem): Ray's object store is mapped by every worker
and would otherwise count many times, so it is told apart, once, as the largest such mapping. Fails when the
whole at 16 times exceeds 1.5 times that at once.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from _common import machine, simulated_run

MOST = 1.5
MIB = 2**20


@dataclass(frozen=True)
class Peaks:
    """Highest values in MiB, each at its own moment; all_mib: every process of the tree together."""

    driver_mib: float
    actor_mib: float
    all_mib: float
    store_mib: float


def measure(folder: Path, sites: int, sites_per_part: int) -> Peaks:
    """Encode `sites` small sites by the command and watch its processes. Raises CalledProcessError."""
    config = simulated_run(
        folder,
        sites,
        dataset={"size": 64, "channels": 3},
        image={"resolution": 64, "crops": 1},
        encode={"sites_per_part": sites_per_part, "views": ["identity"], "splits": None},
    )
    command = [sys.executable, "-m", "morphoray", "encode", f"{config.run_dir}/config.yaml"]
    with (folder / "log.txt").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        peaks = _watch(running)
    if running.returncode:
        print((folder / "log.txt").read_text()[-2000:], file=sys.stderr)
        raise subprocess.CalledProcessError(running.returncode, command)
    return peaks


def _watch(running: subprocess.Popen[bytes], every_s: float = 0.2) -> Peaks:
    """Peaks until the process ends."""
    highest = [0.0, 0.0, 0.0, 0.0]
    root = psutil.Process(running.pid)
    while running.poll() is None:
        driver = actor = everything = store = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [root, *root.children(recursive=True)]:
                own, shared, name = _memory_mib(process)
                everything += own
                store = max(store, shared)
                driver += own if process.pid == root.pid else 0
                actor += own if "EncodePart" in name else 0
        highest = [max(pair) for pair in zip(highest, [driver, actor, everything, store], strict=True)]
        time.sleep(every_s)
    return Peaks(*highest)


def _memory_mib(process: psutil.Process) -> tuple[float, float, str]:
    """Own and shared-memory MiB of a process, and its title; zeros when it has ended."""
    try:
        told = Path(f"/proc/{process.pid}/status").read_text()
        title = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return 0.0, 0.0, ""
    kib = {name: int(value) for name, value in re.findall(r"^(VmRSS|RssShmem):\s+(\d+) kB", told, re.M)}
    shared = kib.get("RssShmem", 0)
    return (kib.get("VmRSS", 0) - shared) * 1024 / MIB, shared * 1024 / MIB, title


def main() -> int:
    """Measure and print; 1 when memory grows with the input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=64, help="of the smallest input")
    parser.add_argument("--sites-per-part", type=int, default=16)
    arguments = parser.parse_args()
    print(machine(), flush=True)
    print(f"encode, 3 x 64 x 64 sites, {arguments.sites_per_part} sites a part; MiB without shared pages:")
    found: list[Peaks] = []
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 4, 16):
            sites = times * arguments.sites
            peaks = measure(Path(folder) / str(times), sites, arguments.sites_per_part)
            found.append(peaks)
            print(
                f"  {sites:5d} sites: driver {peaks.driver_mib:6.0f}, encoding actor {peaks.actor_mib:6.0f}, "
                f"all processes {peaks.all_mib:6.0f}; object store {peaks.store_mib:5.0f}",
                flush=True,
            )
    growth = max(
        (last.all_mib + last.store_mib) / (first.all_mib + first.store_mib)
        for first, last in [(found[0], found[-1])]
    )
    print(f"  16 times the input takes {growth:.2f} times the memory, at most {MOST:g} allowed")
    return int(growth > MOST)


if __name__ == "__main__":
    sys.exit(main())
