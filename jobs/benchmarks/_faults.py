"""Sets of simulated images with known faults: what the validation asks every metric about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from morphoray.datasets.simulator.effects import batch_effect, compound_phenotypes
from morphoray.datasets.simulator.fields import draw_fields
from morphoray.datasets.simulator.library import COMPOUNDS, CONTROL
from morphoray.datasets.simulator.phenotype import Phenotype
from morphoray.datasets.simulator.plan import SimulatedOptions
from morphoray.evaluation.features import Images
from morphoray.imaging.channels import MAPPINGS
from morphoray.imaging.crops import crop, crop_positions
from morphoray.seeds import numpy_generator

Rows = npt.NDArray[Any]  # (N, width): what is known of N images
Extract = Callable[[Images], Rows]

RESOLUTION = 64
COMPOUND = "lovastatin"
NAMES = (CONTROL, COMPOUND, "ciprofloxacin", "diazepam")
BATCHES = ("SIM-01", "SIM-02")
WELLS = 16  # of each perturbation in each batch; sets of one batch share them
DOSES_UM = (0.5, 1.0, 2.0, 4.0)
FULL_DOSE_UM = 10.0
BLUR_PX = (0.5, 1.0, 2.0, 4.0)
NOISE_LEVELS = (4.0, 8.0, 16.0, 32.0)  # grey levels of 255


@dataclass(frozen=True)
class Sets:
    """Images of one perturbation: 2 N real ones, N others, N trained on, and N of another batch."""

    real: Rows
    fresh: Rows
    trained: Rows
    other_batch: Rows


@dataclass(frozen=True)
class Ladder:
    """A rising fault: sets of images claimed to be `of`; the first level is real images of it."""

    of: str
    levels: tuple[float, ...]
    sets: tuple[Rows, ...]


def draw(phenotype: Phenotype, batch: str, name: str, count: int) -> Images:
    """`count` images (count, 3, 64, 64) of independent fields; image i depends on the names and i."""
    options = SimulatedOptions()
    keys = [(options.seed, batch, name, index) for index in range(count)]
    fields = draw_fields(
        [phenotype] * count,
        [batch_effect(options.seed, batch, "1", f"{name}-{index % WELLS}") for index in range(count)],
        options.size,
        options.channels,
        keys=keys,
        nucleus_diameter_px=options.nucleus_diameter_px,
    )
    images = []
    for field, key in zip(fields.images, keys, strict=True):
        position = crop_positions(options.size, options.size, RESOLUTION, 1, *key)[0]
        images.append(crop(MAPPINGS["rxrx1_rgb"].apply(field), position, RESOLUTION))
    return np.stack(images)


def phenotypes(name: str, doses_um: Sequence[float]) -> list[Phenotype]:
    """The phenotype that a compound has at each dose; the control's is the baseline."""
    if name == CONTROL:
        return [Phenotype() for _ in doses_um]
    return compound_phenotypes([COMPOUNDS[name].smiles] * len(doses_um), doses_um)


def blurred(images: Images, sigma_px: float) -> Images:
    """Each channel under a Gaussian."""
    smooth = gaussian_filter(images.astype(np.float32), (0, 0, sigma_px, sigma_px))
    found: Images = np.rint(smooth).astype(np.uint8)
    return found


def noisy(images: Images, deviation: float) -> Images:
    """With independent Gaussian noise on every value, clipped to 0..255."""
    noise = numpy_generator("validation-noise").normal(0, deviation, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Faults:
    """All sets of N images a side. rows: by row and perturbation claimed; ladders: by row."""

    sets: dict[str, Sets]
    rows: dict[str, dict[str, Rows]]
    ladders: dict[str, Ladder]


def faulty_sets(extract: Extract, n: int) -> Faults:
    """Draw every image and extract it once: features, or whatever else a row of numbers an image can say."""
    images = {name: _images(name, n) for name in NAMES}
    sets = {name: _sets(extract, *images[name], n) for name in NAMES}
    return Faults(sets, _rows(sets, n), _ladders(extract, sets, images[COMPOUND][0][2 * n : 3 * n]))


def _images(name: str, n: int) -> tuple[Images, Images]:
    """4 N images of the first batch, and N of the second."""
    phenotype = phenotypes(name, [FULL_DOSE_UM])[0]
    return draw(phenotype, BATCHES[0], name, 4 * n), draw(phenotype, BATCHES[1], name, n)


def _sets(extract: Extract, first: Images, second: Images, n: int) -> Sets:
    features = extract(first)
    return Sets(features[: 2 * n], features[2 * n : 3 * n], features[3 * n :], extract(second))


def _ladders(extract: Extract, sets: Mapping[str, Sets], images: Images) -> dict[str, Ladder]:
    """images: the compound's N fresh ones."""
    n = len(images)
    doses = [
        extract(draw(phenotype, BATCHES[0], f"{COMPOUND}@{dose}", n))
        for phenotype, dose in zip(phenotypes(COMPOUND, DOSES_UM), DOSES_UM, strict=True)
    ]
    control, compound = sets[CONTROL].fresh, sets[COMPOUND].fresh
    blur = [extract(blurred(images, sigma)) for sigma in BLUR_PX]
    noise = [extract(noisy(images, deviation)) for deviation in NOISE_LEVELS]
    return {
        "dose ladder": Ladder(CONTROL, (0.0, *DOSES_UM, FULL_DOSE_UM), (control, *doses, compound)),
        "blur ladder": Ladder(COMPOUND, (0.0, *BLUR_PX), (compound, *blur)),
        "noise ladder": Ladder(COMPOUND, (0.0, *NOISE_LEVELS), (compound, *noise)),
    }


def _rows(sets: Mapping[str, Sets], n: int) -> dict[str, dict[str, Rows]]:
    """The rows without levels: a set for each perturbation that it is claimed to be."""
    names, few, fifth = list(sets), max(2, n // 25), n // 5
    following = dict(zip(names, names[1:] + names[:1], strict=True))
    return {
        "real against real": {name: each.fresh for name, each in sets.items()},
        "other batch": {name: each.other_batch for name, each in sets.items()},
        "mode collapse": {name: each.fresh[np.arange(n) % few] for name, each in sets.items()},
        "copies of training": {name: each.trained for name, each in sets.items()},
        "a fifth copied": {
            name: np.concatenate([each.trained[:fifth], each.fresh[fifth:]]) for name, each in sets.items()
        },
        "wrong perturbation": {name: sets[following[name]].fresh for name in names},
    }
