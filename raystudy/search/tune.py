"""A study on Ray Tune. Ray schedules, places and retries processes; every decision is the director's.

Tune gets four small parts, each an adapter onto the director: a search algorithm (what next), a scheduler (does it go on),
a stopper (stop everything) and a callback (a process died). Tune pickles and copies these parts, so they hold no state but
the key under which the live director is found in this process. None of Tune's own snapshots is ever restored: a resumed
study is a new Tune run over a director that was rebuilt from the journal.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm

from raystudy.environment import environment
from raystudy.records import StudyState, TrialState
from raystudy.search import messages
from raystudy.search.actor import TrialActor
from raystudy.search.capacity import Slots, fitting_trials
from raystudy.search.deaths import LastingTrial
from raystudy.search.director import Director
from raystudy.search.notices import Notices
from raystudy.search.packing import Packing
from raystudy.search.placement import Placement
from raystudy.storage import tell
from raystudy.work import Trainer

_STILLBIRTHS = 3
"""Processes in a row that do not come up before a study in which nothing runs is given up."""
_LISTEN_S = 1.0
_WAIT_S = 1.0
"""How long the loop waits for an event of a trial before it looks for signals, quotas and messages."""

Quota = Callable[[int, int], int]
"""How many trials may run at a time now, given how many do and how many could be started besides."""

_LIVE: dict[str, Director] = {}
_QUOTAS: dict[str, Quota] = {}
_PACKINGS: dict[str, Packing] = {}

_TUNE_SETTINGS = {
    # The director's journal is the record; Tune's loggers and snapshots would only cost time (stack: 20 % of the loop).
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    # Signals are ours: Tune knows SIGINT only, and reports a stop as success.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "10",
    # A trial's end, with its reason, is in the journal; its traceback is in its log.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Relative paths mean the same in a trial as in the driver.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_on_tune(
    director: Director, trainer: Trainer, slots: Slots, *, logs: Path | None = None, quota: Quota | None = None
) -> StudyState:
    """Run the study on the Ray that this process is connected to, and return how it went.

    Args:
        director: decides.
        trainer: trains, in Ray's processes.
        slots: what each trial gets.
        logs: the folder of the trials' logs.
        quota: the study's share of a cluster that it is not alone on.
    """
    key = uuid.uuid4().hex
    _LIVE[key] = director
    _QUOTAS[key] = quota or (lambda _running, _left: slots.concurrent)
    _PACKINGS[key] = Packing(slots, partial(fitting_trials, slots.cpu))
    director.place(cpu=slots.cpu, gpu=slots.gpu, concurrent=slots.concurrent)
    folder = Path(tempfile.mkdtemp(prefix="raystudy-tune-"))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with environment({**_TUNE_SETTINGS, "TUNE_MAX_PENDING_TRIALS_PG": str(slots.concurrent)}):
            _tuner(key, trainer, slots, logs, folder).fit()
    finally:
        del _LIVE[key], _QUOTAS[key], _PACKINGS[key]
        shutil.rmtree(folder, ignore_errors=True)
    return director.finish()


def _tuner(key: str, trainer: Trainer, slots: Slots, logs: Path | None, folder: Path) -> tune.Tuner:
    actor = tune.with_resources(
        tune.with_parameters(TrialActor, trainer=trainer, logs=logs, box=key), partial(_needs, slots.cpu)
    )
    return tune.Tuner(
        actor,
        tune_config=tune.TuneConfig(
            search_alg=_Search(key, slots),
            scheduler=_Judge(key, slots.cpu),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="study",
            storage_path=str(folder),
            stop=_Stopper(key),
            callbacks=[_Watcher(key)],
            failure_config=tune.FailureConfig(max_failures=slots.retries),
            verbose=0,
        ),
    )


def _needs(cpu: int, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Return what a trial gets; Tune hands processes on only between trials that get the same."""
    gpu = {"GPU": float(config["gpu"])} if config["gpu"] else {}
    return tune.PlacementGroupFactory([{"CPU": float(cpu), **gpu}])


