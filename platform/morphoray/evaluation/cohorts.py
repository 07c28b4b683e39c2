"""Every generated set against every real set: a matrix of Fréchet distances, and ranks in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from morphoray.errors import DataError
from morphoray.evaluation.distances import Features, Float64, checked, covariance_root

PAIRS = 8  # of singular value problems solved in one call; more gain nothing on a CPU


@dataclass(frozen=True)
class Moments:
    """A set's Gaussian: its mean (d,), a root R (r, d) of its covariance RᵀR with r = min(N, d), and N."""

    mean: Float64
    root: Float64
    count: int

    @property
    def trace(self) -> float:
        """Of the covariance."""
        return float((self.root**2).sum())


def moments(features: Features) -> Moments:
    """The Gaussian of features (N, d). Raises DataError for fewer than 2 images or values not finite."""
    values = checked(features, least=2)
    return Moments(values.mean(0), covariance_root(values), len(values))


def frechet_matrix(
    first: Sequence[Moments], second: Sequence[Moments], device: str = "cpu"
) -> npt.NDArray[np.float64]:
    """Squared Fréchet distances (len(first), len(second)) in float64: `distances.frechet` of each pair.

    tr (Σa Σb)^½ is the nuclear norm of Ra Rbᵀ, an N × M problem where N < d instead of the d × d matrix
    square root. A row's products Ra Rbᵀ are one matrix product each; the norms are batched on `device`.
    """
    widths = {len(each.mean) for each in (*first, *second)}
    if len(widths) != 1:
        raise DataError(f"cohorts: found features of widths {sorted(widths)}, expected one extractor's")
    means = [np.stack([each.mean for each in side]) for side in (first, second)]
    squared = ((means[0][:, None] - means[1][None]) ** 2).sum(2)
    traces = [np.array([each.trace for each in side]) for side in (first, second)]
    distances: npt.NDArray[np.float64] = squared + traces[0][:, None] + traces[1][None]
    others = [torch.from_numpy(each.root).to(device) for each in second]
    for row, each in enumerate(first):
        root = torch.from_numpy(each.root).to(device)
        for start in range(0, len(others), PAIRS):
            norms = _nuclear_norms(root, others[start : start + PAIRS])
            distances[row, start : start + len(norms)] -= 2 * norms
    return distances


def _nuclear_norms(root: torch.Tensor, others: Sequence[torch.Tensor]) -> npt.NDArray[np.float64]:
    """The sums of singular values of root · otherᵀ; problems of one shape are solved together."""
    products = [root @ other.T for other in others]
    if len({product.shape for product in products}) == 1:
        return np.asarray(torch.linalg.svdvals(torch.stack(products)).sum(1).cpu())
    return np.array([float(torch.linalg.svdvals(product).sum()) for product in products])


def matched_ranks(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The rank, from 1, of column i in row i of a square matrix: how many real cohorts lie no further.

    1 is right; a model that knows nothing of the perturbation has ranks spread evenly over 1 … n. Ties
    count against the match.
    """
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise DataError(f"ranks: found a matrix of shape {distances.shape}, expected a square one")
    matched = np.diag(distances)[:, None]
    return np.asarray((distances <= matched).sum(1), np.int64)
