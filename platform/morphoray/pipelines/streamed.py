"""SITES to training samples while training runs: Ray Data reads and encodes, workers take their shards."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from ray.train import DataConfig

from morphoray import schema
from morphoray.config import RunConfig
from morphoray.errors import DataError
from morphoray.perturbations.base import CONTEXT_COLUMNS
from morphoray.pipelines.ahead import run_few_ahead
from morphoray.pipelines.checkpoints import Checkpoints
from morphoray.pipelines.cluster import STREAM_READ_CPUS
from morphoray.pipelines.conditions import Conditions, fit_conditions
from morphoray.pipelines.encode import (
    EncodePart,
    encoding_stage,
    read_part,
    read_plan,
    refuse_bad,
    sites_to_encode,
)
from morphoray.pipelines.layout import dataset_of, layout_of, storage_from
from morphoray.pipelines.stream import Item, Stage, dataset_of_items, pack, unpack
from morphoray.pipelines.training_data import rows_to_train_on
from morphoray.seeds import fingerprint, numpy_generator
from morphoray.training.consumed import Block, Consumed, Part, sample_seed

if TYPE_CHECKING:
    from morphoray.training.streamed import Streamed

NAME = "train"
# Parts more than the samples need: workers are served by whole blocks, and may be some apart at the end.
SPARE_PARTS_A_WORKER = 4
BLOCK = pa.schema(
    [
        pa.field("epoch", pa.int32()),
        pa.field("number", pa.int32()),
        pa.field("seed", pa.int64()),  # null in the only row of a part without an image
        pa.field("perturbation_id", pa.string()),
        *(pa.field(name, pa.string()) for name in CONTEXT_COLUMNS),
        pa.field("latent_mean", pa.binary()),
        pa.field("latent_std", pa.binary()),
        pa.field("bad", pa.list_(pa.string())),  # in the first row: the part's sites without an image
    ]
)


class Parts:
    """The training sites in parts: all of them in another order every epoch, cut where encoding cuts them."""

    def __init__(self, config: RunConfig, known: list[str]) -> None:
        self.sites = rows_to_train_on(sites_to_encode(config), known)
        if not len(self.sites):
            raise DataError("found no sites to train on. Are the filters, or the splits, too narrow?")
        self._seed, self._size = config.seed, config.encode.sites_per_part
        self.samples_per_site = config.image.crops * len(config.encode.views)
        self._epoch, self._order = -1, np.arange(0)

    @property
    def per_epoch(self) -> int:
        """Parts an epoch."""
        return -(-len(self.sites) // self._size)

    @property
    def samples(self) -> int:
        """Samples an epoch, if no image is bad."""
        return len(self.sites) * self.samples_per_site

    def size(self, number: int) -> int:
        """Sites of a part."""
        return min(self._size, len(self.sites) - number * self._size)

    def of(self, epoch: int, number: int) -> pa.Table:
        """The SITES rows of a part."""
        if epoch != self._epoch:
            self._order = numpy_generator("sites", self._seed, epoch).permutation(len(self.sites))
            self._epoch = epoch
        return self.sites.take(self._order[number * self._size : (number + 1) * self._size])


@lru_cache(maxsize=1)
def parts_of(config: str) -> Parts:
    """The parts of a configuration's JSON form, read once a process."""
    run = RunConfig.model_validate_json(config)
    return Parts(run, list(fit_conditions(run).vectors))


def read_item(item: Item, config: str) -> Item:
    """Read one part's sites; what is wrong with the bad ones is written to quarantine/stream at once."""
    run = RunConfig.model_validate_json(config)
    sites = parts_of(config).of(int(item["epoch"]), int(item["number"]))
    read = read_part({"part": item["number"], "sites": pack(sites)}, read_plan(run), dataset_of(run)[2])
    storage, folder = storage_from(run.storage), quarantine_of(run)
    for row in unpack(read["bad"]).to_pylist():
        # A file a site: every epoch meets it again.
        table = pa.Table.from_pylist([row], schema=schema.QUARANTINE)
        name = f"{folder}/site-{fingerprint(row['item'])}.parquet"
        storage.write_table(name, schema.stamp(table, run.fingerprint("dataset", "image")))
    return read | {"epoch": item["epoch"]}


def quarantine_of(config: RunConfig) -> str:
    """The folder of the sites that a stream found without an image."""
    return layout_of(config).of("quarantine", "stream")


