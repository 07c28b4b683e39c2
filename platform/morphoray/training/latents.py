"""The training set: LATENTS read into memory once, and condition vectors a row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from morphoray.diffusion.objective import StepNoise
from morphoray.errors import DataError


@dataclass(frozen=True)
class LatentSet:
    """n posteriors and the perturbation of each.

    mean, std: (n, C, H, W) float16, raw latents; row: (n,) int64 into vectors; vectors: (m, width) float32.
    """

    mean: Tensor
    std: Tensor
    row: Tensor
    vectors: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        channels, height, width = self.mean.shape[1:]
        return channels, height, width

    def sample(self, indices: np.ndarray, posterior: Tensor, scaling_factor: float) -> tuple[Tensor, Tensor]:
        """Scaled latents (k, C, H, W) float32 drawn from the posteriors at `indices`, and their vectors.

        posterior: standard normal (k, C, H, W).
        """
        index = torch.from_numpy(indices)
        raw = self.mean[index].float() + self.std[index].float() * posterior
        return raw * scaling_factor, self.vectors[self.row[index]]


def latent_set(tables: Iterable[pa.Table], vectors: Mapping[str, np.ndarray]) -> LatentSet:
    """Join LATENTS tables with condition vectors by perturbation_id.

    Rows of a perturbation without a vector raise DataError, since its caller has quarantined those.
    """
    names = sorted(vectors)
    index = {name: position for position, name in enumerate(names)}
    means, stds, rows = [], [], []
    for table in tables:
        if not len(table):
            continue
        ids = table.column("perturbation_id").to_pylist()
        unknown = sorted(set(ids) - index.keys())
        if unknown:
            raise DataError(f"latents name perturbations without a condition vector: {unknown[:5]}.")
        means.append(torch.from_numpy(_tensor(table, "latent_mean")))
        stds.append(torch.from_numpy(_tensor(table, "latent_std")))
        rows.append(torch.tensor([index[name] for name in ids], dtype=torch.int64))
    if not rows:
        raise DataError("found no latents to train on. Are the filters, or the splits, too narrow?")
    stacked = torch.from_numpy(np.stack([vectors[name] for name in names]).astype(np.float32))
    return LatentSet(torch.cat(means), torch.cat(stds), torch.cat(rows), stacked)


def _tensor(table: pa.Table, name: str) -> np.ndarray:
    array: np.ndarray = table.column(name).combine_chunks().to_numpy_ndarray()
    return np.array(array)  # Arrow's buffers are read-only, which torch warns about


def batch(
    data: LatentSet, indices: np.ndarray, noise: StepNoise, scaling_factor: float, part: slice
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One micro-batch: scaled latents, vectors, noise, timesteps, drop, each cut to `part` of the slots."""
    latents, vectors = data.sample(indices[part], noise.posterior[part], scaling_factor)
    return latents, vectors, noise.noise[part], noise.timesteps[part], noise.drop[part]
