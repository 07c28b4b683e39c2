"""Saving beside the steps: one save at a time, its failure raised in the loop, the marker last."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from morphoray.errors import DataError, StorageError
from morphoray.pipelines.background import Background
from morphoray.pipelines.checkpoints import Checkpoints
from morphoray.storage import Storage, is_remote
from morphoray.training.state import TrainingState
from s3server import LocalS3


def state_at(step: int, width: int = 4) -> TrainingState:
    """A state whose weights all equal its step."""
    model = nn.Linear(width, width)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()
    for parameter in model.parameters():
        nn.init.constant_(parameter, float(step))
    return TrainingState(model, EMAModel(model.parameters()), optimizer, step=step)


def checkpoints_in(uri: str, keep: int = 2, **storage: Any) -> Checkpoints:
    return Checkpoints(Storage(**storage), uri, "f", keep)


def test_a_snapshot_is_the_state_as_it_was(tmp_path: Path) -> None:
    state, checkpoints = state_at(3), checkpoints_in(str(tmp_path))
    snapshot = checkpoints.snapshot(state)
    for parameter in state.model.parameters():
        nn.init.constant_(parameter, 7.0)  # training goes on meanwhile
    state.step = 4
    checkpoints.write(snapshot)
    restored = state_at(0)
    checkpoints.restore(restored)
    assert restored.step == 3
    assert all(torch.equal(each, torch.full_like(each, 3.0)) for each in restored.model.parameters())


def test_the_marker_comes_last_and_older_ones_go_after_it(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(str(tmp_path), keep=2)
    for step in (1, 2, 3):
        checkpoints.save(state_at(step))
    assert checkpoints.steps() == [2, 3]
    assert not (tmp_path / "step-00000001").exists()
    (tmp_path / "step-00000003" / "complete.json").unlink()  # killed before the marker
    assert checkpoints.newest() == 2
    whole = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "step-00000002").iterdir()}
    assert max(whole, key=whole.__getitem__) == "complete.json"


def test_the_loop_goes_on_while_a_save_is_under_way_and_the_next_waits() -> None:
    gate, order = threading.Event(), []

    def save(name: str) -> None:
        gate.wait(10)
        order.append(name)

    with Background() as background:
        background.start(lambda: save("first"))
        assert not background.check()  # under way, and the loop is not held
        threading.Timer(0.1, gate.set).start()
        background.start(lambda: save("second"))
        assert order[0] == "first"  # at most one in flight
    assert order == ["first", "second"]  # the end waits


def refuse() -> None:
    raise StorageError("s3://b/step: refused the credentials")


def test_a_failed_save_is_raised_once_at_the_next_step() -> None:
    with Background() as background:
        background.start(refuse)
        deadline = time.monotonic() + 10
        with pytest.raises(StorageError, match="refused the credentials"):
            while time.monotonic() < deadline:
                background.check()
        assert background.check()
    with pytest.raises(StorageError, match="refused"), Background() as background:
        background.start(refuse)


def test_of_two_errors_the_loops_own_is_raised() -> None:
    with pytest.raises(DataError, match="nan") as caught, Background() as background:
        background.start(refuse)
        raise DataError("the loss is nan")
    assert "refused the credentials" in caught.value.__notes__[0]


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = checkpoints_in(str(tmp_path))
    snapshot = checkpoints.snapshot(state_at(1, width=64))

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(snapshot), "write", lambda self, folder: full(folder))
    with pytest.raises(StorageError, match=r"step 1 could not be written .*No space left.* set TMPDIR"):
        checkpoints.write(snapshot)


def test_a_save_to_s3_holds_the_step_for_the_copy_only(s3_env: LocalS3) -> None:
    """What `save` did before in the step, against what a step waits for now, 25 MB of state in S3."""
    uri = f"s3://{s3_env.bucket}/checkpoints-{time.monotonic_ns()}"
    assert is_remote(uri)
    checkpoints, state = checkpoints_in(uri), state_at(1, width=1250)
    assert not checkpoints.steps()  # connected from here on
    started = time.perf_counter()
    checkpoints.save(state)
    whole = time.perf_counter() - started
    state.step = 2
    with Background() as background:
        started = time.perf_counter()
        snapshot = checkpoints.snapshot(state)
        background.start(lambda: checkpoints.write(snapshot))
        held = time.perf_counter() - started
    print(f"a step is held for {1000 * held:.0f} ms, was {1000 * whole:.0f} ms")
    assert checkpoints.steps() == [1, 2]
    assert held < whole / 2
