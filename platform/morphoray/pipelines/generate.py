"""A bundle to images: every perturbation's images in parts, on an actor pool, each part once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from morphoray import schema
from morphoray.config import GenerationConfig, StorageConfig
from morphoray.errors import DataError
from morphoray.perturbations import find_encoder
from morphoray.perturbations.base import CONTEXT_COLUMNS, Perturbation
from morphoray.perturbations.context import load_context
from morphoray.pipelines.layout import claim, storage_from
from morphoray.pipelines.stream import Item, Stage, pack, stream, unpack
from morphoray.progress import Progress
from morphoray.seeds import fingerprint
from morphoray.storage import Storage, join

# Of an image, what is asked for.
ASKED = pa.schema([schema.IMAGES.field(name) for name in ("perturbation_id", *CONTEXT_COLUMNS, "index")])


@dataclass(frozen=True)
class GenerateSummary:
    """How many images lie under `out`, and how many perturbations could not be encoded."""

    out: str
    images: int
    quarantined: int


def load(storage: Storage, uri: str, use_gpu: bool = False) -> Any:
    """The bundle at any URI, averaged weights, on the GPU if asked for and there."""
    import torch

    from morphoray.diffusion.bundle import load_bundle
    from morphoray.pipelines.codecs import local_copy

    bundle = load_bundle(local_copy(storage, uri))
    device = "cuda" if use_gpu and torch.cuda.is_available() else "cpu"
    bundle.denoiser.to(device)
    bundle.vae.to(device)
    return bundle


_MANIFEST = {"fingerprint": str, "resolution": int, "condition": dict, "perturbations": list}


def read_manifest(storage: Storage, uri: str) -> dict[str, Any]:
    """A bundle's morphoray.json. Raises DataError when the folder is no finished bundle, or lacks a key."""
    where = join(uri, "morphoray.json")
    if not storage.exists(where):
        raise DataError(
            f"{uri}: found no morphoray.json; expected a bundle that training has finished. A run's is "
            "<run_dir>/bundle; `morphoray train CONFIG` finishes it."
        )
    manifest = storage.read_json(where)
    found = manifest if isinstance(manifest, dict) else {}
    if wrong := [name for name, kind in _MANIFEST.items() if not isinstance(found.get(name), kind)]:
        raise DataError(f"{where}: found no proper {', '.join(wrong)}; expected what training writes there.")
    return found


def known_perturbations(manifest: dict[str, Any]) -> list[Perturbation]:
    """The perturbations a bundle was trained beside, unseen ones too. Raises DataError for other rows."""
    try:
        return [
            Perturbation(**{key: value for key, value in row.items() if key != "seen"})
            for row in manifest["perturbations"]
        ]
    except (AttributeError, TypeError) as error:
        raise DataError(
            f"morphoray.json: perturbations: {error}; expected rows as training writes."
        ) from None


def vectors_for(
    manifest: dict[str, Any], items: Sequence[Perturbation]
) -> tuple[np.ndarray, list[str | None]]:
    """Condition vectors (N, width) float32 by the bundle's own encoder, and reasons for rows without one.

    A context that the bundle doesn't know is such a reason.
    """
    condition = manifest["condition"]
    encoded = find_encoder(condition["encoder"]).load(condition["state"]).encode(items)
    extended = load_context(condition).extended(encoded, items)
    return extended.vectors, extended.reasons


