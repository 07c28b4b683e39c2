"""Training data larger than memory: parts in a seeded order, shuffled inside a window, read ahead."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from morphoray.seeds import numpy_generator
from morphoray.training.latents import LatentParts, Latents, LatentSet, Span, joined


class WindowOrder:
    """Which sample stands where, by arithmetic on (seed, position, part sizes, window).

    Every epoch lines the parts up in a fresh seeded order and cuts the line into windows of `window` rows
    (the last may be shorter), each shuffled by a seeded permutation. So every row comes once an epoch, and a
    window needs only its own parts. Windows are numbered through all epochs.
    """

    def __init__(self, seed: int, sizes: Sequence[int], window: int) -> None:
        self._seed, self._sizes = seed, np.asarray(sizes, np.int64)
        self._rows = int(self._sizes.sum())
        self._window = min(window, self._rows)
        self._per_epoch = -(-self._rows // self._window)
        self._number, self._permutation = -1, np.arange(0)

    def places(self, step: int, batch_size: int, slots: range) -> list[tuple[int, np.ndarray]]:
        """(window number, rows of that window (int64)) of step `step`'s slots, windows ascending."""
        positions = (step * batch_size + slot for slot in slots)
        located = [self._locate(position) for position in positions]
        return [
            (number, self._shuffled(number)[[offset for _, offset in group]])
            for number, group in groupby(located, key=lambda place: place[0])
        ]

    def _locate(self, position: int) -> tuple[int, int]:
        epoch, line = divmod(position, self._rows)
        window, offset = divmod(line, self._window)
        return epoch * self._per_epoch + window, offset

    def _bounds(self, number: int) -> tuple[int, int, int]:
        epoch, window = divmod(number, self._per_epoch)
        start = window * self._window
        return epoch, start, min(start + self._window, self._rows)

    def _shuffled(self, number: int) -> np.ndarray:
        if number != self._number:
            _, start, stop = self._bounds(number)
            self._permutation = numpy_generator("window", self._seed, number).permutation(stop - start)
            self._number = number
        return self._permutation

    def spans(self, number: int) -> list[Span]:
        """Where window `number`'s rows lie, before its shuffle."""
        epoch, start, stop = self._bounds(number)
        parts = numpy_generator("parts", self._seed, epoch).permutation(len(self._sizes))
        ends = np.cumsum(self._sizes[parts])
        spans = []
        for part, end in zip(parts.tolist(), ends.tolist(), strict=True):
            begin = end - int(self._sizes[part])
            if max(start, begin) < min(stop, end):
                spans.append(Span(part, max(start, begin) - begin, min(stop, end) - begin))
        return spans


class WindowReader:
    """Rows of two windows at most in memory: the one in use, and the next, read in a thread meanwhile."""

    def __init__(self, parts: LatentParts, seed: int, window: int) -> None:
        self._parts, self._order = parts, WindowOrder(seed, parts.sizes, window)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="latents")
        self._windows: dict[int, Future[LatentSet]] = {}

    def at(self, step: int, batch_size: int, slots: range) -> LatentSet:
        """The samples at `slots` of step `step`'s global batch. Raises what reading their window raised."""
        places = self._order.places(step, batch_size, slots)
        return joined([self._rows(number).take(rows) for number, rows in places])

    def position(self) -> None:
        """The step tells it."""

    def _rows(self, number: int) -> LatentSet:
        for other in [key for key in self._windows if key not in (number, number + 1)]:
            self._windows.pop(other).cancel()
        for wanted in (number, number + 1):
            if wanted not in self._windows:
                self._windows[wanted] = self._pool.submit(self._load, wanted)
        return self._windows[number].result()

    def _load(self, number: int) -> LatentSet:
        return self._parts.load(self._order.spans(number))


@dataclass(frozen=True)
class Windows:
    """Parts to be read in windows of `window` rows."""

    parts: LatentParts
    window: int

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return self.parts.shape

    def ordered(self, seed: int) -> WindowReader:
        """Each row once an epoch, shuffled inside windows."""
        return WindowReader(self.parts, seed, self.window)


def open_latents(parts: LatentParts, window: int | None) -> Latents:
    """The parts as training data: windows of `window` rows, or everything in memory for None."""
    if window is not None:
        return Windows(parts, window)
    return parts.load([Span(part, 0, size) for part, size in enumerate(parts.sizes) if size])
