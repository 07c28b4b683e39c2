"""The training set: LATENTS parts joined with condition vectors, and their rows in memory."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from morphoray.diffusion.objective import DataOrder
from morphoray.errors import DataError
from morphoray.perturbations.context import NO_CONTEXT, Context

READ_THREADS = 4  # parts in memory beside the rows that are being filled


class Ordered(Protocol):
    """Latents in the order of training."""

    def at(self, step: int, batch_size: int, slots: range) -> "LatentSet":
        """The samples at `slots` of step `step`'s global batch."""

    def position(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of where the data are; None where the step tells it.

        Called on every process at once.
        """


class Latents(Protocol):
    """What the training loop needs of its data, in memory or not."""

    def __len__(self) -> int:
        """How many latents there are."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""

    def ordered(self, seed: int) -> Ordered:
        """The latents in the order that `seed` gives them."""


@dataclass(frozen=True)
class LatentSet:
    """n posteriors and the perturbation of each.

    mean, std: (n, C, H, W) float16, raw latents; row: (n,) int64 into vectors; vectors: (m, width) float32;
    seeds: of each sample's noise, None where its place in the batch gives it; context: (n, features) uint8,
    None for a model that is told of perturbations alone.
    """

    mean: Tensor
    std: Tensor
    row: Tensor
    vectors: Tensor
    seeds: tuple[int, ...] | None = None
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        channels, height, width = self.mean.shape[1:]
        return channels, height, width

    def ordered(self, seed: int) -> "Shuffled":
        """These rows in a fresh seeded order every epoch."""
        return Shuffled(self, seed)

    def take(self, indices: np.ndarray) -> "LatentSet":
        """The rows at `indices`, in that order."""
        index = torch.from_numpy(indices)
        seeds = None if self.seeds is None else tuple(self.seeds[place] for place in indices.tolist())
        context = None if self.context is None else self.context[index]
        return LatentSet(self.mean[index], self.std[index], self.row[index], self.vectors, seeds, context)

    def sample(
        self, part: slice, posterior: Tensor, scaling_factor: float, hide: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scaled latents (k, C, H, W) float32 drawn from the posteriors in `part`, and their conditions.

        posterior: standard normal (k, C, H, W); hide: (k,) bool, rows whose context is zeros.
        """
        raw = self.mean[part].float() + self.std[part].float() * posterior
        vectors = self.vectors[self.row[part]]
        if self.context is not None:
            vectors = torch.cat([vectors, self.context[part] * ~hide[:, None]], dim=1)
        return raw * scaling_factor, vectors


class Shuffled:
    """Rows in memory, each once an epoch by one permutation of all."""

    def __init__(self, rows: LatentSet, seed: int) -> None:
        self._rows, self._order = rows, DataOrder(seed, len(rows))

    def at(self, step: int, batch_size: int, slots: range) -> LatentSet:
        """The samples at `slots` of step `step`'s global batch."""
        return self._rows.take(self._order.samples(step, batch_size, slots))

    def position(self) -> None:
        """The step tells it."""


def joined(pieces: Sequence[LatentSet]) -> LatentSet:
    """The rows of several sets that share their vectors, one after the other."""
    if len(pieces) == 1:
        return pieces[0]
    mean, std, row = (
        torch.cat([getattr(piece, name) for piece in pieces]) for name in ("mean", "std", "row")
    )
    seeds = None if pieces[0].seeds is None else tuple(seed for piece in pieces for seed in piece.seeds or ())
    contexts = [piece.context for piece in pieces if piece.context is not None]
    context = torch.cat(contexts) if contexts else None
    return LatentSet(mean, std, row, pieces[0].vectors, seeds, context)


class Span(NamedTuple):
    """Rows start to stop (exclusive) of one part."""

    part: int
    start: int
    stop: int


class LatentParts:
    """Training rows in numbered parts that are read on demand.

    sizes: rows of each part; read: a part's number to its rows, LATENTS columns perturbation_id, latent_mean,
    latent_std and the context's; vectors: condition vectors (width,) by perturbation_id. Raises DataError for
    no rows.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        read: Callable[[int], pa.Table],
        vectors: Mapping[str, np.ndarray],
        context: Context = NO_CONTEXT,
    ) -> None:
        if not sum(sizes):
            raise DataError("found no latents to train on. Are the filters, or the splits, too narrow?")
        self.sizes, self._read, self._context = tuple(sizes), read, context
        names = sorted(vectors)
        self._rows = {name: number for number, name in enumerate(names)}
        self.vectors = torch.from_numpy(np.stack([vectors[name] for name in names]).astype(np.float32))
        first = next(part for part, size in enumerate(self.sizes) if size)
        kind = self._table(first).schema.field("latent_mean").type
        self.shape: tuple[int, int, int] = tuple(kind.shape)

    def __len__(self) -> int:
        return sum(self.sizes)

    def load(self, spans: Sequence[Span]) -> LatentSet:
        """The spans' rows, one after the other, in memory that is taken once."""
        ends = list(accumulate(span.stop - span.start for span in spans))
        mean = torch.empty((ends[-1], *self.shape), dtype=torch.float16)
        std = torch.empty_like(mean)
        row = torch.empty(ends[-1], dtype=torch.int64)
        context = torch.empty(ends[-1], self._context.width, dtype=torch.uint8)

        def fill(span: Span, end: int) -> None:
            place = slice(end - span.stop + span.start, end)
            table = self._table(span.part)
            for target, name in ((mean, "latent_mean"), (std, "latent_std")):
                values = table.column(name).combine_chunks().to_numpy_ndarray()
                target.numpy()[place] = values[span.start : span.stop]
            names = table.column("perturbation_id").to_pylist()[span.start : span.stop]
            row[place] = torch.tensor(self._numbers(names), dtype=torch.int64)
            told = table.slice(span.start, span.stop - span.start)
            columns = {name: told[name].to_pylist() for name in self._context.levels}
            context.numpy()[place] = self._context.features(columns, len(told))

        with ThreadPoolExecutor(READ_THREADS) as pool:
            list(pool.map(fill, spans, ends))
        return LatentSet(mean, std, row, self.vectors, context=context)

    def _table(self, part: int) -> pa.Table:
        table = self._read(part)
        if len(table) != self.sizes[part]:
            raise DataError(
                f"part {part} of the latents has {len(table)} training rows, and had {self.sizes[part]} when "
                "training started. Was it encoded again meanwhile? Run the same command again."
            )
        return table

    def _numbers(self, names: Sequence[str]) -> list[int]:
        unknown = sorted(set(names) - self._rows.keys())
        if unknown:
            raise DataError(f"latents name perturbations without a condition vector: {unknown[:5]}.")
        return [self._rows[name] for name in names]
