"""Single-cell crops: a square of pixels around each nucleus of a field, real and generated fields alike."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from morphoray.errors import DataError
from morphoray.evaluation.segmentation import Labels


@dataclass(frozen=True)
class CellCrops:
    """crops (n, K, size, size) of the image's type, in the order of the labels.

    positions (n, 2): upper left corners (y, x). labels (n,): the cells that they are centred on. left_out:
    the number of cells whose crop would reach beyond the image.
    """

    crops: npt.NDArray[np.generic]
    positions: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    left_out: int


def nucleus_centres(nuclei: Labels) -> npt.NDArray[np.float64]:
    """The centroids (n, 2), y and x in pixels, of labels 1 … n of (H, W)."""
    count = int(nuclei.max(initial=0))
    y, x = np.nonzero(nuclei)
    label = nuclei[y, x]
    area = np.bincount(label, minlength=count + 1)[1:]
    sums = [np.bincount(label, weights=axis, minlength=count + 1)[1:] for axis in (y, x)]
    return np.stack(sums, axis=1) / np.maximum(area, 1)[:, None]


def cell_crops(image: npt.NDArray[np.generic], nuclei: Labels, size: int) -> CellCrops:
    """A crop of `size` pixels centred on each nucleus of the image (K, H, W), where the whole crop is inside.

    nuclei: (H, W), as `segment` gives them. Raises DataError for a size below 1 or labels of another shape.
    """
    if size < 1 or image.ndim != 3 or image.shape[1:] != nuclei.shape:
        raise DataError(
            f"cell crops: found size {size}, an image of shape {image.shape} and labels of shape "
            f"{nuclei.shape}; expected a size of 1 or more, (K, H, W) and (H, W)"
        )
    corners = np.rint(nucleus_centres(nuclei) - size / 2).astype(np.int64)
    fits = ((corners >= 0) & (corners + size <= nuclei.shape)).all(axis=1)
    positions = corners[fits]
    crops = np.empty((len(positions), len(image), size, size), image.dtype)
    for index, (y, x) in enumerate(positions):
        crops[index] = image[:, y : y + size, x : x + size]
    return CellCrops(crops, positions, np.flatnonzero(fits) + 1, int((~fits).sum()))
