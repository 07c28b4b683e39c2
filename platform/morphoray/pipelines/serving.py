"""`morphoray serve`: the arguments of the Ray Serve application, and running it until it is interrupted.

The application lies in the package, so that an installed morphoray can serve without the repository;
serve/app.py at the repository's root only gives it the import path that `serve run` and KubeRay ask for.
serving_requests: what may be asked; serving_app: HTTP; serving_deployments: the processes on Ray.
"""

import logging
import os
import re
import signal
import socket
import threading
from typing import Any, Literal

from pydantic import Field

from morphoray.config import StorageConfig
from morphoray.errors import ConfigError, MissingExtraError
from morphoray.pipelines.cluster import Resources, connected, node_sizes, preflight
from morphoray.pipelines.generate import read_manifest
from morphoray.pipelines.layout import storage_from
from morphoray.sections import Section
from morphoray.storage import absolute

APPLICATION = "morphoray"
TOKEN_VARIABLE = "MORPHORAY_SERVE_TOKEN"  # noqa: S105 - the variable's name, not a token
INGRESS_CPUS = 0.1
REQUEST_TIMEOUT_S = 300


class ServingArgs(Section):
    """The application's arguments, as `args` in a Serve configuration; max_queued counts images."""

    bundles: list[str] = Field(min_length=1)  # NAME=URI, or a URI
    storage: StorageConfig = StorageConfig()
    max_batch_size: int = Field(16, ge=1, le=256)  # images
    batch_wait_s: float = Field(0.05, ge=0)  # how long an image waits for others to share its batch
    max_queued: int = Field(256, ge=64)  # images under way for one ingress; more are refused with 429
    num_cpus: float = Field(1, gt=0)  # of a replica; torch uses as many threads
    num_gpus: float = Field(0, ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


def named_bundles(bundles: list[str]) -> dict[str, str]:
    """Absolute URIs by name, from NAME=URI or URI; a URI is named by its folder, or that one's parent if
    the folder is called `bundle`. Raises ConfigError when two have one name."""
    found: dict[str, str] = {}
    for text in bundles:
        match = re.match(r"([\w.-]+)=(.+)", text)
        uri = absolute(match[2] if match else text).rstrip("/")
        parts = uri.split("/")
        folder = parts[-2] if parts[-1] == "bundle" and len(parts) > 1 and parts[-2] else parts[-1]
        name = match[1] if match else folder
        if name in found:
            raise ConfigError(f"two bundles are called {name!r}: {found[name]} and {uri}. Use NAME=URI.")
        found[name] = uri
    return found


def build(args: ServingArgs) -> Any:
    """The Serve application: an ingress, and ImageGenerator replicas that hold the bundles.

    A bearer token is taken from this process's environment, MORPHORAY_SERVE_TOKEN. Raises DataError for a
    bundle that is not there, MissingExtraError without ray[serve] and FastAPI.
    """
    try:
        from morphoray.pipelines.serving_deployments import application
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "morphoray":
            raise
        raise MissingExtraError("ray[serve] with FastAPI", "serve") from None
    storage, bundles = storage_from(args.storage), named_bundles(args.bundles)
    for uri in bundles.values():
        read_manifest(storage, uri)
    return application(args, bundles, os.environ.get(TOKEN_VARIABLE) or None)


def run_serve(bundles: list[str], host: str, port: int, address: str | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then take the application down again."""
    names = named_bundles(bundles)
    if address is None:
        _check_port(host, port)
    if host not in ("127.0.0.1", "::1", "localhost") and not os.environ.get(TOKEN_VARIABLE):
        print(f"serve: anyone who reaches {host} may use this: no {TOKEN_VARIABLE} is set", flush=True)
    with connected(address):
        nodes = node_sizes()
        gpus = int(any(node[1] >= 1 for node in nodes))
        # A replica lies on one node: the largest that could hold it, of which a CPU is left for the ingress.
        largest = max((node[0] for node in nodes if node[1] >= gpus), default=1)
        cpus = max(0.5, min(8, int(largest) - 1))
        preflight("serve", Resources(1, cpus, gpus, task_cpus=INGRESS_CPUS))
        app = build(ServingArgs(bundles=bundles, num_cpus=cpus, num_gpus=gpus))
        from ray import serve

        print(f"serve: loading {', '.join(names)} ({cpus:g} CPUs, {gpus} GPUs)", flush=True)
        serve.start(
            http_options={"host": host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S},
            logging_config={"log_level": "WARNING"},
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            serve.run(app, name=APPLICATION, route_prefix="/")
            print(_welcome(host, port, next(iter(names))), flush=True)
            _wait()
            print("serve: stopping", flush=True)
        finally:
            serve.delete(APPLICATION)
            if not serve.status().applications:  # a Serve that others use as well stays up
                serve.shutdown()


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"can't listen on {host}:{port}: {error.strerror}. Choose another --port."
            ) from None


def _welcome(host: str, port: int, name: str) -> str:
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
    url = f"http://{shown}:{port}"
    token = f' -H "Authorization: Bearer ${TOKEN_VARIABLE}"' if os.environ.get(TOKEN_VARIABLE) else ""
    body = f'{{"bundle": "{name}", "perturbation_id": "ID", "seed": 0}}'
    return (
        f"serve: ready at {url} (the page), {url}/docs (the interface); Ctrl-C stops it. The ids:\n"
        f"  curl {url}/v1/bundles{token}\n"
        f"  curl {url}/v1/images{token} -H 'Content-Type: application/json' -H 'Accept: image/png' \\\n"
        f"    -d '{body}' -o image.png"
    )


def _wait() -> None:
    """Return at SIGINT or SIGTERM; both handlers are as before afterwards."""
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while not stopped.wait(1):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
