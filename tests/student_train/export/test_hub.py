"""Pushing: the hub's own client against a local server that gives the answers this client asks for.

The server is ours: that the real hub takes what is sent is not shown here.
"""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.student_train.export import heads

TOKEN, NAME = "hf_of_a_test", "someone/student"


class Hub(http.server.BaseHTTPRequestHandler):
    """Creates a repository, wants each file whole in the commit, and keeps what it was sent."""

    def do_GET(self) -> None:
        server: Any = self.server
        if "/tree/" in self.path:
            found = [{"type": "file", "path": path, "oid": "0" * 40, "size": 1} for path in server.old]
            self._answer(found)
        else:
            self._answer({"sha": "0" * 40, "id": NAME, "siblings": [{"rfilename": path} for path in server.old]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server: Any = self.server
        server.tokens.add(self.headers.get("Authorization"))
        if server.refuses:
            self._answer({"error": "no right to write"}, status=403)
        elif self.path == "/api/repos/create":
            server.created = json.loads(body)
            self._answer({"url": f"{server.url}/{NAME}", "name": NAME})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            wanted = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            self._answer({"files": wanted})
        elif "/commit/" in self.path:
            for item in (json.loads(line) for line in body.splitlines()):
                if item["key"] == "file":
                    server.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "deletedFile":
                    server.deleted.add(item["value"]["path"])
            self._answer({"commitUrl": f"{server.url}/{NAME}/commit/{'1' * 40}", "commitOid": "1" * 40})
        else:
            self._answer({})

    def _answer(self, values: Any, *, status: int = 200) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.refuses = f"http://127.0.0.1:{server.server_address[1]}", False
    server.tokens, server.files, server.created, server.old, server.deleted = set(), {}, {}, [], set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def export_to(hub: Any, model: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its environment when it is imported."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-m", "student_train.cli", "export", model, output, "--push", NAME, "--json"],
        env=os.environ | environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_folder_is_pushed_whole(hub, tmp_path):
    done = export_to(hub, heads.save(tmp_path / "model"), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["repository"] == f"{hub.url}/{NAME}"
    assert (hub.created["name"], hub.created["organization"]) == ("student", "someone")
    assert hub.created.get("private") or hub.created.get("visibility") == "private"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= set(written)
    assert hub.files == written


def test_what_a_repository_held_before_does_not_stay_beside_it(hub, tmp_path):
    hub.old = ["onnx/model_int8.onnx", "config.json", ".gitattributes"]
    done = export_to(hub, heads.save(tmp_path / "model"), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert hub.deleted == {"onnx/model_int8.onnx"}


def test_a_refusal_of_the_hub_leaves_the_export(hub, tmp_path):
    hub.refuses = True
    done = export_to(hub, heads.save(tmp_path / "model"), tmp_path / "out")
    assert done.returncode == 2
    assert f"error: --push {NAME} failed, the export is whole at {tmp_path}/out: " in done.stderr
    assert "no right to write" in done.stderr
    assert f"`hf upload {NAME} {tmp_path}/out --delete '*'` pushes it" in done.stderr
    assert TOKEN not in done.stderr
    assert (tmp_path / "out" / "config.json").exists()