class _Search(SearchAlgorithm):
    """What runs next: asks the director whenever a slot is free."""

    def __init__(self, key: str, slots: Slots) -> None:
        self._key, self._slots = key, slots
        self._experiment: Any = None

    def add_configurations(self, experiments: Any) -> None:
        self._experiment = experiments[0] if isinstance(experiments, list) else experiments

    @property
    def total_samples(self) -> int:
        return _LIVE[self._key].spec.budget.trials

    def next_trial(self) -> Trial | None:
        director = _LIVE[self._key]
        if director.running >= _allowed(self._key):
            return None
        trial = director.next_trial()
        if trial is None:
            return None
        spec = self._experiment.spec
        config = {
            "trial_id": trial.trial_id,
            "number": trial.number,
            "hyperparameters": director.config(trial),
            "gpu": _PACKINGS[self._key].gpu,
        }
        return LastingTrial(
            spec["run"],
            config=config,
            trial_id=trial.trial_id,
            experiment_tag=trial.trial_id,
            placement_group_factory=spec.get("resources_per_trial"),
            max_failures=self._slots.retries,
            storage=spec["storage"],
        )

    def is_finished(self) -> bool:
        return _LIVE[self._key].is_exhausted

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:  # noqa: ARG002
        """Take notice of a trial that Tune gave up: its process died more often than it is retried, or never came up."""
        director, reason = _LIVE[self._key], _Watcher.last_words.pop(trial_id, "its process died")
        _PACKINGS[self._key].waiting.discard(trial_id)
        if error and not director.failure:  # where no process comes up, the trial is as new: a resume may try it again
            director.end(trial_id, TrialState.FAILED, reason)


def _allowed(key: str) -> int:
    director, packing = _LIVE[key], _PACKINGS[key]
    if packing.waiting:
        return 0
    allowed = _QUOTAS[key](director.running, director.left)
    return allowed if packing.learnt is None else min(allowed, packing.learnt)


