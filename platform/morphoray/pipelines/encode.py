"""SITES to LATENTS: read and map images in tasks, encode them in actors, write in parts."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray import schema
from morphoray.config import ImageConfig, RunConfig
from morphoray.errors import BadFractionError, DataError, MissingObjectError
from morphoray.imaging.channels import ChannelMapping
from morphoray.pipelines.cluster import encode_resources, preflight, use_threads
from morphoray.pipelines.codecs import codec_fingerprint, image_channels, local_bundle_config
from morphoray.pipelines.layout import RunLayout, claim, dataset_of, layout_of, mapping_of, storage_from
from morphoray.pipelines.sites import read_sites
from morphoray.pipelines.stream import Item, Stage, pack, stream, unpack
from morphoray.progress import Progress
from morphoray.seeds import fingerprint
from morphoray.storage import Storage


@dataclass(frozen=True)
class EncodeSummary:
    """What encoding did: rows of LATENTS, sites read and quarantined, over all parts."""

    rows: int
    sites: int
    quarantined: int


@dataclass(frozen=True)
class ReadPlan:
    """How a site becomes images: all that a reading task needs."""

    image: ImageConfig
    mapping: ChannelMapping
    threads: int
    seed: int


def encode(config: RunConfig) -> EncodeSummary:
    """Encode every site of a resolved, imported run that isn't encoded yet.

    Raises BadFractionError past `max_bad_fraction`, FingerprintError if other settings made what is there.
    """
    layout, storage = layout_of(config), storage_from(config.storage)
    sites = sites_to_encode(config)
    size = config.encode.sites_per_part
    settings = latents_settings(config)
    claim(storage, layout.of_data("latents", "settings.json"), settings, "Latents")
    done = finished_parts(
        storage, layout, retry_bad=not storage.exists(layout.of_data("latents", "complete.json"))
    )
    items = [
        {"part": part, "sites": pack(sites.slice(start, size))}
        for part, start in enumerate(range(0, len(sites), size))
        if part not in done
    ]
    counts = Counter[str](sites=sum(row["sites"] for row in done.values()))
    counts.update(
        rows=sum(row["rows"] for row in done.values()), bad=sum(row["bad"] for row in done.values())
    )
    if items:
        preflight("encode", encode_resources(config))
        _run(config, items, counts, len(sites))
    refuse_bad(config, counts["bad"], len(sites), layout.of_data("quarantine", "encode"))
    complete = layout.of_data("latents", "complete.json")
    if items or not storage.exists(complete):
        storage.write_json(complete, dict(counts))
    return EncodeSummary(counts["rows"], len(sites), counts["bad"])


def sites_to_encode(config: RunConfig) -> pa.Table:
    """The run's SITES of encode.splits."""
    sites = read_sites(config)
    if config.encode.splits is None:
        return sites
    return sites.filter(pc.is_in(sites["split"], pa.array(config.encode.splits, pa.string())))


def read_plan(config: RunConfig) -> ReadPlan:
    """How the run's sites become images."""
    return ReadPlan(config.image, mapping_of(config), config.encode.read_threads, config.seed)


