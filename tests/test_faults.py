"""SIGKILL of a worker, an actor, the driver or a node: the same command ends in the same bytes."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from raynodes import ENVIRONMENT, Cluster
from tinyrun import Command, losses, make_images, settings, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 60

MOMENTS: dict[str, Callable[[Path, str], Any]] = {
    "before the first checkpoint": lambda run, said: re.search(r" [5-9]/60 ", said),
    "while a checkpoint is written": lambda run, said: (run / "checkpoints" / "step-00000020").exists(),
    "between checkpoints": lambda run, said: re.search(r" 4[5-9]/60 ", said),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module's folder, with images/ of 48 sites."""
    made = tmp_path_factory.mktemp("faults")
    make_images(made / "images", 48)
    return made


@pytest.fixture(scope="module")
def config(folder: Path, codec_folder: Path) -> Path:
    """Training by two workers, from latents under folder/data."""
    values = settings(folder / "run", folder / "images", codec_folder)
    values["data_dir"] = str(folder / "data")
    values["perturbations"]["dropout"] = 0.2
    values["encode"] = {"sites_per_part": 1, "batch_size": 4, "cpus_per_actor": 0.5}
    values["training"] |= {
        "max_steps": STEPS,
        "num_workers": 2,
        "checkpoint_every": 20,
        "sample_every": None,
        "shuffle_window": 20,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command(cluster: Cluster, log: Path, *words: str | Path) -> Command:
    return Command(log, *words, "--address", cluster.address, **ENVIRONMENT)


def train(cluster: Cluster, config: Path, run: Path, *words: str) -> Command:
    return command(cluster, run.with_suffix(".log"), "train", config, "--set", f"run_dir={run}", *words)


@pytest.fixture(scope="module")
def whole(cluster: Cluster, config: Path, folder: Path) -> Path:
    """The run that nothing happened to."""
    with train(cluster, config, folder / "whole") as started:
        started.succeed()
    return folder / "whole"


@pytest.mark.parametrize("moment", list(MOMENTS))
@pytest.mark.parametrize("victim", ["worker", "driver", "node"])
def test_training_ends_in_the_same_weights(
    cluster: Cluster, config: Path, whole: Path, tmp_path: Path, victim: str, moment: str
) -> None:
    run = tmp_path / "run"
    with train(cluster, config, run) as started:
        started.until(lambda: "train: " in started.said)
        workers = cluster.running("RayTrainWorker")
        assert len(workers) == 2
        started.until(lambda: MOMENTS[moment](run, started.said))
        if victim == "driver":
            started.process.kill()
            started.process.wait()
        else:
            workers[-1].kill() if victim == "worker" else cluster.lose()
            said = started.fail()
            assert "Run the same command again" in said
    assert not (run / "bundle" / "morphoray.json").exists()
    if victim == "node":
        cluster.add()
    with train(cluster, config, run) as again:
        said = again.succeed()
    resumed = re.search(r"2 workers; (?:resuming at step (\d+)|starting) of 60", said)
    assert resumed
    print(f"{victim} killed {moment}: resumed at step {resumed[1] or 0}")
    assert weights(run / "bundle") == weights(whole / "bundle")
    assert losses(run) == losses(whole)


def test_an_elastic_run_goes_on_by_itself_without_a_node_and_with_it_again(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    """Two workers, one after a node is lost, two when it is back; the losses of one worker throughout."""
    longer = ("--set", "training.max_steps=400", "--set", "training.log_every=10")
    elastic = ("--set", "training.num_workers=[1, 2]", "--set", "training.resize_every_s=5")
    with train(
        cluster, config, tmp_path / "run", *longer, *elastic, "--set", "training.max_failures=3"
    ) as run:
        run.until(lambda: re.search(r" 3\d/400 ", run.said))
        cluster.lose()
        run.until(lambda: re.search(r" 1 workers; resuming at step \d+", run.said))
        cluster.add()
        run.until(lambda: re.search(r" 2 workers; resuming at step", run.said))
        said = run.succeed()
    print("\n".join(re.findall(r"\d workers; .* of 400", said)))
    with train(cluster, config, tmp_path / "one", *longer, "--set", "training.num_workers=1") as one:
        one.succeed()
    here, there = losses(tmp_path / "run"), losses(tmp_path / "one")
    assert list(here) == list(there)
    apart = {step: abs(here[step] - there[step]) / there[step] for step in here}
    print(f"losses apart by at most {max(apart.values()):.1e}")
    # Adam lets rounding grow with the steps, so only the first hundred are held together.
    assert max(value for step, value in apart.items() if step <= 100) < 1e-3


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


@pytest.mark.parametrize("victim", ["driver", "actor"])
def test_encoding_loses_no_row_and_makes_none_twice(
    cluster: Cluster, config: Path, whole: Path, folder: Path, tmp_path: Path, victim: str
) -> None:
    words = (
        "encode",
        config,
        "--set",
        f"run_dir={tmp_path / 'run'}",
        "--set",
        f"data_dir={tmp_path / 'data'}",
    )
    latents = tmp_path / "data" / "latents"
    with command(cluster, tmp_path / "log", *words) as started:
        started.until(lambda: len(list(latents.glob("*.counts.json"))) >= 4)
        kill(started, cluster, victim, "EncodePart")
        done = len(list(latents.glob("*.counts.json")))
        if victim == "actor":
            started.succeed()
    with command(cluster, tmp_path / "log", *words) as again:
        assert "encode: 96 latents of 48 sites, 0 quarantined" in again.succeed()
    print(f"{victim} killed with {done} of 48 parts done")
    assert done < 48
    assert files_of(latents) == files_of(folder / "data" / "latents")
    rows = [row for part in latents.glob("*.parquet") for row in pq.read_table(part, columns=KEY).to_pylist()]
    assert len(rows) == len({tuple(row.values()) for row in rows}) == 96


KEY = ["site_id", "view", "crop"]


@pytest.mark.parametrize("victim", ["driver", "actor"])
def test_generating_loses_no_image_and_makes_none_twice(
    cluster: Cluster, tiny_bundle: Path, tmp_path: Path, victim: str
) -> None:
    sizes = ("steps=8", "images_per_part=5", "batch_size=5", "cpus_per_actor=0.5")
    options = [word for size in sizes for word in ("--set", f"generation.{size}")]

    def generate(name: str) -> Command:
        words = ("generate", tiny_bundle, tmp_path / name, "--n", "40", *options)
        return command(cluster, tmp_path / f"{name}.log", *words)

    with generate("whole") as untouched:
        untouched.succeed()
    parts = tmp_path / "killed" / "parts"
    with generate("killed") as started:
        started.until(lambda: len(list(parts.glob("*.parquet"))) >= 4)
        kill(started, cluster, victim, "GeneratePart")
        done = len(list(parts.glob("*.parquet")))
        if victim == "actor":
            started.succeed()
    with generate("killed") as again:
        assert "generate: 280 images" in again.succeed()
    print(f"{victim} killed with {done} of 56 parts done")
    assert done < 56
    assert files_of(parts) == files_of(tmp_path / "whole" / "parts")


def kill(started: Command, cluster: Cluster, victim: str, actor: str) -> None:
    """SIGKILL the driver, or the one actor of that class."""
    if victim == "driver":
        started.process.kill()
        started.process.wait()
    else:
        (process,) = cluster.running(actor)
        process.kill()