class _Judge(FIFOScheduler):
    """Whether a trial goes on."""

    def __init__(self, key: str, cpu: int) -> None:
        super().__init__()
        self._key, self._cpu = key, cpu
        self._notices, self._placement = Notices(), Placement()
        self._has_left = False
        self._free: tuple[str, tune.PlacementGroupFactory] | None = None
        self._is_patient = False

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Choose who takes the process that Tune keeps for a next trial; give it back where the study may run none now."""
        if not self._is_patient:
            self._is_patient = True
            _wait_longer(tune_controller)
        is_awaited = any(trial.status == Trial.PENDING for trial in tune_controller.get_live_trials())
        has_no_place = not is_awaited and _LIVE[self._key].running >= _allowed(self._key)
        if has_no_place or self._has_left:
            # There is no public way; without it a study that may run nothing would hold on to a slot, and the next trial
            # would begin on a node that is about to be taken away.
            tune_controller._cleanup_cached_actors(force_all=True)
            self._has_left, self._free = False, None
        chosen: Trial | None = self._placed(tune_controller) or super().choose_trial_to_run(tune_controller)
        return chosen

    def _placed(self, tune_controller: Any) -> Trial | None:
        """Return the trial that gains most by the node of the process that has come free; None where there is no choice."""
        if self._free is None:
            return None
        node, needs = self._free
        # A trial that is being handed a process is still called pending.
        waiting = {
            trial.trial_id: trial
            for trial in sorted(tune_controller.get_live_trials(), key=lambda trial: trial.config["number"])
            if trial.status == Trial.PENDING
            and trial.placement_group_factory == needs
            and trial not in tune_controller._resetting_trials
        }
        if not waiting:
            return None
        self._free = None
        running = (trial for trial in tune_controller.get_live_trials() if trial.status == Trial.RUNNING)
        nodes = {trial.last_result["node_id"] for trial in running if "node_id" in trial.last_result}
        configs = {trial_id: trial.config["hyperparameters"] for trial_id, trial in waiting.items()}
        return waiting[self._placement.choose(node, configs, nodes)]

    def on_trial_result(self, tune_controller: Any, trial: LastingTrial, result: dict[str, Any]) -> str:  # noqa: ARG002
        decision = self._judge(trial, result)
        if decision == TrialScheduler.STOP:
            self._free = result["node_id"], trial.placement_group_factory
        return decision

    def _judge(self, trial: LastingTrial, result: Mapping[str, Any]) -> str:
        director = _LIVE[self._key]
        if result.get("is_out_of_memory") and self._begins_again_alone(trial, result["reason"]):
            return TrialScheduler.CONTINUE
        leaves = self._notices.is_leaving(result["node_id"])
        self._has_left = self._has_left or leaves
        if result.get("state"):
            director.end(trial.trial_id, TrialState(result["state"]), result["reason"])
            return TrialScheduler.STOP
        metrics = {name.removeprefix("metrics/"): value for name, value in result.items() if name.startswith("metrics/")}
        self._placement.report(result["node_id"], trial.config["hyperparameters"], metrics.get("stored_units", 0))
        goes_on = director.report(trial.trial_id, metrics, node=result["node"], seconds=result["seconds"])
        if goes_on and leaves:  # its checkpoint is on the storage; another epoch here might be lost
            trial.move(f"its node {result['node']} is about to be taken away")
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def _begins_again_alone(self, trial: LastingTrial, reason: str) -> bool:
        """Move a trial that ran out of memory to a GPU of its own; return False where it had one."""
        director, packing, share = _LIVE[self._key], _PACKINGS[self._key], trial.config["gpu"]
        if not 0 < share < 1:
            return False
        if trial.trial_id in packing.waiting:  # it was asked once more before its process was gone
            return True
        if packing.retry_alone(trial.trial_id, share):
            director.place(cpu=self._cpu, gpu=packing.gpu, concurrent=packing.concurrent)
            tell(f"{trial.trial_id} ran out of memory: from now on {round(1 / packing.gpu)} trials share a GPU, at most")
        # The process goes too: whatever else fills its memory, the next one begins with none of it.
        trial.move(f"{reason} (on a GPU that it shared; it begins again with one to itself)")
        return True

    def on_trial_error(self, tune_controller: Any, trial: LastingTrial) -> None:
        """Remember why the process died; comes before a retry as well as before the end."""
        trial.requeued(tune_controller)
        if trial.trial_id in _PACKINGS[self._key].waiting:
            trial.set_config({**trial.config, "gpu": 1.0})
            trial.update_resources(_needs(self._cpu, trial.config))
        if trial.death is None or trial.is_echo:
            return
        _Watcher.last_words[trial.trial_id] = trial.death.reason
        if not trial.death.is_stillbirth:
            return
        _Watcher.stillbirths[self._key] = _Watcher.stillbirths.get(self._key, 0) + 1
        alone = not any(other.is_at_work for other in tune_controller.get_live_trials())
        if alone and _Watcher.stillbirths[self._key] >= _STILLBIRTHS:
            _LIVE[self._key].fail(f"no trial can be started: {trial.death.reason}")


class _Stopper(tune.Stopper):
    """Whether everything stops: a signal, or the time budget. Tune asks all the time, so this listens to the trials too."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._heard = 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        if time.monotonic() - self._heard > _LISTEN_S:
            for text in messages.receive(self._key):
                tell(text)
            self._heard = time.monotonic()
        return _LIVE[self._key].must_stop


class _Watcher(tune.Callback):
    """Notices that a trial is handed out again."""

    # Shared between the copies that Tune makes.
    last_words: dict[str, str] = {}  # noqa: RUF012
    stillbirths: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, key: str) -> None:
        self._key = key

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: LastingTrial, **info: Any) -> None:  # noqa: ARG002
        trial.is_at_work = True
        if trial.config["gpu"] >= 1:
            _PACKINGS[self._key].waiting.discard(trial.trial_id)
        _Watcher.stillbirths.pop(self._key, None)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: LastingTrial, **info: Any) -> None:  # noqa: ARG002
        if trial.is_echo:
            return
        _LIVE[self._key].retry(trial.trial_id, _Watcher.last_words.pop(trial.trial_id, "its process died"))


def _wait_longer(tune_controller: Any) -> None:
    """Let Tune's loop turn round once a second where no trial has anything to say, not ten times: it costs 1 % of a core.

    Whatever happens to a process ends the wait at once. There is no public way.
    """
    manager = tune_controller._actor_manager
    await_event = manager.next

    def next_event(timeout: float | None = None) -> bool:
        is_event: bool = await_event(timeout=timeout if timeout is None else max(timeout, _WAIT_S))
        return is_event

    manager.next = next_event
