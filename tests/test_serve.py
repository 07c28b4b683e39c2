"""The endpoint: `morphoray serve` as a process of its own, asked over HTTP, and stopped by SIGINT."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bundles import CONTROL, RESOLUTION, SMILES, make_bundle
from morphoray.errors import ConfigError
from morphoray.imaging.channels import find_mapping
from morphoray.imaging.png import decode_channels, decode_png, encode_png
from morphoray.pipelines.serving import named_bundles

ROOT = Path(__file__).resolve().parents[1]
FIVE = ("dna", "er", "rna", "agp", "mito")
TOKEN = "a-token-of-the-tests"
pytestmark = pytest.mark.timeout(600)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve") / "log.txt"


@pytest.fixture(scope="module")
def client(tiny_bundle: Path, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client, with the token, of a server with two names for one bundle, and another of five channels.

    The server's end is tested as well.
    """
    port = free_port()
    five = make_bundle(tmp_path_factory.mktemp("bundles") / "five", FIVE)
    bundles = [f"a={tiny_bundle}", f"b={tiny_bundle}", f"five={five}"]
    command = [sys.executable, "-m", "morphoray", "serve", *bundles]
    environment = os.environ | {"MORPHORAY_SERVE_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz", server, log)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120) as found:
            yield found
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=90) == 0, log.read_text()
        assert "serve: stopping" in log.read_text() and TOKEN not in log.read_text()
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(timeout=60)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 480
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(url, timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the server did not get ready:\n{log.read_text()}")


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/images", json={"bundle": "a", **body})


def one(client: httpx.Client, **body: Any) -> bytes:
    answer = client.post("/v1/images", json={"bundle": "a", **body}, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return answer.content


def images(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(item["png"], validate=True) for item in answer.json()["images"]]


def close(a: bytes, b: bytes) -> bool:
    """Whether two PNGs differ by a grey level at most."""
    return bool(np.abs(decode_png(a).astype(int) - decode_png(b)).max() <= 1)


def test_image_is_a_function_of_the_request(client: httpx.Client) -> None:
    first = one(client, perturbation_id="aspirin", seed=3)
    assert decode_png(first).shape == (3, RESOLUTION, RESOLUTION)
    assert one(client, perturbation_id="aspirin", seed=3) == first
    assert one(client, perturbation_id="aspirin", seed=3, bundle="b") == first
    for other in (
        {"seed": 4},
        {"index_start": 1},
        {"steps": 3},
        {"sampler": "ddim"},
        {"perturbation_id": CONTROL},
        {"shared_noise": True},
    ):
        assert one(client, **{"perturbation_id": "aspirin", "seed": 3, **other}) != first


def test_shared_noise_leaves_the_condition_alone_to_differ(client: httpx.Client) -> None:
    by_name = {"perturbation_id": "aspirin", "seed": 3}
    by_smiles = {"smiles": SMILES["aspirin"], "seed": 3}
    assert one(client, **by_name, shared_noise=True) == one(client, **by_smiles, shared_noise=True)
    assert one(client, **by_name) != one(client, **by_smiles)
    assert ask(client, **by_name, shared_noise=True).json()["shared_noise"] is True


def test_json_tells_what_the_images_are_a_function_of(client: httpx.Client) -> None:
    answer = ask(client, perturbation_id="aspirin", n=3, seed=3, index_start=2)
    body = answer.json()
    assert [item["index"] for item in body["images"]] == [2, 3, 4]
    assert (body["sampler"], body["steps"], body["guidance_scale"]) == ("ddpm", 4, 1.0)
    assert body["bundle_fingerprint"] == answer.headers["x-morphoray-bundle"]
    assert answer.headers["x-morphoray-seed"] == "3"
    assert answer.headers["x-morphoray-perturbation"] == "aspirin"
    assert "generate;dur=" in answer.headers["server-timing"]
    assert close(images(answer)[1], one(client, perturbation_id="aspirin", seed=3, index_start=3))


def test_concurrent_requests_share_a_batch_and_keep_their_images(client: httpx.Client) -> None:
    wanted = [{"perturbation_id": name, "seed": seed, "n": 2} for seed, name in enumerate([*SMILES, CONTROL])]
    alone = [images(ask(client, **body)) for body in wanted]
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(lambda body: ask(client, **body), wanted))
    for before, answer in zip(alone, answers, strict=True):
        assert all(map(close, before, images(answer)))
    # seven requests for two images each; another sampler setting would not share their batch
    assert max(int(answer.headers["x-morphoray-batch"]) for answer in answers) > 2


def test_five_channels_are_rgb_to_look_at_and_raw_on_request(client: httpx.Client) -> None:
    wanted = {"bundle": "five", "perturbation_id": "aspirin", "seed": 3}
    raw, names = decode_channels(one(client, **wanted, format="channels"))
    assert names == FIVE and raw.shape == (5, RESOLUTION, RESOLUTION)
    shown = find_mapping(FIVE, FIVE, "").render(raw)
    assert close(one(client, **wanted), encode_png(shown))
    answer = ask(client, **wanted, n=2, format="channels")
    assert answer.json()["channels"] == list(FIVE)
    assert [decode_png(image).shape for image in images(answer)] == [(5, RESOLUTION, RESOLUTION)] * 2
    assert [decode_png(image).shape[0] for image in images(ask(client, **wanted, n=2))] == [3, 3]
    assert one(client, perturbation_id="aspirin", format="channels") == one(client, perturbation_id="aspirin")


def test_smiles_of_a_known_compound_has_its_vector_and_its_own_noise(client: httpx.Client) -> None:
    text = SMILES["caffeine"]
    body = ask(client, smiles=f" {text} ", concentration_um=1.5).json()
    assert body["perturbation_id"] == text
    assert images(ask(client, smiles=text, concentration_um=1.5)) == [
        base64.b64decode(body["images"][0]["png"])
    ]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"smiles": "C1CC"}, 422, "invalid SMILES 'C1CC'"),
        ({"perturbation_id": "aspirn"}, 404, "unknown perturbation 'aspirn'; nearest: aspirin"),
        ({"perturbation_id": "aspirin", "bundle": "c"}, 404, "unknown bundle 'c', expected one of a, b"),
        ({"perturbation_id": "aspirin", "bundle": None}, 422, "bundle: missing, expected one of a, b"),
        ({}, 422, "expected perturbation_id or smiles, found neither"),
        ({"perturbation_id": "aspirin", "smiles": "CCO"}, 422, "found both"),
        (
            {"perturbation_id": "aspirin", "n": 65},
            422,
            "n: Input should be less than or equal to 64, found '65'",
        ),
        ({"perturbation_id": "aspirin", "steps": 0}, 422, "steps: Input should be greater than"),
        ({"perturbation_id": "aspirin", "sampler": "euler"}, 422, "sampler: Input should be 'ddpm', 'ddim'"),
        ({"perturbation_id": "aspirin", "colour": "red"}, 422, "colour: Extra inputs are not permitted"),
    ],
)
def test_errors_say_what_was_found_and_expected(
    client: httpx.Client, body: dict[str, Any], status: int, words: str
) -> None:
    answer = ask(client, **body)
    assert answer.status_code == status and answer.json().keys() == {"error"}
    assert words in answer.json()["error"]


