"""Tileable noise, made once a process: the textures that the cells of a field are cut from."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from morphoray.seeds import numpy_generator

Floats = npt.NDArray[np.float32]

PERIOD = 384  # pixels after which a bank repeats
ORIENTATIONS = 16


@dataclass(frozen=True)
class Banks:
    """Unit-variance tileable textures, float32, each (PERIOD + size, PERIOD + size) or 16 of that."""

    fine: Floats  # chromatin and ER grains, about two pixels
    medium: Floats
    coarse: Floats  # a third of a nucleus
    smooth: Floats  # larger than a cell
    network: Floats  # mitochondria: thin branching ridges, 0..1
    spots: Floats  # sparse puncta, 0..1
    fibres: Floats  # (ORIENTATIONS, ...) straight bundles, 0..about 3
    streaks: Floats  # narrow along rows, long along columns: read in polar coordinates for microtubules

    def window(self, bank: Floats, rng: np.random.Generator, size: int) -> Floats:
        """A (size, size) view of `bank` at a random offset, flipped at random."""
        y, x, flip = rng.integers(0, PERIOD), rng.integers(0, PERIOD), rng.integers(0, 4)
        view = bank[y : y + size, x : x + size]
        view = view[::-1] if flip & 1 else view
        return view[:, ::-1] if flip & 2 else view


def _filtered(name: str, transfer: Floats) -> Floats:
    """White noise of a fixed key through a (PERIOD, PERIOD) transfer function, mean 0 and variance 1."""
    white = numpy_generator("simulator-bank", name).standard_normal((PERIOD, PERIOD))
    noise = np.fft.ifft2(np.fft.fft2(white) * transfer).real
    noise -= noise.mean()
    return np.asarray(noise / noise.std(), dtype=np.float32)


def _frequencies() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    f = np.asarray(np.fft.fftfreq(PERIOD), dtype=np.float64)
    return f[:, None], f[None, :]


def _low_pass(name: str, sigma_px: float) -> Floats:
    fy, fx = _frequencies()
    return _filtered(name, np.exp(-2 * (np.pi * sigma_px) ** 2 * (fy**2 + fx**2)))


def _band_pass(name: str, sigma_px: float) -> Floats:
    fy, fx = _frequencies()
    f2 = fy**2 + fx**2
    low = np.exp(-2 * (np.pi * sigma_px) ** 2 * f2)
    return _filtered(name, low - np.exp(-2 * (np.pi * 2.2 * sigma_px) ** 2 * f2))


def _oriented(name: str, angle: float, long_px: float, short_px: float) -> Floats:
    fy, fx = _frequencies()
    along = fx * np.cos(angle) + fy * np.sin(angle)
    across = -fx * np.sin(angle) + fy * np.cos(angle)
    low = np.exp(-2 * np.pi**2 * ((long_px * along) ** 2 + (short_px * across) ** 2))
    return _filtered(name, low)


@lru_cache(maxsize=4)
def banks(nucleus_diameter_px: float, size: int) -> Banks:
    """The textures for nuclei of this diameter, wide enough for windows of `size` pixels."""
    d = nucleus_diameter_px

    def wide(tile: Floats) -> Floats:
        return np.ascontiguousarray(np.pad(tile, (0, size), mode="wrap"))

    ridge = np.exp(-((_band_pass("network", max(0.9, d / 13)) / 0.33) ** 2))
    broken = 1 / (1 + np.exp(-2.5 * _low_pass("network-gaps", d / 9)))
    spots = np.clip(_low_pass("spots", max(0.7, d / 24)) - 1.6, 0, 1.5) / 1.5
    fibres = []
    for i in range(ORIENTATIONS):
        angle = np.pi * i / ORIENTATIONS
        thin = _oriented(f"fibre-{i}", angle, 0.6 * d, max(0.55, d / 34))
        thick = _oriented(f"bundle-{i}", angle, 0.85 * d, max(0.7, d / 22))
        fibres.append(wide(np.clip(0.65 * thin + 0.5 * thick - 0.2, 0, None).astype(np.float32)))
    return Banks(
        fine=wide(_band_pass("fine", max(0.6, d / 26))),
        medium=wide(_band_pass("medium", max(0.8, d / 15))),
        coarse=wide(_band_pass("coarse", d / 8)),
        smooth=wide(_low_pass("smooth", 1.2 * d)),
        network=wide((ridge * broken).astype(np.float32)),
        spots=wide(spots.astype(np.float32)),
        fibres=np.stack(fibres),
        streaks=wide(np.clip(_oriented("streaks", 0.0, 9.0, 1.1), -1, None).astype(np.float32)),
    )
