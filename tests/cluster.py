"""A real Ray cluster of processes on this machine: a head without CPUs, and nodes that can be killed.

It asks for a token, and a Ray that is imported once keeps its own: whoever uses the cluster is a process of its own.
"""

import itertools
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

START_S = 120.0
NODE_CPUS = 2
OBJECT_STORE_BYTES = 100 * 2**20
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_niceness": "0",  # by default 15: on a busy machine they would hardly run
}


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where a node runs."""

    ip: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    """What runs a command there."""


LOCALHOST = Host()


@dataclass(frozen=True, kw_only=True)
class Node:
    host: Host
    process: subprocess.Popen[bytes]

    def titles(self) -> str:
        """Those of all its processes."""
        titles = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                titles.append(" ".join(process.cmdline()))
        return "\n".join(titles)


class Cluster:
    """A head with a job server, and nodes of two CPUs each.

    Args:
        folder: for logs and sockets, which need a short path.
        head: where all nodes reach it.
    """

    def __init__(self, folder: Path, head: Host = LOCALHOST) -> None:
        self.token = secrets.token_hex(32)
        self._folder = folder
        self._nodes: list[Node] = []
        self._numbers = itertools.count()
        port, dashboard_port, client_port = free_ports(3)
        self.address = f"http://{head.ip}:{dashboard_port}"
        self._gcs = f"{head.ip}:{port}"
        options = ("--head", "--num-cpus=0", f"--port={port}", f"--ray-client-server-port={client_port}")
        dashboard = (f"--dashboard-host={head.ip}", f"--dashboard-port={dashboard_port}")
        self._head = self._begin("head", head, *options, *dashboard)

    def environment(self, **others: str) -> dict[str, str]:
        """That of a user who has the cluster's token, and nothing else of Ray's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return kept | {"RAY_AUTH_TOKEN": self.token} | others

    def add_node(self, host: Host = LOCALHOST) -> None:
        """Starts a node. One after the other: those that start at the same moment choose the same sockets."""
        self._wait_for("head")
        name = f"node-{next(self._numbers)}"
        process = self._begin(name, host, f"--address={self._gcs}", f"--num-cpus={NODE_CPUS}")
        self._nodes.append(Node(host=host, process=process))
        self._wait_for(name)

    def node_of(self, title: str) -> Node:
        """A node that runs a process of such a title."""
        return next(node for node in self._nodes if title in node.titles())

    def kill(self, node: Node) -> None:
        """Kills a node's processes, as when a machine dies."""
        self._nodes.remove(node)
        kill_tree(node.process)

    def close(self) -> None:
        for process in [*(node.process for node in self._nodes), self._head]:
            kill_tree(process)

    def _begin(self, name: str, host: Host, *options: str) -> subprocess.Popen[bytes]:
        agent_port, metrics_port = free_ports(2)
        command = [
            *(*host.prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(f"--node-ip-address={host.ip}", "--min-worker-port=0", "--max-worker-port=0"),
            *(f"--object-store-memory={OBJECT_STORE_BYTES}", f"--metrics-export-port={metrics_port}"),
            *(f"--dashboard-agent-listen-port={agent_port}", *options),
        ]
        # Nothing else of this process: jobs bring what they need.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = SETTINGS | {"PATH": path, "RAY_AUTH_TOKEN": self.token, "RAY_TMPDIR": str(self._folder)}
        with self._log(name).open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self._folder)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _wait_for(self, name: str) -> None:
        said = self._log(name).read_text
        wait_until(lambda: "Ray runtime started" in said() or "Traceback" in said(), START_S, said)
        assert "Traceback" not in said(), said()


@contextmanager
def cluster(folder: Path, *, head: Host = LOCALHOST, nodes: Sequence[Host]) -> Iterator[Cluster]:
    """A cluster that is up, and gone afterwards."""
    running = Cluster(folder, head)
    try:
        for host in nodes:
            running.add_node(host)
        yield running
    finally:
        running.close()


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on; all are found before the first is let go."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILLs a process and all its descendants."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for each in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


def wait_until(happened: Callable[[], bool], limit_s: float, told: Callable[[], str]) -> None:
    """Waits for something; fails with what `told` has to say."""
    limit = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < limit, f"it did not happen in {limit_s:g} s: {told()[-2000:]}"
        time.sleep(0.05)
