"""A cluster of several raylets on this machine, each of which can be killed as a machine that is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from s3server import free_ports
from tinyrun import ROOT, descendants

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(ROOT / "platform"),
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""What nodes and the commands that use them have in common."""


class Node:
    """One raylet, with the head's services or joined to a head, in a process of its own."""

    def __init__(self, folder: Path, number: int, address: str, *options: str) -> None:
        self.log = folder / f"node-{number}.log"
        where = [f"--address={address}"] if number else ["--head", f"--port={address.split(':')[1]}"]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where, *options],
                stdout=file,
                stderr=file,
                cwd=folder,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )

    def running(self, title: str) -> list[psutil.Process]:
        """The processes of this node whose title holds the words, for one RayTrainWorker."""
        return descendants(self.process.pid, title)

    def kill(self) -> None:
        """SIGKILL everything that runs here, at once."""
        for each in [*descendants(self.process.pid), self.process]:
            each.kill()
        self.process.wait()


class Cluster:
    """Nodes of one CPU each: two to begin with, number 0 with the head's services."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="nodes-"))  # short: a socket's path has 107 bytes at most
        port, self._client_port = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self.nodes: list[Node] = []

    def __enter__(self) -> Cluster:
        self.add()
        self.add()
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self) -> None:
        """One more node; returns when it has joined."""
        number = len(self.nodes)
        options = ["--num-cpus=1", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
        options.append(f"--dashboard-agent-listen-port={free_ports(1)[0]}")  # the default is one a machine
        if not number:
            options += ["--include-dashboard=false", f"--ray-client-server-port={self._client_port}"]
            options += [f"--temp-dir={self._folder / 'ray'}"]
        node = Node(self._folder, number, self.address, *options)
        self.nodes.append(node)
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in node.log.read_text():
            assert node.process.poll() is None and time.monotonic() < deadline, node.log.read_text()[-3000:]
            time.sleep(0.1)

    def lose(self) -> None:
        """Kill the node that was added last."""
        self.nodes.pop().kill()

    def running(self, title: str) -> list[psutil.Process]:
        """The processes of all nodes whose title holds the words."""
        return [process for node in self.nodes for process in node.running(title)]
