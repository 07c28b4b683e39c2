"""Whether one method is closer than another over the same perturbations: a paired bootstrap and t-test."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PairedDifference:
    """first − second over n pairs: the mean with its 95 % bootstrap interval, and Student's paired t-test.

    The t-test is the paper's, given for comparison. low, high and p are NaN below 3 pairs.
    """

    mean: float
    low: float
    high: float
    p: float
    first_smaller: int
    n: int


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    generator: np.random.Generator,
    resamples: int = 10_000,
) -> PairedDifference:
    """The difference of two methods' distances, pair by pair; the bootstrap draws pairs (perturbations)."""
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    n, smaller = len(differences), int((differences < 0).sum())
    if n < 3:
        return PairedDifference(float(differences.mean()), np.nan, np.nan, np.nan, smaller, n)
    means = differences[generator.integers(0, n, (resamples, n))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return PairedDifference(float(differences.mean()), float(low), float(high), _p(differences), smaller, n)


def _p(differences: np.ndarray) -> float:
    from scipy import stats

    if not differences.std():
        return float("nan")
    return float(stats.ttest_1samp(differences, 0).pvalue)
