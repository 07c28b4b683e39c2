"""A linear classifier of perturbations: are generated images told apart as real ones are?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax

from morphoray.errors import DataError

Features = npt.NDArray[np.floating]

CLIP = 10.0  # deviations, at which a standardised feature is set


@dataclass(frozen=True)
class Classifier:
    """Logistic regression on standardised features: class k scores (x − mean) / deviation · weights + bias.

    names: the K classes, sorted. mean, deviation: (d,). weights: (d, K), bias: (K,). Standardised features
    beyond ±CLIP are set there, so that no single one decides.
    """

    names: tuple[str, ...]
    mean: Features
    deviation: Features
    weights: Features
    bias: Features

    def __call__(self, features: Features) -> list[str]:
        """The most likely class of each row of features (N, d)."""
        scores = _standardised(features, self.mean, self.deviation) @ self.weights + self.bias
        return [self.names[index] for index in scores.argmax(axis=1)]

    def recall(self, sets: Mapping[str, Features]) -> dict[str, float]:
        """For each class, the share of its features (N, d) that are taken for it, 0 to 1.

        Their mean is the balanced accuracy. Raises DataError for a class that the classifier doesn't know.
        """
        unknown = sorted({*sets} - {*self.names})
        if unknown:
            raise DataError(f"classifier: found classes {unknown}, expected some of {list(self.names)}")
        return {name: float(np.mean([found == name for found in self(x)])) for name, x in sets.items()}


def fit_classifier(sets: Mapping[str, Features], penalty: float = 0.01) -> Classifier:
    """Fit to features (N, d) of each class; every class weighs the same, however many images it has.

    Minimises the sum over classes of their mean cross-entropy + penalty · |weights|²: convex, so no seed and
    one result. (With the mean over classes a penalty would weigh the more, the more classes there are.)
    Raises DataError for fewer than two classes, or an empty one.
    """
    names = tuple(sorted(sets))
    empty = [name for name in names if not len(sets[name])]
    if len(names) < 2 or empty:
        raise DataError(
            f"classifier: found classes {list(names)}, empty: {empty}; expected two or more, none empty"
        )
    rows = np.concatenate([np.asarray(sets[name], np.float64) for name in names])
    counts = [len(sets[name]) for name in names]
    labels = np.repeat(np.arange(len(names)), counts)
    share = np.repeat([1 / count for count in counts], counts)
    mean, deviation = rows.mean(0), rows.std(0) + 1e-6
    rows = _standardised(rows, mean, deviation)
    return Classifier(names, mean, deviation, *_solve(rows, labels, share, len(names), penalty))


def _standardised(features: Features, mean: Features, deviation: Features) -> Features:
    return np.asarray(np.clip((features - mean) / deviation, -CLIP, CLIP))


def _solve(
    rows: Features, labels: npt.NDArray[np.intp], share: Features, classes: int, penalty: float
) -> Sequence[Features]:
    width, each = rows.shape[1], np.arange(len(rows))

    def loss(flat: Features) -> tuple[float, Features]:
        weights, bias = flat[: width * classes].reshape(width, classes), flat[width * classes :]
        logs = log_softmax(rows @ weights + bias, axis=1)
        residual = np.exp(logs)
        residual[each, labels] -= 1
        residual *= share[:, None]
        value = -(share * logs[each, labels]).sum() + penalty * (weights**2).sum()
        gradient = rows.T @ residual + 2 * penalty * weights
        return float(value), np.concatenate([gradient.ravel(), residual.sum(0)])

    found = minimize(loss, np.zeros(width * classes + classes), jac=True, method="L-BFGS-B").x
    return found[: width * classes].reshape(width, classes), found[width * classes :]
