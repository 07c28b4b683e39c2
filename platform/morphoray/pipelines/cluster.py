"""Reaching a Ray cluster, and checking that it can hold a run before anything waits on it."""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

import morphoray
from morphoray.config import RunConfig
from morphoray.errors import MorphorayError, ResourceError

STREAM_READ_CPUS = 0.5  # of a task that reads sites while others train


@dataclass(frozen=True)
class Resources:
    """What a stage holds at once: its parts start together, and a part lies on one node.

    count: workers, actors or replicas of `cpus` and `gpus` each; task_cpus: CPUs of the tasks beside them.
    elsewhere: what another stage that runs at the same time takes, on whatever nodes.
    """

    count: int
    cpus: float
    gpus: float = 0
    task_cpus: float = 0
    elsewhere_cpus: float = 0
    elsewhere_gpus: float = 0

    @property
    def all_cpus(self) -> float:
        """CPUs of everything."""
        return self.count * self.cpus + self.task_cpus + self.elsewhere_cpus

    @property
    def all_gpus(self) -> float:
        """GPUs of everything."""
        return self.count * self.gpus + self.elsewhere_gpus

    def __str__(self) -> str:
        return f"{self.all_cpus:g} CPUs and {self.all_gpus:g} GPUs"


def encode_resources(config: RunConfig) -> Resources:
    """The encoding actors, and one CPU for the tasks that read and write."""
    encode = config.encode
    return Resources(encode.num_actors, encode.cpus_per_actor, encode.gpus_per_actor, task_cpus=1)


def train_resources(config: RunConfig) -> Resources:
    """The fewest training workers; with mode: stream the encoding actors and a reading task beside them."""
    training, encode = config.training, config.encode
    elsewhere = gpus = 0.0
    if training.mode == "stream":
        # Of what the workers leave Ray Data uses whole CPUs: 1.5 count as 1.
        elsewhere = math.ceil(encode.num_actors * encode.cpus_per_actor + STREAM_READ_CPUS)
        gpus = encode.num_actors * encode.gpus_per_actor
    return Resources(
        training.min_workers,
        training.cpus_per_worker,
        int(training.use_gpu),
        elsewhere_cpus=elsewhere,
        elsewhere_gpus=gpus,
    )


def generate_resources(config: RunConfig) -> Resources:
    """The sampling actors, and half a CPU for the tasks that write."""
    generation = config.generation
    return Resources(
        generation.num_actors, generation.cpus_per_actor, generation.gpus_per_actor, task_cpus=0.5
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


def node_sizes() -> list[tuple[float, float]]:
    """CPUs and GPUs of every living node of the connected cluster, the largest first."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sorted(((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes), reverse=True)


def room(nodes: Sequence[tuple[float, float]], needs: Resources) -> int:
    """How many parts of the size in `needs` the nodes hold beside its tasks, which lie on one node too."""

    def on(cpus: float, gpus: float) -> int:
        sizes = [(cpus, needs.cpus), (gpus, needs.gpus)]
        # Ray counts in steps of 1e-4; without the small number three parts of 0.1 would not fit into 0.3.
        return min(int(has / asked + 1e-6) for has, asked in sizes if asked)

    every = sum(on(*node) for node in nodes)
    beside = [
        every - on(cpus, gpus) + on(cpus - needs.task_cpus, gpus)
        for cpus, gpus in nodes
        if cpus >= needs.task_cpus
    ]
    return max(beside, default=0)


def misfit(needs: Resources, nodes: Sequence[tuple[float, float]]) -> str | None:
    """Why the nodes, by CPUs and GPUs, can't hold `needs`, and what to do; None if they can."""
    fit = room(nodes, needs)
    cpus, gpus = (sum(node[kind] for node in nodes) for kind in (0, 1))
    short = cpus < needs.all_cpus - 1e-6 or gpus < needs.all_gpus - 1e-6
    if fit >= needs.count and not short:
        return None
    lower = "lower num_workers, num_actors, cpus_per_worker or cpus_per_actor in the configuration"
    if short:
        return (
            f"needs {needs}, the cluster has {cpus:g} CPUs and {gpus:g} GPUs. Ray would wait for ever. Add "
            f"nodes, or {lower}."
        )
    sizes = ", ".join(f"{count} of {size[0]:g} and {size[1]:g}" for size, count in Counter(nodes).items())
    tasks = f", and {needs.task_cpus:g} CPUs more on one" if needs.task_cpus else ""
    return (
        f"needs {needs.count} times {needs.cpus:g} CPUs and {needs.gpus:g} GPUs, each on one node{tasks}; "
        f"the cluster's nodes, by CPUs and GPUs, are {sizes}: room for {fit}. Ray would wait for ever. Add "
        f"larger nodes, or {lower}."
    )


def preflight(stage: str, needs: Resources) -> None:
    """Raise ResourceError if the connected cluster, as a whole or node by node, can't hold `needs`."""
    found = misfit(needs, node_sizes())
    if found is not None:
        raise ResourceError(f"{stage} {found}")
