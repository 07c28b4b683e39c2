"""SIGKILL of a worker, an actor, the driver or a node: the same command ends in the same bytes."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from raynodes import ENVIRONMENT, Cluster
from tinyrun import Command, losses, make_images, settings, start, weights

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


def on(cluster: Cluster) -> tuple[str, str]:
    """The words that send a command to the cluster."""
    return "--address", cluster.address


def train(cluster: Cluster, config: Path, run: Path, *words: str) -> Command:
    return start("train", config, run, run.with_suffix(".log"), *on(cluster), *words, **ENVIRONMENT)


@pytest.fixture(scope="module")
def whole(cluster: Cluster, config: Path, folder: Path) -> Path:
    """The run that nothing happened to."""
    with train(cluster, config, folder / "whole") as started:
        started.succeed(600)
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


def test_a_worker_larger_than_any_node_is_refused(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """Two CPUs are there, on two nodes; Ray would wait for ever."""
    words = ("--set", "training.cpus_per_worker=2", "--set", "training.num_workers=1")
    with train(cluster, config, tmp_path / "run", *words) as refused:
        said = refused.fail()
    assert "train needs 1 times 2 CPUs and 0 GPUs, each on one node" in said
    assert "are 2 of 1 and 0: room for 0" in said


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


KEY = ["site_id", "view", "crop"]
# When the victim is killed, three times: when so many parts of 48 and 56 are written; the actor, which works
# ahead of the tasks that write, after so many CPU seconds: it loads its model, is amid its work, loads again.
PARTS_DONE = {"driver": (2, 16, 30), "node": (2, 16, 30), "actor": (0, 0, 0)}
ACTOR_CPU_S = (0, 6, 2)


@pytest.fixture(scope="module")
def encoded(cluster: Cluster, config: Path, folder: Path) -> Path:
    """The folder of a run whose encoding nothing happened to."""
    with encode(cluster, config, folder / "encoded") as untouched:
        untouched.succeed()
    return folder / "encoded"


@pytest.mark.parametrize("victim", ["driver", "actor", "node"])
def test_encoding_loses_no_row_and_makes_none_twice(
    cluster: Cluster, config: Path, encoded: Path, tmp_path: Path, victim: str
) -> None:
    run = tmp_path / "run"
    command = partial(encode, cluster, config, run)
    said = killed_thrice(command, run / "latents", "*.counts.json", cluster, victim, "EncodePart")
    assert "encode: 11520 latents of 48 sites, 0 quarantined" in said
    assert files_of(run / "latents") == files_of(encoded / "latents")
    parts = (run / "latents").glob("*.parquet")
    rows = [row for part in parts for row in pq.read_table(part, columns=KEY).to_pylist()]
    assert len(rows) == len({tuple(row.values()) for row in rows}) == 11520


def encode(cluster: Cluster, config: Path, run: Path) -> Command:
    """120 crops of each of 48 sites in 48 parts: enough work for an actor to be met at it."""
    words = ("--set", "data_dir=null", "--set", "image.crops=120", *on(cluster))
    return start("encode", config, run, run.with_suffix(".log"), *words, **ENVIRONMENT)


@pytest.fixture(scope="module")
def images(cluster: Cluster, tiny_bundle: Path, folder: Path) -> Path:
    """The generated images that nothing happened to."""
    with generate(cluster, tiny_bundle, folder / "images-whole") as untouched:
        untouched.succeed()
    return folder / "images-whole"


@pytest.mark.parametrize("victim", ["driver", "actor", "node"])
def test_generating_loses_no_image_and_makes_none_twice(
    cluster: Cluster, tiny_bundle: Path, images: Path, tmp_path: Path, victim: str
) -> None:
    parts = tmp_path / "images" / "parts"
    command = partial(generate, cluster, tiny_bundle, tmp_path / "images")
    said = killed_thrice(command, parts, "*.parquet", cluster, victim, "GeneratePart")
    assert "generate: 280 images" in said
    assert files_of(parts) == files_of(images / "parts")


def generate(cluster: Cluster, bundle: Path, out: Path) -> Command:
    """40 images of each of 7 perturbations, in 56 parts."""
    sizes = ("steps=48", "images_per_part=5", "batch_size=5", "cpus_per_actor=0.5")
    options = [word for size in sizes for word in ("--set", f"generation.{size}")]
    return Command(
        out.with_suffix(".log"), "generate", bundle, out, "--n", "40", *options, *on(cluster), **ENVIRONMENT
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def killed_thrice(
    run: Callable[[], Command], folder: Path, pattern: str, cluster: Cluster, victim: str, actor: str
) -> str:
    """SIGKILL the victim whenever so many files are there. What the same command says once all are."""

    def done() -> int:
        return len(list(folder.glob(pattern)))

    found = []
    with ExitStack() as stack:
        started = stack.enter_context(run())
        for count, cpu_s in zip(PARTS_DONE[victim], ACTOR_CPU_S, strict=True):
            started.until(lambda count=count: done() >= count, 300)
            found.append(done())
            strike(started, cluster, victim, actor, cpu_s)
            if victim == "driver":
                started = stack.enter_context(run())
        started.succeed()
    print(f"{victim} killed with {found} parts done")
    assert found[-1] < done()
    with run() as again:
        return again.succeed()


def strike(started: Command, cluster: Cluster, victim: str, actor: str, cpu_s: float) -> None:
    """SIGKILL the driver, the one actor of that class after `cpu_s` of work, or a node that one replaces."""
    if victim == "driver":
        started.process.kill()
        started.process.wait()
    elif victim == "actor":
        (process,) = started.until(lambda: worked(cluster.running(actor), cpu_s), 300)
        process.kill()
        process.wait(30)
    else:
        cluster.lose()
        cluster.add()


def worked(processes: list[psutil.Process], cpu_s: float) -> list[psutil.Process]:
    """Those that have had so many CPU seconds."""
    found = []
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            found += [each] if sum(each.cpu_times()[:2]) >= cpu_s else []
    return found
