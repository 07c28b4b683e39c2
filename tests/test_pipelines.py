"""The main job on a real Ray: every stage, its resume, its quarantine, and what it refuses."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from morphoray import schema
from morphoray.config import parse
from morphoray.diffusion.bundle import load_bundle
from morphoray.diffusion.generate import ImageRequest, SamplerSettings, sample_latents
from morphoray.errors import (
    BadFractionError,
    ConfigError,
    DataError,
    FingerprintError,
    MorphorayError,
    ResourceError,
)
from morphoray.imaging.png import encode_png
from morphoray.perturbations.table import read_vectors
from morphoray.pipelines.cluster import Resources, misfit, preflight, room
from morphoray.pipelines.conditions import fit_conditions
from morphoray.pipelines.encode import encode
from morphoray.pipelines.generate import read_images
from morphoray.pipelines.layout import layout_of, resolve
from morphoray.pipelines.run import run_everything, run_generate, run_import, run_train
from morphoray.pipelines.stream import RETRIES, Item, Stage, stream
from morphoray.pipelines.train import claim_checkpoints
from morphoray.progress import Progress
from morphoray.storage import Storage
from tinyrun import REAL_RAY, ROOT, make_images, run_of, settings, start, weights

pytestmark = REAL_RAY


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images")


def latents_of(run: Path) -> Any:
    parts = sorted((run / "latents").glob("*.parquet"))
    return parts, [pq.read_table(part) for part in parts]


def test_the_main_job_end_to_end_and_again(
    ray_cluster: None, tmp_path: Path, images: Path, codec_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_of(settings(tmp_path / "run", images, codec_folder))
    grid = run_everything(config)
    run = tmp_path / "run"
    parts, tables = latents_of(run)
    assert len(parts) == 3
    assert sum(len(table) for table in tables) == 24  # 12 images, two views
    assert tables[0].schema.field("latent_mean").type.shape == [16, 2, 2]
    assert tables[0].schema.metadata[b"morphoray_version"] == schema.VERSION.encode()
    flipped = tables[0].to_pandas().groupby("site_id")["view"].apply(set)
    assert all(views == {"identity", "hflip"} for views in flipped)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert Path(grid).read_bytes().startswith(b"\x89PNG")
    assert (run / "samples" / "step-00000004.png").is_file()
    assert list((run / "tensorboard").iterdir())
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["max_steps"] == 4
    manifest = json.loads((run / "bundle" / "morphoray.json").read_text())
    assert manifest["control"] == "dmso"
    assert manifest["training"]["images_seen"] == 16
    written = {path: path.stat().st_mtime_ns for path in (run / "latents").iterdir()}
    capsys.readouterr()
    run_everything(config)
    said = capsys.readouterr().out
    assert "was finished before, nothing to do" in said
    assert written == {path: path.stat().st_mtime_ns for path in (run / "latents").iterdir()}


def test_generated_images_survive_a_lost_part_unchanged(
    ray_cluster: None, tmp_path: Path, images: Path, codec_folder: Path
) -> None:
    config = run_of(
        settings(tmp_path / "run", images, codec_folder, max_steps=1),
        "generation.n=5",
        "generation.images_per_part=3",
    )
    summary = run_train(config)
    out = str(tmp_path / "out")
    assert run_generate(config, summary.bundle, out, None).images == 10
    before = read_images(Storage(), out)
    assert before.select(["perturbation_id", "index"]).to_pylist() == [
        {"perturbation_id": name, "index": index} for name in ("dmso", "taxol") for index in range(5)
    ]
    part = sorted((tmp_path / "out" / "parts").iterdir())[0]
    part.unlink()
    run_generate(config, summary.bundle, out, None)
    assert read_images(Storage(), out).equals(before)
    with pytest.raises(FingerprintError, match=r"generation\.steps: stored 2, now 3"):
        run_generate(
            config.model_copy(update={"generation": config.generation.model_copy(update={"steps": 3})}),
            summary.bundle,
            out,
            None,
        )


def test_bad_images_are_quarantined_and_mended_ones_taken(
    ray_cluster: None, tmp_path: Path, images: Path, codec_folder: Path
) -> None:
    values = settings(tmp_path / "run", images, codec_folder)
    good = (images / "train" / "3.png").read_bytes()
    (images / "train" / "3.png").write_bytes(good[:200])
    (images / "train" / "5.png").write_bytes(encode_png(np.zeros((3, 20, 20), np.uint8)))
    (images / "train" / "7.png").write_bytes(
        encode_png(np.ones((3, 9, 20), np.uint8) * np.arange(20, dtype=np.uint8))
    )
    config = run_import(run_of(values))
    with pytest.raises(BadFractionError, match=r"of 12 sites could not be read") as caught:
        encode(config)
    assert "encode.max_bad_fraction" in str(caught.value)
    lenient = resolve(run_of(values, "encode.max_bad_fraction=0.5"))
    summary = encode(lenient)
    assert (summary.rows, summary.quarantined) == (18, 3)
    folder = tmp_path / "run" / "quarantine" / "encode"
    rows = [row for part in folder.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    assert {Path(row["uri"]).name for row in rows} == {"3.png", "5.png", "7.png"}
    assert all(row["reason"] for row in rows)
    # A run that had stopped takes the mended images up; latents of good parts stay as they are.
    other = run_import(run_of(values | {"run_dir": str(tmp_path / "mended")}))
    with pytest.raises(BadFractionError):
        encode(other)
    for name in ("3.png", "5.png", "7.png"):
        (images / "train" / name).write_bytes(good)
    assert encode(other).rows == 24


def test_other_settings_are_refused_with_their_names(
    ray_cluster: None, tmp_path: Path, images: Path, codec_folder: Path
) -> None:
    values = settings(tmp_path / "run", images, codec_folder)
    encode(run_import(run_of(values)))
    with pytest.raises(FingerprintError, match=r"views: stored \['identity', 'hflip'\], now \['identity'\]"):
        encode(run_import(run_of(values, "encode.views=[identity]")))
    with pytest.raises(FingerprintError, match=r"dataset\.limit: stored None, now 3"):
        run_import(run_of(values, "dataset.limit=3"))
    claim_checkpoints(resolve(run_of(values)))
    changes = ["training.learning_rate=0.5", "image.resolution=8"]
    for _ in range(2):
        with pytest.raises(FingerprintError) as raised:
            claim_checkpoints(resolve(run_of(values, *changes)))
        told = [line.strip() for line in str(raised.value).splitlines()[1:-1]]
        assert told == [
            "latents.image.resolution: stored 16, now 8",
            "training.learning_rate: stored 0.001, now 0.5",
        ]


def test_preflight_says_what_is_missing(ray_cluster: None) -> None:
    with pytest.raises(ResourceError, match="needs 1000 CPUs and 0 GPUs, the cluster has"):
        preflight("train", Resources(1, 1000))


@pytest.mark.parametrize(
    ("needs", "nodes", "fit"),
    [
        (Resources(2, 4), [(2, 0)] * 4, 0),  # 8 CPUs of 8, and no node has 4
        (Resources(3, 4), [(8, 0), (7, 0)], 3),  # 2 + 1
        (Resources(4, 1, 1), [(8, 0), (2, 4)], 2),  # the GPUs' node has 2 CPUs only
        (Resources(2, 1.5, task_cpus=1), [(2, 0), (2, 0)], 1),  # the tasks would find half a CPU and half
        (Resources(1, 0.5, task_cpus=1), [(1, 0), (1, 0)], 1),
        (Resources(3, 0.1), [(0.3, 0)], 3),  # 0.3 / 0.1 is below 3 in floating point
        (Resources(1, 1), [], 0),
    ],
)
def test_what_fits_is_counted_node_by_node(
    needs: Resources, nodes: list[tuple[float, float]], fit: int
) -> None:
    assert min(room(nodes, needs), needs.count) == fit
    assert (misfit(needs, nodes) is None) == (fit == needs.count)


def test_a_worker_that_fits_no_node_is_told_with_the_sizes_of_the_nodes() -> None:
    beside = Resources(1, 2, elsewhere_cpus=3, elsewhere_gpus=1)
    assert misfit(beside, [(4, 0), (1, 1)]) is None
    assert "needs 5 CPUs and 1 GPUs, the cluster has 4 CPUs" in str(misfit(beside, [(2, 0), (2, 1)]))
    assert "has 8 CPUs and 0 GPUs" in str(misfit(beside, [(8, 0)]))
    told = misfit(Resources(2, 4), [(3, 0), (3, 0), (2, 1)])
    assert told is not None
    assert "needs 2 times 4 CPUs and 0 GPUs, each on one node" in told
    assert "2 of 3 and 0, 1 of 2 and 1: room for 0. Ray would wait for ever. Add larger nodes" in told


def test_an_item_that_kills_its_process_is_not_tried_for_ever(ray_cluster: None, tmp_path: Path) -> None:
    class Deadly:  # in here, since Ray's workers can't import this module
        def __call__(self, item: Item) -> Item:
            with (tmp_path / "tried").open("a") as file:
                file.write(f"{item['number']}\n")
            if item["number"] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return item

    items = [{"number": number} for number in range(3)]
    with pytest.raises(MorphorayError, match=r"starting it again did not help: .*run the same command again"):
        list(stream(items, [Stage(Deadly, num_actors=1, cpus=0.5)]))
    assert (tmp_path / "tried").read_text().split().count("1") == 1 + RETRIES


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    for override, known in (
        ("dataset.name=rxrx2", "rxrx1"),
        ("perturbations.encoder=clip", "rdkit"),
        ("dataset.colour=red", "limit"),
    ):
        values = {"run_dir": str(tmp_path), "dataset": {"name": "rxrx1", "source": "x"}}
        with pytest.raises(ConfigError, match=known):
            resolve(run_of(values, override))


def test_training_killed_by_sigkill_ends_in_the_same_weights(
    tmp_path: Path, images: Path, codec_folder: Path
) -> None:
    values = settings(
        tmp_path / "run", images, codec_folder, max_steps=40, checkpoint_every=5, sample_every=None
    )
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    log, run = tmp_path / "log", tmp_path / "killed"
    with start("train", config, tmp_path / "whole", log) as whole:
        whole.succeed()
    with start("train", config, run, log) as victim:
        victim.until(lambda: list((run / "checkpoints").glob("step-*/complete.json")))
        os.killpg(victim.process.pid, signal.SIGKILL)
    assert not (run / "bundle" / "morphoray.json").exists()
    with start("train", config, run, log) as again:
        assert re.search(r"resuming at step \d+ of 40", again.succeed())
    assert weights(run / "bundle") == weights(tmp_path / "whole" / "bundle")


def test_work_of_an_earlier_call_counts_in_no_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([100.0, 102.0, 110.0, 120.0])
    monkeypatch.setattr("morphoray.progress.time.monotonic", lambda: next(now))
    progress = Progress("encode", 1000, "sites", before=900)
    for count in (10, 40, 50):  # after 2, 10 and 20 s
        progress.add(count)
    assert capsys.readouterr().out.splitlines() == [
        "encode   90 %  900/1000 sites done before",
        "encode   95 %  950/1000 sites  5.0 sites/s  10 s left",
        "encode  100 %  1000/1000 sites  5.0 sites/s  0 s left",
    ]


def test_a_missing_bundle_is_said(tmp_path: Path) -> None:
    config = run_of({"run_dir": str(tmp_path)})
    with pytest.raises(DataError, match=r"no morphoray\.json"):
        run_generate(config, str(tmp_path), str(tmp_path / "out"), None)
    assert layout_of(config).root == str(tmp_path)


def test_real_scgpt_vectors_drive_simulated_genes(ray_cluster: None, tmp_path: Path, real_data: Path) -> None:
    """jobs/configs/simulated_genes.yaml, tiny: images follow the genes' vectors, held-out genes included."""
    vectors = real_data / "original-tables" / "perturbation_embedding_rohban.csv"
    config = parse(
        (ROOT / "jobs/configs/simulated_genes.yaml").read_text(),
        "simulated_genes.yaml",
        [
            f"run_dir={tmp_path / 'run'}",
            f"data_dir={tmp_path / 'data'}",
            f"perturbations.uri={vectors}",
            "dataset.experiments=2",
            "dataset.wells_per_perturbation=1",
            "dataset.sites_per_well=1",
            "image.crops=1",
            "training.max_steps=4",
            "training.warmup_steps=0",
            "training.batch_size=8",
        ],
    )
    summary = run_train(config)
    ids, table = read_vectors(str(vectors), Storage())
    conditions = fit_conditions(resolve(config))
    genes = config.dataset.options["perturbations"]
    assert sorted(conditions.vectors) == sorted([*genes, "dmso"])
    for gene in genes:
        np.testing.assert_array_equal(conditions.vectors[gene], table[ids.index(gene.lower())])
    assert summary.steps == 4
    bundle = load_bundle(tmp_path / "run" / "bundle")
    assert bundle.manifest["condition"]["encoder"] == "table"
    # One name and index, so one noise: what differs between two images comes from the vectors alone.
    requests = [ImageRequest("same", conditions.vectors[gene], 0) for gene in [*genes, genes[0]]]
    latents = sample_latents(bundle, requests, SamplerSettings("ddim", 2, resolution=64)).flatten(1)
    apart = torch.cdist(latents, latents) / latents.norm(dim=1).mean()
    assert apart[0, -1] < 1e-4
    off_diagonal = apart[:-1, :-1][~torch.eye(len(genes), dtype=torch.bool)]
    assert off_diagonal.min() > 1e-2
