"""The paper's Table 1 in its own form: FID × 0.01 and KID of padded real images, stars by its test."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphoray.evaluation.results import (
    FRECHET_PAPER,
    KID_PAPER,
    METRICS,
    Cell,
    ReportData,
    cells,
    figure,
    measured,
)
from morphoray.evaluation.statistics import SIGNIFICANT, stars, unpaired_difference

PAPER_HEAD = ("experiment", "method", "N real, padded", "FID × 0.01", "KID")
PAPER_NOTE = (
    "The paper's protocol, for comparison with its Table 1 only: real images are filled up to the number of "
    "generated ones by flips and turns, all images of a perturbation are compared at once, and nothing is "
    "held back for a floor. Padding removes none of the bias of few images. Bold: the closest method, where "
    "the paper's t-test over perturbations against the second closest gives p < 0.05; * p < 0.01, ** p < "
    "0.001. The paper says no more than two-sample t-test; Welch's form is our reading. That test takes "
    "methods that share real images for independent ones."
)
SCALES = {FRECHET_PAPER: 0.01, KID_PAPER: 1.0}


@dataclass(frozen=True)
class PaperValue:
    """A mean as the paper prints it, and whether in bold."""

    text: str
    bold: bool = False


def paper_rows(data: ReportData) -> list[tuple[PaperValue, ...]]:
    """A row for each cell and model, in the order of PAPER_HEAD; none unless the protocol was measured."""
    rows = []
    for cell in cells(data):
        columns = [_column(data, metric, cell) for metric in SCALES]
        where = data.experiment if cell.label == "all" else f"{data.experiment}, {cell.label}"
        for model in data.models:
            if found := measured(data, FRECHET_PAPER, model, cell):
                counts = sorted({distance.n_b for distance in found})
                n = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
                texts = (where, data.methods[model].label, n)
                rows.append((*map(PaperValue, texts), *(column[model] for column in columns)))
    return rows


def _column(data: ReportData, metric: str, cell: Cell) -> dict[str, PaperValue]:
    """Every model's mean of one metric; the lowest is marked by its difference from the second lowest."""
    values = {model: [each.value for each in measured(data, metric, model, cell)] for model in data.models}
    means = {model: float(np.mean(found)) for model, found in values.items() if found}
    best, p = _best(values, sorted(means, key=lambda model: means[model]))
    return {
        model: PaperValue(
            figure(SCALES[metric] * mean) + (stars(p) if model == best else ""),
            model == best and p < SIGNIFICANT,
        )
        for model, mean in means.items()
    }


def _best(values: dict[str, list[float]], order: Sequence[str]) -> tuple[str | None, float]:
    if len(order) < 2:
        return None, np.nan
    return order[0], unpaired_difference(values[order[0]], values[order[1]]).p


def paper_caveat(data: ReportData) -> list[str]:
    """What a reader must know of these metrics; nothing unless they were measured."""
    if not any(FRECHET_PAPER in result.distances for result in data.perturbations):
        return []
    return [
        f"{METRICS[FRECHET_PAPER].label}, and the kernel distance by it: the paper's way, not ours. Copies "
        "of images are no images: compare these with the paper's tables alone, at its extractor (inception) "
        "and its 500 images, and never with the other distances here."
    ]
