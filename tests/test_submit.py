"""Jobs before they are sent, and job servers that are none."""

import argparse
import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

import student_train.cli
import teacher_cache.cli
from student_train.sweep.config import SweepConfig
from teacher_cache.config import CacheSpec
from teacher_cache.errors import UserError
from teacher_cache.format.cache import open_cache
from teacher_cache.shell.ray_session import num_fitting
from teacher_cache.shell.settings import as_written, load, parse, to_dict
from teacher_cache.shell.submit import command as submit_command
from teacher_cache.shell.submit import follow
from teacher_cache.shell.submit.command import explained
from teacher_cache.shell.submit.config import ClusterConfig
from teacher_cache.shell.submit.job import SETTINGS, Command, Job, attempt_id, attempt_of, job_name, make_job
from teacher_cache.shell.submit.server import JobServer
from tests import caches

BUILD = Command(module="teacher_cache.cli", name="build")
SPEC = {"cache": "s3://b/c", "corpus": {"paths": ["s3://b/t.txt"]}, "teacher": {"model": "bert"}}
SECRET = "not-for-everyone"


def make(cluster: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **overrides: Any) -> Job:
    """A job of `SPEC`."""
    written = SPEC | overrides
    return make_job(BUILD, parse(CacheSpec, SPEC), written, parse(ClusterConfig, cluster or {}), environ or {})


def write(folder: Path, name: str, values: Any) -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return str(path)


class TestNames:
    def test_a_name_is_of_the_values_and_not_of_how_they_are_written(self, tmp_path: Path) -> None:
        path = write(tmp_path, "cache.yaml", SPEC | {"views": 2})
        long = write(tmp_path, "long.yaml", to_dict(load(CacheSpec, path)))
        first = job_name(BUILD, load(CacheSpec, path))
        assert first.startswith("teacher-cache-build-")
        assert first == job_name(BUILD, load(CacheSpec, long)) == job_name(BUILD, load(CacheSpec, path, ["views=2"]))

    def test_other_values_and_other_commands_have_other_names(self) -> None:
        specs = [parse(CacheSpec, SPEC), parse(CacheSpec, SPEC | {"views": 2})]
        commands = [BUILD, Command(module="student_train.cli", name="run")]
        assert len({job_name(command, spec) for command in commands for spec in specs}) == 4

    def test_how_the_work_is_done_is_no_part_of_a_name(self) -> None:
        specs = [SPEC, SPEC | {"execution": {"num_workers": 2}}]
        assert len({job_name(BUILD, parse(CacheSpec, spec)) for spec in specs}) == 1
        student = {"caches": ["s3://b/c"], "execution": {"num_workers": 2}}
        sweep = {"output": "s3://b/o", "student": student, "space": {"seed": {"choose": [1, 2]}}}
        other = sweep | {"student": student | {"execution": {"num_workers": 1}}, "max_concurrent": 1}
        command = Command(module="student_train.cli", name="sweep")
        assert len({job_name(command, parse(SweepConfig, values)) for values in (sweep, other)}) == 1

    def test_attempts_are_numbered(self) -> None:
        name = job_name(BUILD, parse(CacheSpec, SPEC))
        assert [attempt_of(attempt_id(name, number)) for number in (1, 9, 10)] == [1, 9, 10]


