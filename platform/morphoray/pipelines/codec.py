"""The codec's run: data to batches, training, calibration, and a diffusers folder with its card."""

import json
import logging
import os
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from pydantic import Field

from morphoray import schema
from morphoray.config import ImageConfig, StorageConfig
from morphoray.datasets import DATASETS
from morphoray.datasets.reading import SITE_COLUMNS, read_raw, read_site
from morphoray.diffusion.codec import (
    CodecConfig,
    build_codec,
    load_codec,
    save_codec,
    to_model_range,
    widen_channels,
)
from morphoray.diffusion.codec_losses import StatisticsLoss
from morphoray.diffusion.codec_narrow import NARROWING, Narrowing, find_narrowing, narrow_codec
from morphoray.diffusion.codec_start import linear_start
from morphoray.diffusion.sources import shipped_codec
from morphoray.errors import ConfigError, DataError
from morphoray.evaluation.codec_quality import codec_quality
from morphoray.evaluation.networks import SIZES, activations, efficientnet
from morphoray.imaging.channels import MAPPINGS, ChannelMapping, find_mapping
from morphoray.imaging.crops import resize_square
from morphoray.pipelines.codecs import local_copy
from morphoray.pipelines.layout import storage_from
from morphoray.sections import Section, build, read_values
from morphoray.seeds import derive_seed, fingerprint
from morphoray.storage import Storage, absolute, is_remote, join
from morphoray.training.codec_data import ImageCrops, SimulatedCrops, draw_bank
from morphoray.training.codec_loop import Batches, CodecTraining, calibrate, train_codec

log = logging.getLogger(__name__)
Uint8 = npt.NDArray[np.uint8]
START_IMAGES = 256
CALIBRATION_IMAGES = 800
STATISTICS_IMAGES = 96


class CodecData(Section):
    """What the codec learns from: simulated fields, or SITES or a folder of a user's images."""

    kind: Literal["simulated", "sites", "folder"] = "simulated"
    source: str | None = None  # SITES Parquet, or a folder of PNGs
    files: tuple[str, ...] = ("*",)  # of a folder: patterns of file names, as a shell has them
    mapping: str | tuple[str, ...] | dict[str, Any] | None = "rgb"  # as image.mapping of a run, for a source
    channels: tuple[str, ...] | None = None  # a site's files by name; None: those of the dataset
    image: ImageConfig = ImageConfig(resolution=64)  # resolution of the crops; scale_to before cropping
    fields: int = Field(600, ge=1)  # of kind simulated
    max_images: int = Field(5000, ge=2)
    held_out: int = Field(500, ge=0)  # images of a source that only the card's figures see


class CodecRun(Section):
    """A codec's training: everything it makes lies under `run_dir`."""

    run_dir: str
    seed: int = 0
    storage: StorageConfig = StorageConfig()
    init: str = "scratch"  # scratch | shipped | a diffusers VAE folder
    codec: CodecConfig = CodecConfig()
    data: CodecData = CodecData()
    training: CodecTraining = CodecTraining()
    half: bool = True  # store the weights as float16
    extractor: str | None = "efficientnet_lite0"  # null: the card has PSNR only
    statistics_network: str = "efficientnet_lite1"  # for training.statistics_weight; not the one that judges
    test_data: str | None = "../shared/data"  # rxrx1-sample/ and bbbc021-crops/; also MORPHORAY_TEST_DATA
    card_images: int = Field(1000, ge=4)


def parse_codec_run(text: str, where: str, overrides: list[str] | None = None) -> CodecRun:
    """The codec run described by YAML `text`; ConfigError names wrong keys."""
    return build(CodecRun, read_values(text, where, overrides or []), "")


