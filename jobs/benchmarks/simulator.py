"""How fast the simulator draws, and where the time goes (OMP_NUM_THREADS=1).

Prints fields a second on one core (the fastest quarter of the fields, so that other work on the machine
counts less), the share of each step, and what a tree of the default dataset costs.
"""

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

from morphoray.datasets.simulator.fields import draw_fields
from morphoray.datasets.simulator.layout import encode_plane, write_tree
from morphoray.datasets.simulator.phenotype import BatchEffect, Phenotype
from morphoray.datasets.simulator.plan import SimulatedOptions
from morphoray.storage import Storage

STEPS = (
    "place_cells",
    "place_nuclei",
    "map_cells",
    "map_nuclei",
    "make_scene",
    "stain",
    "expose",
    "digitise",
)


def draw(size: int, channels: int, diameter: float, number: int) -> float:
    """Seconds for one field."""
    start = time.perf_counter()
    draw_fields(
        [Phenotype()], [BatchEffect()], size, channels, keys=[(number,)], nucleus_diameter_px=diameter
    )
    return time.perf_counter() - start


def rates(fields: int) -> None:
    """Fields a second, by size and channels."""
    for size, channels, diameter in ((256, 6, 20.0), (256, 5, 20.0), (256, 3, 20.0), (128, 6, 18.0)):
        draw(size, channels, diameter, 0)  # makes the textures
        seconds = sorted(draw(size, channels, diameter, number) for number in range(fields))
        best = sum(seconds[: fields // 4]) / (fields // 4)
        print(
            f"{channels} x {size} x {size}: {1 / best:5.1f} fields/s (median {1 / seconds[fields // 2]:.1f})"
        )


def shares(fields: int) -> None:
    """The share of each step for fields of 6 x 256 x 256."""
    profile = cProfile.Profile()
    profile.enable()
    for number in range(fields):
        draw(256, 6, 20.0, number)
    profile.disable()
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = max(entry[3] for entry in stats.values())
    for name in STEPS:
        spent = sum(entry[3] for key, entry in stats.items() if key[2] == name)
        print(f"  {name:13s} {100 * spent / total:4.1f} %")


def tree(sites_per_well: int) -> None:
    """A whole tree on local disk: drawing, PNG, atomic writes."""
    options = SimulatedOptions(sites_per_well=sites_per_well)
    images = draw_fields([Phenotype()], [BatchEffect()], options.size, keys=[(0,)]).images[0]
    start = time.perf_counter()
    for _ in range(20):
        _ = [encode_plane(plane) for plane in images]
    print(f"PNG: {(time.perf_counter() - start) / 20 * 1e3:.1f} ms a site")
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        write_tree(str(Path(folder) / "tree"), Storage(), options)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    sites = 14 * 2 * 4 * sites_per_well
    print(f"tree of {sites} sites of {options.size} px: {wall:.1f} s ({cpu:.1f} s of CPU)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", type=int, default=60)
    parser.add_argument("--sites-per-well", type=int, default=4)
    arguments = parser.parse_args()
    rates(arguments.fields)
    shares(arguments.fields // 3)
    tree(arguments.sites_per_well)


if __name__ == "__main__":
    main()
