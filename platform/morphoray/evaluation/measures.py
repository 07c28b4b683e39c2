"""Every metric of every method for one perturbation after the other, from features alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from morphoray.evaluation.classifier import Classifier, fit_classifier
from morphoray.evaluation.cohorts import Moments, frechet_matrix, matched_ranks, moments
from morphoray.evaluation.distances import (
    CODEC,
    FLOOR,
    Distance,
    Groups,
    Metric,
    compare,
    draw,
    frechet,
    frechet_at_infinity,
    half_size,
    halves,
    kid_full,
    largest_n,
    own_groups,
)
from morphoray.evaluation.fidelity import fidelity, memorisation
from morphoray.seeds import numpy_generator

Features = npt.NDArray[np.float32]

FRECHET, KID = "frechet", "kid"
RANK, RECOGNISED = "rank", "recognised"
RATIO, SHARE = "nearest_training_ratio", "nearest_training_share"
FRECHET_PAPER, KID_PAPER = "frechet_paper", "kid_paper"  # to real images padded by flips and turns
CONTROL, OTHER, TRAINED = "copy_control", "other_perturbation", "trained"
LEAST_AT_INFINITY = 100  # images; below, the extrapolation says nothing
LEAST_FIDELITY = 20
TAUGHT = 20_000  # real images that teach the classifier of `recognised`, all perturbations together
LEAST = 2  # images a side that anything is measured of

Distances = dict[str, dict[str, Distance]]
Matrix = Callable[[Sequence[Moments], Sequence[Moments]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Sampling:
    """How many images are compared, and in how many random draws.

    n: most images a side. repeats: draws of a Fréchet distance. kid_subset_size, kid_subsets: images a side
    and number of a kernel distance's subsets; where N is not larger than a subset, it has N − 1.
    """

    n: int
    repeats: int
    kid_subset_size: int = 100
    kid_subsets: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Cohort:
    """Features (N, width) of one perturbation, all finite.

    real: the reference. generated: by method. reconstructed: the codec's of `real`, row by row. control: real
    controls of the same experiments. other: another perturbation's real images. trained: real images of this
    perturbation that training saw, when the reference is other ones. padded: real images and flipped or
    turned copies of them, as many as the paper's protocol wants. Empty sets are left out of every result.
    groups, trained_groups: (N,) the field that each real and trained image was cut out of; None: all of
    different ones. wells: (N,) the well that each real image was taken of; None: unknown.
    """

    perturbation_id: str
    real: Features
    generated: Mapping[str, Features]
    reconstructed: Features | None = None
    control: Features | None = None
    other: Features | None = None
    trained: Features | None = None
    padded: Features | None = None
    groups: Groups | None = None
    trained_groups: Groups | None = None
    wells: Groups | None = None

    @property
    def fields(self) -> Groups:
        """`groups`, or a number of its own for every image."""
        return own_groups(self.groups, len(self.real))

    @property
    def n(self) -> int:
        """The largest N that the real images and every method allow."""
        return largest_n(self.fields, self.generated)

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
    cohorts: Sequence[Cohort],
    sampling: Sampling,
    columns: Mapping[str, slice] | None = None,
    matrix: Matrix = frechet_matrix,
) -> Measured:
    """Measure every cohort of at least LEAST images a side, at N of at most sampling.n, and rank them all.

    columns: where the features of one channel lie, by its extractor's name (ChannelExtractor.columns).
    matrix: gives what `frechet_matrix` gives, for one that computes it elsewhere.
    """
    found = Measured()
    for cohort in cohorts:
        n = min(cohort.n, sampling.n)
        if n < LEAST:
            found.excluded[cohort.perturbation_id] = (
                f"{len(cohort.real)} real images of {len(np.unique(cohort.fields))} fields (2 N are needed, "
                "no field on both sides) and "
                + ", ".join(f"{len(features)} {name}" for name, features in cohort.generated.items())
                + f": enough for N = {n}, expected {LEAST} or more"
            )
        else:
            found.distances[cohort.perturbation_id] = measure_one(cohort, n, sampling)
            found.channels[cohort.perturbation_id] = {
                name: _compare(_channel(cohort, part), n, sampling.repeats, sampling.seed, frechet)
                for name, part in (columns or {}).items()
            }
    kept = [cohort for cohort in cohorts if cohort.perturbation_id in found.distances]
    for name, ranks in _ranks(kept, sampling, matrix).items():
        found.distances[name][RANK] = ranks
    for name, shares in _recognised(kept, sampling).items():
        found.distances[name][RECOGNISED] = shares
    return found


def measure_one(cohort: Cohort, n: int, sampling: Sampling) -> Distances:
    """All metrics of one perturbation at one N; baselines with fewer than N images are left out."""
    sets, seed = cohort.sets(n), sampling.seed
    subset = min(sampling.kid_subset_size, max(n - 1, LEAST))
    found: Distances = {
        FRECHET: _compare(cohort, n, sampling.repeats, seed, frechet),
        KID: _compare(cohort, subset, sampling.kid_subsets, seed, kid_full, sets),
    }
    if cohort.padded is not None and len(cohort.padded) >= LEAST:
        first = {name: values[: sampling.n] for name, values in cohort.generated.items()}
        found[FRECHET_PAPER] = {name: frechet(values, cohort.padded) for name, values in first.items()}
        found[KID_PAPER] = {name: kid_full(values, cohort.padded) for name, values in first.items()}
    sides = halves(cohort.fields, _generator("fidelity", cohort, sampling))
    ours, reference = (cohort.real[rows[:n]] for rows in sides)
    drawn = {
        name: draw(values, n, _generator("fidelity", cohort, sampling, name)) for name, values in sets.items()
    } | {FLOOR: ours}
    if n >= LEAST_AT_INFINITY:
        found["frechet_infinity"] = {
            name: frechet_at_infinity(drawn[name], reference, _generator("infinity", cohort, sampling, name))
            for name in (*cohort.generated, FLOOR)
        }
    if n >= LEAST_FIDELITY:
        for name, values in drawn.items():
            for metric, value in vars(fidelity(reference, values)).items():
                found.setdefault(metric, {})[name] = Distance(value, n, n)
    return found | _copied(cohort, n)


def _copied(cohort: Cohort, n: int) -> Distances:
    """How near the generated images lie to those trained on; nothing below n of these, or of one field."""
    trained = cohort.trained
    if trained is None or len(trained) < n:
        return {}
    groups = own_groups(cohort.trained_groups, len(trained))
    if len(np.unique(groups)) < LEAST:
        return {}
    found: Distances = {RATIO: {}, SHARE: {}}
    for name, values in cohort.generated.items():
        copied = memorisation(trained, groups, values)
        found[RATIO][name] = Distance(copied.ratio, len(values), len(trained))
        found[SHARE][name] = Distance(copied.share, len(values), len(trained))
    return found


def _compare(
    cohort: Cohort,
    n: int,
    repeats: int,
    seed: int,
    metric: Metric,
    sets: Mapping[str, Features] | None = None,
) -> dict[str, Distance]:
    return compare(
        cohort.real,
        cohort.sets(n) if sets is None else sets,
        numpy_generator("compare", seed, cohort.perturbation_id),
        reconstructed=cohort.reconstructed,
        n=n,
        repeats=repeats,
        metric=metric,
        groups=cohort.fields,
    )


def _channel(cohort: Cohort, part: slice) -> Cohort:
    """The cohort's features of one channel."""

    def cut(features: Features | None) -> Features | None:
        return None if features is None else features[:, part]

    return Cohort(
        cohort.perturbation_id,
        cohort.real[:, part],
        {name: features[:, part] for name, features in cohort.generated.items()},
        cut(cohort.reconstructed),
        control=cut(cohort.control),
        other=cut(cohort.other),
        trained=cut(cohort.trained),
        groups=cohort.groups,
    )