def run_codec(config: CodecRun) -> str:
    """Train the codec, or resume, and write run_dir/vae with its card; returns that folder's URI."""
    storage, root = storage_from(config.storage), absolute(config.run_dir)
    vae = join(root, "vae")
    if storage.exists(join(vae, "card.json")):
        log.info("%s is finished already; nothing to do. Use another run_dir to train again.", vae)
        return vae
    training = config.training.model_copy(update={"seed": config.seed})
    batches, held_out = _data(config, storage)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if is_remote(root) else Path(root.removeprefix("file://"))
        codec, narrowing = _initial(config, storage, batches)
        described = {"data": config.data.model_dump(mode="json"), "init": config.init}
        if config.training.statistics_weight:
            described["statistics_network"] = config.statistics_network
        if is_remote(root) and storage.list_files(join(root, "checkpoints"), recursive=True):
            storage.download_dir(join(root, "checkpoints"), folder / "checkpoints")

        def upload(checkpoint: Path) -> None:
            if is_remote(root):
                storage.upload_dir(checkpoint, join(root, "checkpoints", checkpoint.name))
                kept = {path.name for path in checkpoint.parent.iterdir()}
                for uri in storage.list_files(join(root, "checkpoints"), suffix="state.json", recursive=True):
                    if uri.split("/")[-2] not in kept:
                        storage.delete(uri.rsplit("/", 1)[0], recursive=True)

        statistics = _statistics(config, codec, batches)
        codec = train_codec(
            codec, training, batches, folder, described, checkpointed=upload, statistics=statistics
        ).cpu()
        if training.trainable == "all":
            calibrate(codec, _images(batches, config, "calibrate", CALIBRATION_IMAGES))
        finished = Path(scratch) / "vae"
        save_codec(codec, finished, half=config.half)
        if narrowing is not None and training.trainable == "decoder":  # else the latents have moved away
            narrowing.save(finished)
        card = _card(config, load_codec(finished), held_out | sample_images(config))
        (finished / "CARD.md").write_text(card_text(card))
        for path in sorted(finished.iterdir()):
            storage.write_bytes(join(vae, path.name), path.read_bytes())
    storage.write_json(join(vae, "card.json"), card)  # last: it marks the folder as finished
    return vae


def _initial(config: CodecRun, storage: Storage, batches: Batches) -> tuple[AutoencoderKL, Narrowing | None]:
    """A closed-form start, the shipped codec or a given one, for the config's image and latent channels.

    With it what it was narrowed by, now or when it was trained itself.
    """
    if config.init == "scratch":
        codec = build_codec(config.codec, config.seed)
        images = _images(batches, config, "start", START_IMAGES)
        linear_start(codec, to_model_range(torch.from_numpy(images)))
        return codec, None
    folder = shipped_codec() if config.init == "shipped" else local_copy(storage, config.init)
    codec = load_codec(folder).requires_grad_(True)
    found = (codec.config.latent_channels, tuple(codec.config.block_out_channels))
    wanted = (config.codec.latent_channels, config.codec.block_out_channels)
    if found[1] != wanted[1] or found[0] < wanted[0]:
        raise ConfigError(
            f"init: {config.init} has (latent_channels, block_out_channels) {found}, codec says {wanted}. "
            "Use the same ones, fewer latent channels, or init: scratch."
        )
    by = Narrowing.load(folder)
    if found[0] > wanted[0]:
        by = _narrowing(config, storage, codec, batches)
        codec = narrow_codec(codec, by).requires_grad_(True)
    channels = config.codec.image_channels
    return codec if codec.config.in_channels == channels else widen_channels(codec, channels), by


def _narrowing(config: CodecRun, storage: Storage, codec: AutoencoderKL, batches: Batches) -> Narrowing:
    """The run's narrowing, found once: another machine's eigenvectors may have other signs at a resume."""
    made_by = fingerprint(config.model_dump(mode="json", include={"seed", "init", "codec", "data"}))
    uri = join(absolute(config.run_dir), "narrowing", made_by, NARROWING)
    if not storage.exists(uri):
        images = _images(batches, config, "narrow", START_IMAGES)
        storage.write_bytes(uri, find_narrowing(codec, images, config.codec.latent_channels).to_bytes())
    return Narrowing.from_bytes(storage.read_bytes(uri))


