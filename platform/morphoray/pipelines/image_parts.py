"""What an actor pool measures of images, computed once and kept: real sites, generated images, folders."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from morphoray.config import EvaluationConfig
from morphoray.errors import DataError, MissingObjectError
from morphoray.imaging.crops import VIEWS
from morphoray.imaging.intensity import to_uint8
from morphoray.imaging.png import decode_image, decode_png
from morphoray.pipelines.cluster import Resources, preflight
from morphoray.pipelines.encode import ReadPlan, site_images
from morphoray.pipelines.stream import Item, Stage, pack, stream, unpack
from morphoray.progress import Progress
from morphoray.schema import QUARANTINE, conform, stamp
from morphoray.seeds import fingerprint
from morphoray.storage import Storage, join

READ_THREADS = 8
PNG = b"\x89PNG"  # may be a stack of channels


@dataclass(frozen=True)
class ImageRow:
    """One image to be measured, or a site's several crops.

    origin: what it comes from, `real` or a method's name. item: a name that is unique within its origin.
    reader: `site` (reads `row` by a ReadPlan), `file` (an image file) or `images` (a row of an IMAGES part).
    row: besides what its reader needs, `view` (one of VIEWS) that turns the image, and the `shape` that it
    must have; without one, that of most images of its part.
    """

    origin: str
    perturbation_id: str
    experiment: str
    item: str
    reader: str
    row: dict[str, Any]


@dataclass(frozen=True)
class ImageParts:
    """Where what is measured of images lies, one way of reading and measuring: parts named by what made them.

    what: how progress calls the work.
    """

    what: str
    storage: Storage
    uri: str
    settings: EvaluationConfig
    images_per_part: int
    source_storage: Storage
    plan: ReadPlan
    made_by: str
    quarantine: list[dict[str, Any]] = field(default_factory=list)

    def measure(
        self, rows: Sequence[ImageRow], work: type, arguments: Mapping[str, Any]
    ) -> Iterator[tuple[str, pa.Table]]:
        """The tables that actors of `work` make, part by part in the order of the rows, and their origins.

        work: a class that takes `arguments`, and whose instances turn a part of `read_images_part` into the
        item that `measured_part` gives. Parts that are there already are not computed again. An image that
        can't be read is left out and told in `quarantine`.
        """
        parts = list(self.parts(rows))
        there = {uri.rsplit("/", 1)[-1] for uri in self.storage.list_files(self.uri, suffix=".parquet")}
        todo = [part for part in parts if f"{part['name']}.parquet" not in there]
        if todo:
            self._compute(todo, len(rows), work, arguments)
        for part in parts:
            bad = join(self.uri, "quarantine", f"{part['name']}.parquet")
            if self.storage.exists(bad):
                self.quarantine.extend(self.storage.read_table(bad).to_pylist())
            table = self.storage.read_table(join(self.uri, f"{part['name']}.parquet"))
            yield part["rows"][0]["origin"], table

    def parts(self, rows: Sequence[ImageRow]) -> Iterator[Item]:
        """What is read, measured and stored together: rows of one origin, and the name of their files."""
        size = self.images_per_part
        for origin in dict.fromkeys(row.origin for row in rows):
            mine = [vars(row) for row in rows if row.origin == origin]
            for start in range(0, len(mine), size):
                chunk = mine[start : start + size]
                yield {"name": fingerprint([self.made_by, chunk]), "rows": chunk}

    def _compute(self, todo: Sequence[Item], total: int, work: type, arguments: Mapping[str, Any]) -> None:
        settings = self.settings
        preflight(self.what, measuring_resources(settings))
        progress = Progress(
            self.what, total, "images", before=total - sum(len(part["rows"]) for part in todo)
        )
        measuring = Stage(
            work, dict(arguments), settings.num_actors, settings.cpus_per_actor, settings.gpus_per_actor
        )
        reading = {"plan": self.plan, "storage": self.storage, "source_storage": self.source_storage}
        writing = {"storage": self.storage, "uri": self.uri, "made_by": self.made_by}
        stages = [Stage(read_images_part, reading), measuring, Stage(write_measured, writing, cpus=0.5)]
        for done in stream(todo, stages):
            progress.add(done["count"])


def measuring_resources(settings: EvaluationConfig) -> Resources:
    """The measuring actors, and one CPU for the tasks that read and write."""
    return Resources(settings.num_actors, settings.cpus_per_actor, settings.gpus_per_actor, task_cpus=1)


def read_images_part(item: Item, plan: ReadPlan, storage: Storage, source_storage: Storage) -> Item:
    """Read a part's images: bytes of (N, K, R, R) uint8, which row each is of, and reasons for the others."""
    rows = item["rows"]

    def read(row: dict[str, Any]) -> np.ndarray | str:
        try:
            if row["reader"] == "site":
                images = site_images(row["row"], plan, source_storage)
                return VIEWS[row["row"].get("view", "identity")](images)
            return read_image(row["row"], storage, len(plan.mapping.outputs))[None]
        except (DataError, MissingObjectError) as error:
            return str(error)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        results = list(pool.map(read, rows))
    sizes = Counter(result.shape[1:] for result in results if not isinstance(result, str))
    shape = sizes.most_common(1)[0][0] if sizes else (len(plan.mapping.outputs), 8, 8)
    shape = tuple(rows[0]["row"].get("shape", shape))
    bad, images, owners = [], [], []
    for number, (row, result) in enumerate(zip(rows, results, strict=True)):
        if isinstance(result, str):
            bad.append((row, result))
        elif result.shape[1:] != shape:
            bad.append((row, f"an image of shape {result.shape[1:]}, expected {shape} as most have"))
        else:
            images.append(result)
            owners += [number] * len(result)
    pixels = np.concatenate(images) if images else np.zeros((0, *shape), np.uint8)
    quarantine = [
        {
            "stage": "evaluate",
            "item": f"{row['origin']}/{row['item']}",
            "uri": _uri(row),
            "reason": reason.removeprefix(f"{_uri(row)}: "),
        }
        for row, reason in bad
    ]
    return {
        "name": item["name"],
        "rows": rows,
        "owners": owners,
        "images": pixels.tobytes(),
        "shape": list(pixels.shape),
        "bad": pack(pa.Table.from_pylist(quarantine, schema=QUARANTINE)),
    }