def _ranks(cohorts: Sequence[Cohort], sampling: Sampling, matrix: Matrix) -> dict[str, dict[str, Distance]]:
    """By perturbation and method the matched real cohort's rank among all that the method has.

    By Fréchet distance at one N for every pair, for every method from the same draws of the real images.
    """
    sizes = [len(each) for cohort in cohorts for each in (cohort.real, *cohort.generated.values())]
    n = min([sampling.n, *sizes])
    real = {each.perturbation_id: moments(_drawn(each.real, n, sampling, "real")) for each in cohorts}
    found: dict[str, dict[str, Distance]] = {name: {} for name in real}
    for method in dict.fromkeys(name for cohort in cohorts for name in cohort.generated):
        mine = {each.perturbation_id: each.generated[method] for each in cohorts if method in each.generated}
        if len(mine) > 1:
            made = [moments(_drawn(features, n, sampling, method)) for features in mine.values()]
            ranks = matched_ranks(matrix(made, [real[name] for name in mine]))
            for name, rank in zip(mine, ranks, strict=True):
                found[name][method] = Distance(float(rank), n, n)
    return {name: ranks for name, ranks in found.items() if ranks}


def _recognised(cohorts: Sequence[Cohort], sampling: Sampling) -> dict[str, dict[str, Distance]]:
    """By perturbation and method the share of N images that a classifier takes for that perturbation.

    One half of the real images of all perturbations teaches it; FLOOR is the other half, CODEC the codec's
    of these. The halves share no well where each then has LEAST_FIDELITY images, else no field. Nothing of a
    perturbation below N = LEAST_FIDELITY, or of a single one.
    """
    able = [each for each in cohorts if min(each.n, sampling.n) >= LEAST_FIDELITY]
    if len(able) < 2:
        return {}
    taught = {}
    for each in able:
        reference = _taught_apart(each, sampling)[1]
        most = min(each.n, sampling.n, max(TAUGHT // len(able), 1))
        taught[each.perturbation_id] = each.real[reference[:most]]
    classifier = fit_classifier(taught)
    return {
        each.perturbation_id: _shares(classifier, each, sampling, len(taught[each.perturbation_id]))
        for each in able
    }


def _shares(classifier: Classifier, cohort: Cohort, sampling: Sampling, taught: int) -> dict[str, Distance]:
    """What the classifier recognises of every set; of real images those of the half that did not teach it.

    Real images of other perturbations are left out: half of them taught it that they are others'.
    """
    n = min(cohort.n, sampling.n)
    ours = _taught_apart(cohort, sampling)[0][:n]
    sets = {
        method: draw(values, n, _generator("recognised", cohort, sampling, method))
        for method, values in cohort.sets(n).items()
        if method not in (CONTROL, OTHER)
    }
    if cohort.reconstructed is not None:
        sets[CODEC] = cohort.reconstructed[ours]
    sets[FLOOR] = cohort.real[ours]
    name = cohort.perturbation_id
    return {
        method: Distance(classifier.recall({name: values})[name], len(values), taught)
        for method, values in sets.items()
    }


def _taught_apart(cohort: Cohort, sampling: Sampling) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of two halves of the real images: what is recognised, and what teaches."""
    groups = cohort.fields
    if cohort.wells is not None and half_size(cohort.wells) >= LEAST_FIDELITY:
        groups = cohort.wells
    return halves(groups, _generator("taught", cohort, sampling))


def _generator(purpose: str, cohort: Cohort, sampling: Sampling, method: str = "") -> np.random.Generator:
    """Of its own for every method, so that another one beside it changes no draw."""
    return numpy_generator(purpose, sampling.seed, cohort.perturbation_id, method)


def _drawn(features: Features, n: int, sampling: Sampling, key: str) -> Features:
    return draw(features, n, numpy_generator("ranks", sampling.seed, key))
