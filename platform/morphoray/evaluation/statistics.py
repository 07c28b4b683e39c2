"""Whether one method is closer than another over the same perturbations: intervals, tests, stars."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIGNIFICANT = 0.05
MOST_EXACT = 8  # pairs: 40,320 orders; the t distribution would call any perfect order of three certain


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
    low, high = bootstrap_interval(differences, generator, resamples)
    p = _p(differences) if n >= 3 else float("nan")
    return PairedDifference(float(differences.mean()), low, high, p, smaller, n)


def _p(differences: np.ndarray) -> float:
    from scipy import stats

    if not differences.std():
        return float("nan")
    return float(stats.ttest_1samp(differences, 0).pvalue)


@dataclass(frozen=True)
class UnpairedDifference:
    """first − second as the paper tests it: Welch's t-test over perturbations, as if they were independent.

    effect: Cohen's d with the pooled standard deviation. p and effect are NaN below 2 values a side.
    """

    mean: float
    p: float
    effect: float


def unpaired_difference(first: Sequence[float], second: Sequence[float]) -> UnpairedDifference:
    """The paper's test of two methods' distances over perturbations, beside the paired one."""
    from scipy import stats

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return UnpairedDifference(difference, np.nan, np.nan)
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2)
    if pooled == 0:
        return UnpairedDifference(difference, np.nan, np.nan)
    sides = [part for each in (a, b) for part in (each.mean(), each.std(ddof=1), len(each))]
    p = float(stats.ttest_ind_from_stats(*sides, equal_var=False).pvalue)
    return UnpairedDifference(difference, p, difference / float(np.sqrt(pooled)))


def stars(p: float) -> str:
    """The paper's marks: * below 0.01, ** below 0.001; nothing for NaN. Below SIGNIFICANT it prints bold."""
    return "*" * sum(p < level for level in (0.01, 0.001))


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of n pairs and its two-sided p; both NaN below 3 pairs or of a constant."""

    rho: float
    p: float
    n: int


def spearman(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Over the pairs of which both are finite; p is exact, over all orders, up to MOST_EXACT pairs."""
    from scipy import stats

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Correlation(np.nan, np.nan, len(a))
    found = stats.spearmanr(a, b)
    if len(a) > MOST_EXACT:
        return Correlation(float(found.statistic), float(found.pvalue), len(a))
    ranks, others = (stats.rankdata(each) - (len(a) + 1) / 2 for each in (a, b))
    products = np.array(list(itertools.permutations(others))) @ ranks
    p = float((np.abs(products) >= abs(ranks @ others) - 1e-9).mean())
    return Correlation(float(found.statistic), p, len(a))


def benjamini_hochberg(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Adjusted p values (n,) that control the false discovery rate (Benjamini, Hochberg 1995); NaN stays."""
    from scipy import stats

    values = np.asarray(p_values, np.float64)
    adjusted = np.full(len(values), np.nan)
    known = np.isfinite(values)
    if known.any():
        adjusted[known] = stats.false_discovery_control(values[known], method="bh")
    return adjusted


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[np.float64], generator: np.random.Generator, resamples: int = 10_000
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over perturbations; NaN below 3 values."""
    data = np.asarray(values, np.float64)
    if len(data) < 3:
        return float("nan"), float("nan")
    means = data[generator.integers(0, len(data), (resamples, len(data)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