def generate_images(
    bundle: str,
    items: Sequence[Perturbation],
    out: str,
    generation: GenerationConfig,
    seed: int,
    storage_config: StorageConfig,
) -> GenerateSummary:
    """Make generation.n images of every perturbation under `out`; the same call again goes on.

    Images are IMAGES Parquet parts, and PNG files too where generation.format is png (a file a channel where
    there are neither one nor three). Perturbations that
    the bundle can't encode go to out/quarantine.parquet. Raises FingerprintError for other settings in `out`.
    """
    storage = storage_from(storage_config)
    manifest = read_manifest(storage, bundle)
    seed = seed if generation.seed is None else generation.seed
    elsewhere = {"num_actors", "gpus_per_actor", "cpus_per_actor", "batch_size", "seed", "shared_noise"}
    settings = {
        "bundle": manifest["fingerprint"],
        "generation": generation.model_dump(mode="json", exclude=elsewhere),
        "seed": seed,
        "perturbations": fingerprint([item.perturbation_id for item in items]),
    }
    if generation.shared_noise:
        settings["shared_noise"] = True
    if any(len(item.identity) > 1 for item in items):
        settings["context"] = fingerprint([list(item.identity) for item in items])
    claim(storage, join(out, "settings.json"), settings, "Images")
    good, quarantined = _encode_or_quarantine(storage, manifest, items, out)
    parts = plan_parts(good, generation)
    done = {uri.rsplit("/", 1)[-1] for uri in storage.list_files(join(out, "parts"), suffix=".parquet")}
    todo = [part for part in parts if f"{part['name']}.parquet" not in done]
    total = sum(part["count"] for part in parts)
    progress = Progress("generate", total, "images", before=total - sum(part["count"] for part in todo))
    arguments = {
        "storage": storage,
        "bundle": bundle,
        "generation": generation,
        "seed": seed,
        "resolution": int(manifest["resolution"]),
    }
    sampling = Stage(
        GeneratePart,
        arguments,
        num_actors=generation.num_actors,
        cpus=generation.cpus_per_actor,
        gpus=generation.gpus_per_actor,
    )
    writing = {"storage": storage, "out": out, "as_png": generation.format == "png"}
    for row in stream(todo, [sampling, Stage(write_images, writing, cpus=0.5)]):
        progress.add(row["count"])
    return GenerateSummary(out, total, quarantined)


def _encode_or_quarantine(
    storage: Storage, manifest: dict[str, Any], items: Sequence[Perturbation], out: str
) -> tuple[list[tuple[Perturbation, np.ndarray]], int]:
    """The items that can be encoded and their vectors; the number of the others, now in quarantine."""
    vectors, reasons = vectors_for(manifest, items)
    bad = [
        {"stage": "generate", "item": item.perturbation_id, "uri": None, "reason": reason}
        for item, reason in zip(items, reasons, strict=True)
        if reason is not None
    ]
    if bad:
        uri = join(out, "quarantine.parquet")
        table = pa.Table.from_pylist(bad, schema=schema.QUARANTINE)
        storage.write_table(uri, schema.stamp(table, manifest["fingerprint"]))
        print(f"generate: {len(bad)} of {len(items)} perturbations left out, see {uri}", flush=True)
    if len(bad) == len(items):
        reason = bad[0]["reason"] if bad else "the list is empty"
        raise DataError(f"none of the {len(items)} perturbations can be encoded: {reason}")
    good = [
        (item, vector) for item, vector, reason in zip(items, vectors, reasons, strict=True) if reason is None
    ]
    return good, len(bad)


def plan_parts(good: Sequence[tuple[Perturbation, np.ndarray]], generation: GenerationConfig) -> list[Item]:
    """Cut the (perturbation, index) pairs into parts of at most images_per_part, named by their contents."""
    size = generation.images_per_part
    chunks = [
        (item, vector, start, min(size, generation.n - start))
        for item, vector in good
        for start in range(0, generation.n, size)
    ]
    parts: list[Item] = []
    group: list[tuple[Perturbation, np.ndarray, int, int]] = []
    for chunk in chunks:
        if group and sum(entry[3] for entry in group) + chunk[3] > size:
            parts.append(_part(group))
            group = []
        group.append(chunk)
    if group:
        parts.append(_part(group))
    return parts


def _part(group: Sequence[tuple[Perturbation, np.ndarray, int, int]]) -> Item:
    told = [[*item.identity, start, count] for item, _, start, count in group]
    asked = [
        {"perturbation_id": item.perturbation_id, "index": start + offset}
        | {name: getattr(item, name) for name in CONTEXT_COLUMNS}
        for item, _, start, count in group
        for offset in range(count)
    ]
    return {
        "name": f"part-{fingerprint(told)}",
        "asked": pack(pa.Table.from_pylist(asked, schema=ASKED)),
        "vectors": b"".join(
            np.asarray(vector, np.float32).tobytes() * count for _, vector, _, count in group
        ),
        "count": sum(entry[3] for entry in group),
    }