def latents_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that LATENTS depend on; how the work is divided over machines is not among them."""
    encode = config.encode
    return {
        "dataset": config.dataset.model_dump(mode="json"),
        "image": config.image.model_dump(mode="json"),
        "codec": codec_fingerprint(config),
        "views": list(encode.views),
        "splits": None if encode.splits is None else list(encode.splits),
        "precision": encode.precision,
        "sites_per_part": encode.sites_per_part,
        "seed": config.seed,
    }


def finished_parts(storage: Storage, layout: RunLayout, retry_bad: bool) -> dict[int, dict[str, int]]:
    """Counts of the parts that are written; with `retry_bad` those with quarantined sites are not taken."""
    found: dict[int, dict[str, int]] = {}
    for uri in storage.list_files(layout.of_data("latents"), suffix=".counts.json"):
        counts = storage.read_json(uri)
        if not (retry_bad and counts["bad"]):
            found[int(counts["part"])] = counts
    return found


def _run(config: RunConfig, items: list[Item], counts: Counter[str], total: int) -> None:
    layout, storage = layout_of(config), storage_from(config.storage)
    made_by = fingerprint(latents_settings(config))
    stages = [
        Stage(read_part, {"plan": read_plan(config), "storage": dataset_of(config)[2]}),
        encoding_stage(config, EncodePart, {"config": config}),
        Stage(write_part, {"layout": layout, "storage": storage, "made_by": made_by}, cpus=0.5),
    ]
    progress = Progress("encode", total, "sites", before=counts["sites"])
    for row in stream(items, stages):
        counts.update(rows=row["rows"], bad=row["bad"], sites=row["sites"])
        progress.add(row["sites"], f"  {counts['bad']} quarantined" if counts["bad"] else "")
        refuse_bad(config, counts["bad"], total, layout.of_data("quarantine", "encode"))


def encoding_stage(config: RunConfig, work: type, arguments: dict[str, Any], spreads: bool = False) -> Stage:
    """The stage whose actors hold the codec, as many and as large as the run's encode section has them."""
    encode = config.encode
    return Stage(
        work, arguments, encode.num_actors, encode.cpus_per_actor, encode.gpus_per_actor, spreads=spreads
    )


def refuse_bad(config: RunConfig, bad: int, total: int, folder: str) -> None:
    """Raise BadFractionError if `bad` of `total` sites are more than allowed; `folder` has their reasons."""
    if bad > config.encode.max_bad_fraction * total:
        raise BadFractionError(_too_many(config, bad, total, folder))


def _too_many(config: RunConfig, bad: int, total: int, folder: str) -> str:
    storage = storage_from(config.storage)
    uris = storage.list_files(folder, suffix=".parquet")
    rows = pa.concat_tables([storage.read_table(uri) for uri in uris]).to_pylist() if uris else []
    first = "\n".join(f"  {row['item']}: {row['reason']}" for row in rows[:5])
    return (
        f"encode: {bad} of {total} sites could not be read, more than encode.max_bad_fraction = "
        f"{config.encode.max_bad_fraction:g} allows. The first ones:\n{first}\n"
        f"All are listed under {folder}. Mend them and run the same command again (it tries "
        "these again), or raise encode.max_bad_fraction."
    )


