"""LATENTS to a bundle: Ray Train places the workers, the loop in `training` does the work."""

import json
import tempfile
import uuid
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from morphoray.config import RunConfig, build
from morphoray.datasets import find_dataset
from morphoray.errors import MorphorayError
from morphoray.perturbations.base import from_rows
from morphoray.pipelines.checkpoints import Checkpoints
from morphoray.pipelines.cluster import make_trainer, preflight, train_resources
from morphoray.pipelines.codecs import local_bundle_config
from morphoray.pipelines.conditions import Conditions, fit_conditions
from morphoray.pipelines.encode import latents_settings
from morphoray.pipelines.layout import claim, layout_of, storage_from
from morphoray.pipelines.sites import read_sites
from morphoray.pipelines.stream import find_cause
from morphoray.seeds import fingerprint
from morphoray.storage import Storage

# Settings that say where and how often, and change no number: a run may be resumed with others.
PLACEMENT = {
    "num_workers",
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
    return {
        "latents": fingerprint(latents_settings(config)),
        "perturbations": config.perturbations.model_dump(mode="json"),
        "bundle": config.bundle.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude=placement),
        "seed": config.seed,
    }


def train(config: RunConfig) -> TrainSummary:
    """Train a resolved, encoded run to training.max_steps, from its newest checkpoint if there is one.

    Raises FingerprintError for other settings, ResourceError for too small a cluster.
    """
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig

    layout, storage = layout_of(config), storage_from(config.storage)
    claim(storage, layout.of("checkpoints", "settings.json"), training_settings(config), "Checkpoints")
    done = _finished(storage, config)
    if done is not None:
        return done
    fit_conditions(config)
    preflight("train", train_resources(config))
    training = config.training
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(
            train_loop_per_worker=train_worker,
            train_loop_config={"config": config.model_dump(mode="json")},
            scaling_config=ScalingConfig(
                num_workers=training.num_workers,
                use_gpu=training.use_gpu,
                resources_per_worker={"CPU": training.cpus_per_worker, "GPU": int(training.use_gpu)},
            ),
            # Checkpoints are ours, under run_dir; a fresh name keeps Ray from taking the run for finished.
            run_config=RayRunConfig(
                name=f"morphoray-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=training.max_failures),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            cause = find_cause(error)
            if cause is not None:
                raise cause from None
            raise
    finished = _finished(storage, config)
    if finished is None:
        raise MorphorayError(
            f"training ended, but {layout.bundle} is not complete. Run the same command again."
        )
    return TrainSummary(finished.bundle, finished.fingerprint, finished.steps, False)


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
    from accelerate import Accelerator

    from morphoray.diffusion.bundle import new_bundle
    from morphoray.pipelines.record import Recorder
    from morphoray.training.loop import Hooks, make_state
    from morphoray.training.loop import train as run_loop

    config = build(RunConfig, arguments["config"], "")
    layout, storage = layout_of(config), storage_from(config.storage)
    training = config.training
    conditions = fit_conditions(config)
    precision = {"fp32": "no"}.get(training.precision, training.precision)
    accelerator = Accelerator(cpu=not training.use_gpu, mixed_precision=precision)
    projection = {
        "kind": config.perturbations.projection,
        "tokens": config.perturbations.tokens,
        "hidden": config.perturbations.hidden,
    }
    bundle = new_bundle(
        local_bundle_config(config), config.image.resolution, conditions.width, projection, config.seed
    )
    bundle.manifest = manifest_of(config, conditions)
    data = read_latents(config, conditions)
    state = make_state(bundle, training)
    checkpoints = Checkpoints(
        storage, layout.checkpoints, fingerprint(training_settings(config)), training.keep_checkpoints
    )
    resumed = checkpoints.restore(state)
    recorder = Recorder(config, bundle, conditions, checkpoints, accelerator.is_main_process, resumed)
    if accelerator.is_main_process:
        parameters = sum(value.numel() for value in bundle.denoiser.parameters())
        start = f"resuming at step {resumed}" if resumed else "starting"
        print(
            f"train: {len(data)} latents of {tuple(data.shape)}, {len(data.vectors)} perturbations, "
            f"{parameters / 1e6:.1f} M parameters, {accelerator.num_processes} workers; {start} of "
            f"{training.max_steps}",
            flush=True,
        )
    hooks = Hooks(log=recorder.log, save=recorder.save, sample=recorder.sample)
    run_loop(bundle, data, training, config.seed, config.perturbations.dropout, accelerator, state, hooks)
    if accelerator.is_main_process:
        recorder.finish(state)


def read_latents(config: RunConfig, conditions: Conditions) -> Any:
    """The run's training latents as a LatentSet: split `train`, perturbations that have a vector."""
    from morphoray.training.latents import latent_set

    layout, storage = layout_of(config), storage_from(config.storage)
    columns = ["perturbation_id", "split", "latent_mean", "latent_std"]
    known = list(conditions.vectors)
    tables = []
    for uri in storage.list_files(layout.latents, suffix=".parquet"):
        table = storage.read_table(uri, columns=columns)
        keep = pc.and_(pc.equal(table["split"], "train"), pc.is_in(table["perturbation_id"], _set(known)))
        tables.append(table.filter(keep))
    used = {name for table in tables for name in table["perturbation_id"].unique().to_pylist()}
    return latent_set(tables, {name: conditions.vectors[name] for name in used})


def _set(values: list[str]) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.string())


def manifest_of(config: RunConfig, conditions: Conditions) -> dict[str, Any]:
    """What a bundle says of itself in morphoray.json, but for its projection, steps and fingerprint."""
    sites = read_sites(config)
    splits = dict(zip(sites["perturbation_id"].to_pylist(), sites["split"].to_pylist(), strict=True))
    perturbations = from_rows(sites)
    controls = [item.perturbation_id for item in perturbations if item.is_control]
    return {
        "format": 1,
        "condition": {"encoder": conditions.encoder, "state": conditions.state},
        "mapping": config.image.mapping,
        "channels": list(find_dataset(config.dataset.name).channels),
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
                "seen": splits[item.perturbation_id] != "held_out_perturbation",
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
