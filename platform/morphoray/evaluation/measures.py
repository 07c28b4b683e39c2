"""Every metric of every method for one perturbation after the other, from features alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from morphoray.evaluation.cohorts import frechet_matrix, matched_ranks, moments
from morphoray.evaluation.distances import (
    FLOOR,
    Distance,
    Metric,
    compare,
    frechet,
    frechet_at_infinity,
    kid_full,
)
from morphoray.evaluation.fidelity import fidelity, memorisation
from morphoray.seeds import numpy_generator

Features = npt.NDArray[np.float32]

FRECHET, KID = "frechet", "kid"
CONTROL, OTHER, TRAINED = "copy_control", "other_perturbation", "trained"
LEAST_AT_INFINITY = 100  # images; below, the extrapolation says nothing
LEAST_FIDELITY = 20
LEAST = 2  # images a side that anything is measured of

Distances = dict[str, dict[str, Distance]]


@dataclass(frozen=True)
class Cohort:
    """Features (N, width) of one perturbation, all finite.

    real: the reference. generated: by method. reconstructed: the codec's of `real`, row by row. control: real
    controls of the same experiments. other: another perturbation's real images. trained: real images of this
    perturbation that training saw, when the reference is other ones. Empty sets are left out of every result.
    """

    perturbation_id: str
    real: Features
    generated: Mapping[str, Features]
    reconstructed: Features | None = None
    control: Features | None = None
    other: Features | None = None
    trained: Features | None = None

    @property
    def n(self) -> int:
        """The largest N that the real images and every method allow."""
        return min(len(self.real) // 2, *(len(features) for features in self.generated.values()))

    def sets(self, n: int) -> dict[str, Features]:
        """The generated sets, and the baselines of real images that have n or more."""
        baselines = {CONTROL: self.control, OTHER: self.other, TRAINED: self.trained}
        return dict(self.generated) | {
            name: features
            for name, features in baselines.items()
            if features is not None and len(features) >= n
        }


@dataclass
class Measured:
    """Distances of each perturbation by metric and method, and why some could not be measured.

    channels: Fréchet distances by perturbation, extractor of one channel, and method.
    """

    distances: dict[str, Distances] = field(default_factory=dict)
    channels: dict[str, Distances] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)


def measure(
    cohorts: Sequence[Cohort], most: int, repeats: int, seed: int, columns: Mapping[str, slice] | None = None
) -> Measured:
    """Measure every cohort of at least LEAST images a side, at N of at most `most`, and rank them all.

    columns: where the features of one channel lie, by its extractor's name (ChannelExtractor.columns).
    """
    found = Measured()
    for cohort in cohorts:
        n = min(cohort.n, most)
        if n < LEAST:
            found.excluded[cohort.perturbation_id] = (
                f"{len(cohort.real)} real images (2 N are needed) and "
                + ", ".join(f"{len(features)} {name}" for name, features in cohort.generated.items())
                + f": enough for N = {n}, expected {LEAST} or more"
            )
        else:
            found.distances[cohort.perturbation_id] = measure_one(cohort, n, repeats, seed)
            found.channels[cohort.perturbation_id] = {
                name: _compare(_channel(cohort, part), n, repeats, seed, frechet)
                for name, part in (columns or {}).items()
            }
    kept = [cohort for cohort in cohorts if cohort.perturbation_id in found.distances]
    for method in dict.fromkeys(name for cohort in kept for name in cohort.generated):
        for name, rank in _ranks(kept, method, most, seed).items():
            found.distances[name].setdefault("rank", {})[method] = rank
    return found


def measure_one(cohort: Cohort, n: int, repeats: int, seed: int) -> Distances:
    """All metrics of one perturbation at one N; baselines with fewer than N images are left out."""
    sets = cohort.sets(n)
    found: Distances = {
        metric: _compare(cohort, n, repeats, seed, function)
        for metric, function in ((FRECHET, frechet), (KID, kid_full))
    }
    generator = numpy_generator("fidelity", seed, cohort.perturbation_id)
    if n >= LEAST_AT_INFINITY:
        found["frechet_infinity"] = {
            name: frechet_at_infinity(values, cohort.real, generator)
            for name, values in cohort.generated.items()
        }
    if n >= LEAST_FIDELITY:
        order = generator.permutation(len(cohort.real))
        reference, ours = cohort.real[order[:n]], cohort.real[order[n : 2 * n]]
        for name, values in {**sets, FLOOR: ours}.items():
            drawn = values[generator.permutation(len(values))[:n]]
            for metric, value in vars(fidelity(reference, drawn)).items():
                found.setdefault(metric, {})[name] = Distance(value, n, n)
    if cohort.trained is not None and len(cohort.trained) >= n:
        for name, values in cohort.generated.items():
            copied = memorisation(cohort.trained, cohort.real, values)
            found.setdefault("nearest_training_ratio", {})[name] = Distance(
                copied.ratio, len(values), len(cohort.trained)
            )
    return found


def _compare(cohort: Cohort, n: int, repeats: int, seed: int, metric: Metric) -> dict[str, Distance]:
    return compare(
        cohort.real,
        cohort.sets(n),
        numpy_generator("compare", seed, cohort.perturbation_id),
        reconstructed=cohort.reconstructed,
        n=n,
        repeats=repeats,
        metric=metric,
    )


def _channel(cohort: Cohort, part: slice) -> Cohort:
    """The cohort's features of one channel."""

    def cut(features: Features | None) -> Features | None:
        return None if features is None else features[:, part]

    return Cohort(
        cohort.perturbation_id,
        cohort.real[:, part],
        {name: features[:, part] for name, features in cohort.generated.items()},
        *map(cut, (cohort.reconstructed, cohort.control, cohort.other, cohort.trained)),
    )


def _ranks(cohorts: Sequence[Cohort], method: str, most: int, seed: int) -> dict[str, Distance]:
    """The matched real cohort's rank among all, by Fréchet distance at one N for every pair."""
    mine = [cohort for cohort in cohorts if len(cohort.generated.get(method, ())) > 0]
    if len(mine) < 2:
        return {}
    n = min(most, *(min(len(cohort.generated[method]), len(cohort.real)) for cohort in mine))
    generator = numpy_generator("ranks", seed, method)
    generated = [_draw(cohort.generated[method], n, generator) for cohort in mine]
    real = [_draw(cohort.real, n, generator) for cohort in mine]
    matrix = frechet_matrix([moments(each) for each in generated], [moments(each) for each in real])
    return {
        cohort.perturbation_id: Distance(float(rank), n, n)
        for cohort, rank in zip(mine, matched_ranks(matrix), strict=True)
    }


def _draw(features: Features, n: int, generator: np.random.Generator) -> Features:
    return features[generator.permutation(len(features))[:n]]