def site_images(site: dict[str, Any], plan: ReadPlan, storage: Storage) -> np.ndarray:
    """Images (crops, K, resolution, resolution) uint8 of a row of SITES.

    Raises DataError with the reason it has none.
    """
    from morphoray.datasets.reading import read_site
    from morphoray.imaging.crops import crop, crop_positions, resize_square

    settings, side = plan.image, plan.image.resolution
    image = plan.mapping.apply(read_site(site, settings, storage))
    if settings.min_maximum is not None and image.max() < settings.min_maximum:
        raise DataError(
            f"{site['channel_uris'][0]}: too dark: the image's brightest pixel is {image.max()} of 255, "
            f"below image.min_maximum {settings.min_maximum}"
        )
    if settings.scale_to:
        image = resize_square(image, settings.scale_to)
    height, width = image.shape[1:]
    if min(height, width) < side:
        raise DataError(f"the image is {height} x {width} pixels, smaller than image.resolution {side}")
    if settings.fit == "resize":
        return resize_square(image, side)[None]
    if settings.crops == 1:
        return crop(image, ((height - side) // 2, (width - side) // 2), side)[None]
    places = crop_positions(height, width, side, settings.crops, "crop", plan.seed, site["site_id"])
    return np.stack([crop(image, place, side) for place in places])


def read_part(item: Item, plan: ReadPlan, storage: Storage) -> Item:
    """Read a part's sites: images as bytes of (good sites x crops, K, R, R), and the rows of both kinds."""
    sites = unpack(item["sites"])

    def read(row: dict[str, Any]) -> np.ndarray | str:
        try:
            return site_images(row, plan, storage)
        except (DataError, MissingObjectError) as error:
            return str(error)

    rows = sites.to_pylist()
    with ThreadPoolExecutor(plan.threads) as pool:
        results = list(pool.map(read, rows))
    good = [position for position, result in enumerate(results) if not isinstance(result, str)]
    bad = [
        {"stage": "encode", "item": row["site_id"], "uri": row["channel_uris"][0], "reason": result}
        for row, result in zip(rows, results, strict=True)
        if isinstance(result, str)
    ]
    images = np.concatenate([results[position] for position in good]) if good else np.zeros(0, np.uint8)
    return {
        "part": item["part"],
        "images": images.tobytes(),
        "shape": list(images.shape),
        "good": pack(sites.take(pa.array(good, pa.int64()))),
        "bad": pack(pa.Table.from_pylist(bad, schema=schema.QUARANTINE)),
    }


class EncodePart:
    """An actor that holds the codec and turns a part's images into a LATENTS table."""

    def __init__(self, config: RunConfig) -> None:
        import torch

        from morphoray.diffusion.bundle import vae_for

        use_threads(config.encode.cpus_per_actor)
        self._config = config
        self._device = "cuda" if torch.cuda.is_available() and config.encode.gpus_per_actor else "cpu"
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        self._codec = vae_for(local_bundle_config(config), config.seed, image_channels(config))
        if config.encode.precision != "fp32":
            self._codec = self._codec.to(dtype[config.encode.precision])
        self._codec = self._codec.to(self._device)

    def __call__(self, item: Item) -> Item:
        """Latents of every view of every crop, float16, one row each."""
        good = unpack(item["good"])
        table = None
        if len(good):
            images = np.frombuffer(bytearray(item["images"]), np.uint8).reshape(
                [int(side) for side in item["shape"]]
            )
            table = self._encode(images, good)
        return {
            "part": item["part"],
            "table": pack(table) if table is not None else b"",
            "bad": item["bad"],
            "sites": len(good),
        }

    def _encode(self, images: np.ndarray, good: pa.Table) -> pa.Table:
        from morphoray.diffusion.codec import encode_posterior
        from morphoray.imaging.crops import VIEWS

        encode, crops = self._config.encode, self._config.image.crops
        tables = []
        for view in encode.views:
            viewed = np.ascontiguousarray(VIEWS[view](images))
            mean, std = encode_posterior(self._codec, viewed, encode.batch_size)
            if not (np.isfinite(mean).all() and np.isfinite(std).all()):
                raise DataError(
                    f"the codec gave NaN in precision {encode.precision}. Use encode.precision: fp32."
                )
            shape = schema.latents(*mean.shape[1:])
            rows = good.take(np.repeat(np.arange(len(good)), crops))
            rows = rows.append_column("view", pa.array([view] * len(rows)))
            rows = rows.append_column("crop", pa.array(np.tile(np.arange(crops, dtype=np.int32), len(good))))
            for name, values in (("latent_mean", mean), ("latent_std", std)):
                tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values, np.float16))
                rows = rows.append_column(name, tensor)
            tables.append(schema.conform(rows, shape, "latents"))
        return pa.concat_tables(tables)


def write_part(item: Item, layout: RunLayout, storage: Storage, made_by: str) -> Item:
    """Write a part's latents and quarantine rows, then its counts, which mark it as finished."""
    part = int(item["part"])
    bad = unpack(item["bad"])
    table = unpack(item["table"]) if item["table"] else None
    name = f"part-{part:06d}"
    quarantine = layout.of_data("quarantine", "encode", f"{name}.parquet")
    if len(bad) or storage.exists(quarantine):
        storage.write_table(quarantine, schema.stamp(bad, made_by))
    if table is not None:
        storage.write_table(layout.of_data("latents", f"{name}.parquet"), schema.stamp(table, made_by))
    counts = {
        "part": part,
        "rows": 0 if table is None else len(table),
        "sites": int(item["sites"]) + len(bad),
        "bad": len(bad),
    }
    storage.write_json(layout.of_data("latents", f"{name}.counts.json"), counts)
    return counts
