"""The first model of a report against the others, metric by metric, over the perturbations that both have."""

from dataclasses import dataclass

from morphoray.evaluation.results import (
    CONTROL,
    FRECHET,
    HEADLINE,
    METRICS,
    ReportData,
    figure,
    measured,
)
from morphoray.evaluation.statistics import (
    PairedDifference,
    UnpairedDifference,
    benjamini_hochberg,
    paired_difference,
    stars,
    unpaired_difference,
)
from morphoray.seeds import numpy_generator


def compare_models(
    data: ReportData, rival: str, unseen: bool | None = None, metric: str = FRECHET
) -> PairedDifference | None:
    """The first model's − the rival's distance over the perturbations that have both."""
    first = data.models[0]
    pairs = [
        (found[first].value, found[rival].value)
        for result in data.perturbations
        if (unseen is None or result.unseen == unseen)
        and {first, rival} <= {*(found := result.distances.get(metric, {}))}
    ]
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    return paired_difference(ours, theirs, numpy_generator("report", data.seed))


def rivals(data: ReportData) -> list[str]:
    """What the first model is compared with: the other models, and the copy control."""
    return [*data.models[1:], *(name for name in (CONTROL,) if name in data.methods)]


@dataclass(frozen=True)
class Comparison:
    """The first model against a rival by one metric: paired, and as the paper tests it.

    adjusted: the paired p, Benjamini–Hochberg over the report's comparisons.
    """

    metric: str
    rival: str
    paired: PairedDifference
    adjusted: float
    paper: UnpairedDifference


def comparisons(data: ReportData) -> list[Comparison]:
    """By Fréchet and kernel distance, against every rival over the perturbations that both have."""
    pairs = [(metric, rival) for metric in HEADLINE for rival in rivals(data)]
    found = [(pair, compare_models(data, pair[1], metric=pair[0])) for pair in pairs]
    kept = [(pair, paired) for pair, paired in found if paired is not None]
    adjusted = benjamini_hochberg([paired.p for _, paired in kept])
    rows = []
    for ((metric, rival), paired), corrected in zip(kept, adjusted, strict=True):
        values = [[each.value for each in measured(data, metric, name)] for name in (data.models[0], rival)]
        rows.append(Comparison(metric, rival, paired, float(corrected), unpaired_difference(*values)))
    return rows


def comparison_cells(data: ReportData, row: Comparison) -> tuple[str, ...]:
    """A comparison as text, in the order of COMPARISON_HEAD."""
    paired, paper = row.paired, row.paper
    return (
        METRICS[row.metric].label,
        data.methods[row.rival].label,
        figure(paired.mean),
        f"{figure(paired.low)} to {figure(paired.high)}",
        f"{paired.first_smaller} of {paired.n}",
        f"{figure(paired.p)} ({figure(row.adjusted)})",
        f"{figure(paper.p)} {stars(paper.p)}".strip(),
        figure(paper.effect),
    )


COMPARISON_HEAD = (
    "metric",
    "against",
    "difference",
    "95 % interval",
    "closer on",
    "paired p (adjusted)",
    "the paper's t-test, p",
    "Cohen's d",
)