def _uri(row: dict[str, Any]) -> str | None:
    found = row["row"].get("uri") or (row["row"].get("channel_uris") or [None])[0]
    return None if found is None else str(found)


def stored_as(channels: int) -> str:
    """How image files of so many channels are stored."""
    stack = f"PNG stacks of {channels} channels, as `morphoray generate` writes them"
    return {1: "8-bit grey", 3: "8-bit RGB"}.get(channels, stack)


def read_image(row: dict[str, Any], storage: Storage, channels: int | None = None) -> np.ndarray:
    """An image (K, H, W) uint8: a file at `uri`, or row `index` of the IMAGES part at `uri`.

    channels: how many it should have, for the error alone. Raises DataError with the file and the reason.
    """
    if "index" not in row:
        try:
            data = storage.read_bytes(row["uri"])
            return decode_png(data) if data.startswith(PNG) else to_uint8(decode_image(data))
        except DataError as error:
            reason = str(error)
            if channels is not None and reason.startswith("wrong mode"):  # which offers all that can be read
                wanted = stored_as(channels)
                reason = f"{reason.partition(', expected')[0]}, expected {wanted}. Convert it to {wanted}."
            raise DataError(f"{row['uri']}: {reason}") from None
    return decode_png(_images_of(row["uri"], storage)[row["index"]].as_py())


@lru_cache(4)
def _images_of(uri: str, storage: Storage) -> pa.ChunkedArray:
    return storage.read_table(uri, ["image"])["image"]


def images_of(item: Item) -> np.ndarray:
    """The images (N, K, H, W) uint8 of a part that `read_images_part` read."""
    shape = [int(side) for side in item["shape"]]
    return np.frombuffer(bytearray(item["images"]), np.uint8).reshape(shape)


def owner_of(item: str) -> str:
    """The ImageRow.item that one of `measured_part`'s items was cut out of."""
    return item.rpartition("#")[0]


def measured_part(item: Item, owners: Sequence[int], columns: Mapping[str, Any], schema: pa.Schema) -> Item:
    """What `write_measured` takes: the part's table of `schema`, packed, one row for each of `owners`.

    owners: which of the part's rows each is of. columns: the measurements, beside what the row says.
    """
    seen: Counter[int] = Counter()
    names = []
    for owner in owners:
        names.append(f"{item['rows'][owner]['item']}#{seen[owner]}")
        seen[owner] += 1
    head = {
        name: [item["rows"][owner][name] for owner in owners]
        for name in ("origin", "perturbation_id", "experiment")
    }
    table = pa.table({**head, "item": names, **columns})
    return {
        "name": item["name"],
        "table": pack(conform(table, schema, "measured images")),
        "bad": item["bad"],
        "count": len(item["rows"]),
    }


def write_measured(item: Item, storage: Storage, uri: str, made_by: str) -> Item:
    """Write a part's quarantine rows, then its table, which marks it as done."""
    bad = unpack(item["bad"])
    if len(bad):
        storage.write_table(join(uri, "quarantine", f"{item['name']}.parquet"), stamp(bad, made_by))
    storage.write_table(join(uri, f"{item['name']}.parquet"), stamp(unpack(item["table"]), made_by))
    return {"count": item["count"]}
