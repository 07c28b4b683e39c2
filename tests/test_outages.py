"""Object storage that stops for a minute, or refuses the credentials half-way, in training and encoding."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from morphoray.storage import Storage
from s3server import LocalS3
from tinyrun import Command, make_images, settings, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
OUTAGE_S = 60.0


@pytest.fixture
def config(s3_server_own: LocalS3, codec_folder: Path, tmp_path: Path) -> Path:
    """A run under s3://own/run; its images are local, its latents are read in windows while it trains."""
    values: dict[str, Any] = settings("s3://own/run", make_images(tmp_path / "images", 24), codec_folder)
    values["encode"] = {"sites_per_part": 1, "batch_size": 4}
    values["training"] |= {
        "max_steps": 60,
        "checkpoint_every": 10,
        "sample_every": None,
        "shuffle_window": 8,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run_stage(stage: str, config: Path, run_dir: str = "s3://own/run") -> Command:
    """The stage, its log beside the config."""
    return start(stage, config, run_dir, config.with_name(f"{stage}.log"), OMP_WAIT_POLICY="PASSIVE")


def files_of(uri: str, suffix: str) -> dict[str, bytes]:
    storage = Storage()
    uris = storage.list_files(uri, suffix=suffix, recursive=True)
    return {found.removeprefix(uri): storage.read_bytes(found) for found in uris}


def markers(uri: str, suffix: str, count: int) -> Callable[[], bool]:
    """Whether there are that many marker files by now."""
    return lambda: len(Storage().list_files(uri, suffix=suffix, recursive=True)) >= count


HALF_WAY = {
    "encode": markers("s3://own/run/latents", ".counts.json", 5),
    "train": markers("s3://own/run/checkpoints", "complete.json", 2),
}
RESULT = {"encode": ("latents", ".parquet"), "train": ("bundle", ".safetensors")}


def untouched(config: Path, stage: str) -> dict[str, bytes]:
    """The files of a run that nothing happened to."""
    folder, suffix = RESULT[stage]
    with run_stage(stage, config, "s3://own/whole") as whole:
        whole.succeed(600)
    return files_of(f"s3://own/whole/{folder}", suffix)


def interrupted(config: Path, stage: str) -> dict[str, bytes]:
    folder, suffix = RESULT[stage]
    return files_of(f"s3://own/run/{folder}", suffix)


@pytest.mark.parametrize("stage", ["encode", "train"])
def test_a_server_that_stops_for_a_minute(config: Path, s3_server_own: LocalS3, stage: str) -> None:
    """The run waits the minute out or stops with the reason; either way it ends in the same bytes."""
    whole = untouched(config, stage)
    with run_stage(stage, config) as run:
        run.until(HALF_WAY[stage], 600)
        s3_server_own.stop(grace_s=0.1)
        time.sleep(OUTAGE_S)
        s3_server_own.start()
        survived = run.process.wait(600) == 0
        if not survived:
            assert "gave no good answer" in run.said and "run the same command again" in run.said
    print(f"{stage}: {OUTAGE_S:.0f} s without a server: the run {'went on' if survived else 'stopped'}")
    with run_stage(stage, config) as again:
        again.succeed(600)
    assert interrupted(config, stage) == whole


@pytest.mark.parametrize("stage", ["encode", "train"])
def test_credentials_that_are_refused_half_way(config: Path, s3_server_own: LocalS3, stage: str) -> None:
    """The run stops soon, saying what was refused; with the right ones it goes on to the same bytes."""
    whole = untouched(config, stage)
    right = s3_server_own.secret_key
    with run_stage(stage, config) as run:
        run.until(HALF_WAY[stage], 600)
        s3_server_own.stop(grace_s=0.1)
        s3_server_own.secret_key = "another"
        s3_server_own.start()
        said = run.fail(600)
    assert "refused the credentials" in said and "AWS_SECRET_ACCESS_KEY" in said
    s3_server_own.stop(grace_s=0.1)
    s3_server_own.secret_key = right
    s3_server_own.start()
    with run_stage(stage, config) as again:
        again.succeed(600)
    assert interrupted(config, stage) == whole
