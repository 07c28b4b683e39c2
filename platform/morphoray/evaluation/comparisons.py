"""The first model of a report against the others, metric by metric, over the perturbations that both have."""

from dataclasses import dataclass

from morphoray.evaluation.results import (
    CONTROL,
    EVERYTHING,
    FRECHET,
    HEADLINE,
    METRICS,
    Cell,
    ReportData,
    cells,
    figure,
    measured,
    probability,
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
    data: ReportData, rival: str, cell: Cell = EVERYTHING, metric: str = FRECHET
) -> PairedDifference | None:
    """The first model's − the rival's distance over the perturbations of a cell that have both."""
    first = data.models[0]
    pairs = [
        (found[first].value, found[rival].value)
        for result in data.perturbations
        if cell.has(result) and {first, rival} <= {*(found := result.distances.get(metric, {}))}
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
    """The first model against a rival by one metric in one cell: paired, and as the paper tests it.

    adjusted: the paired p, Benjamini–Hochberg over the report's comparisons.
    """

    cell: Cell
    metric: str
    rival: str
    paired: PairedDifference
    adjusted: float
    paper: UnpairedDifference


def comparisons(data: ReportData) -> list[Comparison]:
    """By Fréchet and kernel distance in every cell, against every rival over perturbations that both have."""
    rows = [(cell, metric, rival) for cell in cells(data) for metric in HEADLINE for rival in rivals(data)]
    found = [(row, compare_models(data, row[2], row[0], row[1])) for row in rows]
    kept = [(row, paired) for row, paired in found if paired is not None]
    adjusted = benjamini_hochberg([paired.p for _, paired in kept])
    compared = []
    for ((cell, metric, rival), paired), corrected in zip(kept, adjusted, strict=True):
        sides = [measured(data, metric, name, cell) for name in (data.models[0], rival)]
        paper = unpaired_difference(*([each.value for each in side] for side in sides))
        compared.append(Comparison(cell, metric, rival, paired, float(corrected), paper))
    return compared


def comparison_cells(data: ReportData, row: Comparison) -> tuple[str, ...]:
    """A comparison as text, in the order of COMPARISON_HEAD."""
    paired, paper = row.paired, row.paper
    return (
        row.cell.label,
        METRICS[row.metric].label,
        data.methods[row.rival].label,
        figure(paired.mean),
        f"{figure(paired.low)} to {figure(paired.high)}",
        f"{paired.first_smaller} of {paired.n}",
        f"{probability(paired.p)} ({probability(row.adjusted)})",
        f"{probability(paper.p)} {stars(paper.p)}".strip(),
        figure(paper.effect),
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