class EncodeBlock:
    """An actor that turns a part that has been read into a block of samples, in the order of their seeds."""

    def __init__(self, config: str) -> None:
        self._config = RunConfig.model_validate_json(config)
        self._encode = EncodePart(self._config)

    def __call__(self, items: pa.Table) -> pa.Table:
        """One item, as a table of one row, to a table of BLOCK's columns."""
        (item,) = items.to_pylist()
        bad = unpack(item["bad"])["item"].to_pylist()
        place = {"epoch": item["epoch"], "number": item["part"]}
        encoded = self._encode(item)["table"]
        if not encoded:
            return pa.Table.from_pylist([place | {"bad": bad}], schema=BLOCK)
        rows = self._rows(unpack(encoded), place)
        rows[0]["bad"] = bad
        return pa.Table.from_pylist(rows, schema=BLOCK)

    def _rows(self, latents: pa.Table, place: dict[str, Any]) -> list[dict[str, Any]]:
        columns = {name: latents[name].to_pylist() for name in ("site_id", "crop", "view")}
        told = latents.select(["perturbation_id", *CONTEXT_COLUMNS]).to_pylist()
        means, stds = (
            latents[name].combine_chunks().to_numpy_ndarray() for name in ("latent_mean", "latent_std")
        )
        rows = [
            place
            | {
                "seed": sample_seed(self._config.seed, place["epoch"], site, crop, view),
                "latent_mean": mean.tobytes(),
                "latent_std": std.tobytes(),
            }
            | row
            for site, crop, view, row, mean, std in zip(*columns.values(), told, means, stds, strict=True)
        ]
        return sorted(rows, key=lambda row: int(row["seed"]))


def parts_to_do(parts: Parts, consumed: Consumed, samples: int, spare: int, good: float) -> list[Part]:
    """Parts not consumed yet: for `samples` samples when a share `good` of all is good, and `spare` more."""
    chosen: list[Part] = []
    wanted = samples / good
    for epoch in count(consumed.epochs):
        for number in range(parts.per_epoch):
            if consumed.has((epoch, number)):
                continue
            if wanted <= 0 and spare <= 0:
                return chosen
            spare -= wanted <= 0
            wanted -= parts.size(number) * parts.samples_per_site
            chosen.append((epoch, number))
    raise AssertionError("epochs do not end")


def stream_of(config: RunConfig, chosen: list[Part]) -> ray.data.Dataset:
    """The dataset whose blocks are these parts, encoded when they are asked for."""
    text = config.model_dump_json()
    stages = [
        Stage(read_item, {"config": text}, cpus=STREAM_READ_CPUS),
        encoding_stage(config, EncodeBlock, {"config": text}, spreads=True),
    ]
    dataset = dataset_of_items([{"epoch": epoch, "number": number} for epoch, number in chosen], stages)
    dataset.context.target_max_block_size = None  # a block is a part, whatever its size
    run_few_ahead(dataset, config.encode.num_actors)
    return dataset


def training_stream(config: RunConfig, checkpoints: Checkpoints) -> ray.data.Dataset:
    """What the run has to stream from its newest checkpoint on; Ray Train asks whenever it starts workers."""
    parts, training = parts_of(config.model_dump_json()), config.training
    step, told = checkpoints.position()
    consumed = Consumed.load(parts.per_epoch, told)
    samples = (training.max_steps - step) * training.batch_size
    good = max(0.5, 1 - config.encode.max_bad_fraction)
    return stream_of(
        config,
        parts_to_do(parts, consumed, samples, SPARE_PARTS_A_WORKER * training.max_workers, good),
    )


class Shards(DataConfig):  # type: ignore[misc]
    """Whole blocks, and all of them: Ray Train's own configuration cuts and drops some for equal shards."""

    def configure(
        self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, Any]]:
        """A shard of the stream for each worker, by the number of samples."""
        return [{NAME: shard} for shard in datasets[NAME].streaming_split(world_size, equal=False)]


def open_stream(
    config: RunConfig, conditions: Conditions, shape: tuple[int, int, int], told: dict[str, Any] | None
) -> "Streamed":
    """This Ray Train worker's shard as training data, after what a checkpoint told of it."""
    from morphoray.training.streamed import Streamed

    parts = parts_of(config.model_dump_json())
    total = len(parts.sites)

    def check(bad: int) -> None:
        refuse_bad(config, bad, total, quarantine_of(config))

    used = set(parts.sites["perturbation_id"].unique().to_pylist())
    vectors = {name: vector for name, vector in conditions.vectors.items() if name in used}
    consumed = Consumed.load(parts.per_epoch, told)
    arriving = blocks(ray.train.get_dataset_shard(NAME))
    return Streamed(arriving, shape, vectors, parts.samples, consumed, check, conditions.context)


def blocks(shard: Any) -> Iterator[Block]:
    """The blocks of a shard, as they come."""
    for table in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        if not len(table):
            continue
        columns = {name: table[name].to_pylist() for name in BLOCK.names}
        some = columns["seed"][0] is not None
        yield Block(
            (columns["epoch"][0], columns["number"][0]),
            columns["seed"] if some else [],
            columns["perturbation_id"],
            columns["latent_mean"],
            columns["latent_std"],
            columns["bad"][0] or [],
            {name: columns[name] for name in CONTEXT_COLUMNS},
        )
