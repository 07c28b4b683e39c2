"""Profiles of the validation's sets: their correlation with those of real images, as an evaluation has it."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
import pandas as pd
from _faults import COMPOUND, Faults, Rows, faulty_sets
from _responses import Seen

from morphoray.datasets.simulator.library import CONTROL
from morphoray.evaluation.features import Images
from morphoray.evaluation.measurements import feature_names, measured_image
from morphoray.evaluation.profile_analysis import CLIP
from morphoray.evaluation.profile_scores import agreement
from morphoray.evaluation.profiles import REAL, normalise, select_features
from morphoray.evaluation.segmentation import SegmentationOptions
from morphoray.seeds import numpy_generator

Floats = npt.NDArray[np.float64]

CHANNELS = ("red", "green", "blue")
SEGMENTATION = SegmentationOptions(nuclei="blue", cell_body=("red", "green"), nucleus_diameter_px=18)


def measure_images(images: Images) -> pd.DataFrame:
    """A row of features an image, means over its cells, NaN where it has none; on all cores."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        size = -(-len(images) // (4 * (os.cpu_count() or 1)))
        parts = pool.map(_measured, [images[start : start + size] for start in range(0, len(images), size)])
        return pd.DataFrame(np.concatenate(list(parts)), columns=feature_names(CHANNELS))


def _measured(images: Images) -> Floats:
    return np.stack([measured_image(image, CHANNELS, SEGMENTATION)[2] for image in images])


def profile_correlations(measured: Callable[[Images], pd.DataFrame], n: int, repeats: int) -> dict[str, Seen]:
    """By row what is seen of sets of n images: means over the compounds, or a ladder's values.

    The control's own profile is noise around zero, so it is left out, and the dose ladder is held against
    real images of its full dose. The null: `repeats` splits of real images.
    """
    drawn: list[Images] = []

    def numbered(images: Images) -> Rows:
        """The places that these images will have in the table, so that each is measured once."""
        first = sum(len(each) for each in drawn)
        drawn.append(images)
        return np.arange(first, first + len(images))

    faults = faulty_sets(numbered, n)
    profiles = _profiles(measured(np.concatenate(drawn)), faults)
    names = [name for name in faults.sets if name != CONTROL]

    def correlation(name: str, real: Rows, generated: Rows) -> float:
        """Of the median profiles of n images each, as rows of the table."""
        ours, theirs = (_complete(profiles[rows]) for rows in (generated, real))
        generator = numpy_generator("validation-profiles", name)
        return agreement(theirs, ours, name, generator).generated_halves.mean

    null = np.array(
        [[_by_chance(correlation, faults, name, repeat) for name in names] for repeat in range(repeats)]
    )
    seen = {}
    for row, claimed in faults.rows.items():
        values = [correlation(name, faults.sets[name].real, claimed[name]) for name in names]
        seen[row] = Seen(np.array([np.mean(values)]), np.zeros(1), null.mean(1))
    for row, ladder in faults.ladders.items():
        values = [correlation(COMPOUND, faults.sets[COMPOUND].real, rows) for rows in ladder.sets]
        seen[row] = Seen(np.array(values), np.array(ladder.levels), null[:, names.index(COMPOUND)])
    return seen


def _complete(profiles: Floats) -> Floats:
    """Without images that have no cells."""
    return np.asarray(profiles[np.isfinite(profiles).all(1)])


def _by_chance(
    correlation: Callable[[str, Rows, Rows], float], faults: Faults, name: str, repeat: int
) -> float:
    """Real and fresh images of one perturbation, pooled and split again."""
    each = faults.sets[name]
    pooled = np.concatenate([each.real, each.fresh])
    pooled = pooled[numpy_generator("validation-profiles-null", repeat, name).permutation(len(pooled))]
    return correlation(name, pooled[: len(each.real)], pooled[len(each.real) :])


def _profiles(table: pd.DataFrame, faults: Faults) -> Floats:
    """The table's rows, scaled by the real controls and with the features that real images choose."""
    real = np.zeros(len(table), bool)
    control = np.zeros(len(table), bool)
    for name, each in faults.sets.items():
        real[each.real] = True
        control[each.real] = name == CONTROL
    head = {"Metadata_source": np.where(real, REAL, "generated"), "Metadata_is_control": control}
    scaled = normalise(pd.concat([pd.DataFrame(head), table], axis=1), by=None)
    return np.asarray(scaled[select_features(scaled)].clip(-CLIP, CLIP), np.float64)
