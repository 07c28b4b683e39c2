"""The paper's projection of a perturbation vector to a condition token: padding with ones."""

import numpy as np
import numpy.typing as npt

from morphoray.errors import DataError


def pad_to_token(vectors: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """Vectors (N, d) float32 padded with 1 on both sides to (N, width), the left side with (width - d) // 2.

    For width 768: 512 numbers have 128 ones on both sides, 173 have 297 and 298.
    Raises DataError for d > width.
    """
    count, d = vectors.shape
    if d > width:
        raise DataError(
            f"a perturbation vector of {d} numbers doesn't fit a condition token of {width}. "
            "Use the learned projection, which takes any width."
        )
    left = (width - d) // 2
    tokens = np.ones((count, width), dtype=np.float32)
    tokens[:, left : left + d] = vectors
    return tokens
