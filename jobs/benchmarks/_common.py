"""What the benchmarks share: the machine's description, interleaved timing, a small run and its model."""

import argparse
import contextlib
import io
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from morphoray import schema
from morphoray.config import RunConfig
from morphoray.pipelines.encode import read_plan, site_images
from morphoray.pipelines.layout import dataset_of, layout_of, resolve, storage_from
from morphoray.pipelines.run import save_config
from morphoray.pipelines.sites import import_sites, read_sites
from morphoray.sections import build

Rates = dict[str, list[float]]
COMPOUNDS = ("lovastatin", "diazepam", "caffeine")
MIB = 2**20


def machine() -> str:
    """One line: the processor, its cores, torch, and the load by other processes at this moment."""
    import torch

    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^model name\s*: (.*)$", told, re.MULTILINE)
    return (
        f"{found[1] if found else 'unknown processor'}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def interleave(measures: Mapping[str, Callable[[], float]], repeats: int, budget_s: float = 75) -> Rates:
    """Call every measure in turn, so that other work on the machine hits all alike.

    There are `repeats` rounds, or fewer, but one at least: no round starts when budget_s seconds have passed.
    """
    rates: Rates = {name: [] for name in measures}
    start = time.perf_counter()
    for _ in range(repeats):
        for name, measure in measures.items():
            rates[name].append(measure())
        if time.perf_counter() - start > budget_s:
            break
    return rates


def ratio(rates: Rates, name: str, base: str) -> float:
    """The median over rounds of name's rate divided by base's rate in the same round."""
    return statistics.median(a / b for a, b in zip(rates[name], rates[base], strict=True))


def print_rates(rates: Rates, unit: str) -> None:
    """A line for each measure: the median, and the range over rounds."""
    for name, values in rates.items():
        print(
            f"  {name:10s} {statistics.median(values):8.2f} {unit} "
            f"({min(values):.2f} to {max(values):.2f} in {len(values)} rounds)"
        )


def print_target(what: str, value: float, least: float) -> None:
    """A ratio beside its target; a missed one is told and is no failure, since machines are noisy."""
    print(f"  {what}: {value:.3f}, target {least:g} or more: {'met' if value >= least else 'MISSED'}")


def quietly(work: Callable[[], Any]) -> Any:
    """The result of `work`, whose progress lines are swallowed."""
    with contextlib.redirect_stdout(io.StringIO()):
        return work()


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def stage_arguments(description: str | None, unit: str, parts: int, per_part: int) -> argparse.Namespace:
    """Arguments of a stage's benchmark: parts, per_part and repeats; `unit` names what a part is made of."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--parts", type=int, default=parts)
    parser.add_argument(f"--{unit}-per-part", type=int, default=per_part, dest="per_part")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


class TimedStage:
    """A stage whose start is told apart from its rate. start_s: seconds until its first part, run by run."""

    def __init__(self, units_per_part: int) -> None:
        self.start_s: list[float] = []
        self._units = units_per_part

    def rate(self, work: Callable[[], Any], folder: Path, pattern: str) -> float:
        """Units a second of one run of `work`, which writes a file of that pattern for each part."""
        begun = time.time()
        quietly(work)
        rate, first = steady_rate(list(folder.glob(pattern)), self._units)
        self.start_s.append(first - begun)
        return rate


class Spent:
    """Seconds by part of a loop, summed: `with spent("forward"): …`."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    def print(self, title: str) -> None:
        """The title, and a line for each part: its share of all seconds."""
        total = sum(self.seconds.values())
        print(title)
        for part, seconds in sorted(self.seconds.items(), key=lambda each: -each[1]):
            print(f"  {part:24s} {100 * seconds / total:5.1f} %")


def print_start(start_s: list[float]) -> None:
    """The median start of a stage."""
    print(f"  start-up, not counted above: {statistics.median(start_s):.1f} s")


def steady_rate(files: list[Path], units_per_file: int) -> tuple[float, float]:
    """Units a second between the first finished part and the last, and when the first part began (epoch s).

    Parts are equal; a file's modification time is when its part was finished.
    """
    times = sorted(path.stat().st_mtime for path in files)
    per_part = (times[-1] - times[0]) / (len(times) - 1)
    return units_per_file / per_part, times[0] - per_part


@dataclass(frozen=True)
class Peaks:
    """Highest values in MiB, each at its own moment; all_mib: every process of the tree together."""

    driver_mib: float
    actor_mib: float
    all_mib: float
    store_mib: float

    def __str__(self) -> str:
        return (
            f"driver {self.driver_mib:6.0f}, actor {self.actor_mib:6.0f}, "
            f"all processes {self.all_mib:6.0f}; object store {self.store_mib:5.0f}"
        )


def peaks_of(command: list[str], log: Path, actor_name: str) -> Peaks:
    """Run the command and watch its processes; what it says goes to `log`. Raises CalledProcessError.

    actor_name: part of the title of the process that is told apart as the actor.
    """
    with log.open("wb") as file:
        running = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        peaks = _watch(running, actor_name)
    if running.returncode:
        print(log.read_text()[-2000:], file=sys.stderr)
        raise subprocess.CalledProcessError(running.returncode, command)
    return peaks


def _watch(running: subprocess.Popen[bytes], actor_name: str, every_s: float = 0.2) -> Peaks:
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
                actor += own if actor_name in name else 0
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


def peaks_by_size(measure: Callable[[int], Peaks], smallest: int, unit: str) -> list[Peaks]:
    """The peaks of 1, 4 and 16 times the smallest input, each printed as it is measured."""
    found = []
    for size in (smallest, 4 * smallest, 16 * smallest):
        found.append(measure(size))
        print(f"  {size:5d} {unit}: {found[-1]}", flush=True)
    return found


def memory_ratio(found: list[Peaks]) -> float:
    """All processes and the object store at the largest size, over the same at the smallest."""
    first, last = found[0], found[-1]
    return (last.all_mib + last.store_mib) / (first.all_mib + first.store_mib)


def demo_values() -> dict[str, Any]:
    """The demo's image, condition, model, training and generation sections, as a plain mapping."""
    import yaml

    from morphoray.pipelines.demo import CONFIG

    values: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    return values


def simulated_run(folder: Path, sites: int, drawn: int = 32, **sections: dict[str, Any]) -> RunConfig:
    """A resolved run of `sites` simulated sites, imported: the demo's configuration, `sections` merged in.

    Only `drawn` sites are drawn; SITES names their files again and again under new site_ids, so the files
    come from the page cache, as they would from fast local disks.
    """
    values = demo_values()
    values |= {"run_dir": str(folder)}
    values["dataset"] |= {
        "perturbations": list(COMPOUNDS),
        "held_out_perturbations": [],
        "experiments": 1,
        "held_out_experiments": 0,
        "wells_per_perturbation": 1,
        "sites_per_well": max(1, min(drawn, sites) // (len(COMPOUNDS) + 1)),
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    config = resolve(build(RunConfig, values, "benchmark"))
    import_sites(config)
    save_config(config)
    table = read_sites(config)
    rows = [row % len(table) for row in range(sites)]
    ids = pa.array([f"site-{number:06d}" for number in range(sites)], pa.string())
    table = table.take(rows).set_column(0, schema.SITES.field("site_id"), ids)
    made_by = config.fingerprint("dataset")
    storage_from(config.storage).write_table(layout_of(config).sites, schema.stamp(table, made_by))
    return config


def images_of_sites(config: RunConfig, sites: int) -> np.ndarray:
    """What the pipelines read for the first `sites` sites: uint8 (N, K, R, R), crop by crop."""
    plan, storage = read_plan(config), dataset_of(config)[2]
    rows = read_sites(config).slice(0, sites).to_pylist()
    return np.concatenate([site_images(row, plan, storage) for row in rows])


def write_bundle(folder: Path, config: RunConfig) -> Path:
    """An untrained bundle of the run's preset with the rdkit condition of a few compounds."""
    from morphoray.diffusion.bundle import new_bundle, save_bundle
    from morphoray.perturbations import find_encoder
    from morphoray.perturbations.base import from_rows
    from morphoray.pipelines.codecs import local_bundle_config

    items = from_rows(read_sites(config))
    kind = find_encoder(config.perturbations.encoder)
    options = build(kind.options, config.perturbations.options, "perturbations")
    encoder = kind.fit(options, items, storage_from(config.storage))
    condition = config.perturbations
    projection = {"kind": condition.projection, "tokens": condition.tokens, "hidden": condition.hidden}
    bundle = new_bundle(local_bundle_config(config), config.image.resolution, encoder.width, projection, 0)
    bundle.manifest = {
        "condition": {"encoder": encoder.name, "state": encoder.state()},
        "resolution": config.image.resolution,
        "perturbations": [{**vars(item), "seen": True} for item in items],
    }
    folder.mkdir(parents=True)
    save_bundle(bundle, dict(bundle.denoiser.state_dict()), folder)
    return folder
