"""LATENTS as training data: which rows of which parts a run learns from, and how they are read."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from morphoray.config import RunConfig
from morphoray.pipelines.conditions import Conditions
from morphoray.pipelines.layout import layout_of, storage_from

if TYPE_CHECKING:
    from morphoray.training.latents import Latents

INDEX_THREADS = 16  # each reads two small columns of a part


def rows_to_train_on(table: pa.Table, known: Iterable[str]) -> pa.Table:
    """The rows of SITES or LATENTS of split `train` whose perturbation is a known one, which has a vector."""
    used = pc.is_in(table["perturbation_id"], pa.array(list(known), pa.string()))
    return table.filter(pc.and_(pc.equal(table["split"], "train"), used))


def open_training_data(config: RunConfig, conditions: Conditions) -> "Latents":
    """The run's training latents: split `train`, perturbations that have a vector, as it is set to read them.

    Raises DataError when there are none.
    """
    from morphoray.training.latents import LatentParts
    from morphoray.training.windows import open_latents

    storage = storage_from(config.storage)
    uris = storage.list_files(layout_of(config).latents, suffix=".parquet")

    def read(uri: str, columns: list[str]) -> pa.Table:
        table = storage.read_table(uri, columns=[*columns, "perturbation_id", "split"])
        return rows_to_train_on(table, conditions.vectors)

    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        index = list(pool.map(lambda uri: read(uri, []), uris))
    used = {name for table in index for name in table["perturbation_id"].unique().to_pylist()}
    parts = LatentParts(
        [len(table) for table in index],
        lambda part: read(uris[part], ["latent_mean", "latent_std", *conditions.context.levels]),
        {name: conditions.vectors[name] for name in used},
        conditions.context,
    )
    return open_latents(parts, config.training.shuffle_window)
