"""Where generated images lie among real ones: precision to coverage, and copies of training images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from morphoray.errors import DataError
from morphoray.evaluation.distances import Features, Float64, Groups, checked

NEIGHBOURS = 5


@dataclass(frozen=True)
class Fidelity:
    """Four shares (density: a mean that may exceed 1) over the k nearest neighbours of every image.

    precision: of generated images inside some real image's ball; recall: of real images inside some
    generated image's ball (Kynkäänniemi et al. 2019). density: real balls a generated image lies in, over k;
    coverage: of real images whose ball holds a generated one (Naeem et al. 2020). A ball reaches to the
    image's k-th nearest neighbour in its own set.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def fidelity(real: Features, generated: Features, neighbours: int = NEIGHBOURS) -> Fidelity:
    """Precision, recall, density and coverage of generated (M, d) among real (N, d) features, k = neighbours.

    Sets of one size make the four comparable over methods. Raises DataError for k or fewer images.
    """
    ours, theirs = checked(real, neighbours + 1), checked(generated, neighbours + 1)
    between = _distances(ours, theirs)
    real_radius = _radius(ours, neighbours)
    inside = between <= real_radius[:, None]
    generated_radius = _radius(theirs, neighbours)
    return Fidelity(
        precision=float(inside.any(0).mean()),
        recall=float((between <= generated_radius[None]).any(1).mean()),
        density=float(inside.sum(0).mean() / neighbours),
        coverage=float(inside.any(1).mean()),
    )


def nearest_distance(of: Features, among: Features) -> npt.NDArray[np.float64]:
    """The Euclidean distance (N,) of every row of `of` to its nearest row of `among`."""
    found: npt.NDArray[np.float64] = _distances(checked(of, 1), checked(among, 1)).min(1)
    return found


@dataclass(frozen=True)
class Memorisation:
    """Whether generated images lie nearer to training images than these lie to those of other fields.

    ratio: median nearest-neighbour distance of generated over that of training images; well below 1 means
    copying. share: of generated images nearer than the nearest 1 % of training ones; 0.01 without copies.
    """

    ratio: float
    share: float


def memorisation(training: Features, groups: Groups, generated: Features) -> Memorisation:
    """Nearest-neighbour distances to training images, of generated ones and of these to each other.

    groups: the field that each training image was cut out of; its own field's images don't count. Held-out
    images of another batch would lie further away for the batch alone. Raises DataError for one field, or
    for training images that are there twice.
    """
    ours = checked(training, 2)
    if len(np.unique(groups)) < 2:
        raise DataError("memorisation: found training images of one field, expected two or more")
    between = _distances(ours, ours)
    between[groups[:, None] == groups[None]] = np.inf
    expected = between.min(1)
    found = nearest_distance(generated, training)
    median = float(np.median(expected))
    if median == 0:
        raise DataError("memorisation: every second training image is there twice, expected different ones")
    threshold = np.quantile(expected, 0.01)
    return Memorisation(float(np.median(found)) / median, float((found < threshold).mean()))


def _radius(features: Float64, neighbours: int) -> Float64:
    """The distance (N,) of every row to its k-th nearest other row."""
    distances = _distances(features, features)
    np.fill_diagonal(distances, 0.0)
    return np.asarray(np.partition(distances, neighbours, axis=1)[:, neighbours])


def _distances(a: Float64, b: Float64) -> Float64:
    """Euclidean distances (N, M)."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(a, b), np.float64)
