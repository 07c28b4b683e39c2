"""Any number of training workers: the same numbers from one, two, and a run that changes on the way."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from morphoray.config import RunConfig, TrainingConfig
from morphoray.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    PassingStorageError,
    ResourceError,
    StorageError,
)
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.run import run_encode, run_train
from morphoray.pipelines.trainer import StopAtMistakes, lost_workers
from tinyrun import REAL_RAY, losses, make_images, run_of, settings

pytestmark = REAL_RAY

# Sums in another order, and Adam's division by small second moments, part the runs by rounding alone.
RTOL = 1e-5


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, codec_folder: Path) -> Iterator[dict[str, Any]]:
    """A run's values whose latents are encoded, on a cluster that stays for the module."""
    folder = tmp_path_factory.mktemp("workers")
    made = settings(folder / "run", make_images(folder / "images"), codec_folder)
    made["data_dir"] = str(folder / "data")
    made["perturbations"] |= {"dropout": 0.2, "context": ["experiment"], "context_dropout": 0.3}
    with connected():
        run_encode(run_of(made))
        yield made


def train(values: dict[str, Any], run_dir: Path, **training: Any) -> dict[int, float]:
    """Train these latents; the losses by step."""
    whole = {"max_steps": 12, "checkpoint_every": 6, "sample_every": None} | training
    made = values | {"run_dir": str(run_dir), "training": values["training"] | whole}
    run_train(run_of(made))
    return losses(run_dir)


def test_two_workers_are_one_and_may_change_on_the_way(values: dict[str, Any], tmp_path: Path) -> None:
    """A global batch of 7 in 2 micro-batches: 3 and 4 samples a worker, cut 1 + 2 and 2 + 2."""
    batch = {"batch_size": 7, "gradient_accumulation": 2}
    one = train(values, tmp_path / "one", **batch)
    two = train(values, tmp_path / "changed", num_workers=2, max_steps=6, **batch)
    assert list(two) == list(range(1, 7))
    changed = train(values, tmp_path / "changed", num_workers=1, **batch)
    assert list(changed) == list(range(1, 13))
    apart = [abs(one[step] - changed[step]) / one[step] for step in one]
    print(f"1 worker against 2, then 1: losses apart by at most {max(apart):.1e} of their value")
    np.testing.assert_allclose(list(one.values()), list(changed.values()), rtol=RTOL)
    assert len(set(one.values())) == 12


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 10])
def test_two_workers_end_as_one_does(values: dict[str, Any], tmp_path: Path, window: int | None) -> None:
    whole = {"batch_size": 8, "shuffle_window": window, "max_steps": 30}
    one = train(values, tmp_path / "one", **whole)
    two = train(values, tmp_path / "two", num_workers=2, **whole)
    apart = [abs(one[step] - two[step]) / one[step] for step in one]
    print(f"1 worker of 8 against 2 of 4, window {window}: losses apart by at most {max(apart):.1e}")
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=RTOL)


def test_a_loss_that_is_not_finite_ends_the_run_though_failures_are_retried_for_ever(
    values: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"the loss at step \d+ is (nan|inf).*lower training.learning_rate"):
        train(values, tmp_path / "run", learning_rate=1e30, num_workers=2, max_failures=-1)


def test_only_errors_that_may_pass_are_retried() -> None:
    def seen(error: Exception) -> None:
        StopAtMistakes().after_exception(None, {0: RuntimeError("[gloo] Connection closed"), 1: error})

    for error in (PassingStorageError("no answer"), KeyError("loss"), RayActorError()):
        seen(error)
    for mistake in (
        DataError("nan"),
        StorageError("refused the credentials"),
        MissingExtraError("s3fs", "s3"),
    ):
        with pytest.raises(ControllerError) as raised:
            seen(mistake)
        assert raised.value.controller_failure is mistake
        assert str(pickle.loads(pickle.dumps(mistake))) == str(mistake)


def test_elastic_workers_are_refused_only_below_their_least(values: dict[str, Any], tmp_path: Path) -> None:
    made = values | {"run_dir": str(tmp_path / "run")}
    wanted = run_of(made, "training.num_workers=[100, 200]", "training.batch_size=200")
    with pytest.raises(ResourceError, match="train needs 100 CPUs and 0 GPUs, the cluster has"):
        run_train(wanted)


@pytest.mark.parametrize(
    ("workers", "batch", "word"),
    [
        ("[4, 1]", 8, r"\[least, most\]"),
        ("0", 8, r"\[least, most\]"),
        ("[1, 4]", 3, "at least num_workers x gradient_accumulation = 4"),
    ],
)
def test_impossible_numbers_of_workers_are_refused(workers: str, batch: int, word: str) -> None:
    values = {"run_dir": "r", "training": {"batch_size": batch}}
    with pytest.raises(ConfigError, match=word):
        run_of(values, f"training.num_workers={workers}")


def test_numbers_of_workers_survive_the_stored_configuration() -> None:
    config = TrainingConfig(batch_size=7, num_workers=(1, 4))
    assert (config.min_workers, config.max_workers) == (1, 4)
    again = RunConfig.model_validate(RunConfig(run_dir="r", training=config).model_dump(mode="json")).training
    assert again == config
    assert TrainingConfig(num_workers=3).min_workers == TrainingConfig(num_workers=3).max_workers == 3


def test_a_lost_worker_is_told_from_a_mistake_in_the_loop() -> None:
    lost = RuntimeError("Traceback …\nRuntimeError: [gloo] Connection closed by peer [127.0.0.1]:1234")
    both = WorkerGroupError("2 workers", {0: lost, 1: RayActorError()})
    said = lost_workers(both)
    assert said[0].startswith("RuntimeError: [gloo] Connection closed by peer")
    assert said[1].startswith("The actor")
    assert lost_workers(WorkerGroupError("1 worker", {0: KeyError("loss")})) == []
