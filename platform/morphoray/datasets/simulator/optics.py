"""The microscope: out-of-focus haze, blur, uneven light, background, shot and read noise, digitisation."""

import math

import numpy as np
import numpy.typing as npt

from morphoray.datasets.simulator.phenotype import BatchEffect

Floats = npt.NDArray[np.float32]

BLOCK = 8  # px: haze is smooth enough to be sampled this coarsely


def blur(image: Floats, sigma_px: float) -> Floats:
    """(size, size) under a Gaussian PSF, edges repeated.

    Shifted sums in float32: five times as fast as scipy's filter, which works in float64.
    """
    reach = max(1, math.ceil(2.5 * sigma_px))
    weights = np.exp(-0.5 * (np.arange(reach + 1) / max(sigma_px, 1e-3)) ** 2)
    weights = (weights / (weights[0] + 2 * weights[1:].sum())).astype(np.float32)
    rows, columns = image.shape
    high = np.empty((rows + 2 * reach, columns), np.float32)  # np.pad costs more than the sums
    high[reach:-reach], high[:reach], high[-reach:] = image, image[0], image[-1]
    image = _summed([high[i : i + rows] for i in range(2 * reach + 1)], weights)
    wide = np.empty((rows, columns + 2 * reach), np.float32)
    wide[:, reach:-reach], wide[:, :reach], wide[:, -reach:] = image, image[:, :1], image[:, -1:]
    return _summed([wide[:, i : i + columns] for i in range(2 * reach + 1)], weights)


def _summed(shifted: list[Floats], weights: Floats) -> Floats:
    """The middle times the first weight plus each pair around it times the next."""
    reach = len(shifted) // 2
    total: Floats = weights[0] * shifted[reach]
    for k in range(1, reach + 1):
        total += weights[k] * (shifted[reach - k] + shifted[reach + k])
    return total


def noise(rng: np.random.Generator, size: int) -> Floats:
    """(size, size) of mean 0 and variance 1: sums of eight random bytes, near to normal and faster."""
    words = rng.integers(0, 2**64, size * size, dtype=np.uint64)
    planes = words.view(np.uint8).reshape(8, size, size)
    total = planes[0].astype(np.uint16)
    for plane in planes[1:]:
        total += plane
    scale = np.float32(1 / math.sqrt(8 * (256**2 - 1) / 12))
    return np.asarray((total - np.float32(8 * 127.5)) * scale, dtype=np.float32)


def haze(image: Floats, sigma_px: float) -> Floats:
    """(size, size) blurred widely, edges repeated: block means, blurred, then interpolated; size is n x 8.

    No matrix products: their threads cost more than they save where several processes draw at once.
    """
    n = image.shape[0] // BLOCK
    rows = np.ascontiguousarray(image.reshape(n, BLOCK, -1).mean(1).T)
    small = blur(rows.reshape(n, BLOCK, n).mean(1).T, sigma_px / BLOCK)
    place = np.clip((np.arange(n * BLOCK) + 0.5) / BLOCK - 0.5, 0, n - 1)
    left = np.minimum(place.astype(np.intp), max(n - 2, 0))
    part = (place - left).astype(np.float32)
    wide = small[:, left] * (1 - part) + small[:, left + 1] * part
    high = wide[left]
    high += (wide[left + 1] - high) * part[:, None]
    return high


def illumination(batch: BatchEffect, size: int) -> Floats:
    """(size, size): the share of light, 1 at the centre of illumination."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = batch.illumination_centre
    r2 = (axis[:, None] - y) ** 2 + (axis[None] - x) ** 2
    return np.asarray(1 - batch.illumination * np.minimum(r2 / 0.5, 1.5), dtype=np.float32)


def expose(
    signal: Floats,
    background: float,
    batch: BatchEffect,
    light: Floats,
    diameter: float,
    rng: np.random.Generator,
) -> Floats:
    """(size, size) counts of 255, not clipped: the signal (counts) through the microscope."""
    image = (1 - batch.haze) * blur(signal, batch.blur_px) + batch.haze * haze(signal, 0.7 * diameter)
    image = (image + background) * light
    sd = np.sqrt(batch.shot_noise * np.maximum(image, 0) + batch.read_noise**2)
    return np.asarray(image + sd * noise(rng, image.shape[0]), dtype=np.float32)


def digitise(image: Floats, bit_depth: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Counts of 255 as uint8, or as uint16 of the same range times 257."""
    if bit_depth == 8:
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return np.clip(np.rint(image * 257), 0, 65535).astype(np.uint16)
