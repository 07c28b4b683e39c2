"""What profiles of generated images say beside real ones, as plain values, and as rows of METRICS."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from morphoray import schema
from morphoray.evaluation.distances import FLOOR, Distance
from morphoray.evaluation.measures import FRECHET
from morphoray.evaluation.profile_scores import Agreement, Clustering
from morphoray.evaluation.profiles import REAL


@dataclass(frozen=True)
class Estimate:
    """A mean over n perturbations with its 95 % bootstrap interval, NaN where these are too few."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Cells:
    """Images of a source: all, without a cell, with cells but without a selected feature; cells an image."""

    images: int
    without_cells: int
    incomplete: int
    per_image: float


@dataclass(frozen=True)
class Mechanisms:
    """The share of answerable treatments whose nearest real one has their mechanism, and their number."""

    nsc: tuple[float, int]
    nscb: tuple[float, int]


@dataclass(frozen=True)
class SourceProfiles:
    """What one source of images reaches: a method, the copy control, or the real ones themselves.

    agreements: by perturbation. correlation: of n generated with n real images, over treatments. distances:
    Fréchet distances of profiles by perturbation. nmi: by "perturbation" and "moa". recognised: a
    classifier's share of right answers by the same, then by class. mechanisms: None without any. Of REAL:
    halves against halves, and images that the classifier was not fitted on.
    """

    agreements: Mapping[str, Agreement] = field(default_factory=dict)
    correlation: Estimate | None = None
    distances: Mapping[str, Distance] = field(default_factory=dict)
    nmi: Mapping[str, Clustering] = field(default_factory=dict)
    recognised: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    mechanisms: Mechanisms | None = None


@dataclass(frozen=True)
class MovedFeature:
    """A feature that moves from real controls to real images of a perturbation.

    words: its name in words. real: Cohen's d. methods: that of each method's images from the real controls.
    """

    perturbation_id: str
    feature: str
    words: str
    real: float
    methods: Mapping[str, float]


@dataclass(frozen=True)
class ProfileMap:
    """Two coordinates (N, 2) of images by source, and the perturbation of each (N,)."""

    title: str
    axes: tuple[str, str]
    coordinates: Mapping[str, npt.NDArray[np.float64]]
    perturbation_ids: Mapping[str, npt.NDArray[np.object_]]


@dataclass(frozen=True)
class ProfileResults:
    """All that a report tells of profiles.

    cells: by source, REAL among them. counts: mean cells an image and the number of images, by source and
    perturbation. sources: by method, CONTROL and REAL. problem: why nothing but cells could be told.
    features: measured and selected. made_by: of the measurements. normalised: in words.
    """

    cells: Mapping[str, Cells]
    counts: Mapping[str, Mapping[str, tuple[float, int]]]
    made_by: str
    normalised: str
    problem: str | None = None
    features: tuple[int, int] = (0, 0)
    sources: Mapping[str, SourceProfiles] = field(default_factory=dict)
    moved: Sequence[MovedFeature] = ()
    maps: Sequence[ProfileMap] = ()
    notes: Sequence[str] = ()


def profile_metrics(
    results: ProfileResults, experiment: str, seed: int, unseen: Mapping[str, bool] | None = None
) -> pa.Table:
    """Every number that a method has of a perturbation as a row of schema.METRICS, stamped as measured.

    frechet: between profiles. profile_correlation: of n generated with n real images, FLOOR's of real halves.
    profile_correlation_all: of all images. profile_recall: share that the classifier recognises. cell_count:
    cells an image. The floor and the real images stand as FLOOR. unseen: by perturbation, null for others.
    """
    rows = [
        {
            "experiment": experiment,
            "method": FLOOR if source == REAL else source,
            "perturbation_id": name,
            "unseen": (unseen or {}).get(name),
            "metric": metric,
            "value": None if np.isnan(value) else value,
            "n_real": n_real,
            "n_generated": n_generated,
            "extractor": f"cellprofiler@{results.made_by}",
            "mode": f"image means, {results.normalised}",
            "seed": seed,
        }
        for source, name, metric, value, n_real, n_generated in _numbers(results)
    ]
    return schema.stamp(pa.Table.from_pylist(rows, schema=schema.METRICS), results.made_by)


def _numbers(results: ProfileResults) -> Iterator[tuple[str, str, str, float, int, int]]:
    """Source, perturbation, metric, value, numbers of real and of generated images."""
    for source, found in results.sources.items():
        real = source == REAL
        for name, each in found.agreements.items():
            halves = each.halves if real else each.generated_halves
            yield source, name, "profile_correlation", halves.mean, each.n, each.n
            if not real:
                yield (
                    *(source, name, "profile_correlation_all"),
                    *(each.correlation, each.n_real, each.n_generated),
                )
        for name, distance in found.distances.items():
            yield source, name, FRECHET, distance.value, distance.n_b, distance.n_a
        for name, share in found.recognised.get("perturbation", {}).items():
            images = results.counts[source][name][1]
            yield source, name, "profile_recall", share, results.counts[REAL][name][1], images
    for source, counts in results.counts.items():
        for name, (cells, images) in counts.items():
            n_real = results.counts[REAL].get(name, (0.0, 0))[1]
            yield source, name, "cell_count", cells, n_real, images
