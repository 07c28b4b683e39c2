"""LATENTS to a bundle: Ray Train places the workers, the loop in `training` does the work."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from morphoray.config import RunConfig
from morphoray.datasets.splits import TRAIN
from morphoray.errors import MorphorayError
from morphoray.perturbations.base import from_rows
from morphoray.perturbations.context import context_state
from morphoray.pipelines.cluster import preflight, train_resources
from morphoray.pipelines.codecs import image_channels, local_bundle_config
from morphoray.pipelines.conditions import Conditions, fit_conditions
from morphoray.pipelines.encode import latents_settings
from morphoray.pipelines.layout import claim, compare, layout_of, mapping_of, storage_from
from morphoray.pipelines.sites import read_sites
from morphoray.pipelines.training_data import open_training_data
from morphoray.sections import build
from morphoray.seeds import fingerprint
from morphoray.storage import Storage

if TYPE_CHECKING:
    from morphoray.diffusion.bundle import Bundle
    from morphoray.pipelines.checkpoints import Checkpoints
    from morphoray.training.latents import Latents

# Settings that say where and how often, and change no number: a run may be resumed with others.
PLACEMENT = {
    "num_workers",
    "resize_every_s",
    "use_gpu",
    "cpus_per_worker",
    "max_failures",
    "keep_checkpoints",
    "log_every",
    "checkpoint_every",
    "sample_every",
    "compile",
    "gradient_accumulation",
}


@dataclass(frozen=True)
class TrainSummary:
    """steps the bundle has been trained for; finished_before: it was there already, nothing was done."""

    bundle: str
    fingerprint: str
    steps: int
    finished_before: bool


def training_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that the weights depend on; max_steps is not one where the rate doesn't depend on it."""
    placement = set(PLACEMENT)
    if config.training.schedule == "constant":
        placement.add("max_steps")
    if config.training.shuffle_window is None:  # the order of runs that were made before there were windows
        placement.add("shuffle_window")
    return {
        "latents": fingerprint(latents_settings(config)),
        "perturbations": config.perturbations.settings(),
        "bundle": config.bundle.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude=placement),
        "seed": config.seed,
    }


def train(config: RunConfig) -> TrainSummary:
    """Train a resolved, encoded run to training.max_steps, from its newest checkpoint if there is one.

    Raises FingerprintError for other settings, ResourceError for too small a cluster.
    """
    layout, storage = layout_of(config), storage_from(config.storage)
    claim_checkpoints(config)
    done = _finished(storage, config)
    if done is not None:
        return done
    fit_conditions(config)
    preflight("train", train_resources(config))
    run_workers(config, train_worker)
    finished = _finished(storage, config)
    if finished is None:
        raise MorphorayError(
            f"training ended, but {layout.bundle} is not complete. Run the same command again."
        )
    return TrainSummary(finished.bundle, finished.fingerprint, finished.steps, False)


def claim_checkpoints(config: RunConfig) -> None:
    """Claim the checkpoints for the run's settings; FingerprintError names each one that differs.

    Those of the latents, of which training_settings has a fingerprint, lie beside them; older runs have none.
    """
    layout, storage = layout_of(config), storage_from(config.storage)
    settings, latents = training_settings(config), latents_settings(config)
    described, behind = (layout.of("checkpoints", name) for name in ("settings.json", "latents.json"))
    if storage.exists(described) and storage.exists(behind):
        stored = storage.read_json(described) | {"latents": storage.read_json(behind)}
        compare(stored, settings | {"latents": latents}, described, "Checkpoints")
    claim(storage, described, settings, "Checkpoints")
    claim(storage, behind, latents, "Checkpoints")


def run_workers(config: RunConfig, worker: Callable[[dict[str, Any]], None]) -> None:
    """Run `worker` in every process of a Ray Train worker group, with the stream if the run has one."""
    from morphoray.pipelines import trainer

    data: dict[str, Any] = {}
    if config.training.mode == "stream":
        from morphoray.pipelines.streamed import NAME, Shards, training_stream

        stream = partial(training_stream, config, checkpoints_of(config))
        data = {"datasets": {NAME: stream}, "dataset_config": Shards()}
    trainer.run_workers(worker, {"config": config.model_dump(mode="json")}, config.training, data)


def _finished(storage: Storage, config: RunConfig) -> TrainSummary | None:
    layout = layout_of(config)
    marker = layout.of("bundle", "morphoray.json")
    if not storage.exists(marker):
        return None
    manifest = storage.read_json(marker)
    steps = int(manifest["training"]["steps"])
    if steps < config.training.max_steps:
        return None
    return TrainSummary(layout.bundle, manifest["fingerprint"], steps, True)


