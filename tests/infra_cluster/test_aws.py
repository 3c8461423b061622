"""The file for Ray's launcher is one that the launcher takes."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config() -> dict[str, Any]:
    written: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "cluster" / "aws.yaml").read_text())
    return written


def test_the_launcher_takes_it(config):
    prepared = prepare_config(config)
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "teachers", "students"}


def test_the_launcher_refuses_a_misspelt_field(config):
    config["available_node_types"]["teachers"]["max_worker"] = 8
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


def test_no_work_is_on_the_head_and_teachers_are_on_spot_nodes(config):
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["teachers"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(kind["max_workers"] for kind in types.values()) == config["max_workers"]


def test_nodes_install_this_repository_with_what_was_tested(config):
    assert config["file_mounts"]["/home/ubuntu/teacher-cache"] == "."
    (install,) = [line for line in config["setup_commands"] if "pip install" in line]
    assert "teacher-cache/infra/constraints.txt" in install
    assert "teacher-cache[mlflow,tasks]" in install
    assert all("RAY_AUTH_MODE=token" in line for line in config["setup_commands"] if ".bashrc" in line)
