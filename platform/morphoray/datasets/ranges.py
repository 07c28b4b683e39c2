"""Intensity ranges of plates from a sample of their fields: percentiles a channel, to scale raw pixels by."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from morphoray.datasets.reading import read_raw
from morphoray.errors import DataError
from morphoray.storage import Storage

_THREADS = 8  # plates read at once; each holds one field
_LEVELS = 2**16

Sample = Sequence[Sequence[str]]  # the channel files of each field


def plate_ranges(
    samples: Mapping[str, Sequence[Sample]], percentiles: tuple[float, float], storage: Storage
) -> tuple[dict[str, list[float] | None], dict[str, int]]:
    """Low, high of every channel for each plate, from its first sample of which a field can be read.

    Returns the ranges (None: no field of any sample can be read), and which of its samples a plate used.
    """

    def measure(samples: Sequence[Sample]) -> tuple[list[float] | None, int]:
        for number, sample in enumerate(samples):
            if (found := channel_ranges(sample, percentiles, storage)) is not None:
                return found, number
        return None, len(samples)

    with ThreadPoolExecutor(_THREADS) as threads:
        found = dict(zip(samples, threads.map(measure, samples.values()), strict=True))
    return {plate: ranges for plate, (ranges, _) in found.items()}, {
        plate: number for plate, (_, number) in found.items()
    }


def channel_ranges(sample: Sample, percentiles: tuple[float, float], storage: Storage) -> list[float] | None:
    """Low, high of every channel: percentiles (nearest rank) of all pixels of the fields that can be read.

    A channel of one value gets a range of 1. None when no field can be read. Storage that fails raises.
    """
    counts: npt.NDArray[np.int64] | None = None
    for uris in sample:
        try:
            raw = read_raw(uris, storage)
        except DataError:
            continue
        counted = np.stack([np.bincount(plane.ravel(), minlength=_LEVELS) for plane in raw])
        counts = counted if counts is None else counts + counted
    if counts is None:
        return None
    ranges: list[float] = []
    for row in counts:
        below = np.cumsum(row)
        low, high = (int(np.searchsorted(below, max(share / 100 * below[-1], 1))) for share in percentiles)
        ranges += [float(low), float(max(high, low + 1))]
    return ranges
