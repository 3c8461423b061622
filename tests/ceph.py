"""A real S3 server for tests: Ceph's gateway with one monitor and one store in memory, as long as a test run."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.s3 import Account

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool", "setpriv")
USER = "test"
DEADLINE_S = 120
"""For each of the three daemons to answer."""

_CONFIG = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port}/0]
mon_initial_members = a
ms_bind_msgr1 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_allow_insecure_global_id_reclaim = false
keyring = {folder}/keyring
run_dir = {folder}
admin_socket =
pid_file =
log_file = {folder}/$name.log
log_to_stderr = false
crash_dir = {folder}
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
mon_data_avail_warn = 2
paxos_propose_interval = 0.05
[mon.a]
mon_data = {folder}/mon
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
[client.rgw]
rgw_data = {folder}/rgw
# Without tcp_nodelay every small GET takes 50 ms.
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_thread_pool_size = 32
rgw_run_sync_thread = false
rgw_dynamic_resharding = false
"""

_CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "client.rgw": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
}


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A running gateway with one user."""

    account: Account
    config: Path
    process: int
    """Of the gateway itself."""

    def admin(self, *arguments: str) -> str:
        """Runs `radosgw-admin`; what it prints."""
        return _run("radosgw-admin", "-c", str(self.config), "-n", "client.rgw", *arguments)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stands still meanwhile: connections stay, and nothing is answered."""
        os.kill(self.process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process, signal.SIGCONT)

    @contextmanager
    def quota(self, *, max_objects: int) -> Iterator[None]:
        """A bound on the objects of each bucket."""
        scope = ("--quota-scope=bucket", f"--uid={USER}")
        self.admin("quota", "set", *scope, f"--max-objects={max_objects}")
        self.admin("quota", "enable", *scope)
        try:
            yield
        finally:
            self.admin("quota", "disable", *scope)


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def gateway(folder: Path) -> Iterator[Gateway]:
    """A gateway on a free port, with one user; the daemons are killed at the end: nothing is worth a shutdown."""
    mon_port, port, fsid = _free_port(), _free_port(), uuid.uuid4()
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    config = folder / "ceph.conf"
    config.write_text(_CONFIG.format(fsid=fsid, folder=folder, mon_port=mon_port, port=port))

    def run(program: str, *arguments: str) -> str:
        return _run(program, "-c", str(config), *arguments)

    with ExitStack() as daemons:

        def start(program: str, *arguments: str, ready: Callable[[], bool]) -> int:
            daemon = subprocess.Popen(
                # Dies with this process, however that ends.
                ["setpriv", "--pdeathsig", "KILL", program, "-c", str(config), *arguments, "-f"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            daemons.callback(daemon.wait)
            daemons.callback(daemon.kill)
            _wait_for(ready, daemon, f"{program}, see its log in {folder}")
            return daemon.pid

        _make_keyring(folder / "keyring")
        monmap = str(folder / "monmap")
        address = f"[v2:127.0.0.1:{mon_port}]"
        run("monmaptool", "--create", "--fsid", str(fsid), "--addv", "a", address, monmap)
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", str(folder / "keyring"))
        start("ceph-mon", "-i", "a", ready=lambda: _succeeds("ceph", "-c", str(config), "-s"))

        osd_id = str(uuid.uuid4())
        run("ceph", "osd", "new", osd_id, "0", "-i", str(_osd_secret(folder)))
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_id, "--no-mon-config")
        start("ceph-osd", "-i", "0", ready=lambda: "1 up" in run("ceph", "osd", "stat"))

        account = Account(endpoint=f"http://127.0.0.1:{port}", key=secrets.token_hex(8), secret=secrets.token_hex(16))
        process = start("radosgw", "-n", "client.rgw", ready=lambda: _answers(account.endpoint))
        running = Gateway(account=account, config=config, process=process)
        keys = [f"--access-key={account.key}", f"--secret-key={account.secret}"]
        running.admin("user", "create", f"--uid={USER}", "--display-name=test", *keys)
        yield running


def _run(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout


def _make_keyring(path: Path) -> None:
    for name, allowed in _CAPABILITIES.items():
        capabilities = [word for service, cap in allowed.items() for word in ("--cap", service, cap)]
        create = [] if path.exists() else ["--create-keyring"]
        _run("ceph-authtool", *create, str(path), "--gen-key", "-n", name, *capabilities)


def _osd_secret(folder: Path) -> Path:
    """The store's key as `ceph osd new` takes it."""
    key = _run("ceph-authtool", str(folder / "keyring"), "-n", "osd.0", "-p").strip()
    path = folder / "osd.json"
    path.write_text(f'{{"cephx_secret": "{key}"}}')
    return path


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(ready: Callable[[], bool], daemon: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{name} did not come up (exit status {daemon.poll()})")
        time.sleep(0.1)


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=5, env=os.environ).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
