"""Distances between two sets of image features, and the real-against-real floor at the same N."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from morphoray.errors import DataError
from morphoray.seeds import numpy_generator

Features = npt.NDArray[np.floating]
Groups = npt.NDArray[Any]  # (N,) what each image was cut out of: a field, whose images are alike
Float64 = npt.NDArray[np.float64]
FeaturesT = TypeVar("FeaturesT", bound=Features)

FLOOR = "floor"  # the key of the real-against-real distance in what `compare` returns
CODEC = "codec"  # the key of the reconstructions' distance


@dataclass(frozen=True)
class Distance:
    """A distance, the numbers of images behind it, and over how many random draws it is the mean.

    std: standard deviation over those draws (not an error of the mean); 0 for a single one. low, high: the
    interval in which 95 % of the draws lie; None for a single one.
    """

    value: float
    n_a: int
    n_b: int
    std: float = 0.0
    draws: int = 1
    low: float | None = None
    high: float | None = None


Metric = Callable[[Features, Features], Distance]


def frechet(a: Features, b: Features) -> Distance:
    """Squared Fréchet distance of Gaussians fitted to features (N, d) and (M, d), in float64.

    |μa − μb|² + tr Σa + tr Σb − 2 tr (Σa Σb)^½ (Dowson and Landau 1982), with covariances over N − 1 as
    clean-fid has them. With centred features A and B, the last trace is the sum of the singular values of
    A Bᵀ / √((N − 1)(M − 1)), of size N × M: 0.04 s for N = M = 200 and d = 1280, where clean-fid's square
    root of a d × d matrix takes 9 s and agrees to 2e-7. The distance has a bias that grows as N falls (for
    d = 1280 a large one): compare only distances of equal N, beside the floor.
    """
    first, second = _checked(a, b, least=2)
    difference = first.mean(0) - second.mean(0)
    root_a, root_b = covariance_root(first), covariance_root(second)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    value = difference @ difference + (root_a**2).sum() + (root_b**2).sum() - 2 * cross
    return Distance(float(value), len(first), len(second))


def covariance_root(features: Float64) -> Float64:
    """R (min(N, d), d) with RᵀR the covariance over N − 1: centred features, reduced by QR when N > d."""
    centred: Float64 = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def frechet_at_infinity(
    a: Features, b: Features, generator: np.random.Generator, sizes: int = 8, repeats: int = 4
) -> Distance:
    """The Fréchet distance extrapolated to infinitely many images (Chong and Forsyth 2020).

    The bias falls as 1 / N: a line through distances at `sizes` values of N, evenly spaced in 1 / N from a
    quarter of the smaller set to all of it, is read at 1 / N = 0. std: standard error of that intercept,
    from the scatter about the line. Raises DataError below 16 images; with N < d read it as an estimate.
    """
    first, second = _checked(a, b, least=16)
    most = min(len(first), len(second))
    inverse = np.linspace(4 / most, 1 / most, sizes)
    counts = np.repeat(np.unique(np.rint(1 / inverse).astype(int)), repeats)
    values = [frechet(draw(first, int(n), generator), draw(second, int(n), generator)).value for n in counts]
    design = np.stack([np.ones(len(counts)), 1 / counts], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.array(values), rcond=None)
    residual = np.array(values) - design @ solution
    variance = residual @ residual / (len(counts) - 2)
    error = float(np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0]))
    return Distance(float(solution[0]), len(first), len(second), error, len(counts))


def kid_full(a: Features, b: Features) -> Distance:
    """Kernel inception distance over all pairs: unbiased MMD² with (x·y / d + 1)³ (Binkowski et al. 2018).

    Over subsets: `compare` with n the subset size, repeats their number and this as the metric.
    """
    first, second = _checked(a, b, least=2)
    return Distance(_mmd(first, second), len(first), len(second))


def _mmd(a: Float64, b: Float64) -> float:
    def kernel(x: Float64, y: Float64) -> Float64:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    def within(x: Float64) -> float:
        gram = kernel(x, x)
        return float((gram.sum() - np.trace(gram)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


def floor(
    real: Features,
    n: int,
    generator: np.random.Generator,
    repeats: int = 10,
    metric: Metric = frechet,
    groups: Groups | None = None,
) -> Distance:
    """The distance of real images from real ones: random disjoint halves of n images each, averaged.

    Raises DataError when there are fewer than 2 n images.
    """
    return compare(real, {}, generator, n=n, repeats=repeats, metric=metric, groups=groups)[FLOOR]


def own_groups(groups: Groups | None, count: int) -> Groups:
    """`groups` of `count` images; where they are None a number of its own for each image."""
    return np.arange(count) if groups is None else groups


def half_size(groups: Groups) -> int:
    """Images that either of two `halves` surely has: all but the odd group's, or (N − the largest) / 2."""
    _, sizes = np.unique(groups, return_counts=True)
    if len(sizes) < 2:
        return 0
    if sizes.min() == sizes.max():
        return int(sizes[0]) * (len(sizes) // 2)
    return int(sizes.sum() - sizes.max()) // 2


def halves(
    groups: Groups, generator: np.random.Generator
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of two random halves in random order, no group in both; neither has fewer than `half_size`.

    Images of one field are more alike than those of two: with a field on both sides real images would be
    nearer to real ones than any other image can be. Groups come in random order, each to the smaller half.
    """
    _, numbers = np.unique(groups, return_inverse=True)
    sizes = np.bincount(numbers)
    sides = np.zeros(len(sizes), np.intp)
    filled = [0, 0]
    for group in generator.permutation(len(sizes)):
        side = int(filled[1] < filled[0])
        sides[group] = side
        filled[side] += sizes[group]
    order = generator.permutation(len(numbers))
    return order[sides[numbers[order]] == 0], order[sides[numbers[order]] == 1]


def largest_n(groups: Groups, generated: Mapping[str, Features]) -> int:
    """The largest N at which all can be compared: half the real images, or all of the fewest generated."""
    return min([half_size(groups), *(len(features) for features in generated.values())])


def compare(
    real: Features,
    generated: Mapping[str, Features],
    generator: np.random.Generator,
    *,
    reconstructed: Features | None = None,
    n: int | None = None,
    repeats: int = 10,
    metric: Metric = frechet,
    groups: Groups | None = None,
) -> dict[str, Distance]:
    """Distances of every method from the same n real images, each the mean of `repeats` random draws.

    Each draw splits the real images into A and B of n images, none of B cut out of a field of A's (`groups`;
    None: each image is of a field of its own). From B are measured: A itself (key
    'floor'), n random images of each generated set (its own key), and, when given, the reconstructions of A
    (key 'codec'; row i of `reconstructed` is the codec's output for row i of `real`). Measured against A
    instead, the codec would profit from being compared with the very images it saw. A set's draws are its
    own: another set beside it changes no value.

    Raises DataError when n (default: the largest possible) exceeds half the real or all the generated images.
    """
    groups = own_groups(groups, len(real))
    most = largest_n(groups, generated)
    n = most if n is None else n
    if not 2 <= n <= most:
        counts = ", ".join(f"{len(features)} {name}" for name, features in generated.items())
        fields = len(np.unique(groups))
        raise DataError(
            f"found {len(real)} real images of {fields} fields{', ' + counts if counts else ''}: enough for "
            f"N = {most}, not for {n} (expected 2 or more, and 2 N real images). Make more images or lower n."
        )
    if reconstructed is not None and len(reconstructed) != len(real):
        raise DataError(f"found {len(reconstructed)} reconstructions, expected one a real image: {len(real)}")
    seed = int(generator.integers(2**63))
    draws = {name: numpy_generator("compare", seed, name) for name in generated}
    values: dict[str, list[float]] = {}
    for _ in range(repeats):
        first, second = halves(groups, generator)
        ours, reference = first[:n], real[second[:n]]
        sets = {FLOOR: real[ours]}
        if reconstructed is not None:
            sets[CODEC] = reconstructed[ours]
        sets |= {name: draw(features, n, draws[name]) for name, features in generated.items()}
        for name, features in sets.items():
            values.setdefault(name, []).append(metric(features, reference).value)
    return {name: _mean(found, n) for name, found in values.items()}


def draw(features: FeaturesT, n: int, generator: np.random.Generator) -> FeaturesT:
    """n random rows, none twice."""
    return cast(FeaturesT, features[generator.choice(len(features), n, replace=False)])


def _mean(values: list[float], n: int) -> Distance:
    low, high = map(float, np.quantile(values, [0.025, 0.975])) if len(values) > 1 else (None, None)
    return Distance(float(np.mean(values)), n, n, float(np.std(values)), len(values), low, high)


def _checked(a: Features, b: Features, least: int) -> tuple[Float64, Float64]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise DataError(f"found features of shapes {a.shape} and {b.shape}; expected (N, d) and (M, d)")
    return checked(a, least), checked(b, least)


def checked(features: Features, least: int) -> Float64:
    """Features (N, d) as float64. Raises DataError for fewer than `least` images or values not finite."""
    if features.ndim != 2 or len(features) < least:
        raise DataError(
            f"found features of shape {features.shape}; expected (N, d) with at least {least} images"
        )
    finite = np.isfinite(features).all(1)
    if not finite.all():
        raise DataError(f"found {int((~finite).sum())} images whose features are not finite, expected none")
    return np.asarray(features, np.float64)
