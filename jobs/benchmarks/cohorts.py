"""All pairs of cohorts: our Fréchet matrix against a loop over scipy's matrix square root, pairs a second.

    python jobs/benchmarks/cohorts.py [--images 500] [--width 2048] [--columns 24] [--sets 100]

The loop is measured on one pair a round and ours on one row of `columns` pairs, moments included in both;
the time for sets × sets pairs is extrapolated from these. The floor is the arithmetic of the products alone.
"""

import argparse
import statistics
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from _common import Rates, interleave, machine, print_rates, print_target, ratio, seconds_of

from morphoray.evaluation.cohorts import frechet_matrix, moments

TARGET = 50


@dataclass(frozen=True)
class Figures:
    """Pairs a second, and the largest relative difference between the two."""

    rates: Rates
    difference: float
    product_flop: float


def measure(images: int, width: int, columns: int, repeats: int) -> Figures:
    """Measure both on features of random correlated Gaussians."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(width, width)).astype(np.float32) / np.sqrt(width)
    sets = [
        (rng.normal(size=(images, width)).astype(np.float32) @ mixing + 0.01 * index)
        for index in range(columns + 1)
    ]
    found: list[float] = []
    expected: list[float] = []

    def ours() -> float:
        def row() -> None:
            found.append(
                float(frechet_matrix([moments(sets[0])], [moments(each) for each in sets[1:]])[0, 0])
            )

        return columns / seconds_of(row)

    def loop() -> float:
        return 1 / seconds_of(lambda: expected.append(_by_square_root(sets[0], sets[1])))

    rates = interleave({"matrix": ours, "sqrtm": loop}, repeats, budget_s=240)
    return Figures(rates, abs(found[0] / expected[0] - 1), 2.0 * images * images * width)


def _by_square_root(a: np.ndarray, b: np.ndarray) -> float:
    first, second = (np.cov(each.astype(np.float64), rowvar=False) for each in (a, b))
    cross = scipy.linalg.sqrtm(first @ second)
    means = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    return float(means @ means + np.trace(first) + np.trace(second) - 2 * np.trace(cross).real)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=24)
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    print(machine())
    figures = measure(options.images, options.width, options.columns, options.repeats)
    print(f"{options.images} images of {options.width} features a set:")
    print_rates(figures.rates, "pairs/s")
    print_target("matrix to sqrtm", ratio(figures.rates, "matrix", "sqrtm"), TARGET)
    print(f"  largest relative difference {figures.difference:.1e} (1e-6 or less is wanted)")
    pairs = options.sets**2
    for name, values in figures.rates.items():
        hours = pairs / statistics.median(values) / 3600
        print(f"  {name}: {pairs:,} pairs would take {hours:.2f} h (extrapolated)")
    rate = statistics.median(figures.rates["matrix"])
    print(f"  the products alone: {rate * figures.product_flop / 1e9:.1f} GFLOP/s of float64")


if __name__ == "__main__":
    main()
