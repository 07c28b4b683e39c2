"""How each metric should respond to sets of images whose fault is known, and why."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from morphoray.evaluation.measures import RANK, RATIO, RECOGNISED, SHARE
from morphoray.evaluation.profile_scores import spearman

Floats = npt.NDArray[np.float64]

DISTANCES = ("frechet", "frechet_infinity", "kid")
PROFILE = "profile_correlation"
METRICS = (
    *DISTANCES,
    "precision",
    "recall",
    "density",
    "coverage",
    RATIO,
    SHARE,
    RANK,
    RECOGNISED,
    PROFILE,
)
CHANCE = 0.0005  # of one more split of real images to be told from the others: 5 % in a table of 100 cells
MONOTONE = 0.9
KEPT = 0.75
COPIED = 0.5


@dataclass(frozen=True)
class Seen:
    """What a metric gave: its values level by level (one for a row without levels), and its null.

    levels: of the fault, rising; the first is real images. null: values of repeated splits of real images
    alone; empty where splits don't change the value.
    """

    values: Floats
    levels: Floats
    null: Floats

    @property
    def above(self) -> Floats:
        """How far every value lies above the null's mean; beyond 1 or −1 by more than CHANCE, two-sided.

        In units of the prediction interval of one more normal value: t · s · √(1 + 1 / N) of N splits.
        """
        count = len(self.null)
        spread = max(float(self.null.std(ddof=1)), 1e-12) * np.sqrt(1 + 1 / count)
        return np.asarray((self.values - self.null.mean()) / (t.ppf(1 - CHANCE / 2, count - 1) * spread))

    @property
    def correlation(self) -> float:
        """Spearman's, of the values with the levels, in nine digits; NaN when all values are one."""
        return round(spearman(self.levels, self.values), 9)


@dataclass(frozen=True)
class Expected:
    """A response in words, and whether what was seen is it."""

    words: str
    holds: Callable[[Seen], bool]


AS_REAL = Expected("as real images", lambda seen: bool((abs(seen.above) <= 1).all()))
ABOVE = Expected("above real images", lambda seen: bool((seen.above > 1).all()))
BELOW = Expected("below real images", lambda seen: bool((seen.above < -1).all()))
NOT_ABOVE = Expected("not above real images", lambda seen: bool((seen.above <= 1).all()))
NOT_BELOW = Expected("not below real images", lambda seen: bool((seen.above >= -1).all()))
STAYS = Expected(
    f"at least {KEPT:g} of real images'", lambda seen: bool((seen.values >= KEPT * seen.null.mean()).all())
)
RISES = Expected(f"rises with the level (ρ ≥ {MONOTONE:g})", lambda seen: seen.correlation >= MONOTONE)
FALLS = Expected(f"falls with the level (ρ ≤ −{MONOTONE:g})", lambda seen: seen.correlation <= -MONOTONE)
FIRST = Expected("1 for every perturbation", lambda seen: bool((seen.values == 1).all()))
FIRST_WHEN_WEAK = Expected("1 at the weakest level", lambda seen: bool((seen.values[:2] == 1).all()))
NOT_FIRST = Expected("2 or more on average", lambda seen: bool((seen.values >= 2).all()))
LEAVES_FIRST = Expected(
    "1 without the compound, never better with more of it, worse in the end",
    lambda seen: seen.values[0] == 1 and bool((np.diff(seen.values) >= 0).all()) and seen.values[-1] > 1,
)
FAR_BELOW_ONE = Expected(f"below {COPIED:g}", lambda seen: bool((seen.values < COPIED).all()))

Responses = dict[str, Expected]


def _responses(
    distances: Expected,
    inside: Expected,
    spread: Expected,
    copying: Expected,
    rank: Expected,
    classifier: Expected,
    profile: Expected,
    copies: Expected,
) -> Responses:
    """inside: precision and density, which look at generated images; spread: recall and coverage.

    copying: the ratio of distances to training images; copies: the share of images nearer than nearly all.
    profile: the correlation with the real images' profile, of the compounds alone.
    """
    return {
        **dict.fromkeys(DISTANCES, distances),
        "precision": inside,
        "recall": spread,
        "density": inside,
        "coverage": spread,
        RATIO: copying,
        SHARE: copies,
        RANK: rank,
        RECOGNISED: classifier,
        PROFILE: profile,
    }


