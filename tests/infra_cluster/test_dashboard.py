"""The Grafana dashboard shows figures that exist."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

import student_train.metrics
import teacher_cache.metrics

DASHBOARD = Path(__file__).parents[2] / "infra" / "cluster" / "dashboard.json"
OURS = {f"ray_{name}" for name in (*teacher_cache.metrics.DESCRIPTIONS, *student_train.metrics.DESCRIPTIONS)}
METRIC = re.compile(r"\bray_\w+")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


@pytest.fixture(scope="module")
def shown(dashboard) -> set[str]:
    """Metrics in the panels' expressions."""
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert all(METRIC.search(target["expr"]) for target in targets)
    return {metric for target in targets for metric in METRIC.findall(target["expr"])}


def rays_metrics() -> set[str]:
    """That the installed Ray's own dashboard shows."""
    from ray.dashboard.modules.metrics.dashboards.default_dashboard_panels import DEFAULT_GRAFANA_ROWS

    panels = [panel for row in DEFAULT_GRAFANA_ROWS for panel in row.panels]
    return {metric for panel in panels for target in panel.targets for metric in METRIC.findall(target.expr)}


def test_every_figure_shown_is_exported(shown):
    rays = rays_metrics()
    assert "ray_node_gpus_utilization" in rays
    assert shown - OURS - rays == set()


def test_every_figure_of_ours_is_shown(shown):
    assert OURS - shown == {"ray_student_train_sequences_total"}  # tokens are shown


def test_variables_are_labels_of_ours(dashboard):
    queries = [variable["definition"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    assert {re.sub(r"label_values\((\w+), \w+\)", r"\1", query) for query in queries} <= OURS


def test_panels_do_not_overlap_and_have_ids_of_their_own(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, f"{one} overlaps {other}"
