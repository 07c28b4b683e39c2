"""Which measurements move between two groups of profiles, how far, and what that means in words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from morphoray.errors import DataError

MAD_SCALE = 1.4826  # of a normal distribution's median absolute deviation to its standard deviation
SIZES = ((0.2, "hardly"), (0.5, "slightly"), (0.8, "moderately"), (np.inf, "much"))  # of |d|; Cohen 1988

COMPARTMENTS = {"Nuclei": "nuclei", "Cells": "whole cells", "Cytoplasm": "cytoplasm"}
FAMILIES = {
    "AreaShape": "size and shape",
    "Intensity": "intensity",
    "Texture": "texture",
    "Granularity": "granularity",
    "RadialDistribution": "distribution from the centre to the edge",
    "Correlation": "agreement of two channels",
}
MEASURES = {
    "FracAtD": "share of the intensity in a ring",
    "MeanFrac": "brightness of a ring relative to the whole",
    "RadialCV": "unevenness around a ring",
    "Correlation": "correlation",
    "Manders": "share of the first channel where the second is",
    "RWC": "rank-weighted overlap",
    "Slope": "slope of one channel over the other",
    "Costes": "thresholded overlap",
    "MADIntensity": "spread of intensity within the cell",
    "StdIntensity": "spread of intensity within the cell",
    "MassDisplacement": "distance of the brightest part from the middle",
    "AngularSecondMoment": "uniformity",
    "InfoMeas1": "dependence of neighbouring pixels (1)",
    "InfoMeas2": "dependence of neighbouring pixels (2)",
    "Zernike": "Zernike shape moment",
    "ZernikeMagnitude": "Zernike pattern strength",
    "ZernikePhase": "Zernike pattern angle",
    "FormFactor": "roundness (form factor)",
    "Eccentricity": "elongation (eccentricity)",
    "Solidity": "smoothness of the outline (solidity)",
    "Extent": "share of the bounding box filled",
    "Compactness": "irregularity (compactness)",
}


@dataclass(frozen=True)
class Moved:
    """A feature of the first group beside the second, the reference.

    cohens_d: difference of means over the pooled standard deviation. robust_z: difference of medians over
    the reference's scaled median absolute deviation; NaN where that is 0.
    """

    feature: str
    cohens_d: float
    robust_z: float
    sentence: str


def moved_features(
    first: pd.DataFrame,
    reference: pd.DataFrame,
    features: Sequence[str],
    channels: Sequence[str],
    top: int = 10,
) -> list[Moved]:
    """The `top` features with the largest |Cohen's d|, largest first; ties in the order of `features`.

    Missing values are left out by feature; features with fewer than two values a side, or none that varies,
    have no effect size and are not listed. Raises DataError for features that a table lacks.
    """
    lacking = [name for name in features if name not in first.columns or name not in reference.columns]
    if lacking:
        raise DataError(f"moved features: no columns {lacking[:5]}, expected them in both tables")
    effects = cohens_d(*(np.asarray(side[list(features)], np.float64) for side in (first, reference)))
    order = np.argsort(-np.abs(np.nan_to_num(effects)), kind="stable")
    found = []
    for index in order[: max(top, 0)]:
        if np.isfinite(effects[index]):
            name, effect = features[index], float(effects[index])
            z = robust_z(np.asarray(first[name], np.float64), np.asarray(reference[name], np.float64))
            found.append(Moved(name, effect, z, sentence(name, effect, channels)))
    return found


def cohens_d(first: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cohen's d (d,) of two groups' features (N, d) and (M, d), without missing values; NaN if undefined."""
    sides = [np.ma.masked_invalid(side) for side in (first, reference)]
    counts = [side.count(axis=0) for side in sides]
    squares = [np.ma.filled(((side - side.mean(axis=0)) ** 2).sum(axis=0), 0.0) for side in sides]
    pooled = np.sqrt((squares[0] + squares[1]) / np.maximum(counts[0] + counts[1] - 2, 1))
    known = (counts[0] > 1) & (counts[1] > 1) & (pooled > 0)
    difference = np.ma.filled(sides[0].mean(axis=0) - sides[1].mean(axis=0), np.nan)
    return np.where(known, difference / np.where(known, pooled, 1), np.nan)


def robust_z(first: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> float:
    """Difference of medians (of N and of M values) over the reference's scaled MAD; NaN if that is 0."""
    ours, theirs = first[np.isfinite(first)], reference[np.isfinite(reference)]
    if not len(ours) or not len(theirs):
        return float("nan")
    spread = MAD_SCALE * np.median(np.abs(theirs - np.median(theirs)))
    return float((np.median(ours) - np.median(theirs)) / spread) if spread else float("nan")


def sentence(feature: str, effect: float, channels: Sequence[str]) -> str:
    """What the effect size of a feature says, as a sentence."""
    amount = next(word for bound, word in SIZES if abs(effect) < bound)
    direction = "higher" if effect > 0 else "lower"
    text = describe(feature, channels)
    return f"{text[0].upper()}{text[1:]}: {amount} {direction} (d = {effect:+.2f})."


def describe(feature: str, channels: Sequence[str]) -> str:
    """A feature's name in words: compartment, measure, channel and family.

    channels: the names that occur in feature names. A name of another make is given back as it is.
    """
    compartment, family, *rest = feature.split("_")
    if compartment not in COMPARTMENTS or family not in FAMILIES or not rest:
        return feature
    stains = [word for word in rest if word in channels]
    words = [word for word in rest if word not in channels]
    measure, parameters = _measure(family, words)
    of = " and ".join(stains)
    place = f" of {of}" if of and family != "Correlation" else f" between {of}" if of else ""
    detail = f", {parameters}" if parameters else ""
    return f"{measure}{place} in the {COMPARTMENTS[compartment]} ({FAMILIES[family]}{detail})"


def _measure(family: str, words: list[str]) -> tuple[str, str]:
    """The measure and its parameters in words."""
    if family == "Granularity":
        return "share of structures", f"size step {words[0]} of 16"
    name, parameters = words[0], words[1:]
    text = MEASURES.get(name) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    if family == "Texture":
        return text, f"{parameters[0]} pixels apart, direction {int(parameters[1])}" if parameters else ""
    if family == "RadialDistribution" and parameters and "of" in parameters[0]:
        number, _, total = parameters[0].partition("of")
        return text, f"ring {number} of {total} from the centre"
    return text, " ".join(parameters)
