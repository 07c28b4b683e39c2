"""Features of images, computed once on an actor pool and kept: real sites, generated images, folders."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from morphoray.config import EvaluationConfig, RunConfig
from morphoray.errors import DataError, MissingObjectError
from morphoray.imaging.crops import VIEWS
from morphoray.imaging.intensity import to_uint8
from morphoray.imaging.png import decode_image, decode_png
from morphoray.pipelines.cluster import Resources, preflight, use_threads
from morphoray.pipelines.codecs import local_bundle_config
from morphoray.pipelines.encode import ReadPlan, site_images
from morphoray.pipelines.stream import Item, Progress, Stage, pack, stream, unpack
from morphoray.schema import QUARANTINE, conform, features_schema, stamp
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
class FeatureTable:
    """Features (N, width) float32 of one origin, with the perturbation and experiment of each image."""

    features: np.ndarray
    perturbation_ids: np.ndarray
    experiments: np.ndarray
    items: np.ndarray

    def of(self, perturbation_id: str, experiments: Sequence[str] | None = None) -> np.ndarray:
        """The features of one perturbation, of all experiments or of some."""
        mask = self.perturbation_ids == perturbation_id
        if experiments is not None:
            mask &= np.isin(self.experiments, list(experiments))
        found: np.ndarray = self.features[mask]
        return found

    def where(self, mask: np.ndarray) -> "FeatureTable":
        """The images at which the mask (N,) is true."""
        return FeatureTable(*(getattr(self, each.name)[mask] for each in fields(self)))


@dataclass(frozen=True)
class FeatureStore:
    """Where features of one extractor and one way of reading lie: parts named by what they were made from."""

    storage: Storage
    uri: str
    settings: EvaluationConfig
    source_storage: Storage
    plan: ReadPlan
    made_by: str
    quarantine: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, rows: Sequence[ImageRow], codec_of: RunConfig | None = None) -> dict[str, FeatureTable]:
        """Features of every image, by origin; parts that are there already are not computed again.

        With `codec_of`, of what that run's autoencoder makes of the images. An image that can't be read is
        left out and told in `quarantine` of the store.
        """
        parts = list(self._parts(rows))
        there = {uri.rsplit("/", 1)[-1] for uri in self.storage.list_files(self.uri, suffix=".parquet")}
        todo = [part for part in parts if f"{part['name']}.parquet" not in there]
        if todo:
            self._compute(todo, sum(len(part["rows"]) for part in parts), codec_of)
        tables = []
        for part in parts:
            tables.append(self.storage.read_table(join(self.uri, f"{part['name']}.parquet")))
            bad = join(self.uri, "quarantine", f"{part['name']}.parquet")
            if self.storage.exists(bad):
                self.quarantine.extend(self.storage.read_table(bad).to_pylist())
        return _by_origin(pa.concat_tables(tables)) if tables else {}

    def _parts(self, rows: Sequence[ImageRow]) -> Iterator[Item]:
        size = self.settings.features_per_part
        for origin in dict.fromkeys(row.origin for row in rows):
            mine = [vars(row) for row in rows if row.origin == origin]
            for start in range(0, len(mine), size):
                chunk = mine[start : start + size]
                yield {"name": fingerprint([self.made_by, chunk]), "rows": chunk}

    def _compute(self, todo: Sequence[Item], total: int, codec_of: RunConfig | None) -> None:
        settings = self.settings
        preflight("features", features_resources(settings))
        progress = Progress("features", total, "images")
        progress.add(total - sum(len(part["rows"]) for part in todo))
        cpus, gpus = settings.cpus_per_actor, settings.gpus_per_actor
        holding = {
            "extractor": settings.extractor,
            "channels": self.plan.mapping.outputs,
            "cpus": cpus,
            "gpus": gpus,
            "codec_of": codec_of,
            "storage": self.storage,
        }
        measuring = Stage(FeaturePart, holding, settings.num_actors, cpus, gpus)
        reading = {"plan": self.plan, "storage": self.storage, "source_storage": self.source_storage}
        writing = {"storage": self.storage, "uri": self.uri, "made_by": self.made_by}
        stages = [Stage(read_images_part, reading), measuring, Stage(write_features, writing, cpus=0.5)]
        for done in stream(todo, stages):
            progress.add(done["count"])


def features_resources(settings: EvaluationConfig) -> Resources:
    """The measuring actors, and one CPU for the tasks that read and write."""
    return Resources(settings.num_actors, settings.cpus_per_actor, settings.gpus_per_actor, task_cpus=1)


def _by_origin(table: pa.Table) -> dict[str, FeatureTable]:
    width = table.schema.field("features").type.list_size
    features = pa.compute.list_flatten(table["features"]).to_numpy().reshape(-1, width)
    columns = {
        name: np.asarray(table[name].to_pylist(), object)
        for name in ("origin", "perturbation_id", "experiment", "item")
    }
    found = {}
    for origin in dict.fromkeys(columns["origin"]):
        mine = columns["origin"] == origin
        found[str(origin)] = FeatureTable(
            features[mine], *(columns[name][mine] for name in ("perturbation_id", "experiment", "item"))
        )
    return found


def read_images_part(item: Item, plan: ReadPlan, storage: Storage, source_storage: Storage) -> Item:
    """Read a part's images: bytes of (N, K, R, R) uint8, which row each is of, and reasons for the others."""
    rows = item["rows"]

    def read(row: dict[str, Any]) -> np.ndarray | str:
        try:
            if row["reader"] == "site":
                return VIEWS[row["row"].get("view", "identity")](
                    site_images(row["row"], plan, source_storage)
                )
            return read_image(row["row"], storage)[None]
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
        {"stage": "evaluate", "item": f"{row['origin']}/{row['item']}", "uri": _uri(row), "reason": reason}
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


