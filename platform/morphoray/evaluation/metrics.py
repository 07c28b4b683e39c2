"""The metrics of a report: how each is called, which way is better, and what it tells."""

from dataclasses import dataclass
from typing import Literal

from morphoray.evaluation.measures import (
    FRECHET,
    FRECHET_PAPER,
    KID,
    KID_PAPER,
    RANK,
    RATIO,
    RECOGNISED,
    SHARE,
)

Better = Literal["lower", "higher", "up to one", "one"]
DIRECTIONS: dict[Better, tuple[str, str]] = {
    "lower": ("↓", "lower is better"),
    "higher": ("↑", "higher is better"),
    "up to one": ("↑", "higher is better, up to 1"),
    "one": ("→ 1", "about 1 is best"),
}


@dataclass(frozen=True)
class Metric:
    """How a metric is called, where a good method goes, and in a sentence what it tells."""

    label: str
    better: Better
    means: str

    @property
    def title(self) -> str:
        """Label and arrow: 'Precision ↑'."""
        return f"{self.label} {DIRECTIONS[self.better][0]}"

    @property
    def heading(self) -> str:
        """The title with the arrow in words: 'Precision ↑ (higher is better)'."""
        return f"{self.title} ({DIRECTIONS[self.better][1]})"


METRICS: dict[str, Metric] = {
    FRECHET: Metric(
        "Fréchet distance",
        "lower",
        "How far apart the features of two sets of images lie, in mean and in spread; few images add a bias, "
        "which the floor shows.",
    ),
    KID: Metric(
        "Kernel distance",
        "lower",
        "How far apart they lie by a polynomial kernel, without a bias of few images: about 0 between real "
        "images, and as often below as above it.",
    ),
    "frechet_infinity": Metric(
        "Fréchet distance at infinite N, extrapolated",
        "lower",
        "The Fréchet distance on a line through several N, where 1 / N is 0.",
    ),
    RANK: Metric(
        "Rank of the matched real cohort",
        "lower",
        "Where the real images of the right perturbation stand among those of all perturbations, the nearest "
        "to the generated ones first: 1 is right.",
    ),
    RECOGNISED: Metric(
        "Recognised",
        "higher",
        "The share of images that a linear classifier, taught on real ones of every perturbation, takes for "
        "the right one; other real images, of other wells where there are several, else other fields, show "
        "how far this can go, what a plate has in common included. Blind to little diversity.",
    ),
    "precision": Metric(
        "Precision",
        "higher",
        "The share of generated images that lie among real ones; blind to kinds of images that are missing.",
    ),
    "recall": Metric(
        "Recall",
        "higher",
        "The share of real images that lie among generated ones; near 0 where a model repeats a few images.",
    ),
    "density": Metric(
        "Density",
        "up to one",
        "How many real images a generated one lies close to, over the number expected: 1 for real images, "
        "more where generated ones crowd where real ones do.",
    ),
    "coverage": Metric(
        "Coverage", "higher", "The share of real images that have a generated one close to them."
    ),
    FRECHET_PAPER: Metric(
        "Fréchet distance by the paper's padded protocol",
        "lower",
        "Real images filled up by flips and turns; to be held against the paper's tables only.",
    ),
    KID_PAPER: Metric(
        "Kernel distance by the paper's padded protocol",
        "lower",
        "Real images filled up by flips and turns; to be held against the paper's tables only.",
    ),
    RATIO: Metric(
        "Distance to the nearest training image",
        "one",
        "Over what training images have to those of other fields, by medians: about 1 is like real images, "
        "well below 1 means copies of training images, above 1 images unlike any of them.",
    ),
    SHARE: Metric(
        "Share of likely copies",
        "lower",
        "Of generated images, those nearer to a training image than the nearest 1 % of training images are "
        "to those of other fields: about 0.01 without copies. It sees the few that a median misses.",
    ),
}
