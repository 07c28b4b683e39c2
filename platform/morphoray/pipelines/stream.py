"""Work in parts through Ray Data: each item a unit that is done once, or done again whole."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from morphoray.errors import MorphorayError

Item = dict[str, Any]
# A unit that kills its process would otherwise be retried for ever.
RETRIES = 3
LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)


def pack(table: pa.Table) -> bytes:
    """A table as bytes, so that an item holds it whole and with its schema."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpack(data: bytes) -> pa.Table:
    """The table that `pack` was given."""
    return pa.ipc.open_stream(data).read_all()


@dataclass(frozen=True)
class Stage:
    """One step of the stream: a function of an item, or a class whose instances are, kept in actors.

    A class gets `arguments` when its actor starts; a function gets them at every call. With `spreads` it is
    given the item as an Arrow table of one row, and returns one of any number.
    """

    work: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    num_actors: int = 0  # 0: tasks, as many as the CPUs allow
    cpus: float = 1
    gpus: float = 0
    spreads: bool = False


def dataset_of_items(items: Sequence[Item], stages: Sequence[Stage]) -> ray.data.Dataset:
    """The items passed through the stages, each a Ray Data block from the first stage to the last."""
    dataset = ray.data.from_items(list(items), override_num_blocks=len(items))
    with warnings.catch_warnings():
        # Ray 2.60 has no other way to bound a stage's retries; the version is pinned.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.* is deprecated")
        for stage in stages:
            if stage.spreads:
                whole = {"batch_size": None, "batch_format": "pyarrow"}
                dataset = dataset.map_batches(stage.work, **whole, **_placement(stage))
            else:
                dataset = dataset.map(stage.work, **_placement(stage))
    return dataset


def quiet(context: DataContext) -> None:
    """Let Ray Data draw no bars and say no more than errors: Progress says it in the run's own words."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def stream(items: Sequence[Item], stages: Sequence[Stage]) -> Iterator[Item]:
    """Pass every item through the stages; yields the last stage's results in any order.

    An item is one Ray Data block, so memory is bounded by the items in flight and not by their number.
    Raises the first MorphorayError that a stage raised, or one that tells which process was lost for good.
    """
    if not items:
        return
    quiet(DataContext.get_current())
    try:
        yield from dataset_of_items(items, stages).iter_rows()
    except MorphorayError:
        raise
    except Exception as error:
        cause = find_cause(error)
        if cause is not None:
            raise cause from None
        if isinstance(error, LOST):
            reason = " ".join(str(error).split())
            raise MorphorayError(
                f"a process or a machine was lost, and starting it again did not help: {reason} "
                "Parts that are written are kept: run the same command again. If it stops at the same place, "
                "memory may be short there: lower the batch size, or the size of a part."
            ) from error
        raise


def _placement(stage: Stage) -> dict[str, Any]:
    if stage.num_actors:
        return {
            "fn_constructor_kwargs": stage.arguments,
            "compute": ActorPoolStrategy(size=stage.num_actors),
            "num_cpus": stage.cpus,
            "num_gpus": stage.gpus or None,
            "max_restarts": RETRIES,
            # Until Ray knows that a machine is gone, every refused call of its actor would use up a try. What
            # bounds a unit that kills its process are the restarts.
            "max_task_retries": -1,
        }
    return {
        "fn_kwargs": stage.arguments,
        "compute": TaskPoolStrategy(),
        "num_cpus": stage.cpus,
        "max_retries": RETRIES,
    }


def find_cause(error: BaseException) -> MorphorayError | None:
    """The MorphorayError inside Ray's wrappers, if there is one."""
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        current = queue.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        if isinstance(current, MorphorayError):
            return current
        seen.add(id(current))
        queue += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        queue += list(getattr(current, "worker_failures", {}).values())
        queue += [getattr(current, "controller_failure", None), *current.args]
    return None
