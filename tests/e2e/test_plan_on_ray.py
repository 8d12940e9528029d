"""The plan of a study on a cluster: measured in a process that has what a trial gets, on a node that runs trials."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from images import write_idx
from places import Place
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from raystudy.errors import DataError
from raystudy.host import ray_session
from raystudy.search import remote_probe
from raystudy.search.remote_probe import probe_on_cluster
from raystudy.spec import StudySpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

STORE = 80_000_000
MANY = {"trials": 40, "epochs": 4, "gpu_hours": 100}


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """Give a cluster whose head runs no trials."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the names of sockets must be short
    arguments = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(head: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Give the cluster without any other node, named by RAY_ADDRESS; nodes that a test adds end with it."""
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    yield head
    ray.shutdown()
    for node in list(head.worker_nodes):
        head.remove_node(node)


def add_worker(cluster: Cluster, cache: Path) -> Any:
    """Add a node for three trials, which has a cache of its own and GPUs by its own account."""
    environment = {"RAYSTUDY_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    return cluster.add_node(num_cpus=3, num_gpus=3, object_store_memory=STORE, env_vars=environment)


def there(place: Place, cluster: Cluster) -> Place:
    """Return the same place with its studies on the cluster."""
    return Place(place.folder, {**place.environment, "RAY_ADDRESS": cluster.address, "COLUMNS": "200"})


def first_line_with(words: str, process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:  # ends with the process
        said.append(line)
        if words in line:
            return line
    raise AssertionError(f"nobody said {words!r}: {''.join(said)}")


def measuring_processes(node: Any) -> set[int]:
    """Return the processes of the node that measure now."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    found = set()
    for child in raylet.children(recursive=True):
        try:
            if "_measure" in " ".join(child.cmdline()):
                found.add(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def rows_of(text: str) -> dict[str, str]:
    """Return the plan's rows by their names."""
    pairs = (line.strip().split("  ", 1) for line in text.splitlines() if line.startswith("  "))
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def test_a_trial_is_measured_on_the_node_that_the_cluster_starts_for_it(place: Place, cluster: Cluster, tmp_path: Path) -> None:
    cache = tmp_path / "worker-cache"
    file = place.study_file(budget=MANY, resources={"gpu": 1, "concurrent": "auto", "gpu_hour_price": 3600})
    process = there(place, cluster).start("validate", str(file))
    try:
        line = first_line_with("no node has", process)
        assert (
            line == "no node has 1 CPU and 1 GPU: the cluster has to start one; waiting up to 10 min to measure a trial there\n"
        )
        node = add_worker(cluster, cache)
        measured: set[int] = set()
        deadline = time.monotonic() + 300
        while process.poll() is None:
            measured |= measuring_processes(node)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert len(measured) == 1
    assert process.pid not in measured
    assert any(path.is_file() for path in cache.rglob("*"))  # the node has read the images itself
    rows = rows_of(out)
    assert "3 trials at a time" in rows["time on cluster"]
    assert "without stopping" in rows["GPU-hours"]
    assert rows["money"].endswith("at 3,600 a GPU-hour")
    assert rows["GPU budget"] == "100 GPU-hours"
    assert out.endswith(f"{file} is right; start it with: raystudy run {file}\n")
    assert [path.name for path in (place.folder / "home").iterdir()] == ["mlflow.db"]  # which was there


def test_the_clusters_numbers_are_in_the_json_document(place: Place, cluster: Cluster, tmp_path: Path) -> None:
    add_worker(cluster, tmp_path / "worker-cache")
    changes = {"budget": MANY, "resources": {"gpu": "auto", "concurrent": "auto", "gpu_hour_price": 2}}
    process = there(place, cluster).start("validate", str(place.study_file(**changes)), "--json")
    out, err = process.communicate(timeout=400)
    assert err == ""  # a job's log has it in one with stdout
    plan = json.loads(out)
    assert (plan["time"]["concurrent"], plan["time"]["node"]) == (3, os.uname().nodename)
    cost, time_plan = plan["cost"], plan["time"]
    assert (cost["unit"], cost["per_trial"], cost["price"], plan["gpu_hours"]) == ("GPU-hours", 1, 2, 100)
    assert 0 < cost["hours_range"][0] <= cost["hours"] <= cost["hours_range"][1] <= cost["hours_without_stopping"]
    assert cost["money"] == pytest.approx(2 * cost["hours"])
    # Three at a time: a third of the GPU-hours, unless one whole trial takes longer.
    assert time_plan["seconds"] >= cost["hours"] * 3600 / 3 * (1 - 1e-9)


def test_here_no_ray_is_started(place: Place, tmp_path: Path) -> None:
    here = Place(place.folder, {**place.environment, "RAY_TMPDIR": str(tmp_path / "ray")})
    plan = here.json("validate", str(place.study_file(budget=MANY)))
    assert not (tmp_path / "ray").exists()
    assert (plan["time"]["node"], plan["cost"]["unit"]) == ("", "CPU-hours")


def spec_on(images: Path, **resources: Any) -> StudySpec:
    return StudySpec.from_dict(
        {
            "name": "small",
            "data": {"source": f"idx:{images}", "image_size": 16, "validation": 0.3},
            "backbone": "efficientnet_lite0",
            "factors": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}},
            "resources": resources,
        }
    )


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_a_place_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_probe, "_START_TIMEOUT_S", 1.5)
    said: list[str] = []
    spec = spec_on(tmp_path, cpu=2)
    with ray_session(spec):
        assert probe_on_cluster(spec, said.append) is None
    assert len(said) == 2
    assert said[0].startswith("no node has 2 CPU: the cluster has to start one")
    assert said[1].endswith("nothing was measured")


def test_a_taken_place_is_waited_for_and_what_the_node_cannot_read_is_said(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_probe, "_PATIENCE_S", 0.0)
    add_worker(cluster, tmp_path / "worker-cache")
    write_idx(tmp_path / "images", n_classes=2, per_class=3, side=8)
    spec = spec_on(tmp_path / "images", cpu=3, gpu=0.5)
    shutil.rmtree(tmp_path / "images")
    with ray_session(spec):
        taken = placement_group([{"CPU": 3}])
        assert taken.wait(60)
        said: list[str] = []

        def release(text: str) -> None:
            said.append(text)
            remove_placement_group(taken)

        with pytest.raises(DataError, match=r"on the cluster's node .*: 1 problem\n.*images"):
            probe_on_cluster(spec, release)
    assert said == ["all places for trials are taken; waiting up to 10 min to measure a trial there"]
