"""Where a model can be trusted: its error on unseen perturbations against how far these are from training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphoray.evaluation.results import (
    BATCHES,
    FLOOR,
    FRECHET,
    METRICS,
    PerturbationResult,
    ReportData,
    equals,
    figure,
)
from morphoray.evaluation.statistics import SIGNIFICANT, Correlation, spearman

LEAST = 5  # perturbations: of fewer, even a perfect order has a two-sided exact p of 2 / 4! = 0.08 or more

TRUST_HEAD = (
    "unseen perturbation",
    "batches",
    "nearest training perturbation",
    "distance",
    "Fréchet distance",
    "real against real",
)


@dataclass(frozen=True)
class Trust:
    """Unseen perturbations whose distances to training can be compared: of one kind, in one group of batches.

    results: in the order of that distance. correlation: of it with the first model's Fréchet distance.
    """

    kind: str
    batches: str
    results: Sequence[PerturbationResult]
    errors: Sequence[float]
    correlation: Correlation

    @property
    def distances(self) -> list[float]:
        """To the nearest training perturbation."""
        return [result.nearest.distance for result in self.results if result.nearest]


def trusts(data: ReportData) -> list[Trust]:
    """One for each group of batches and kind of distance; none without unseen perturbations that have one."""
    model = data.models[0]
    found: dict[tuple[str, str], list[PerturbationResult]] = {}
    for result in data.perturbations:
        if result.unseen and result.nearest and model in result.distances.get(FRECHET, {}):
            found.setdefault((result.nearest.kind, result.batches), []).append(result)
    made = []
    for (kind, batches), results in found.items():
        ordered = sorted(results, key=lambda each: each.nearest.distance if each.nearest else 0.0)
        errors = [each.distances[FRECHET][model].value for each in ordered]
        distances = [each.nearest.distance for each in ordered if each.nearest]
        made.append(Trust(kind, batches, ordered, errors, spearman(distances, errors)))
    return made


def trust_rows(data: ReportData) -> list[tuple[str, ...]]:
    """Every unseen perturbation as text, in the order of TRUST_HEAD."""
    rows: list[tuple[str, ...]] = []
    for trust in trusts(data):
        for result, distance, error in zip(trust.results, trust.distances, trust.errors, strict=True):
            floor = result.distances[FRECHET].get(FLOOR)
            nearest = result.nearest.nearest if result.nearest else ""
            rows.append(
                (
                    result.perturbation_id,
                    BATCHES[result.batches],
                    nearest,
                    f"{distance:.2f} ({trust.kind})",
                    figure(error),
                    figure(floor.value if floor else None),
                )
            )
    return rows


def trust_sentences(data: ReportData) -> list[str]:
    """What the correlations say, a sentence each, and how many unseen perturbations have no distance."""
    told = [_sentence(data, trust) for trust in trusts(data)]
    lost = [each.perturbation_id for each in data.perturbations if each.unseen and each.nearest is None]
    if lost:
        names = sorted(set(lost))
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        told.append(
            f"{len(names)} unseen perturbations have no distance to training (no SMILES and no condition "
            f"vector to compare): {shown}."
        )
    return told


def _sentence(data: ReportData, trust: Trust) -> str:
    found = trust.correlation
    batches = f" in {BATCHES[trust.batches]}" if trust.batches else ""
    count = f"{len(trust.results)} unseen perturbation{'s' if len(trust.results) != 1 else ''}{batches}"
    if found.n < LEAST or not np.isfinite(found.rho):
        few = f"too few ({LEAST} are needed)" if found.n < LEAST else "too equal"
        return f"{count} by {trust.kind}: {few} to tell whether the error grows with the distance."
    figures = f"Spearman's ρ = {figure(found.rho)}, p {equals(found.p)}, n = {found.n}"
    model = data.methods[data.models[0]].label
    if found.p >= SIGNIFICANT:
        verdict = "the error shows no clear relation to the distance from training"
    elif found.rho > 0:
        verdict = "the further from what was trained on, the larger the error"
    else:
        verdict = "the error is smaller further from what was trained on, which distance does not explain"
    return f"{model}, {count} by {trust.kind}: {verdict} ({METRICS[FRECHET].label}, {figures})."
