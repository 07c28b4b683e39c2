"""Whether one method is closer than another over the same perturbations: intervals, tests, stars."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIGNIFICANT = 0.05
LEAST_PAIRS = 6  # below, even pairs that all have one sign are no surprise: 2 / 2⁵ = 0.06
MOST_EXACT = 8  # pairs: 40,320 orders; the t distribution would call any perfect order of three certain


@dataclass(frozen=True)
class PairedDifference:
    """Two methods over n pairs: the mean of each, and of first − second with Student's paired t-test.

    low, high: as `bootstrap_interval` gives them of the differences. p is NaN below 3 pairs and where all
    differences are one number. The paper has neither: its test is `UnpairedDifference`.
    """

    first: float
    second: float
    low: float
    high: float
    p: float
    first_smaller: int
    n: int

    @property
    def mean(self) -> float:
        """Of first − second."""
        return self.first - self.second


def paired_difference(
    first: Sequence[float] | npt.NDArray[np.float64],
    second: Sequence[float] | npt.NDArray[np.float64],
    generator: np.random.Generator,
) -> PairedDifference:
    """The difference of two methods' distances, pair by pair; the bootstrap draws pairs."""
    ours, theirs = np.asarray(first, np.float64), np.asarray(second, np.float64)
    differences = ours - theirs
    low, high = bootstrap_interval(differences, generator)
    smaller = int((differences < 0).sum())
    means = float(ours.mean()), float(theirs.mean())
    return PairedDifference(*means, low, high, _p(differences), smaller, len(differences))


def _p(differences: npt.NDArray[np.float64]) -> float:
    from scipy import stats

    if len(differences) < 3 or _is_constant(differences):
        return float("nan")
    return float(stats.ttest_1samp(differences, 0).pvalue)


def _is_constant(values: npt.NDArray[np.float64]) -> bool:
    """Whether nothing but rounding tells the values apart."""
    return bool(np.ptp(values) <= 1e-9 * np.abs(values).max())


@dataclass(frozen=True)
class UnpairedDifference:
    """first − second as the paper tests it: a two-sample t-test over perturbations, as if independent.

    The paper says no more than "two-sample t-test"; Welch's form, of unequal variances, is our reading.
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
    values: Sequence[float] | npt.NDArray[np.float64], generator: np.random.Generator
) -> tuple[float, float]:
    """The 95 % bootstrap interval (BCa) of the mean; NaN below LEAST_PAIRS values, and of a constant."""
    from scipy import stats

    data = np.asarray(values, np.float64)
    if len(data) < LEAST_PAIRS or _is_constant(data):
        return float("nan"), float("nan")
    found = stats.bootstrap((data,), np.mean, method="BCa", random_state=generator).confidence_interval
    return float(found.low), float(found.high)
