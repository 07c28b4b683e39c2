"""How alike profiles are: correlation beside half-splits of the real ones, clusters, maps in 2-D."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from morphoray.errors import DataError, MissingExtraError
from morphoray.evaluation.distances import Groups, draw, half_size, halves, own_groups
from morphoray.evaluation.profiles import REAL, fields_of_view, matrix

Float64 = npt.NDArray[np.float64]

SPLITS = 200
SHUFFLES = 100


@dataclass(frozen=True)
class Interval:
    """The mean over random halves and its central 95 % of them."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of median profiles over the features, for one perturbation.

    correlation: of all generated with all real images. halves: of one random half of the real images with
    the other, n images each: what the real images themselves allow. generated_halves: of n random generated
    with n random real ones, to compare with it. NaN where there are fewer than two images a side.
    """

    perturbation_id: str
    correlation: float
    halves: Interval
    generated_halves: Interval
    n: int
    n_real: int
    n_generated: int


def agreement(
    real: Float64,
    generated: Float64,
    perturbation_id: str,
    generator: np.random.Generator,
    groups: Groups | None = None,
    splits: int = SPLITS,
) -> Agreement:
    """Generated (M, d) with real (N, d) profiles of one perturbation; n = min(N // 2, M).

    groups: the fields that the real images were cut out of; no half has a field of the other's.
    """
    groups = own_groups(groups, len(real))
    n = min(half_size(groups), len(generated))
    unknown = Interval(np.nan, np.nan, np.nan)
    whole = spearman(_median(real), _median(generated)) if len(real) and len(generated) else np.nan
    if n < 2:
        return Agreement(perturbation_id, whole, unknown, unknown, n, len(real), len(generated))
    medians: list[tuple[Float64, Float64, Float64]] = []
    for _ in range(splits):
        sides = [real[rows[:n]] for rows in halves(groups, generator)]
        medians.append((_median(sides[0]), _median(sides[1]), _median(draw(generated, n, generator))))
    first, second, ours = (np.stack(each) for each in zip(*medians, strict=True))
    within, between = _spearman_rows(first, second), _spearman_rows(first, ours)
    return Agreement(
        perturbation_id, whole, _interval(within), _interval(between), n, len(real), len(generated)
    )


def agreements(
    profiles: pd.DataFrame,
    features: Sequence[str],
    method: str,
    generator: np.random.Generator,
    splits: int = SPLITS,
) -> list[Agreement]:
    """`agreement` for every Metadata_perturbation_id that has rows of Metadata_source real or `method`."""
    found = []
    for name, rows in profiles.groupby("Metadata_perturbation_id", sort=True):
        ours, theirs = (rows[rows["Metadata_source"] == source] for source in (REAL, method))
        if len(ours) or len(theirs):
            sides = matrix(ours, features), matrix(theirs, features)
            found.append(agreement(*sides, str(name), generator, fields_of_view(ours), splits))
    return found


def spearman(first: Float64, second: Float64) -> float:
    """Spearman's rank correlation of two profiles (d,); NaN when one is constant or d < 2."""
    return float(_spearman_rows(first[None], second[None])[0])


def _spearman_rows(first: Float64, second: Float64) -> Float64:
    """`spearman` of every row of (N, d) with the same row of the other."""
    from scipy import stats

    ranks = [stats.rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (first, second)]
    lengths = [np.sqrt((rank**2).sum(axis=1)) for rank in ranks]
    scale = lengths[0] * lengths[1]
    return np.asarray(
        np.where(scale > 0, (ranks[0] * ranks[1]).sum(axis=1) / np.where(scale > 0, scale, 1), np.nan)
    )


def _median(profiles: Float64) -> Float64:
    return np.asarray(np.median(profiles, axis=0), np.float64)


def _interval(values: Float64) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


@dataclass(frozen=True)
class Clustering:
    """Normalised mutual information of k-means clusters with labels, 0 to 1, and with shuffled labels.

    chance is well above 0 where classes are small: nmi means what it has above chance.
    """

    nmi: float
    chance: float
    clusters: int
    n: int


def clustering(profiles: Float64, labels: Sequence[str], generator: np.random.Generator) -> Clustering:
    """k-means of profiles (N, d) with as many clusters as labels have values, against the labels (N,).

    Raises DataError for fewer than two values, or for another number of labels than profiles.
    """
    cluster, metrics = _sklearn("cluster"), _sklearn("metrics")
    values = sorted(set(labels))
    if len(labels) != len(profiles) or len(values) < 2:
        raise DataError(
            f"clusters: found {len(profiles)} profiles and {len(labels)} labels of {len(values)} values, "
            "expected as many labels, of two values or more"
        )
    seed = int(generator.integers(2**31))
    means = cluster.KMeans(min(len(values), len(np.unique(profiles, axis=0))), n_init=10, random_state=seed)
    found = means.fit_predict(profiles)
    score = metrics.normalized_mutual_info_score
    shuffled = [
        score(generator.permutation(np.asarray(labels, object).astype(str)), found) for _ in range(SHUFFLES)
    ]
    return Clustering(float(score(labels, found)), float(np.mean(shuffled)), len(values), len(profiles))


@dataclass(frozen=True)
class Components:
    """coordinates: (N, 2) of each set in turn. explained: the share of variance of either component."""

    coordinates: list[Float64]
    explained: tuple[float, float]


def principal_components(real: Float64, *others: Float64) -> Components:
    """Two principal components of the real profiles (N, d), and where the other sets lie on them.

    Fitted on real profiles only. A component's sign is the one that makes its largest loading positive.
    Raises DataError for fewer than three real profiles or two features.
    """
    if len(real) < 3 or real.shape[1] < 2:
        raise DataError(
            f"principal components: found {real.shape} real profiles, expected 3 and 2 features or more"
        )
    pca = _sklearn("decomposition").PCA(2, svd_solver="full").fit(real)
    axes = pca.components_
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.where(axes[[0, 1], largest] < 0, -1, 1)[:, None]
    coordinates = [np.asarray((each - pca.mean_) @ axes.T) for each in (real, *others)]
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    return Components(coordinates, (float(shares[0]), float(shares[1])))


def umap_coordinates(profiles: Float64, generator: np.random.Generator, neighbours: int = 15) -> Float64:
    """Two dimensions (N, 2) that keep neighbours near, by UMAP; distances between clusters mean nothing.

    Importing it takes ten seconds or more. Raises DataError for fewer than four profiles.
    """
    if len(profiles) < 4:
        raise DataError(f"UMAP: found {len(profiles)} profiles, expected four or more")
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import umap

            reducer = umap.UMAP(
                n_neighbors=min(neighbours, len(profiles) - 1),
                init="pca",
                random_state=int(generator.integers(2**31)),
                n_jobs=1,
            )
            return np.asarray(reducer.fit_transform(profiles), np.float64)
    except ModuleNotFoundError:
        raise MissingExtraError("umap-learn", "eval") from None


def _sklearn(name: str) -> Any:
    """A module of scikit-learn."""
    try:
        import sklearn.cluster
        import sklearn.decomposition
        import sklearn.metrics
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-learn", "eval") from None
    return getattr(sklearn, name)
