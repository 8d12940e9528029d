"""Trials that end badly on a real Ray: each in its state with its reason, and the study goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from toys import Mishap, ToyTrainer, direct, ends, stream, toy_spec

from raystudy.records import StudyState, TrialState
from raystudy.search.inline import run_inline
from raystudy.search.tune import Slots, run_on_tune
from raystudy.search.worker import Worker

pytestmark = pytest.mark.slow

MISHAPS: dict[int, Mishap] = {1: "nan", 2: "raise", 3: "kill", 4: "memory", 5: "kill_once"}
SPEC = toy_spec(budget={"trials": 9, "epochs": 4}, early_stopping={"grace": 2, "reduction": 3, "keep": 0})


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    here = str(Path(__file__).parents[1])
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=2,
        log_to_driver=False,
        object_store_memory=100_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": here}},
    )
    yield
    ray.shutdown()


@pytest.mark.parametrize("concurrent", [1, 2])
def test_each_mishap_has_its_state_and_reason_and_the_study_completes(tmp_path: Path, concurrent: int) -> None:
    director, events = direct(SPEC)
    trainer = ToyTrainer(4, MISHAPS, folder=tmp_path)
    state = run_on_tune(director, trainer, Slots(1, 0, concurrent, retries=1))

    assert state is StudyState.COMPLETED
    trials = {trial.number: trial for trial in director.record.trials.values()}
    assert [len(ended) for ended in ends(events).values()] == [1] * 9
    assert (trials[1].state, trials[1].reason) == (TrialState.DIVERGED, "val_loss is nan at epoch 2")
    assert (trials[2].state, trials[2].reason) == (TrialState.FAILED, "ValueError: boom")
    assert trials[3].state is TrialState.FAILED
    assert trials[3].reason.startswith("its process died")
    assert trials[3].retries == 1
    assert trials[4].state is TrialState.FAILED
    assert trials[4].reason.startswith("out of memory")
    assert trials[5].retries == 1
    assert trials[5].state in (TrialState.COMPLETED, TrialState.PRUNED)
    best = director.record.ranking("val_accuracy", "max")
    assert {trial.number for trial in best} == set(trials) - {1, 2, 3, 4}
    assert {trial.state.name for trial in director.sampler.study.trials} <= {"COMPLETE", "PRUNED", "FAIL"}


def test_ray_and_the_inline_loop_take_the_same_steps() -> None:
    mishaps: dict[int, Mishap] = {1: "nan", 2: "raise"}
    on_ray, ray_events = direct(SPEC)
    run_on_tune(on_ray, ToyTrainer(4, mishaps), Slots(1, 0, 1, retries=1))
    inline, inline_events = direct(SPEC)
    run_inline(inline, Worker(ToyTrainer(4, mishaps)))
    assert stream(ray_events) == stream(inline_events)


def test_processes_are_kept_from_trial_to_trial() -> None:
    spec = toy_spec(budget={"trials": 6, "epochs": 2}, early_stopping="none")
    director, _ = direct(spec)
    run_on_tune(director, ToyTrainer(2, tells_pid=True), Slots(1, 0, 1, retries=0))
    pids = {report.metrics["pid"] for trial in director.record.trials.values() for report in trial.reports.values()}
    assert len(pids) == 1