def read_image(row: dict[str, Any], storage: Storage) -> np.ndarray:
    """An image (K, H, W) uint8: a file at `uri`, or row `index` of the IMAGES part at `uri`.

    Raises DataError with the reason.
    """
    if "index" not in row:
        try:
            data = storage.read_bytes(row["uri"])
            return decode_png(data) if data.startswith(PNG) else to_uint8(decode_image(data))
        except DataError as error:
            raise DataError(f"{row['uri']}: {error}") from None
    return decode_png(_images_of(row["uri"], storage)[row["index"]].as_py())


@lru_cache(4)
def _images_of(uri: str, storage: Storage) -> pa.ChunkedArray:
    return storage.read_table(uri, ["image"])["image"]


class FeaturePart:
    """An actor that holds the extractor, and the autoencoder that images pass first, if one is given."""

    def __init__(
        self,
        extractor: str,
        channels: tuple[str, ...],
        cpus: float,
        gpus: float,
        codec_of: RunConfig | None,
        storage: Storage,
    ) -> None:
        from morphoray.evaluation.features import load_extractor

        use_threads(cpus)
        device = "cuda" if gpus else "cpu"
        self._extractor = load_extractor(extractor, device, storage, channels)
        self._codec = None
        if codec_of is not None:
            from morphoray.diffusion.bundle import vae_for

            self._codec = vae_for(local_bundle_config(codec_of), codec_of.seed).to(device)

    def __call__(self, item: Item) -> Item:
        """The part's FEATURES, packed."""
        shape = [int(side) for side in item["shape"]]
        images = np.frombuffer(bytearray(item["images"]), np.uint8).reshape(shape)
        if self._codec is not None and len(images):
            from morphoray.diffusion.codec import reconstruct

            images = reconstruct(self._codec, images)
        features = self._extractor(images)
        seen: Counter[int] = Counter()
        names = []
        for owner in item["owners"]:
            names.append(f"{item['rows'][owner]['item']}#{seen[owner]}")
            seen[owner] += 1
        columns = {
            name: [item["rows"][owner][name] for owner in item["owners"]]
            for name in ("origin", "perturbation_id", "experiment")
        }
        flat = pa.array(features.ravel(), pa.float32())
        table = pa.table(
            columns | {"item": names, "features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1])}
        )
        return {
            "name": item["name"],
            "table": pack(conform(table, features_schema(features.shape[1]), "features")),
            "bad": item["bad"],
            "count": len(item["rows"]),
        }


def write_features(item: Item, storage: Storage, uri: str, made_by: str) -> Item:
    """Write a part's quarantine rows, then its features, which mark it as done."""
    bad = unpack(item["bad"])
    if len(bad):
        storage.write_table(join(uri, "quarantine", f"{item['name']}.parquet"), stamp(bad, made_by))
    storage.write_table(join(uri, f"{item['name']}.parquet"), stamp(unpack(item["table"]), made_by))
    return {"count": item["count"]}
