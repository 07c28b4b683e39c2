"""Reaching a Ray cluster, and checking that it can hold a run before anything waits on it."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

import morphoray
from morphoray.config import RunConfig
from morphoray.errors import MorphorayError, ResourceError

STREAM_READ_CPUS = 0.5  # of a task that reads sites while others train


@dataclass(frozen=True)
class Resources:
    """What a stage holds at once; all its parts start together, so the cluster must have the sum."""

    cpus: float = 0
    gpus: float = 0

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def encode_resources(config: RunConfig) -> Resources:
    """The encoding actors, and one CPU for the tasks that read and write."""
    encode = config.encode
    return Resources(encode.num_actors * encode.cpus_per_actor + 1, encode.num_actors * encode.gpus_per_actor)


def train_resources(config: RunConfig) -> Resources:
    """The fewest training workers; with mode: stream the encoding actors and a reading task beside them."""
    training, encode = config.training, config.encode
    workers = training.min_workers
    cpus, gpus = workers * training.cpus_per_worker, float(workers if training.use_gpu else 0)
    if training.mode == "stream":
        # Of what the workers leave Ray Data uses whole CPUs: 1.5 count as 1.
        cpus += math.ceil(encode.num_actors * encode.cpus_per_actor + STREAM_READ_CPUS)
        gpus += encode.num_actors * encode.gpus_per_actor
    return Resources(cpus, gpus)


def generate_resources(config: RunConfig) -> Resources:
    """The sampling actors, and half a CPU for the tasks that write."""
    generation = config.generation
    return Resources(
        generation.num_actors * generation.cpus_per_actor + 0.5,
        generation.num_actors * generation.gpus_per_actor,
    )


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """A connection to the cluster at `address`, else the one of the surrounding Ray job, else a local one.

    A connection that is already there is used and left open.
    """
    if ray.is_initialized():
        yield
        return
    # Ray Train would print every worker line a second time, through its own logger.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    target = address or os.environ.get("RAY_ADDRESS")
    try:
        if target and target != "local":
            # A Ray job brings the package as its working_dir; a direct connection has to send it.
            source = str(Path(morphoray.__file__).parent)
            in_job = "RAY_JOB_ID" in os.environ or os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
            ray.init(target, runtime_env=None if in_job else {"py_modules": [source]}, log_to_driver=True)
        else:
            _start_local()
    except ConnectionError as error:
        raise MorphorayError(
            f"no Ray cluster answers at {target!r} ({error}). Start one with `ray start --head`, or leave "
            "--address away for a local one."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _start_local(tries: int = 3) -> None:
    """A cluster in this process; on a busy machine its parts miss each other's 15 s limits: try again."""
    for left in range(tries - 1, -1, -1):
        try:
            ray.init(
                "local",
                include_dashboard=False,
                logging_level=logging.ERROR,
                num_cpus=os.cpu_count(),
            )
            return
        except Exception as error:  # Ray raises a bare Exception here
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
            print("ray: the local cluster did not start in time, trying again", flush=True)


def use_threads(cpus: float) -> None:
    """Let torch use as many threads as the actor has CPUs, rounded up; Ray itself rounds down."""
    import torch

    torch.set_num_threads(max(1, math.ceil(cpus)))


def make_trainer(**arguments: Any) -> Any:
    """A TorchTrainer; without the guard that asks the dashboard every second, where there is none.

    The guard frees a placement group that a dead controller leaves behind, and a cluster without a dashboard
    is the one in this process, which dies with it.
    """
    from ray.train.torch import TorchTrainer

    class LocalTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if type(each).__name__ != "PlacementGroupCleanerCallback"]

    has_dashboard = bool(ray._private.worker.get_dashboard_url())
    return (TorchTrainer if has_dashboard else LocalTrainer)(**arguments)


def preflight(stage: str, needs: Resources) -> None:
    """Raise ResourceError if the connected cluster as a whole has fewer CPUs or GPUs than `needs`."""
    total = ray.cluster_resources()
    has = Resources(total.get("CPU", 0), total.get("GPU", 0))
    if has.cpus < needs.cpus or has.gpus < needs.gpus:
        raise ResourceError(
            f"{stage} needs {needs}, the cluster has {has}. Ray would wait for ever. Add nodes, or lower "
            f"num_workers, num_actors, cpus_per_worker or cpus_per_actor in the configuration."
        )
