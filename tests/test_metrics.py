"""What builds and runs tell Prometheus: as pure functions, and as it is read from Ray's endpoint."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import student_train.metrics
import teacher_cache.metrics
from student_train.launch import train
from student_train.run_folder import read_run
from teacher_cache.format.cache import open_cache
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store
from tests import caches
from tests.student_train import runs

ROOT = Path(__file__).parents[1]
ON_RAY = {"num_workers": 1, "gpus_per_worker": 0}
WORK = """
import json, sys, threading, time, urllib.request
import ray
from prometheus_client.parser import text_string_to_metric_families
from student_train import StudentSpec, train
from teacher_cache import CacheSpec, build
from teacher_cache.shell.settings import parse

cache, student, port, names = json.loads(sys.argv[1])
seen = {}

def scrape():
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        seen.update({sample.name: (sample.labels, sample.value) for sample in family.samples if sample.name in names})

def scrape_always():
    while set(seen) < set(names):
        time.sleep(0.3)
        scrape()

ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=150 * 2**20, log_to_driver=False,
         _metrics_export_port=port, _system_config={"metrics_report_interval_ms": 1000})
scraper = threading.Thread(target=scrape_always, daemon=True)
scraper.start()
build(parse(CacheSpec, cache), progress=False)
train(parse(StudentSpec, student))
scraper.join(20)
time.sleep(3)  # what the driver told last
scrape()
print()
print(json.dumps(seen))
"""
"""Builds and trains on a local Ray, whose endpoint it reads; what it says of a worker goes when the worker does."""


def test_figures_of_shards_add_up_to_the_view(tmp_path):
    manifest = caches.build_cache(tmp_path / "cache").manifest(0)
    figures = [teacher_cache.metrics.shard_figures(shard) for shard in manifest.shards]
    total = {name: sum(one[name] for one in figures) for name in figures[0]}
    assert total == {
        "teacher_cache_units_total": len(manifest.shards),
        "teacher_cache_tokens_total": manifest.num_tokens,
        "teacher_cache_kept_positions_total": manifest.num_kept,
        "teacher_cache_written_bytes_total": manifest.num_bytes,
    }
    assert set(total) <= set(teacher_cache.metrics.DESCRIPTIONS)


def test_reports_hold_every_figure_of_a_run(tmp_path):
    output = tmp_path / "run"
    train(runs.make_spec(caches.build_cache(tmp_path / "cache"), output, steps=2, held_out_sequences=8))
    run = read_run(Store(str(output)))
    step = student_train.metrics.step_figures(run.steps[-1])
    held_out = student_train.metrics.held_out_figures(run.held_out[-1])
    assert set(step | held_out) == set(student_train.metrics.DESCRIPTIONS)
    assert step["student_train_progress_ratio"] == 1
    assert step["student_train_cosine_loss"] == run.steps[-1].losses["cosine"]


@pytest.mark.ray
def test_rays_endpoint_tells_of_a_build_and_a_run(tmp_path):
    cache = caches.make_spec(tmp_path / "cache", execution=ON_RAY)
    student: dict[str, Any] = {"caches": [cache.cache], "output": str(tmp_path / "run"), "batch_sequences": 16}
    student |= {"steps": 120, "held_out_sequences": 8, "execution": ON_RAY | {"evaluation_steps": 40}}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    descriptions = {**teacher_cache.metrics.DESCRIPTIONS, **student_train.metrics.DESCRIPTIONS}
    wanted = {f"ray_{name}" for name in descriptions} - {"ray_teacher_cache_failed_units_total"}  # none failed
    arguments = json.dumps([to_dict(cache), student, port, sorted(wanted)])
    command = [sys.executable, "-c", WORK, arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert set(seen) == wanted
    manifest = open_cache(cache.cache).manifest(0)
    labels, num_tokens = seen["ray_teacher_cache_tokens_total"]
    assert num_tokens == manifest.num_tokens
    assert (labels["cache"], labels["view"]) == (cache.cache, "0")
    assert seen["ray_teacher_cache_written_bytes_total"][1] == manifest.num_bytes
    assert seen["ray_teacher_cache_view_units_committed"][1] == seen["ray_teacher_cache_view_units"][1] == 5
    labels, num_steps = seen["ray_student_train_steps_total"]
    assert labels["run"] == str(tmp_path / "run")
    assert 0 < num_steps <= 120