class TestEntrypoint:
    def test_a_shell_runs_it_as_the_command_with_the_file(self, tmp_path: Path) -> None:
        odd = tmp_path / "$HOME 'é' \"q\"\nCONFIGURATION\n`x`"
        spec = caches.make_spec(odd / "cache", num_documents=8)
        done = subprocess.run(make(**to_dict(spec)).entrypoint, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert open_cache(spec.cache).num_views == 1

    def test_interpolations_stay_as_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("A_SECRET", SECRET)
        path = write(tmp_path, "cache.yaml", SPEC | {"corpus": {"paths": ["x"], "text_field": "${oc.env:A_SECRET}"}})
        spec = load(CacheSpec, path)
        job = make_job(BUILD, spec, as_written(path), ClusterConfig(env=("A_SECRET",)), os.environ)
        assert spec.corpus.text_field == SECRET
        assert "text_field: ${oc.env:A_SECRET}" in job.entrypoint
        assert SECRET not in job.entrypoint
        assert SECRET not in repr(job)
        assert job.runtime_env["env_vars"]["A_SECRET"] == SECRET

    def test_the_configuration_may_come_through_a_pipe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(submit_command, "JobServer", lambda address: None)
        monkeypatch.setattr(submit_command, "submit", lambda server, job, **_: {"entrypoint": job.entrypoint})
        reading, writing = os.pipe()
        os.write(writing, yaml.safe_dump(SPEC).encode())
        os.close(writing)
        unset = dict.fromkeys(("cluster", "address", "stop", "no_wait", "again"))
        options = argparse.Namespace(config=f"/dev/fd/{reading}", overrides=[], **unset)
        sent = submit_command.run(options, lambda _: CacheSpec, BUILD, places=lambda _: {})
        assert f"cache: {SPEC['cache']}" in sent["entrypoint"]

    @pytest.mark.parametrize("url", [f"s3://key:{SECRET}@b/c", f"https://h/c?X-Amz-Signature={SECRET}"])
    def test_a_secret_in_a_url_is_not_sent(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"a URL holds a password .*would read: cache: ") as refused:
            make(cache=url)
        assert SECRET not in str(refused.value)


class TestEnvironment:
    def test_only_what_is_named_goes_along(self) -> None:
        job = make({"env": ["KEY"]}, {"KEY": SECRET, "OTHER": "x"})
        assert job.runtime_env["env_vars"] == {"KEY": SECRET} | SETTINGS

    def test_what_is_not_set_is_refused(self) -> None:
        with pytest.raises(UserError, match="under `env` are not set here: A, C; set them, or take them out"):
            make({"env": ["A", "B", "C"]}, {"B": "x"})

    @pytest.mark.parametrize("text", ["${oc.env:BUCKET}", "s3://${ oc.env: BUCKET }/x", "${oc.env:BUCKET,fallback}"])
    def test_what_the_configuration_reads_must_go_along(self, text: str) -> None:
        with pytest.raises(UserError, match="variables that would not go with the job: BUCKET; name them under `env`"):
            make(None, {"BUCKET": "b"}, corpus={"paths": [text]})
        assert make({"env": ["BUCKET"]}, {"BUCKET": "b"}, corpus={"paths": [text]})

    def test_a_fallback_is_the_jobs_as_well(self) -> None:
        assert make(None, {}, corpus={"paths": ["${oc.env:BUCKET,fallback}"]})


class TestCode:
    def test_packages_are_shipped_or_not(self) -> None:
        (teacher, student) = make().runtime_env["py_modules"]
        assert Path(teacher, "shell").is_dir()
        assert Path(student, "launch.py").is_file()
        assert "py_modules" not in make({"code": "installed"}).runtime_env

    def test_requirements_are_installed(self, tmp_path: Path) -> None:
        path = tmp_path / "requirements.txt"
        path.write_text("zstandard==0.25.0\n")
        assert make({"requirements": str(path)}).runtime_env["pip"] == str(path)
        assert "pip" not in make().runtime_env


class TestCommandLines:
    @pytest.mark.parametrize(
        ("cluster", "message"),
        [
            ({"adress": "x"}, "adress: unknown key; valid keys here: address, code, requirements, env"),
            ({"code": "wheel"}, "code: Input should be 'shipped' or 'installed'"),
            ({"env": ["A=b"]}, "env.0: String should match pattern"),
            ({"requirements": "/no/file"}, "requirements: Path does not point to a file"),
        ],
    )
    def test_a_mistake_in_the_clusters_file(
        self, cluster: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = [write(tmp_path, "cache.yaml", SPEC), "--cluster", write(tmp_path, "cluster.yaml", cluster)]
        assert teacher_cache.cli.main(["submit", *files]) == 2
        assert message in capsys.readouterr().err

    def test_the_configuration_is_checked_before_anyone_is_asked(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write(tmp_path, "cache.yaml", SPEC)
        assert teacher_cache.cli.main(["submit", path, "--address", "http://127.0.0.1:9", "veiws=2"]) == 2
        assert "veiws: unknown key" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("main", "values", "message"),
        [
            (teacher_cache.cli.main, SPEC | {"teacher": {"model": "model"}}, "error: teacher.model: model is relative"),
            (
                student_train.cli.main,
                {"caches": ["/c"], "output": "/o", "student": {"initial_weights": "model"}},
                "error: student.initial_weights: model is relative",
            ),
        ],
    )
    def test_a_folder_here_is_no_name_on_a_hub(
        self,
        main: Callable[[list[str]], int],
        values: dict[str, Any],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model").mkdir()
        assert main(["submit", write(tmp_path, "c.yaml", values)]) == 2
        assert capsys.readouterr().err.startswith(message)

    def test_each_student_of_a_sweep_is_checked(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        values = {"output": "/o", "student": {"caches": ["/c"]}, "space": {"student.num_layer": {"choose": [1, 2]}}}
        assert student_train.cli.main(["submit", "--sweep", write(tmp_path, "c.yaml", values)]) == 2
        assert "num_layer" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("main", "values", "message"),
        [
            (teacher_cache.cli.main, SPEC | {"cache": "here"}, "error: cache: here is relative to this folder"),
            (teacher_cache.cli.main, SPEC | {"corpus": {"paths": ["a.txt"]}}, "error: corpus.paths: a.txt is relative"),
            (student_train.cli.main, {"caches": ["c"], "output": "s3://b/r"}, "error: caches: c is relative"),
            (
                student_train.cli.main,
                {"caches": ["s3://b/c"], "output": "${oc.env:SECRET_URL}"},
                "error: output: s3://…@b/r carries a password",
            ),
            (student_train.cli.main, {"caches": ["/c"], "output": "./r"}, "error: output: ./r is relative"),
        ],
    )
    def test_places_that_only_this_machine_knows(
        self,
        main: Callable[[list[str]], int],
        values: dict[str, Any],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("SECRET_URL", "s3://me:pw@b/r")
        assert main(["submit", write(tmp_path, "c.yaml", values)]) == 2
        assert capsys.readouterr().err.startswith(message)


@contextmanager
def web_server(answers: dict[str, Any]) -> Iterator[str]:
    """A server that answers some paths with JSON, and all others with 404; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path)).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def _own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses that a test sets are forgotten."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")


@pytest.mark.usefixtures("_own_address")
class TestServers:
    def test_nobody_answers(self) -> None:
        with pytest.raises(UserError, match=r"no Ray job server answers at http://127.0.0.1:7; name one"):
            JobServer("http://127.0.0.1:7")

    def test_the_environment_names_one(self) -> None:
        with pytest.raises(UserError, match=r"no Ray job server answers at http://127.0.0.1:9;"):
            JobServer(None)

    def test_an_address_without_a_scheme(self) -> None:
        with pytest.raises(UserError, match=r"address head:8265 has no scheme; write http://head:8265 or https://"):
            JobServer("head:8265")

    def test_something_else_answers(self) -> None:
        with web_server({}) as url, pytest.raises(UserError, match=r"does not do as it should: .*404"):
            JobServer(url)

    def test_an_old_cluster(self) -> None:
        with web_server({"/api/version": {"ray_version": "2.9.3"}}) as url:
            with pytest.raises(UserError, match=r"Ray version 2.9.3 is running .* Jobs need 2.60 or newer"):
                JobServer(url)

    def test_a_cluster_that_was_started_anew(self) -> None:
        with web_server({"/api/version": {"ray_version": "2.60.0"}}) as url:
            with pytest.raises(
                UserError, match="knows no job x-1 any more: the cluster was started anew; submit again"
            ):
                follow.follow(JobServer(url), "x-1", print)

    def test_a_cluster_that_was_away_and_was_started_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(follow, "RETRY_S", 0.01)
        with web_server({"/api/version": {"ray_version": "2.60.0"}}) as url:
            server, tries = JobServer(url), itertools.count()
            real = server.record

            def record(job_id: str) -> Any:
                if next(tries) == 0:
                    raise ConnectionRefusedError
                return real(job_id)

            monkeypatch.setattr(server, "record", record)
            with pytest.raises(UserError, match="knows no job x-1 any more"):
                follow.follow(server, "x-1", print)

    def test_a_cluster_that_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(follow, "RETRY_S", 0.01)
        with web_server({"/api/version": {"ray_version": "2.60.0"}}) as url:
            server = JobServer(url)
        said: list[str] = []
        with pytest.raises(UserError, match=f"{url} has not answered for 0 s; job x-1 may well be at work"):
            follow.follow(server, "x-1", said.append, patience_s=0.2)
        assert said == [f"{url} does not answer; asking again\n"]


@pytest.mark.parametrize(
    ("status", "exit_code", "message", "explanation"),
    [
        ("SUCCEEDED", 0, "Job finished successfully.", "done"),
        ("FAILED", 2, "Job entrypoint command failed", "ended with status 2, see its log above; .* tries again"),
        ("FAILED", None, "runtime_env setup failed: x", "runtime_env setup failed: x"),
        (
            "FAILED",
            1,
            "(ModuleNotFoundError: No module named 'teacher_cache')",
            "has no teacher_cache.*`code: shipped`",
        ),
        ("FAILED", 1, "ModuleNotFoundError: No module named 'numba.core'", "the cluster has no numba.*`requirements`"),
    ],
)
def test_ends_are_explained(status: str, exit_code: int | None, message: str, explanation: str) -> None:
    from ray.job_submission import JobDetails

    record = JobDetails(type="SUBMISSION", status=status, entrypoint="", message=message, driver_exit_code=exit_code)
    assert re.search(explanation, explained(record))


@pytest.mark.parametrize(
    ("machine", "needed", "number"),
    [
        ({"CPU": 8.0, "GPU": 4.0}, {"CPU": 1, "GPU": 1}, 4),
        ({"CPU": 8.0, "GPU": 1.0}, {"CPU": 1, "GPU": 0.5}, 2),
        ({"CPU": 3.0}, {"CPU": 2, "GPU": 0}, 1),
        ({"CPU": 64.0}, {"CPU": 1, "GPU": 1}, 0),
        ({"memory": 1.0}, {"CPU": 1, "GPU": 0}, 0),
    ],
)
def test_machines_have_room_for_whole_workers(machine: dict[str, float], needed: dict[str, float], number: int) -> None:
    assert num_fitting(machine, needed) == number
