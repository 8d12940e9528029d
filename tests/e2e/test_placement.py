"""Several nodes under one study: trials that wait go where what they read is stored, and are those that would run anyway."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from toys import ToyTrainer, conduct, direct, table, toy_spec

from raystudy.records import StudyState, TrialRetried, TrialStarted
from raystudy.search.capacity import Slots
from raystudy.search.placement import Placement
from raystudy.search.tune import run_on_tune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

KINDS = (16, 32, 32, 16, 32, 16)
"""Batch sizes of the first trials: activations are stored for each."""
SPEC = toy_spec(
    factors={"learning_rate": {"log_uniform": [1e-4, 1e-1]}, "batch_size": {"choice": [16, 32]}},
    fixed={"frozen_depth": 4},
    budget={"trials": 10, "epochs": 3},
    search={"sampler": "random", "seed": 2, "points": [{"learning_rate": 0.01, "batch_size": kind} for kind in KINDS]},
    early_stopping="none",
)
SMALL = Slots(1, 0, concurrent=6, retries=0)
"""Six at a time, as on a cluster that may become three times as large."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Give a cluster of two nodes that run a trial each, and a head that runs none."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the names of sockets must be short
    store = {"include_dashboard": False, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder, **store})
    path = str(Path(__file__).parents[1])
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


class Study:
    """The study, its second trial held in its second epoch until `act` is called, which is when trial `until` is done."""

    def __init__(self, folder: Path, until: str, act: Callable[[Path], None]) -> None:
        self.trainer = ToyTrainer(3, {1: "hold_once"}, at_epoch=2, folder=folder, stores=True)
        self.director, self.events = direct(SPEC)
        over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            acted = pool.submit(self._when_done, until, act, over)
            try:
                assert run_on_tune(self.director, self.trainer, SMALL) is StudyState.COMPLETED
            finally:
                over.set()
            acted.result()

    def _when_done(self, until: str, act: Callable[[Path], None], over: threading.Event) -> None:
        done, held = self.trainer.checkpoint(until), self.trainer.checkpoint("t0001").with_name("node")
        while not (held.exists() and done.exists() and json.loads(done.read_text()) == 3):
            if over.wait(0.05):
                return
        act(held)

    @property
    def proposals(self) -> list[tuple[str, int, dict[str, object]]]:
        return [(event.trial_id, event.number, dict(event.config)) for event in self.events if isinstance(event, TrialStarted)]

    def ran_beside(self, trial_id: str) -> list[str]:
        """Return the trials of the same node, in the order in which they began."""
        began = {name: self.trainer.checkpoint(name).with_name("began") for name in self.director.record.trials}
        node = began[trial_id].read_text()
        beside = [name for name in began if began[name].read_text() == node]
        return sorted(beside, key=lambda name: began[name].stat().st_mtime_ns)


def release(held: Path) -> None:
    held.with_name("release").touch()


@pytest.mark.usefixtures("cluster")
def test_trials_go_to_the_node_that_holds_what_they_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = Study(tmp_path / "placed", "t0005", release)
    assert placed.ran_beside("t0000")[:3] == ["t0000", "t0003", "t0005"]

    monkeypatch.setattr(Placement, "choose", lambda _self, _node, waiting, _nodes: next(iter(waiting)))
    plain = Study(tmp_path / "plain", "t0005", release)
    assert plain.ran_beside("t0000")[1] in ("t0001", "t0002")
    assert placed.proposals == plain.proposals
    assert table(placed.director.record) == table(plain.director.record)


def test_the_trials_of_a_node_that_dies_go_on_where_others_have_been_preferred_to_them(
    cluster: Cluster, tmp_path: Path
) -> None:
    def end_node(held: Path) -> None:
        node = next(node for node in cluster.list_all_nodes() if node.node_id == held.read_text())
        cluster.remove_node(node, allow_graceful=False)

    study = Study(tmp_path, "t0005", end_node)
    assert [event.trial_id for event in study.events if isinstance(event, TrialRetried)] == ["t0001"]
    undisturbed, _ = conduct(SPEC, ToyTrainer(3))
    ran = {name: row["reports"].keys() for name, row in table(study.director.record).items()}
    assert ran == {name: row["reports"].keys() for name, row in table(undisturbed.record).items()}
    assert study.director.record.counts() == {"completed": 10}
