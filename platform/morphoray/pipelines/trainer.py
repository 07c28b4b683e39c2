"""Workers by Ray Train: how many, which of their failures are retried, and what is said of the others."""

import tempfile
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from morphoray.config import TrainingConfig
from morphoray.errors import MorphorayError
from morphoray.pipelines.stream import find_cause

# What a worker raises when another is gone, which it may notice before Ray does.
PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "DistBackendError")


def run_workers(
    work: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    training: TrainingConfig,
    data: Mapping[str, Any],
) -> None:
    """Run `work(arguments)` in every worker, again after a failure up to training.max_failures times.

    data: the trainer's `datasets` and `dataset_config` where workers take shards of a stream, else empty.

    Raises the MorphorayError that a worker raised, or one that tells which workers were lost.
    """
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(
            train_loop_per_worker=work,
            train_loop_config=arguments,
            **data,
            scaling_config=_scaling(training),
            # Checkpoints are ours, under run_dir; a fresh name keeps Ray from taking the run for finished.
            run_config=RunConfig(
                name=f"morphoray-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=training.max_failures),
                callbacks=[StopAtMistakes()],
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            cause = find_cause(error)
            if cause is not None:
                raise cause from None
            deaths = lost_workers(error)
            if deaths:
                raise _lost(deaths) from error
            raise


class StopAtMistakes(UserCallback):  # type: ignore[misc]
    """Ends the run at an error that a restart would only meet again, whatever max_failures says.

    FailureConfig counts failures and doesn't tell them apart. What a callback raises counts as the
    controller's own failure, which Ray doesn't retry.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first such error among the workers'."""
        for error in worker_exceptions.values():
            cause = find_cause(error)
            if cause is not None and not cause.passing:
                raise ControllerError(cause)


def _trainer(**arguments: Any) -> Any:
    """A TorchTrainer; without the guard that asks the dashboard every second, where there is none.

    The guard frees a placement group that a dead controller leaves behind, and a cluster without a dashboard
    is the one in this process, which dies with it.
    """

    class LocalTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if type(each).__name__ != "PlacementGroupCleanerCallback"]

    has_dashboard = bool(ray._private.worker.get_dashboard_url())
    return (TorchTrainer if has_dashboard else LocalTrainer)(**arguments)


def _scaling(training: TrainingConfig) -> Any:
    least, most = training.min_workers, training.max_workers
    return ScalingConfig(
        num_workers=most if least == most else (least, most),
        elastic_resize_monitor_interval_s=training.resize_every_s,
        use_gpu=training.use_gpu,
        resources_per_worker={"CPU": training.cpus_per_worker, "GPU": int(training.use_gpu)},
    )


def lost_workers(error: Exception) -> list[str]:
    """What Ray, or the workers that are left, say of a worker that is gone; empty for other errors."""
    deaths = []
    for failure in getattr(error, "worker_failures", {}).values():
        text = str(failure).strip()
        if isinstance(failure, RayActorError):
            deaths.append(" ".join(text.split()))
        elif any(sign in text for sign in PEER_LOST):
            deaths.append(text.splitlines()[-1])
    return deaths


def _lost(deaths: list[str]) -> MorphorayError:
    reasons = "\n".join(f"  {death}" for death in deaths)
    return MorphorayError(
        f"training stopped, since a worker's process ended:\n{reasons}\n"
        "Run the same command again: it goes on from the newest checkpoint. With training.max_failures above "
        "0 Ray starts the workers again by itself."
    )