class GeneratePart:
    """An actor that holds the bundle and samples a part's images."""

    def __init__(
        self, storage: Storage, bundle: str, generation: GenerationConfig, seed: int, resolution: int
    ) -> None:
        from morphoray.diffusion.generate import SamplerSettings
        from morphoray.pipelines.cluster import use_threads

        use_threads(generation.cpus_per_actor)
        self._shared_noise = generation.shared_noise
        self._bundle = load(storage, bundle, use_gpu=generation.gpus_per_actor > 0)
        self._settings = SamplerSettings(
            sampler=generation.sampler,
            steps=generation.steps,
            guidance_scale=generation.guidance_scale,
            seed=seed,
            resolution=resolution,
            batch_size=generation.batch_size,
            precision=generation.precision,
        )

    def __call__(self, item: Item) -> Item:
        """The part's IMAGES table, packed."""
        from morphoray.diffusion.generate import SHARED_NOISE, ImageRequest, generate, image_seed
        from morphoray.imaging.png import encode_image

        asked = unpack(item["asked"]).to_pylist()
        vectors = np.frombuffer(item["vectors"], np.float32).reshape(len(asked), -1)
        requests = [
            ImageRequest(SHARED_NOISE if self._shared_noise else row["perturbation_id"], vector, row["index"])
            for row, vector in zip(asked, vectors, strict=True)
        ]
        settings, channels = self._settings, self._bundle.mapping.outputs
        images = generate(self._bundle, requests, settings)
        rows = [
            row
            | {
                "seed": image_seed(settings, request),
                "sampler": settings.sampler,
                "steps": settings.steps,
                "guidance_scale": settings.guidance_scale,
                "image": encode_image(image, channels, 1),
                "bundle_fingerprint": self._bundle.fingerprint,
            }
            for row, request, image in zip(asked, requests, images, strict=True)
        ]
        table = schema.stamp(pa.Table.from_pylist(rows, schema=schema.IMAGES), self._bundle.fingerprint)
        return {"name": item["name"], "table": pack(table), "count": len(rows)}


def write_images(item: Item, storage: Storage, out: str, as_png: bool) -> Item:
    """Write a part: PNG files first where asked for, the Parquet part, which marks it as done, last."""
    table = unpack(item["table"])
    if as_png:
        for row in table.select([*ASKED.names, "image"]).to_pylist():
            context = {name: row[name] for name in CONTEXT_COLUMNS}
            asked = Perturbation(row["perturbation_id"], "any", **context)
            folder = join(out, "png", *map(safe_name, asked.identity))
            for name, data in png_files(row["index"], row["image"]):
                storage.write_bytes(join(folder, name), data)
    storage.write_table(join(out, "parts", f"{item['name']}.parquet"), table)
    return {"count": item["count"]}


def png_files(index: int, image: bytes) -> list[tuple[str, bytes]]:
    """An image's files by name: the PNG, or one for each channel of a stack, for one 00003_w2_er.png."""
    from morphoray.imaging.png import decode_channels, encode_png

    pixels, channels = decode_channels(image)
    if not channels:
        return [(f"{index:05d}.png", image)]
    return [
        (f"{index:05d}_w{place + 1}_{safe_name(name)}.png", encode_png(pixels[place : place + 1], 1))
        for place, name in enumerate(channels)
    ]


def safe_name(perturbation_id: str) -> str:
    """A name as one path segment: bytes outside letters, digits, '.', '_' and '-' as %XX."""
    from urllib.parse import quote

    return quote(perturbation_id, safe="").replace("~", "%7E") if perturbation_id.strip(".") else "%2E"


def read_images(storage: Storage, out: str, perturbation_id: str | None = None) -> pa.Table:
    """The IMAGES table under `out`, sorted by perturbation, context and index."""
    uris = storage.list_files(join(out, "parts"), suffix=".parquet")
    if not uris:
        raise DataError(f"{out}: found no parts of generated images.")
    tables = [schema.IMAGES.empty_table(), *(storage.read_table(uri) for uri in uris)]
    table = pa.concat_tables(tables, promote_options="default")  # parts made before there was a context
    if perturbation_id is not None:
        table = table.filter(pa.compute.equal(table["perturbation_id"], perturbation_id))
    return table.sort_by([(name, "ascending") for name in ASKED.names])
