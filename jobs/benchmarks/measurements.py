"""Images a second of segmentation and of CellProfiler's measurements, by family, on one core.

    OMP_NUM_THREADS=1 python jobs/benchmarks/measurements.py [--size 256] [--channels 6] [--images 3]

Simulated fields; the seconds are CPU seconds of this process, so that other work on the machine counts less.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from _common import machine

from morphoray.datasets.simulator.fields import LAYOUTS, draw_fields
from morphoray.datasets.simulator.phenotype import BatchEffect, Phenotype
from morphoray.evaluation.measurements import DEFAULT_FAMILIES, measure
from morphoray.evaluation.segmentation import SegmentationOptions, segment

DIAMETER = 20.0


def seconds(
    size: int, channels: int, images: int, families: tuple[str, ...] = DEFAULT_FAMILIES
) -> dict[str, float]:
    """CPU seconds an image of "segment", each family and "measure", all families at once; and "cells"."""
    names = [name for name, _ in LAYOUTS[channels]]
    fields = draw_fields(
        [Phenotype()] * images,
        [BatchEffect()] * images,
        size,
        channels,
        keys=[("measurements", index) for index in range(images)],
        nucleus_diameter_px=DIAMETER,
    ).images
    body = "rna" if "rna" in names else "actin"
    options = SegmentationOptions(nuclei="dna", cell_body=(body,), nucleus_diameter_px=DIAMETER)
    first = segment(fields[0], names, options)
    measure(fields[0], names, first, {})  # imports and caches
    found: list[Any] = []
    taken = {"segment": _each(lambda image: found.append(segment(image, names, options)), fields)}
    pairs = list(zip(fields, found, strict=True))
    for family in families:
        taken[family] = _each(partial(_measure_pair, names=names, families=(family,)), pairs)
    taken["measure"] = _each(partial(_measure_pair, names=names, families=families), pairs)
    taken["cells"] = float(np.mean([segmentation.count for segmentation in found]))
    return taken


def _measure_pair(pair: tuple[Any, Any], names: Sequence[str], families: tuple[str, ...]) -> None:
    """The measurements of a field and its cells."""
    measure(pair[0], names, pair[1], {}, families)


def _each(function: Callable[[Any], object], items: Any) -> float:
    start = time.process_time()
    for item in items:
        function(item)
    return (time.process_time() - start) / len(items)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--channels", type=int, default=6)
    parser.add_argument("--images", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    taken = seconds(options.size, options.channels, options.images)
    cells = taken.pop("cells")
    print(f"fields of {options.size} px, {options.channels} channels, {cells:.0f} whole cells on average")
    for name, value in taken.items():
        print(f"  {name}: {value:.2f} s an image")
    print(f"  together {1 / (taken['segment'] + taken['measure']):.2f} images a second")


if __name__ == "__main__":
    main()
