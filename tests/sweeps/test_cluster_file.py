"""ray_cluster.yaml, checked without a cloud: Ray's schema, then what that does not see."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ray_cluster.yaml").read_text(encoding="utf-8")
COMMANDS = ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load(TEXT)


@pytest.fixture(scope="module")
def types(cluster):
    return cluster["available_node_types"]


def pinned(cluster):
    return [re.fullmatch(r"rayproject/ray:(.+)-py(\d)(\d+)-[cg]pu", cluster["docker"][key]).groups()
            for key in ("head_image", "worker_image")]  # fmt: skip


def test_ray_accepts_it(cluster):
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(cluster)
    util.validate_config(prepared)
    # Ray's defaults have a dashboard for everyone; it must not come back where a command is left out.
    assert "0.0.0.0" not in yaml.safe_dump(prepared)


def test_nothing_listens_to_the_world():
    assert "0.0.0.0" not in TEXT
    assert "--dashboard-host=127.0.0.1" in TEXT


def test_images_have_the_installed_ray(cluster):
    for found, _, _ in pinned(cluster):
        assert found.split(".")[:2] == version("ray").split(".")[:2]


def test_images_meet_the_bounds_of_the_package(cluster):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = next(line for line in project["optional-dependencies"]["sweep"] if line.startswith("ray["))
    for found, major, minor in pinned(cluster):
        assert numbers(found) >= numbers(wanted.partition(">=")[2])
        assert (int(major), int(minor)) >= numbers(project["requires-python"].partition(">=")[2])


def numbers(text):
    return tuple(int(part) for part in text.split("."))


def test_the_head_stays_and_runs_no_trial(cluster, types):
    head = types[cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_workers_come_and_go(cluster, types):
    workers = {name: kind for name, kind in types.items() if name != cluster["head_node_type"]}
    assert workers
    for kind in workers.values():
        assert kind["min_workers"] == 0
        assert 0 < kind["max_workers"] <= cluster["max_workers"]
        assert kind["resources"]["GPU"] > 0
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert "IamInstanceProfile" in kind["node_config"]
        assert all(disk["Ebs"]["VolumeSize"] >= 100 for disk in kind["node_config"]["BlockDeviceMappings"])
    assert cluster["idle_timeout_minutes"] <= 10
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_containers_have_shared_memory_and_a_token(cluster):
    options = cluster["docker"]["run_options"]
    assert any(option.startswith("--shm-size=") for option in options)
    assert "--env RAY_AUTH_MODE=token" in options
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]


def test_mounted_files_exist(cluster):
    local = [path for path in cluster["file_mounts"].values() if not path.startswith("~")]
    assert [path for path in local if not (ROOT / path).exists()] == []


def test_the_package_can_be_built_from_what_is_mounted(cluster):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    mounted = set(cluster["file_mounts"].values())
    assert {"pyproject.toml", project["readme"], "kdtrain", "sweeps", "analysis"} <= mounted
    assert all(path in mounted or path.split("/")[0] in mounted for path in project["license-files"])


@pytest.mark.parametrize("key", COMMANDS)
def test_commands_are_shell(cluster, key):
    for command in cluster[key]:
        subprocess.run(["bash", "-n", "-c", command], check=True, capture_output=True)


def test_no_hyperparameter_and_no_secret():
    assert not re.search(r"\b(lr|epochs|alpha|beta|tau|batch_size)\b", TEXT)
    assert not re.search(r"AKIA[0-9A-Z]{16}|secret|password", TEXT, re.IGNORECASE)
