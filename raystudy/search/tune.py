"""A study on Ray Tune. Ray schedules, places and retries processes; every decision is the director's.

Tune gets four small parts, each an adapter onto the director: a search algorithm (what next), a scheduler (does it go on),
a stopper (stop everything) and a callback (a process died). Tune pickles and copies these parts, so they hold no state but
the key under which the live director is found in this process. None of Tune's own snapshots is ever restored: a resumed
study is a new Tune run over a director that was rebuilt from the journal.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm

from raystudy.records import StudyState, Trainer, TrialState
from raystudy.search.actor import TrialActor
from raystudy.search.director import Director

_LIVE: dict[str, Director] = {}

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


@dataclass(frozen=True, slots=True)
class Slots:
    """What a trial gets and how many run at once.

    Attributes:
        cpu: CPUs per trial.
        gpu: GPUs (or a share of one) per trial.
        concurrent: trials at a time.
        retries: times a trial is handed out again after its process died.
    """

    cpu: int
    gpu: float
    concurrent: int
    retries: int


def run_on_tune(director: Director, trainer: Trainer, slots: Slots, *, logs: Path | None = None) -> StudyState:
    """Run the study on the Ray that this process is connected to, and return how it went."""
    key = uuid.uuid4().hex
    _LIVE[key] = director
    folder = Path(tempfile.mkdtemp(prefix="raystudy-tune-"))
    try:
        with _environment({**_TUNE_SETTINGS, "TUNE_MAX_PENDING_TRIALS_PG": str(slots.concurrent)}):
            _tuner(key, trainer, slots, logs, folder).fit()
    finally:
        del _LIVE[key]
        shutil.rmtree(folder, ignore_errors=True)
    return director.finish()


def cluster_slots(cpu: int, gpu: float | str, concurrent: int | str, retries: int) -> Slots:
    """Turn `auto` into numbers by what the connected cluster has.

    A trial gets a whole GPU where there are any; as many trials run at once as fit.
    """
    resources = ray.cluster_resources()
    gpus = float(resources.get("GPU", 0))
    per_trial = (1.0 if gpus else 0.0) if gpu == "auto" else float(gpu)
    fit = int(resources.get("CPU", 1) // cpu)
    if per_trial:
        fit = min(fit, int(gpus // per_trial) if per_trial >= 1 else int(gpus) * int(1 / per_trial))
    return Slots(cpu, per_trial, max(1, fit) if concurrent == "auto" else int(concurrent), retries)


def _tuner(key: str, trainer: Trainer, slots: Slots, logs: Path | None, folder: Path) -> tune.Tuner:
    actor = tune.with_resources(
        tune.with_parameters(TrialActor, trainer=trainer, logs=logs), {"cpu": slots.cpu, "gpu": slots.gpu}
    )
    return tune.Tuner(
        actor,
        tune_config=tune.TuneConfig(
            search_alg=_Search(key, slots),
            scheduler=_Judge(key),
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
        if director.running >= self._slots.concurrent:
            return None
        trial = director.next_trial()
        if trial is None:
            return None
        spec = self._experiment.spec
        config = {"trial_id": trial.trial_id, "number": trial.number, "hyperparameters": director.config(trial)}
        return Trial(
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
        if error:
            _LIVE[self._key].end(trial_id, TrialState.FAILED, _Watcher.last_words.pop(trial_id, "its process died"))


class _Judge(FIFOScheduler):
    """Whether a trial goes on."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:  # noqa: ARG002
        director = _LIVE[self._key]
        if result.get("state"):
            director.end(trial.trial_id, TrialState(result["state"]), result["reason"])
            return TrialScheduler.STOP
        metrics = {name.removeprefix("metrics/"): value for name, value in result.items() if name.startswith("metrics/")}
        goes_on = director.report(trial.trial_id, metrics, node=result["node"])
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002
        """Remember why the process died; comes before a retry as well as before the end."""
        _Watcher.last_words[trial.trial_id] = _death(trial)


class _Stopper(tune.Stopper):
    """Whether everything stops: a signal, or the time budget."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        return _LIVE[self._key].must_stop


class _Watcher(tune.Callback):
    """Notices that a trial is handed out again."""

    last_words: dict[str, str] = {}  # noqa: RUF012  shared between the copies that Tune makes

    def __init__(self, key: str) -> None:
        self._key = key

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        _LIVE[self._key].retry(trial.trial_id, _Watcher.last_words.pop(trial.trial_id, "its process died"))


def _death(trial: Trial) -> str:
    """Say in one line why a trial's process died, from what Tune noted of the last failure in the driver's staging folder."""
    noted = Path(trial.error_file)
    text = noted.read_text(errors="replace") if noted.is_file() else ""
    text = " ".join(text.rpartition("Failure #")[2].partition(")")[2].split())
    if "running low on memory" in text:
        return f"out of memory: {text}"[:500]
    detail = re.search(r"Worker exit type: (\w+) Worker exit detail: (.*?)(?: Some common causes|$)", text)
    cause = f"{detail[1]}: {detail[2]}" if detail else text
    return f"its process died: {cause}"[:500]


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for Tune, which reads its settings nowhere else."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
