"""From raw pixels of any depth to 8 bits: ranges of the plate, of the image itself, and illumination."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from morphoray.errors import DataError

Floats = npt.NDArray[np.float32]
Uint8 = npt.NDArray[np.uint8]

PERCENTILES = (0.1, 99.9)  # of an image's own pixels, where nothing else is known of its plate


def correct_illumination(raw: npt.NDArray[np.generic], illumination: npt.NDArray[np.floating]) -> Floats:
    """Raw pixels divided by their illumination function or functions, of the same shape; float32.

    CellProfiler's "divide". Raises DataError for another shape, or a function that isn't positive and finite.
    """
    if raw.shape != illumination.shape:
        raise DataError(f"illumination of shape {illumination.shape}, expected the image's {raw.shape}")
    if not (np.isfinite(illumination).all() and (illumination > 0).all()):
        raise DataError("illumination has values that are not positive and finite")
    corrected: Floats = np.divide(raw, illumination, dtype=np.float32, casting="unsafe")
    return corrected


def to_uint8(pixels: npt.NDArray[np.generic], ranges: Sequence[float] | None = None) -> Uint8:
    """Pixels (C, H, W) as uint8: low of a channel's range is 0, high is 255, outside is clipped, rounded.

    `ranges` are low, high of every channel in turn. Without them 8-bit pixels stay as they are, and a
    deeper channel's range is its own image's 0.1 and 99.9 percentiles. Raises DataError for wrong ranges.
    """
    if ranges is None:
        if pixels.dtype == np.uint8:
            return pixels.astype(np.uint8, copy=False)
        flat = pixels.reshape(len(pixels), -1).astype(np.float32)
        bounds = np.asarray(np.percentile(flat, PERCENTILES, axis=1).T, np.float64)
        bounds[:, 1] = np.maximum(bounds[:, 1], bounds[:, 0] + 1e-6)
    else:
        bounds = np.asarray(ranges, np.float64).reshape(-1, 2)
        if len(bounds) != len(pixels) or not (bounds[:, 1] > bounds[:, 0]).all():
            raise DataError(
                f"intensity ranges {list(ranges)}: expected low < high for each of {len(pixels)} channels"
            )
    low, high = (bounds[:, side, None, None].astype(np.float32) for side in (0, 1))
    scaled = (pixels.astype(np.float32) - low) * (255 / (high - low))
    image: Uint8 = np.rint(np.clip(scaled, 0, 255, out=scaled)).astype(np.uint8)
    return image


def stretch(raw: npt.NDArray[np.generic]) -> Uint8:
    """Each channel of (C, H, W) from its minimum to its maximum as uint8, truncated: the original's rule."""
    flat = raw.reshape(len(raw), -1).astype(np.float32)
    low, high = flat.min(axis=1)[:, None, None], flat.max(axis=1)[:, None, None]
    image: Uint8 = ((raw.astype(np.float32) - low) / np.maximum(high - low, 1e-6) * 255).astype(np.uint8)
    return image