def train_worker(arguments: dict[str, Any]) -> None:
    """What every Ray Train worker runs; rank 0 writes checkpoints, metrics, samples and the bundle."""
    from morphoray.pipelines.background import Background
    from morphoray.pipelines.record import Recorder
    from morphoray.training.loop import Hooks, make_accelerator, make_state
    from morphoray.training.loop import train as run_loop

    config = build(RunConfig, arguments["config"], "")
    training = config.training
    conditions = fit_conditions(config)
    accelerator = make_accelerator(training)
    bundle = _fresh_bundle(config, conditions)
    state = make_state(bundle, training)
    checkpoints = checkpoints_of(config)
    main = accelerator.is_main_process
    resumed = _agreed(checkpoints.newest() if main else 0)
    checkpoints.restore(state, resumed)
    if training.mode == "stream":
        from morphoray.pipelines.streamed import open_stream

        data: Latents = open_stream(
            config, conditions, bundle.latent_shape(config.image.resolution), state.data
        )
    else:
        data = open_training_data(config, conditions)
    with Background() as background:
        recorder = Recorder(config, bundle, conditions, checkpoints, background, main, resumed)
        if main:
            parameters = sum(value.numel() for value in bundle.denoiser.parameters())
            start = f"resuming at step {resumed}" if resumed else "starting"
            print(
                f"train: {_described(data)}, {parameters / 1e6:.1f} M parameters, "
                f"{accelerator.num_processes} workers; {start} of {training.max_steps}",
                flush=True,
            )
        hooks = Hooks(recorder.log, recorder.save, recorder.sample, recorder.check)
        asked = config.perturbations
        run_loop(
            bundle,
            data,
            training,
            config.seed,
            asked.dropout,
            accelerator,
            state,
            hooks,
            asked.context_dropout,
        )
        if main:
            recorder.finish(state)


def checkpoints_of(config: RunConfig) -> "Checkpoints":
    """The run's checkpoints."""
    from morphoray.pipelines.checkpoints import Checkpoints

    made_by, keep = fingerprint(training_settings(config)), config.training.keep_checkpoints
    return Checkpoints(storage_from(config.storage), layout_of(config).checkpoints, made_by, keep)


def _described(data: "Latents") -> str:
    from morphoray.training.streamed import Streamed

    shape = tuple(data.shape)
    if not isinstance(data, Streamed):
        return f"{len(data)} latents of {shape}"
    epoch, left = data.consumed.left()
    parts = f"{left} of {data.consumed.per_epoch} parts left of epoch {epoch + 1}"
    return f"{len(data)} latents of {shape} an epoch, encoded as they are needed, {parts}"


def _agreed(step: int) -> int:
    """The main process's step on every process: two that looked for checkpoints themselves could differ."""
    from accelerate.utils import broadcast_object_list

    return int(broadcast_object_list([step])[0])


def _fresh_bundle(config: RunConfig, conditions: Conditions) -> "Bundle":
    from morphoray.diffusion.bundle import new_bundle

    projection = {
        "kind": config.perturbations.projection,
        "tokens": config.perturbations.tokens,
        "hidden": config.perturbations.hidden,
    }
    bundle = new_bundle(
        local_bundle_config(config),
        config.image.resolution,
        conditions.width,
        projection,
        config.seed,
        image_channels(config),
    )
    bundle.manifest = manifest_of(config, conditions)
    return bundle


def manifest_of(config: RunConfig, conditions: Conditions) -> dict[str, Any]:
    """What a bundle says of itself in morphoray.json, but for its projection, steps and fingerprint."""
    sites = read_sites(config)
    seen = set(sites.filter(pc.equal(sites["split"], TRAIN))["perturbation_id"].unique().to_pylist())
    perturbations = from_rows(sites)
    controls = [item.perturbation_id for item in perturbations if item.is_control]
    mapping = mapping_of(config)
    return {
        "format": 1,
        "condition": {
            "encoder": conditions.encoder,
            "state": conditions.state,
            **context_state(conditions.context),
        },
        "mapping": mapping.model_dump(mode="json"),
        "channels": list(mapping.outputs),
        "resolution": config.image.resolution,
        "preset": config.bundle.preset,
        "control": controls[0] if controls else None,
        "perturbations": [
            {
                "perturbation_id": item.perturbation_id,
                "kind": item.kind,
                "smiles": item.smiles,
                "gene": item.gene,
                "concentration_um": item.concentration_um,
                "moa": item.moa,
                "is_control": item.is_control,
                "seen": item.perturbation_id in seen,
            }
            for item in perturbations
            if item.perturbation_id in conditions.vectors
        ],
        "sampling": {
            "sampler": config.generation.sampler,
            "steps": config.generation.steps,
            "guidance_scale": config.generation.guidance_scale,
        },
        "training": {
            "dataset": config.dataset.name,
            "seed": config.seed,
            "settings": json.loads(json.dumps(training_settings(config))),
        },
    }
