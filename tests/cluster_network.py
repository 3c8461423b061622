"""A network of hosts on one machine: namespaces with an address each, joined by a bridge. Needs root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.cluster import Host

SUBNET = "10.213.57"


def is_possible() -> bool:
    """Whether this process may make namespaces."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0


class Network:
    """A bridge, and hosts on it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._name = f"ray{os.getpid()}"
        self.gateway = Host(ip=f"{SUBNET}.1")
        """This machine, as the hosts see it."""
        self._ip(f"link add {self._name} type bridge", undo=f"link delete {self._name}")
        self._ip(f"address add {self.gateway.ip}/24 dev {self._name}")
        self._ip(f"link set {self._name} up")

    def add(self, number: int) -> Host:
        """A host; `number` is the last of its address, from 2."""
        name, ip = self._link(number), f"{SUBNET}.{number}"
        self._ip(f"netns add {name}", undo=f"netns delete {name}")
        self._ip(f"link add {name} type veth peer name eth0 netns {name}", undo=f"link delete {name}")
        self._ip(f"link set {name} master {self._name} up")
        self._ip(f"-n {name} address add {ip}/24 dev eth0")
        for device in ("lo", "eth0"):
            self._ip(f"-n {name} link set {device} up")
        return Host(ip=ip, prefix=("ip", "netns", "exec", name))

    def cut(self, host: Host) -> None:
        """Takes a host off the bridge: it hears nothing more, and nobody hears it."""
        self._ip(f"link set {self._link(int(host.ip.rpartition('.')[2]))} down")

    def _link(self, number: int) -> str:
        return f"{self._name}-{number}"

    def _ip(self, arguments: str, undo: str = "") -> None:
        subprocess.run(["ip", *arguments.split()], check=True)
        if undo:
            self._stack.callback(subprocess.run, ["ip", *undo.split()], check=False, capture_output=True)


@contextmanager
def network() -> Iterator[Network]:
    """A network, gone afterwards."""
    with ExitStack() as stack:
        yield Network(stack)
