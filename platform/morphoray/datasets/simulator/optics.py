"""The microscope: out-of-focus haze, blur, uneven light, background, shot and read noise, digitisation."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from morphoray.datasets.simulator.phenotype import BatchEffect

Floats = npt.NDArray[np.float32]

BLOCK = 8  # px; haze is blurred on the field averaged over such blocks


def _upsample(small: Floats) -> Floats:
    """Linear interpolation of (n, n) block means to (8 n, 8 n)."""
    n = small.shape[0]
    place = np.clip((np.arange(n * BLOCK) + 0.5) / BLOCK - 0.5, 0, n - 1)
    left = np.minimum(place.astype(np.intp), max(n - 2, 0))
    right = np.minimum(left + 1, n - 1)
    part = (place - left).astype(np.float32)
    rows = small[left] * (1 - part)[:, None] + small[right] * part[:, None]
    columns: Floats = rows[:, left] * (1 - part) + rows[:, right] * part
    return columns


def haze(image: Floats, sigma_px: float) -> Floats:
    """(size, size) blurred widely; size is a multiple of 8."""
    n = image.shape[0] // BLOCK
    small = image.reshape(n, BLOCK, n, BLOCK).mean((1, 3))
    return _upsample(gaussian_filter(small, sigma_px / BLOCK, mode="nearest"))


def illumination(batch: BatchEffect, size: int) -> Floats:
    """(size, size): the share of light, 1 at the centre of illumination."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = batch.illumination_centre
    r2 = (axis[:, None] - y) ** 2 + (axis[None] - x) ** 2
    return np.asarray(1 - batch.illumination * np.minimum(r2 / 0.5, 1.5), dtype=np.float32)


def expose(
    signal: Floats, background: float, batch: BatchEffect, light: Floats, diameter: float, rng: np.random.Generator
) -> Floats:
    """(size, size) counts of 255, not clipped: the signal (counts) through the microscope."""
    blurred = gaussian_filter(signal, batch.blur_px, mode="nearest", truncate=2.5)
    image = (1 - batch.haze) * blurred + batch.haze * haze(signal, 0.7 * diameter)
    image = (image + background) * light
    sd = np.sqrt(batch.shot_noise * np.maximum(image, 0) + batch.read_noise**2)
    return np.asarray(image + sd * rng.standard_normal(image.shape, dtype=np.float32), dtype=np.float32)


def digitise(image: Floats, bit_depth: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Counts of 255 as uint8, or as uint16 of the same range times 257."""
    if bit_depth == 8:
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return np.clip(np.rint(image * 257), 0, 65535).astype(np.uint16)
