"""The first model of a report against the others, metric by metric, over the treatments that both have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from morphoray.evaluation.results import (
    CONTROL,
    EVERYTHING,
    HEADLINE,
    METRICS,
    OTHER,
    Cell,
    PerturbationResult,
    ReportData,
    cells,
    figure,
    interval,
    probability,
)
from morphoray.evaluation.statistics import (
    LEAST_PAIRS,
    SIGNIFICANT,
    PairedDifference,
    UnpairedDifference,
    benjamini_hochberg,
    paired_difference,
    stars,
    unpaired_difference,
)
from morphoray.seeds import numpy_generator

Verdict = Literal["closer", "further", "disagree", "unclear", "few"]


@dataclass(frozen=True)
class Comparison:
    """The first model against a rival by one metric in one cell: paired, and as the paper tests it.

    paired: over groups of treatments that are no independent evidence, the mean of each group first. groups:
    what they are, in the plural. adjusted: the paired p, Benjamini–Hochberg over the report's comparisons.
    paper: over the same treatments, one by one. treatments: their number.
    """

    cell: Cell
    metric: str
    rival: str
    paired: PairedDifference
    groups: str
    paper: UnpairedDifference
    treatments: int
    adjusted: float = float("nan")

    @property
    def counted(self) -> str:
        """How many groups: '7 mechanisms', '1 compound or gene'."""
        if self.paired.n == 1:
            return f"1 {' '.join(word.removesuffix('s') for word in self.groups.split())}"
        return f"{self.paired.n} {self.groups}"


def rivals(data: ReportData) -> list[str]:
    """What the first model is compared with: the other models, and real images of other conditions."""
    return [*data.models[1:], *(name for name in (CONTROL, OTHER) if name in data.methods)]


def apart(data: ReportData) -> list[Cell]:
    """The cells of tables but one that pools the others."""
    return [cell for cell in cells(data) if cell != EVERYTHING] or [EVERYTHING]


def comparisons(data: ReportData) -> list[Comparison]:
    """By Fréchet and kernel distance, against every rival, in every cell of `apart`."""
    rows = [(cell, metric, rival) for cell in apart(data) for metric in HEADLINE for rival in rivals(data)]
    found = [compared for row in rows if (compared := _compared(data, *row))]
    adjusted = benjamini_hochberg([row.paired.p for row in found])
    return [replace(row, adjusted=float(p)) for row, p in zip(found, adjusted, strict=True)]


def _compared(data: ReportData, cell: Cell, metric: str, rival: str) -> Comparison | None:
    first = data.models[0]
    pairs = [
        (result, (found[first].value, found[rival].value))
        for result in data.perturbations
        if cell.has(result)
        and not result.is_control
        and {first, rival} <= {*(found := result.distances.get(metric, {}))}
    ]
    if not pairs:
        return None
    grouped: dict[str, list[tuple[float, float]]] = {}
    for result, pair in pairs:
        grouped.setdefault(_group(result), []).append(pair)
    ours, theirs = np.array([np.mean(group, axis=0) for group in grouped.values()]).T
    return Comparison(
        cell,
        metric,
        rival,
        paired_difference(ours, theirs, numpy_generator("report", data.seed)),
        _kind([result for result, _ in pairs], len(grouped)),
        unpaired_difference(*zip(*(pair for _, pair in pairs), strict=True)),
        len(pairs),
    )


def _group(result: PerturbationResult) -> str:
    """The mechanism; where it is unknown what doses or guides share, their structure or gene."""
    return result.moa or result.gene or result.smiles or result.perturbation_id


def _kind(results: Sequence[PerturbationResult], groups: int) -> str:
    if any(result.moa for result in results):
        return "mechanisms"
    return "perturbations" if groups == len(results) else "compounds or genes"


def verdict(found: Sequence[Comparison]) -> Verdict:
    """What the headline metrics say together, from their comparisons in one cell with one rival.

    closer, further: both by one sign, each with an adjusted p below SIGNIFICANT. disagree: by two signs, each
    with its own p below it. few: fewer than LEAST_PAIRS groups.
    """
    pairs = [row.paired for row in found]
    if min(pair.n for pair in pairs) < LEAST_PAIRS:
        return "few"
    if len({pair.mean < 0 for pair in pairs}) > 1:
        return "disagree" if all(pair.p < SIGNIFICANT for pair in pairs) else "unclear"
    if len(found) < len(HEADLINE) or not all(row.adjusted < SIGNIFICANT for row in found):
        return "unclear"
    return "closer" if pairs[0].mean < 0 else "further"


def comparison_cells(data: ReportData, row: Comparison) -> tuple[str, ...]:
    """A comparison as text, in the order of COMPARISON_HEAD."""
    paired, paper = row.paired, row.paper
    return (
        row.cell.label,
        METRICS[row.metric].label,
        data.methods[row.rival].label,
        figure(paired.mean),
        interval(paired.low, paired.high),
        f"{paired.first_smaller} of {row.counted}",
        f"{probability(paired.p)} ({probability(row.adjusted)})",
        f"{probability(paper.p)} {stars(paper.p)}".strip() + f" (n = {row.treatments})",
        figure(paper.effect),
    )


def untested(found: Sequence[Comparison]) -> str:
    """A sentence in place of the table where every comparison is over one treatment; else empty."""
    if any(row.treatments > 1 for row in found) or not found:
        return ""
    return (
        "Nothing can be tested: every comparison is over a single treatment, and a test takes 2, "
        f"a verdict {LEAST_PAIRS} mechanisms. The differences stand at the head of the report."
    )


COMPARISON_HEAD = (
    "perturbations",
    "metric",
    "against",
    "difference",
    "95 % interval",
    "closer on",
    "paired p (adjusted)",
    "the paper's t-test, p",
    "Cohen's d",
)