def test_other_errors(client: httpx.Client) -> None:
    assert client.get("/v2/images").json() == {"error": "Not Found"}
    assert (
        client.post("/v1/images", content=b"{", headers={"Content-Type": "application/json"}).status_code
        == 422
    )
    answer = client.post(
        "/v1/images",
        json={"bundle": "a", "perturbation_id": "aspirin", "n": 2},
        headers={"Accept": "image/png"},
    )
    assert answer.status_code == 406 and "takes n = 1, found 2" in answer.json()["error"]


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer", f"Basic {TOKEN}", "Bearer ä".encode()])
def test_token_is_needed(client: httpx.Client, given: str | bytes | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    with httpx.Client(base_url=client.base_url, timeout=60) as stranger:
        for answer in (
            stranger.post("/v1/images", json={"perturbation_id": "aspirin"}, headers=headers),
            stranger.get("/v1/bundles", headers=headers),
        ):
            assert answer.status_code == 401 and "Bearer TOKEN" in answer.json()["error"]


def test_health_interface_page_and_bundles(client: httpx.Client) -> None:
    with httpx.Client(base_url=client.base_url, timeout=60) as stranger:
        assert stranger.get("/healthz").json() == {"status": "ok", "bundles": ["a", "b", "five"]}
        interface = stranger.get("/openapi.json").json()
        assert {"/v1/images", "/v1/bundles", "/healthz"} <= interface["paths"].keys()
        assert stranger.get("/docs").status_code == 200
        page = stranger.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "<title>morphoray</title>" in page.text and "http" not in page.text
    listed = client.get("/v1/bundles").json()
    assert [(item["name"], item["encoder"], item["resolution"]) for item in listed] == [
        ("a", "rdkit", RESOLUTION),
        ("b", "rdkit", RESOLUTION),
        ("five", "rdkit", RESOLUTION),
    ]
    assert [item["channels"] for item in listed] == [["red", "green", "blue"]] * 2 + [list(FIVE)]
    assert listed[2]["shown"].startswith("dna #1300f9, er #2aff1f")
    assert [item["takes_smiles"] for item in listed] == [True, True, True]
    assert {item["perturbation_id"] for item in listed[0]["perturbations"]} == {*SMILES, CONTROL}


def test_too_many_images_at_once_are_refused(client: httpx.Client) -> None:
    """256 images may be under way: of six requests for 64 each, four at most."""
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda seed: ask(client, perturbation_id="aspirin", n=64, seed=seed, steps=2), range(6))
        )
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and {answer.status_code for answer in answers} == {200, 429}
    assert refused[0].headers["retry-after"] == "5" and "under way" in refused[0].json()["error"]
    assert len(images(ask(client, perturbation_id="aspirin", n=64))) == 64


def test_bundles_are_named_by_their_folders(tmp_path: Path) -> None:
    assert named_bundles(["s3://bucket/runs/huvec/bundle", "best=/b/bundle", "/c/old/"]) == {
        "huvec": "s3://bucket/runs/huvec/bundle",
        "best": "/b/bundle",
        "old": "/c/old",
    }
    with pytest.raises(ConfigError, match="two bundles are called 'x'"):
        named_bundles(["/a/x/bundle", "/b/x"])


def test_import_path_builds_the_application(tiny_bundle: Path) -> None:
    code = f"""
from serve.app import build
from ray.serve._private.build_app import build_app
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call
app = call(build, {{"bundles": [{str(tiny_bundle)!r}], "max_batch_size": 4}})
built = build_app(app, name="morphoray")
print(*sorted(d.name for d in built.deployments), built.ingress_deployment_name)
"""
    environment = os.environ | {"PYTHONPATH": "platform"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ImageGenerator", "Ingress", "Ingress"]
