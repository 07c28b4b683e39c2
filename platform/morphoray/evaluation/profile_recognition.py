"""Whether a classifier that real profiles taught recognises generated ones, beside other real ones."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from morphoray.errors import DataError
from morphoray.evaluation.moa import Recognition, recognise
from morphoray.seeds import numpy_generator

LABELS = {"perturbation": "Metadata_perturbation_id", "moa": "Metadata_moa"}
GROUPS = ("Metadata_batch", "Metadata_plate", "Metadata_well")  # what the two real parts don't share
TRIES = 50


def recognitions(
    real: pd.DataFrame, generated: pd.DataFrame, features: Sequence[str], seed: int
) -> dict[str, Recognition]:
    """Recognitions by LABELS' keys, of treatments; those that the images don't allow are left out.

    The classifier learns from half of the real images' groups and is asked for the other half.
    """
    found = {}
    for label, column in LABELS.items():
        sides = [
            side[side[column].notna() & ~side["Metadata_is_control"].astype(bool)]
            for side in (real, generated)
        ]
        halves = split(sides[0], column, seed)
        if halves is not None:
            first, second, apart = halves
            try:
                found[label] = recognise(first, second, sides[1], features, column, apart)
            except DataError:
                continue  # fewer than two classes that all three have
    return found


def split(real: pd.DataFrame, column: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, str] | None:
    """Two halves of real images without a batch in common, else without a plate, else without a well.

    Of TRIES random halves the one with the most classes of `column` on both sides, of the coarsest group
    that leaves all classes there; else of the one that leaves most. None when fewer than two classes stay.
    """
    best: tuple[int, npt.NDArray[np.bool_], npt.NDArray[np.object_]] | None = None
    classes = real[column].to_numpy(object)
    for group in GROUPS:
        keys = _keys(real, group)
        known = np.asarray(sorted({key for key in keys if key is not None}), object)
        generator = numpy_generator("recognition", seed, column, group)
        for _ in range(TRIES if len(known) > 1 else 0):
            drawn = np.isin(keys.astype(str), generator.permutation(known)[: -(-len(known) // 2)].astype(str))
            both = len(set(classes[drawn]) & set(classes[~drawn]))
            if best is None or both > best[0]:
                best = (both, drawn, keys)
        if best is not None and best[0] == len(set(classes)):
            break
    if best is None or best[0] < 2:
        return None
    _, drawn, keys = best
    table = real.assign(Metadata_apart=keys)
    return table[drawn], table[~drawn], "Metadata_apart"


def _keys(real: pd.DataFrame, group: str) -> npt.NDArray[np.object_]:
    """The group of each image, None where it is unknown; wells of two plates may share a name."""
    names = ("Metadata_plate", group) if group == "Metadata_well" else (group,)
    pairs = zip(*(real[name] for name in names), strict=True)
    keys = [None if any(map(pd.isna, values)) else "/".join(map(str, values)) for values in pairs]
    return np.asarray(keys, object)
