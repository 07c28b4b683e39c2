"""`ray job submit` of the main job: real RxRx1 sites from a real S3 server, without the package."""

import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from morphoray.imaging.png import decode_png
from morphoray.storage import Storage
from s3server import LocalS3, free_ports

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cluster_python(tmp_path: Path) -> Path:
    """An interpreter that has every dependency and not morphoray: nested .pth files are not followed."""
    folder = tmp_path / "cluster"
    venv.create(folder, symlinks=True)
    packages = Path(np.__file__).parent.parent
    own = next((folder / "lib").glob("python3*/site-packages"))
    (own / "dependencies.pth").write_text(f"{packages}\n")
    python = folder / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import ray, morphoray"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "No module named 'morphoray'" in found.stderr
    return python


def wait_for(url: str, log: Path) -> None:
    """Until the cluster's job server answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(f"no job server at {url}: {log.read_text()[-2000:]}")


@pytest.fixture
def cluster(cluster_python: Path, s3_env: LocalS3, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A separately started head node; yields the environment of a submitting shell."""
    port, dashboard = free_ports(2)
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{cluster_python.parent}:{os.environ['PATH']}",  # the job's `python`
    }
    with (tmp_path / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [
                str(cluster_python),
                "-m",
                "ray.scripts.scripts",
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
                f"--port={port}",
                "--include-dashboard=true",
                f"--dashboard-port={dashboard}",
                "--dashboard-host=127.0.0.1",
                "--node-ip-address=127.0.0.1",
            ],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version", tmp_path / "head.log")
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        head.terminate()
        head.wait(60)


def test_the_main_job_is_submitted_to_a_cluster(
    cluster: dict[str, str], s3_env: LocalS3, real_data: Path, tmp_path: Path
) -> None:
    bucket = f"s3://{s3_env.bucket}"
    storage = Storage()
    storage.upload_dir(real_data / "rxrx1-sample", f"{bucket}/rxrx1")
    config = {
        "run_dir": f"{bucket}/runs/job",
        "dataset": {"name": "rxrx1", "source": f"{bucket}/rxrx1"},
        "image": {"resolution": 64, "fit": "crop", "scale_to": 256, "crops": 8},
        "bundle": {"preset": "tiny", "source": "shipped"},
        "perturbations": {"encoder": "constant", "projection": "mlp"},
        "training": {
            "max_steps": int(os.environ.get("MORPHORAY_TEST_STEPS", "30")),
            "batch_size": 8,
            "learning_rate": 1e-3,
            "checkpoint_every": 10,
            "ema_decay": 0.99,
        },
        "generation": {"sampler": "dpmsolver++", "steps": 15, "n": 8, "batch_size": 8},
    }
    config["encode"] = {"max_bad_fraction": 0.3}
    path = ROOT / "jobs" / "configs" / f"test-{os.getpid()}.yaml"
    path.write_text(yaml.safe_dump(config))
    try:
        submitted = subprocess.run(
            [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "job",
                "submit",
                "--working-dir",
                ".",
                "--runtime-env-json",
                json.dumps(
                    {
                        "env_vars": {"PYTHONPATH": "platform"},
                        "excludes": [".venv", ".git", "demo", "runs", ".mypy_cache", ".ruff_cache"],
                    }
                ),
                "--",
                "python",
                "jobs/train_rxrx1.py",
                "--config",
                f"jobs/configs/{path.name}",
            ],
            env=cluster,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=500,
        )
    finally:
        path.unlink()
    assert submitted.returncode == 0, submitted.stdout[-4000:] + submitted.stderr[-2000:]
    print(submitted.stdout)
    grid = decode_png(storage.read_bytes(f"{bucket}/runs/job/samples/final.png"))
    assert grid.shape[0] == 3
    assert grid.std() > 5
    manifest = storage.read_json(f"{bucket}/runs/job/bundle/morphoray.json")
    assert manifest["training"]["dataset"] == "rxrx1"
    if keep := os.environ.get("MORPHORAY_KEEP"):
        Path(keep).write_bytes(storage.read_bytes(f"{bucket}/runs/job/samples/final.png"))
        Path(keep + ".log").write_text(submitted.stdout)
