"""Streaming: every sample once an epoch with its own noise, resume in mid-epoch, bad images, no cache."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from morphoray.cli import main
from morphoray.config import RunConfig
from morphoray.errors import BadFractionError, ConfigError, DataError, ResourceError
from morphoray.pipelines.cluster import connected, train_resources
from morphoray.pipelines.layout import layout_of, resolve
from morphoray.pipelines.run import run_import, run_train
from morphoray.pipelines.stream import Stage, dataset_of_items
from morphoray.pipelines.streamed import Parts, parts_to_do
from morphoray.pipelines.train import checkpoints_of, run_workers, training_settings
from morphoray.seeds import fingerprint
from morphoray.storage import Storage
from morphoray.training.consumed import Block, Consumed, sample_seed
from morphoray.training.latents import LatentSet
from morphoray.training.streamed import Streamed
from s3server import LocalS3
from tinyrun import REAL_RAY, Command, losses, make_images, run_of, settings

pytestmark = REAL_RAY
COMPOUNDS = ("dmso", "taxol")
SMALL = {"cpus_per_worker": 0.5, "checkpoint_every": 5, "sample_every": None}


def streaming(run_dir: str | Path, images: Path, codec: Path, **training: Any) -> dict[str, Any]:
    """A run in mode stream that fits two CPUs with two workers."""
    values = settings(run_dir, images, codec, mode="stream", **SMALL | training)
    values["encode"] |= {"cpus_per_actor": 0.5}
    values["perturbations"] |= {"context": ["experiment"]}
    return values


def seeds_of(parts: Parts, chosen: list[tuple[int, int]], seed: int = 0) -> list[int]:
    """The seeds of every sample of the parts: identity and flipped, one crop."""
    return [
        sample_seed(seed, epoch, site, 0, view)
        for epoch, number in chosen
        for site in parts.of(epoch, number)["site_id"].to_pylist()
        for view in ("identity", "hflip")
    ]


def samples_in(told: dict[str, Any], parts: Parts) -> int:
    """How many samples a checkpoint counts as consumed."""
    begun = sum(
        sum(seed <= last for seed in seeds_of(parts, [(epoch, number)]))
        for epoch, number, last in told["begun"]
    )
    finished = [(epoch, number) for epoch, number in told["finished"]]
    assert len(set(finished)) == len(finished)
    return int(told["epochs"] * parts.samples + len(seeds_of(parts, finished)) + begun)


# Without Ray: blocks by hand.


def block(epoch: int, number: int, size: int = 5, bad: tuple[str, ...] = ()) -> Block:
    """A part whose samples have seeds that tell epoch, part and place, and a mean of one number."""
    seeds = [1000 * epoch + 100 * number + place for place in range(size)]
    mean = [np.float16(number).tobytes()] * size
    names = [COMPOUNDS[place % 2] for place in range(size)]
    return Block((epoch, number), seeds, names, mean, [np.float16(0).tobytes()] * size, list(bad))


def data_of(blocks: list[Block], consumed: Consumed, limit: int = 100) -> Streamed:
    def check(bad: int) -> None:
        if bad > limit:
            raise BadFractionError(f"{bad} bad")

    vectors = {name: np.array([float(place)]) for place, name in enumerate(COMPOUNDS)}
    return Streamed(iter(blocks), (1, 1, 1), vectors, 15, consumed, check)


def taken(data: Streamed, count: int) -> list[int]:
    return list(data.at(0, count, range(count)).seeds or ())


def test_samples_come_once_and_a_resume_repeats_none_of_them() -> None:
    order = [(0, 2), (0, 0), (1, 1), (0, 1), (1, 0), (1, 2)]
    everything = [block(*part) for part in order]
    wanted = [seed for each in everything for seed in each.seeds]
    whole = data_of(everything, Consumed(3))
    assert [seed for _ in range(10) for seed in taken(whole, 3)] == wanted
    assert whole.consumed == Consumed(3, finished=set(order))
    for steps in range(1, 10):
        first = data_of(everything, Consumed(3))
        before = [seed for _ in range(steps) for seed in taken(first, 3)]
        told = json.loads(json.dumps(first.position()))
        # What was in flight comes again, in another order, and what is whole is not asked for.
        consumed = Consumed.load(3, told)
        later = [each for each in reversed(everything) if not consumed.has(each.part)]
        resumed = data_of(later, consumed)
        assert sorted(before + taken(resumed, 30 - 3 * steps)) == sorted(wanted)
        assert resumed.position() == {"epochs": 2, "finished": [], "begun": [], "bad": []}


def test_a_batch_may_cross_blocks_and_keeps_its_vectors() -> None:
    rows: LatentSet = data_of([block(0, 0, 2), block(0, 1, 2)], Consumed(2)).at(0, 3, range(3))
    assert rows.mean.flatten().tolist() == [0, 0, 1]
    assert rows.vectors[rows.row].flatten().tolist() == [0, 1, 0]
    assert rows.seeds == (0, 1, 100)


def test_workers_records_are_merged_by_hand() -> None:
    base = {"epochs": 1, "finished": [[1, 0]], "begun": [[1, 1, 7], [2, 0, 3]], "bad": ["a"]}
    one, two = Consumed.load(3, base), Consumed.load(3, base)
    one.finish((1, 1))
    two.take((2, 0), 9)
    two.finish((1, 2))
    two.bad.add("b")
    one.merge([two])
    assert one.told() == {"epochs": 2, "finished": [], "begun": [[2, 0, 9]], "bad": ["a", "b"]}
    assert one.left() == (2, 3)
    assert one.has((1, 2)) and not one.has((2, 0))


def test_a_part_without_images_is_finished_and_too_many_bad_ones_stop() -> None:
    blocks = [block(0, 0, 0, ("a", "b")), block(0, 1, 5, ("c",))]
    data = data_of(blocks, Consumed(2))
    assert len(taken(data, 5)) == 5
    assert data.position() == {"epochs": 1, "finished": [], "begun": [], "bad": ["a", "b", "c"]}
    with pytest.raises(DataError, match="the stream ended at step 0"):
        taken(data, 1)
    with pytest.raises(BadFractionError, match="3 bad"):
        taken(data_of(blocks, Consumed(2), limit=2), 5)


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("training.num_workers=[1, 2]", "one number with mode: stream"),
        ("training.num_workers=3", "must divide by num_workers 3"),
        ("training.shuffle_window=10", "shuffle_window belongs to mode: latents"),
        ("training.mode=cache", "'latents' or 'stream'"),
    ],
)
def test_what_a_stream_can_not_is_refused(override: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        run_of({"run_dir": "r", "training": {"mode": "stream", "batch_size": 4}}, override)


def test_runs_from_latents_keep_their_fingerprint() -> None:
    config = RunConfig(run_dir="r")
    told = training_settings(resolve(config))
    assert told["training"]["mode"] == "latents"
    assert fingerprint(told["training"]) == "01baee8c5c253910"  # as of the version before there were streams


def test_resources_are_the_sum_and_the_dry_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = streaming(tmp_path / "run", tmp_path, tmp_path, num_workers=2)
    assert str(train_resources(run_of(values))) == "2 CPUs and 0 GPUs"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    (tmp_path / "train").mkdir()
    assert main(["train", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "#   train: 2 CPUs and 0 GPUs, encoding included (training.mode: stream)" in said
    assert "#   encode" not in said


# On a real Ray.


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("streamed") / "images")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected():
        yield


def test_parts_take_every_site_once_an_epoch_in_another_order(
    images: Path, codec_folder: Path, tmp_path: Path
) -> None:
    config = run_import(run_of(streaming(tmp_path / "run", images, codec_folder), "encode.sites_per_part=5"))
    parts = Parts(config, list(COMPOUNDS))
    assert (parts.per_epoch, parts.samples) == (3, 24)
    orders = [
        [site for number in range(3) for site in parts.of(epoch, number)["site_id"].to_pylist()]
        for epoch in (0, 1)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(parts.sites["site_id"].to_pylist())
    assert orders[0] != orders[1]
    assert [parts.size(number) for number in range(3)] == [len(parts.of(0, number)) for number in range(3)]
    # 10 + 10 + 4 samples an epoch; parts (0, 1) and (0, 0) are whole: 4 + 10 + 10 are enough for 20.
    consumed = Consumed(3, finished={(0, 0), (0, 1)})
    assert parts_to_do(parts, consumed, 20, 0, 1.0) == [(0, 2), (1, 0), (1, 1)]
    assert parts_to_do(parts, consumed, 20, 1, 0.8) == [(0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    with pytest.raises(DataError, match="no sites to train on"):
        Parts(config, [])


def test_a_stream_runs_a_few_blocks_ahead_and_no_more(cluster: None, tmp_path: Path) -> None:
    def read(item: dict[str, Any], folder: Path) -> dict[str, Any]:
        (folder / f"{item['number']}").touch()
        return item

    class Encode:
        def __call__(self, items: Any) -> Any:
            return items

    from morphoray.pipelines.ahead import run_few_ahead

    stages = [
        Stage(read, {"folder": tmp_path}, cpus=0.5),
        Stage(Encode, num_actors=1, cpus=0.5, spreads=True),
    ]
    dataset = dataset_of_items([{"number": number} for number in range(40)], stages)
    run_few_ahead(dataset, 1)
    (shard,) = dataset.streaming_split(1, equal=False)
    rows = iter(shard.iter_rows())
    next(rows)
    time.sleep(3)
    ahead = len(list(tmp_path.iterdir()))
    print(f"{ahead} blocks read with one consumed")
    assert ahead <= 12
    assert len(list(rows)) == 39


def test_training_streams_goes_on_in_mid_epoch_and_quarantines(
    cluster: None, codec_folder: Path, tmp_path: Path
) -> None:
    images = make_images(tmp_path / "images")
    (images / "train" / "3.png").write_bytes(b"no image")
    values = streaming(tmp_path / "run", images, codec_folder, max_steps=7)
    values["encode"]["max_bad_fraction"] = 0.1
    config = run_of(values)
    run_train(config)
    told = position(config)
    parts = Parts(resolve(config), list(COMPOUNDS))
    folder = tmp_path / "run" / "quarantine" / "stream"
    (row,) = [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert Path(row["uri"]).name == "3.png" and row["reason"]
    assert told["bad"] == [row["item"]]
    # 28 samples of 22 good ones an epoch: in the middle of the second.
    assert told["epochs"] == 1
    summary = run_train(run_of(values, "training.max_steps=11"))
    assert summary.steps == 11
    assert position(config) == {"epochs": 2, "finished": [], "begun": [], "bad": [row["item"]]}  # 44
    assert list(losses(tmp_path / "run")) == list(range(1, 12))
    assert not (tmp_path / "run" / "latents").exists()
    assert parts.per_epoch == 3
    manifest = json.loads((tmp_path / "run" / "bundle" / "morphoray.json").read_text())
    assert manifest["training"]["images_seen"] == 44


@pytest.mark.slow
def test_too_many_bad_images_stop_the_run_and_are_listed(
    cluster: None, codec_folder: Path, tmp_path: Path
) -> None:
    images = make_images(tmp_path / "images")
    (images / "train" / "3.png").write_bytes(b"no image")
    run = streaming(tmp_path / "run", images, codec_folder, max_steps=12)  # two epochs
    with pytest.raises(BadFractionError, match=r"1 of 12 sites could not be read") as caught:
        run_train(run_of(run))
    assert "All are listed under" in str(caught.value) and "quarantine/stream" in str(caught.value)
    assert not (tmp_path / "run" / "bundle" / "morphoray.json").exists()


def position(config: RunConfig) -> dict[str, Any]:
    """The data's position in the newest checkpoint."""
    step, told = checkpoints_of(resolve(config)).position()
    assert step and told
    return told


