"""Training samples that arrive while they are made, in no promised order; each is taken once an epoch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from morphoray.errors import DataError
from morphoray.perturbations.context import NO_CONTEXT, Context
from morphoray.training.consumed import Block, Consumed, Part
from morphoray.training.latents import LatentSet, joined


class Streamed:
    """Blocks as training data: every sample once, as they come, those consumed before left out.

    blocks: this process's share of the stream; samples: how many an epoch has; check: is given the number of
    bad sites when it grows, and raises when there are too many. A block's samples come in the order of their
    seeds.
    """

    def __init__(
        self,
        blocks: Iterator[Block],
        shape: tuple[int, int, int],
        vectors: Mapping[str, np.ndarray],
        samples: int,
        consumed: Consumed,
        check: Callable[[int], None],
        context: Context = NO_CONTEXT,
    ) -> None:
        self.shape, self.consumed, self._context = shape, consumed, context
        self._blocks, self._samples, self._check = blocks, samples, check
        names = sorted(vectors)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._vectors = torch.from_numpy(np.stack([vectors[name] for name in names]).astype(np.float32))
        self._part: Part = (0, 0)
        self._rows: LatentSet | None = None
        self._used = 0

    def __len__(self) -> int:
        return self._samples

    def ordered(self, seed: int) -> "Streamed":
        """As they come: the order is no function of the seed, the noise is."""
        return self

    def at(self, step: int, batch_size: int, slots: range) -> LatentSet:
        """The next samples, as many as there are slots; DataError when the stream ends before."""
        pieces: list[LatentSet] = []
        left = len(slots)
        while left:
            rows = self._rows or self._next(step)
            taken = rows.take(np.arange(self._used, min(self._used + left, len(rows))))
            pieces.append(taken)
            left -= len(taken)
            self._used += len(taken)
            if self._used == len(rows):
                self.consumed.finish(self._part)
                self._rows = None
            else:
                self.consumed.take(self._part, (taken.seeds or (0,))[-1])
        return joined(pieces)

    def position(self) -> dict[str, Any]:
        """What all processes have consumed. Raises what `check` raises."""
        told: list[dict[str, Any]] = gather_object([self.consumed.told()])
        bad = len(self.consumed.bad)
        self.consumed.merge([Consumed.load(self.consumed.per_epoch, each) for each in told])
        if len(self.consumed.bad) > bad:
            self._check(len(self.consumed.bad))
        return self.consumed.told()

    def _next(self, step: int) -> LatentSet:
        """The rows of the next block that has any left."""
        for block in self._blocks:
            if self.consumed.has(block.part):
                continue
            if set(block.bad) - self.consumed.bad:
                self.consumed.bad |= set(block.bad)
                self._check(len(self.consumed.bad))
            start = np.searchsorted(block.seeds, self.consumed.begun.get(block.part, -1), side="right")
            if start == len(block.seeds):
                self.consumed.finish(block.part)
                continue
            self._part, self._used, self._rows = block.part, int(start), self._set_of(block)
            return self._rows
        raise DataError(
            f"the stream ended at step {step}: more images are bad than it had room for. Run the same "
            "command again: it goes on from the newest checkpoint."
        )

    def _set_of(self, block: Block) -> LatentSet:
        mean, std = (
            torch.from_numpy(np.frombuffer(bytearray(b"".join(values)), np.float16).reshape(-1, *self.shape))
            for values in (block.mean, block.std)
        )
        row = torch.tensor([self._numbers[name] for name in block.perturbations], dtype=torch.int64)
        context = torch.from_numpy(self._context.features(block.context, len(row)))
        return LatentSet(mean, std, row, self._vectors, tuple(block.seeds), context)
