"""Trains the tiny preset's shipped denoiser: simulated crops to latents to a diffusers folder with a card."""

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from morphoray.config import BundleConfig, StorageConfig, TrainingConfig
from morphoray.diffusion.bundle import Bundle, new_bundle
from morphoray.diffusion.codec import encode_posterior
from morphoray.errors import ConfigError
from morphoray.pipelines.checkpoints import Checkpoints
from morphoray.pipelines.layout import storage_from
from morphoray.sections import Section, build, read_values
from morphoray.seeds import fingerprint
from morphoray.storage import absolute, is_remote, join
from morphoray.training.codec_data import draw_bank_fields
from morphoray.training.latents import LatentSet
from morphoray.training.loop import Hooks, make_accelerator, make_state, train
from morphoray.training.start_data import WIDTH, start_crops
from morphoray.training.state import TrainingState

log = logging.getLogger(__name__)
ENCODE_BATCH = 500


class StartRun(Section):
    """A start's training; everything it makes lies under the local folder `run_dir`."""

    run_dir: str
    seed: int = 0
    bundle: BundleConfig = BundleConfig()
    resolution: int = Field(64, ge=8, multiple_of=8)
    fields: int = Field(1500, ge=6)  # simulated fields that crops are cut from
    crops: int = Field(100_000, ge=1)
    hidden: int = Field(256, ge=1)  # width of the projection from a crop's description to the token
    dropout: float = Field(0.1, ge=0, le=1)  # share of the crops without a description
    num_threads: int | None = Field(None, ge=1)
    training: TrainingConfig = TrainingConfig()


def parse_start_run(text: str, where: str, overrides: list[str]) -> StartRun:
    """The run described by YAML `text`; ConfigError names wrong keys."""
    return build(StartRun, read_values(text, where, overrides), "")


def run_start(config: StartRun) -> str:
    """Train, or resume, and write run_dir/start with unet/, scheduler/ and card.json; returns that folder."""
    root = absolute(config.run_dir)
    if is_remote(root):
        raise ConfigError(f"run_dir: found {config.run_dir}; a start is trained in a local folder.")
    start = Path(root.removeprefix("file://")) / "start"
    if (start / "card.json").is_file():
        log.info("%s is finished already; nothing to do. Use another run_dir to train again.", start)
        return str(start)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    projection = {"kind": "mlp", "tokens": 1, "hidden": config.hidden}
    bundle = new_bundle(config.bundle, config.resolution, WIDTH, projection, config.seed)
    data = simulated_latents(bundle, config)
    state = make_state(bundle, config.training)
    settings = config.model_dump(mode="json", exclude={"run_dir", "num_threads"})
    checkpoints = Checkpoints(
        storage_from(StorageConfig()),
        join(root, "checkpoints"),
        fingerprint(settings),
        config.training.keep_checkpoints,
    )
    checkpoints.restore(state)
    accelerator = make_accelerator(config.training)
    curve: list[dict[str, Any]] = []

    def told(record: dict[str, Any]) -> None:
        curve.append(record)
        log.info("start %s", json.dumps({key: round(value, 5) for key, value in record.items()}))

    hooks = Hooks(log=told, save=checkpoints.save, sample=lambda state: None)
    train(bundle, data, config.training, config.seed, config.dropout, accelerator, state, hooks)
    _write(bundle, state, start, settings, curve)
    return str(start)


def simulated_latents(bundle: Bundle, config: StartRun) -> LatentSet:
    """Posteriors of `config.crops` simulated crops, each with a condition of its own."""
    log.info("drawing %d fields and encoding %d crops", config.fields, config.crops)
    codec = bundle.vae.to("cuda" if config.training.use_gpu else "cpu")
    crops = start_crops(
        draw_bank_fields(config.fields, config.seed), config.crops, config.resolution, config.seed
    )
    means, stds, vectors = [], [], []
    while part := list(islice(crops, ENCODE_BATCH)):
        mean, std = encode_posterior(codec, np.stack([image for image, _ in part]), 64)
        means.append(torch.from_numpy(mean).half())
        stds.append(torch.from_numpy(std).half())
        vectors += [vector for _, vector in part]
    rows = torch.arange(len(vectors))
    return LatentSet(torch.cat(means), torch.cat(stds), rows, torch.from_numpy(np.stack(vectors)))


def _write(
    bundle: Bundle, state: TrainingState, folder: Path, settings: dict[str, Any], curve: list[dict[str, Any]]
) -> None:
    """The averaged UNet in float16, the noise schedule, and the card, which marks the folder as finished."""
    averaged = state.ema_weights()
    unet = bundle.denoiser.unet
    unet.load_state_dict(
        {name.removeprefix("unet."): value for name, value in averaged.items() if name.startswith("unet.")}
    )
    unet.cpu().half().save_pretrained(folder / "unet", safe_serialization=True)
    bundle.schedule.save_pretrained(folder / "scheduler")
    card = {
        "trained_on": "simulated crops with random phenotypes",
        "parameters": sum(value.numel() for value in unet.parameters()),
        "steps": state.step,
        "images_seen": state.step * settings["training"]["batch_size"],
        "config": settings,
        "loss": [{"step": record["step"], "loss": round(record["loss"], 4)} for record in curve[-10:]],
    }
    (folder / "CARD.md").write_text(card_text(card))
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    config, curve = card["config"], card["loss"]
    training = config["training"]
    # A run that was stopped after its last checkpoint has no records of this call.
    loss = f"{sum(point['loss'] for point in curve) / len(curve):.3f}" if curve else "not recorded"
    return f"""# A denoiser to start from

UNet2DConditionModel (diffusers) of preset {config["bundle"]["preset"]}: {card["parameters"]:,} parameters,
averaged weights in float16. `bundle: {{preset: tiny, source: shipped}}` starts a run from it, conditional or
not; the projection of a crop's description to the condition token is not kept, since a run learns its own.

Trained by `jobs/train_start.py` (seed {config["seed"]}) on {config["crops"]:,} simulated crops of
{config["resolution"]} pixels, cut from {config["fields"]:,} fields with random phenotypes: three in five in
RxRx1's colours at the fields' own scale, the others three channels as RGB at 1 to 2.2 times it.
{card["steps"]:,} steps of {training["batch_size"]}, {card["images_seen"]:,} images seen; mean loss of the
last {len(curve)} records {loss}. No real image was used. The settings are in `card.json`.
"""