def test_too_small_a_cluster_is_refused_with_the_sum(
    cluster: None, images: Path, codec_folder: Path, tmp_path: Path
) -> None:
    values = streaming(tmp_path / "run", images, codec_folder)
    with pytest.raises(ResourceError, match=r"train needs 101\.5 CPUs and 0 GPUs, the cluster has"):
        run_train(run_of(values, "encode.num_actors=200"))


@pytest.mark.slow
def test_every_sample_comes_once_an_epoch_with_its_own_noise_on_one_worker_and_on_two(
    cluster: None, images: Path, codec_folder: Path, tmp_path: Path
) -> None:
    def record(arguments: dict[str, Any]) -> None:
        import ray

        from morphoray.diffusion.objective import draw_noise
        from morphoray.pipelines.conditions import fit_conditions
        from morphoray.pipelines.streamed import open_stream

        config = RunConfig.model_validate(arguments["config"])
        data = open_stream(config, fit_conditions(config), (16, 2, 2), None)
        seen = []
        try:
            while True:
                rows = data.at(0, 1, range(1))
                assert rows.seeds is not None
                noise = draw_noise(rows.seeds, data.shape, 1000, 0.5)
                numbers = [float(noise.posterior.sum()), float(noise.noise.sum()), int(noise.timesteps)]
                seen.append([rows.seeds[0], *numbers, float(rows.mean.float().sum())])
        except DataError:
            rank = ray.train.get_context().get_world_rank()
            Path(config.run_dir, f"rank-{rank}.json").write_text(json.dumps(seen))

    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        values = streaming(folder, images, codec_folder, num_workers=workers, max_steps=18)
        config = run_import(run_of(values))
        run_workers(config, record)
        shares = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
        assert len(shares) == workers and all(shares)
        found.append({row[0]: row[1:] for share in shares for row in share})
        assert Counter(row[0] for share in shares for row in share).most_common(1)[0][1] == 1
        parts = Parts(config, list(COMPOUNDS))
        chosen = parts_to_do(parts, Consumed(3), 72, 4 * workers, 0.95)
        assert len(chosen) >= 9
        assert set(found[-1]) == set(seeds_of(parts, chosen))
        sizes = [len(share) for share in shares]
        print(f"{workers} workers took {sizes} of {len(chosen)} parts of 8 samples")
        assert max(sizes) - min(sizes) <= 8
    both = found[0].keys() & found[1].keys()
    assert len(both) >= 72
    assert all(found[0][seed] == found[1][seed] for seed in both)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_driver_killed_in_mid_epoch_goes_on_and_repeats_nothing_that_a_checkpoint_has(
    codec_folder: Path, tmp_path: Path, s3_env: LocalS3, workers: int
) -> None:
    """From the S3 server, images included: 48 sites, 12 parts of 8 samples an epoch, 2.5 epochs."""
    root = f"s3://{s3_env.bucket}/stream-{workers}"
    storage = Storage()
    storage.upload_dir(make_images(tmp_path / "images", 48), f"{root}/images")
    values = streaming(f"{root}/run", Path("images"), codec_folder, max_steps=60, num_workers=workers)
    values["dataset"]["source"] = f"{root}/images"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    with Command(tmp_path / "log", "train", file) as killed:  # SIGKILL to the driver and its workers
        killed.until(lambda: re.search(r" (2[89]|3\d)/60 ", killed.said), 600)
    config = run_of(values)
    step, told = checkpoints_of(resolve(config)).position()
    parts = Parts(resolve(config), list(COMPOUNDS))
    assert told and 0 < step < 60 and samples_in(told, parts) == 4 * step
    epoch, left = Consumed.load(12, told).left()
    assert 0 < left < 12
    with Command(tmp_path / "log", "train", file) as again:
        said = again.succeed(600)
    assert f"{left} of 12 parts left of epoch {epoch + 1}" in said
    assert f"resuming at step {step} of 60" in said
    assert samples_in(position(config), parts) == 4 * 60
    assert storage.exists(layout_of(config).of("bundle", "morphoray.json"))
    assert not storage.list_files(layout_of(config).latents)