def _statistics(config: CodecRun, codec: AutoencoderKL, batches: Batches) -> StatisticsLoss | None:
    """The texture loss of training.statistics_weight.

    Raises ConfigError for the network that judges.
    """
    if not config.training.statistics_weight:
        return None
    name = config.statistics_network
    if name not in SIZES or name == config.extractor:
        raise ConfigError(
            f"statistics_network: {name}, with extractor: {config.extractor}. Expected one of "
            f"{sorted(SIZES)}, not the extractor that judges; or training.statistics_weight: 0."
        )
    network = efficientnet(name)[0].to(codec.device)
    images = to_model_range(torch.from_numpy(_images(batches, config, "statistics", STATISTICS_IMAGES)))
    enlarge = SIZES[name] / config.data.image.resolution
    return StatisticsLoss(lambda pixels: activations(network, pixels), enlarge, images.to(codec.device))


def _images(batches: Batches, config: CodecRun, purpose: str, count: int) -> Uint8:
    seed, size = derive_seed(config.seed, purpose), config.training.batch_size
    return np.concatenate([batches(seed, step) for step in range(-(-count // size))])


def _data(config: CodecRun, storage: Storage) -> tuple[Batches, dict[str, Uint8]]:
    """Batches to train on, and named sets of images held out for the card."""
    data, batch_size, channels = config.data, config.training.batch_size, config.codec.image_channels
    if data.kind == "simulated":
        resolution = data.image.resolution
        bank = draw_bank(data.fields, config.seed)
        held_bank = draw_bank(max(8, data.fields // 8), derive_seed(config.seed, "held out"))
        crops = SimulatedCrops(held_bank, config.card_images, channels, resolution)
        return SimulatedCrops(bank, batch_size, channels, resolution), {"simulated": crops(config.seed, 0)}
    images = source_images(data, storage)
    if images[0].shape[0] != channels:
        raise ConfigError(
            f"codec.image_channels: {channels}, but data.mapping {data.mapping!r} gives {images[0].shape[0]}."
        )
    order = np.random.default_rng(derive_seed(config.seed, "held out")).permutation(len(images))
    held = min(data.held_out, len(images) // 2)
    kept = ImageCrops([images[i] for i in order[held:]], batch_size, data.image.resolution)
    unseen = ImageCrops(
        [images[i] for i in order[:held]] or images, config.card_images, data.image.resolution
    )
    return kept, {"held_out": unseen(config.seed, 0)}


def source_images(data: CodecData, storage: Storage) -> list[Uint8]:
    """Mapped images (K, H, W) uint8 of SITES or a folder, evenly thinned out to max_images."""
    if data.source is None:
        raise ConfigError(f"data.source: missing. Where do the images of kind {data.kind} lie?")
    if data.kind == "sites":
        table = storage.read_table(absolute(data.source))
        table = schema.conform(table, schema.SITES, data.source)
        sites, dataset = table.select(list(SITE_COLUMNS)).to_pylist(), table["dataset"][:1].to_pylist()
    else:
        dataset = ["imagefolder"]
        uris = storage.list_files(absolute(data.source), suffix=".png", recursive=True)
        sites = [
            dict.fromkeys(SITE_COLUMNS) | {"site_id": uri, "channel_uris": [uri]}
            for uri in uris
            if any(fnmatchcase(uri.rpartition("/")[2], name) for name in data.files)
        ]
    if not sites:
        raise DataError(f"{data.source}: found no images of {list(data.files)}; expected at least two.")
    chosen = np.unique(np.linspace(0, len(sites) - 1, min(len(sites), data.max_images)).astype(int))
    mapping = source_mapping(data, dataset[0], len(sites[0]["channel_uris"]))
    images = [mapping.apply(read_site(sites[i], data.image, storage)) for i in chosen]
    scale = data.image.resolution if data.image.fit == "resize" else data.image.scale_to
    return [resize_square(image, scale) for image in images] if scale else images


def source_mapping(data: CodecData, dataset: str, files: int) -> ChannelMapping:
    """The mapping of images of `dataset` whose sites have so many files, or one for all channels.

    Raises ConfigError when the channels' names are neither given nor known.
    """
    entry = DATASETS.get(dataset)
    channels = data.channels or (entry.channels if entry else ())
    if files not in (1, len(channels)):
        raise ConfigError(
            f"data.channels: {data.source} has {files} files a site, and the channels of {dataset!r} are "
            f"{list(channels)}. Name the {files} channels in the order of the files."
        )
    return find_mapping(data.mapping, channels, entry.mapping if entry else "", "data.mapping")


def sample_images(config: CodecRun) -> dict[str, Uint8]:
    """The real sample crops that the codec never trains on, where the test data lie; else nothing.

    BBBC021 crops are cut to their central 64 pixels; RxRx1 fields, mapped to RGB, into 64 px tiles.
    """
    folder = Path(os.environ.get("MORPHORAY_TEST_DATA") or config.test_data or "")
    if config.codec.image_channels != 3 or not (folder / "rxrx1-sample").is_dir():
        return {}
    storage, side = Storage(), 64
    cells = CodecData(
        kind="folder",
        source=str(folder / "bbbc021-crops"),
        image=ImageConfig(resolution=side, fit="crop"),
        max_images=config.card_images,
    )
    crops = [image[:, 2 : 2 + side, 2 : 2 + side] for image in source_images(cells, storage)]
    tiles = []
    for first in sorted((folder / "rxrx1-sample" / "images").rglob("*_w1.png")):
        files = [str(first).replace("_w1.png", f"_w{channel}.png") for channel in range(1, 7)]
        image = MAPPINGS["rxrx1_rgb"].apply(read_raw(files, storage))
        squares = image.reshape(3, image.shape[1] // side, side, image.shape[2] // side, side)
        tiles.append(squares.transpose(1, 3, 0, 2, 4).reshape(-1, 3, side, side))
    fields = np.concatenate(tiles)
    return {"bbbc021-crops": np.stack(crops), "rxrx1-sample": fields}


def _card(config: CodecRun, codec: AutoencoderKL, sets: dict[str, Uint8]) -> dict[str, Any]:
    return {
        "trained_on": " of ".join(filter(None, [f"{config.data.kind} images", config.data.source])),
        "image_channels": config.codec.image_channels,
        "latent_channels": config.codec.latent_channels,
        "parameters": sum(parameter.numel() for parameter in codec.parameters()),
        "scaling_factor": codec.config.scaling_factor,
        "config": json.loads(config.model_dump_json(exclude={"run_dir", "storage"})),
        "figures": {name: codec_quality(codec, images, config.extractor) for name, images in sets.items()},
    }


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    lines = [
        "# A small autoencoder for cell images",
        "",
        f"AutoencoderKL (diffusers), {card['image_channels']} image channels, {card['latent_channels']} "
        f"latent channels at an eighth of the resolution, {card['parameters']:,} parameters, scaling factor "
        f"{card['scaling_factor']:.4f}. Trained on {card['trained_on']} by `jobs/train_codec.py` ("
        f"{card['config']['training']['trainable']}, from {card['config']['init']}); the settings are in "
        "`card.json`.",
        "",
        "| images | N | PSNR, dB | of each channel | Fréchet, reconstructions | Fréchet, real against real "
        "| N a side |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figures in card["figures"].items():
        distances = [figures.get(key, "not measured") for key in ("frechet", "frechet_floor", "frechet_n")]
        each = ", ".join(f"{value:.1f}" for value in figures["channel_psnr_db"])
        cells = [name, figures["images"], figures["psnr_db"], each, *distances]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    extractors = {figures["extractor"] for figures in card["figures"].values() if "extractor" in figures}
    if extractors:
        lines += [
            "",
            f"Features: {', '.join(sorted(extractors))}; that network took no part in the training.",
        ]
    if card.get("note"):
        lines += ["", card["note"]]
    return "\n".join(lines) + "\n"