def real_images() -> Responses:
    """Other real images of the same perturbation and batch.

    They are exchangeable with the reference, so every metric must lie where random splits of both lie;
    held-out images are no nearer to the training images than these to each other, and the matched cohort is
    the nearest.
    """
    return _responses(AS_REAL, AS_REAL, AS_REAL, AS_REAL, FIRST, AS_REAL, AS_REAL, AS_REAL)


def dose_ladder() -> Responses:
    """Images of rising doses of an active compound, claimed to be the control.

    The simulator's effect rises with the dose, so distances rise. Fewer of the images lie among controls
    (precision, density), and fewer controls have one near (recall, coverage). They move away from training
    images of the control; its cohort must lose the first rank to the compound's, and the classifier must
    take fewer and fewer for it. Profiles are held against the full dose, which they come to be alike.
    """
    return _responses(RISES, FALLS, FALLS, RISES, LEAVES_FIRST, FALLS, RISES, NOT_ABOVE)


def batch_shift() -> Responses:
    """The right perturbation in another batch: other gains, background, blur and density of cells.

    A distance measures pixels, so it must see the shift, and so must precision to coverage. What claims to
    measure the perturbation must not be fooled: all cohorts of a ranking share one batch, so the shift is
    common to them; the classifier should still know the perturbation, and so should its profile. Nothing was
    copied.
    """
    return _responses(ABOVE, BELOW, BELOW, NOT_BELOW, FIRST, STAYS, STAYS, NOT_ABOVE)


def mode_collapse() -> Responses:
    """A few real images, over and over.

    Each image is faithful, so precision and density stay (roughly: few images are a small sample), and so do
    rank, classifier and the profile, which is a median. What the set lacks is spread, which recall and
    coverage are for, and which enters distances by the covariance and by the equal pairs. The images are none
    of training.
    """
    return _responses(ABOVE, STAYS, BELOW, STAYS, FIRST, STAYS, STAYS, NOT_ABOVE)


def copied_images() -> Responses:
    """The training images themselves.

    They are real images, so every metric of quality must take them for such: that they are copies is only
    for the distance to the nearest training image to tell.
    """
    return _responses(AS_REAL, AS_REAL, AS_REAL, FAR_BELOW_ONE, FIRST, AS_REAL, AS_REAL, ABOVE)


def partly_copied_images() -> Responses:
    """One training image in every five, other real images else.

    As with copies alone, but a fifth of them is already what one would not want to miss. A ratio of medians
    hardly moves; the share does.
    """
    return _responses(AS_REAL, AS_REAL, AS_REAL, BELOW, FIRST, AS_REAL, AS_REAL, ABOVE)


def wrong_perturbation() -> Responses:
    """Real images of another perturbation in the same batch.

    They are faithful images of the wrong thing: further than the floor, outside the reference, not copied,
    nearer to another cohort, not recognised, and of another profile.
    """
    return _responses(ABOVE, BELOW, BELOW, NOT_BELOW, NOT_FIRST, BELOW, BELOW, NOT_ABOVE)


def degraded() -> Responses:
    """Real images under more and more blur, or noise.

    Distances rise, images leave the reference, and reference images lose their neighbours. A degraded image
    is no copy, so it may not come nearer to training images. At the weakest level, which hardly shows, the
    rank must hold; at stronger ones it means nothing. The classifier, whose images look less and less like
    those it was fitted on, recognises fewer; what is measured of their cells is less and less right.
    """
    return _responses(RISES, FALLS, FALLS, NOT_BELOW, FIRST_WHEN_WEAK, FALLS, FALLS, NOT_ABOVE)


ROWS: dict[str, Callable[[], Responses]] = {
    "real against real": real_images,
    "dose ladder": dose_ladder,
    "other batch": batch_shift,
    "mode collapse": mode_collapse,
    "copies of training": copied_images,
    "a fifth copied": partly_copied_images,
    "wrong perturbation": wrong_perturbation,
    "blur ladder": degraded,
    "noise ladder": degraded,
}
