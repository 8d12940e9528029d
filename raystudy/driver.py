"""Runs and resumes a study on this machine's Ray (or inline): the order in which everything starts, and how it ends.

No trial is started before the study file, the images, the weights and the tracking store are known to be right, and whatever
fails before that leaves no trace of the study; what takes seconds gets ready meanwhile (`preparation`). From then on the
journal is the study: the process may die at any point.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from raystudy import __version__, paths
from raystudy.errors import Problem, SpecError, StudyBusyError, StudyInterrupted
from raystudy.host import calling_card, exclusive, existing, exiting_on_sigterm, is_on_shared_ray, owner, stopping_on_signals
from raystudy.keeping import CheckpointKeeper
from raystudy.paths import StudyPaths
from raystudy.preflight import check_units, smallest_unit_count, space_of
from raystudy.preparation import Helpers, Job, prepared
from raystudy.records import Event, Observer, StudyRecord, StudyResumed, StudyStarted, StudyState
from raystudy.search.director import Director
from raystudy.shares import Share
from raystudy.spec import StudySpec
from raystudy.storage import StoppedWaiting, attended, tell
from raystudy.tracking.address import check_reachable, database, tracking_uri
from raystudy.tracking.feeder import Ready
from raystudy.tracking.journal import Journal, read_journal
from raystudy.tracking.sources import fetch_sources
from raystudy.watcher import Watcher
from raystudy.work import Trainer

if TYPE_CHECKING:
    from raystudy.search.capacity import Slots
    from raystudy.search.tune import Quota

_log = logging.getLogger(__name__)

READY_TIMEOUT_S = 180.0
"""For a store that is slow, such as a new database on a busy machine; one that does not answer is known much sooner."""
DRAIN_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Setting:
    """How a study is run, as opposed to what it asks.

    Attributes:
        inline: without Ray, in this process.
        tracking_uri: where MLflow is; None: the study file's, then MLFLOW_TRACKING_URI, then the local store.
        trainer: what trains the trials; None: fine-tuning on the study's images.
    """

    inline: bool = False
    tracking_uri: str | None = None
    trainer: Trainer | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `run --json` prints.

    Attributes:
        name: the study.
        state: how it ended.
        reason: why, where that is not plain.
        trials: number of trials by state.
        best: the best trial: its id, number, state, epoch, configuration and metrics; None if none ranks.
        wall_seconds: time that drivers spent on the study, over all resumes.
        epochs_trained: epochs reported over all trials.
        tracking_uri: the MLflow store.
        experiment_id: the study's experiment there.
        run_id: the study's parent run there.
        recorded: whether MLflow holds everything that the journal says.
    """

    name: str
    state: StudyState
    reason: str
    trials: dict[str, int]
    best: dict[str, Any] | None
    wall_seconds: float
    epochs_trained: int
    tracking_uri: str
    experiment_id: str
    run_id: str
    recorded: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def run(spec: StudySpec, setting: Setting | None = None, watcher: Watcher | None = None) -> Outcome:
    """Run a new study to its end.

    Raises:
        StudyBusyError: there is a study of that name already.
        InputError: the images or the weights are not usable; nothing was started.
        UnreachableError: the tracking store does not answer; nothing was started.
    """
    setting, watcher = setting or Setting(), watcher or Watcher()
    spec = _with_address(spec, setting)
    files = StudyPaths.of(spec.name)
    with exclusive(files), calling_card(files), exiting_on_sigterm():
        if files.journal.exists():
            raise StudyBusyError(
                f"there is a study {spec.name!r} already: `raystudy resume {spec.name}` continues it, --name renames this one"
            )
        _check_server(spec, setting)
        sources = fetch_sources(spec, _address(spec, setting), say=watcher.say)
        check_units(spec, sources)
        job = Job(spec, files, watcher, sources, _address(spec, setting), setting.inline, setting.trainer)
        with prepared(job, uses_ray=not setting.inline) as helpers:
            about = helpers.about | {"units": smallest_unit_count(spec, sources)}
            about |= {"sources": {name: source.note() for name, source in sources.items()}} if sources else {}
            started = StudyStarted(time.time(), spec.name, spec.to_dict(), spec.fingerprint, __version__, about, owner())
            return _drive(job, helpers, history=[], opening=started)


def exists(name: str) -> bool:
    """Whether there is a study called `name` on this machine's storage."""
    return StudyPaths.of(name).journal.exists()


def resume(
    name: str,
    changes: Callable[[StudySpec], StudySpec] | None = None,
    setting: Setting | None = None,
    watcher: Watcher | None = None,
) -> Outcome:
    """Continue a study from its journal: unfinished trials first, under their old ids, from their last checkpoints.

    Args:
        name: the study.
        changes: changes to the budget or the resources; anything that decides results is refused.
        setting: how it is run.
        watcher: who is shown what happens.

    Raises:
        NotFoundError: there is no such study here.
        SpecError: `changes` touch what decides the results.
        StudyBusyError: another process is running it.
    """
    setting, watcher = setting or Setting(), watcher or Watcher()
    files = existing(name)
    with exclusive(files), calling_card(files), exiting_on_sigterm():
        history = read_journal(files.journal)
        record = StudyRecord.fold(history)
        before = StudySpec.from_dict(record.spec)
        spec = changes(before) if changes else before
        if spec.fingerprint != before.fingerprint:
            raise SpecError(
                Problem(
                    "--set",
                    "changes what decides the results of the study",
                    "a resume may change budget.trials, budget.hours, "
                    "budget.gpu_hours, resources, features and keep_models; give the changed study another name",
                )
            )
        _check_server(spec, setting)
        sources = fetch_sources(spec, _address(spec, setting), record.data.get("sources"), say=watcher.say)
        job = Job(spec, files, watcher, sources, _address(spec, setting), setting.inline, setting.trainer)
        has_work = _has_work(spec, record)
        uses_ray = has_work and not setting.inline
        with prepared(job, uses_ray=uses_ray, known=record.data.get("fingerprint")) as helpers:
            resumed = StudyResumed(time.time(), spec.to_dict(), __version__) if has_work else None
            return _drive(job, helpers, history=history, opening=resumed)


def _drive(job: Job, helpers: Helpers, *, history: Sequence[Event], opening: StudyStarted | StudyResumed | None) -> Outcome:
    """Run the trials that are left, and bring MLflow up to the journal; without an `opening` event only the latter."""
    spec, files, watcher, feeder = job.spec, job.files, job.watcher, helpers.feeder
    space = space_of(spec, job.sources)
    helpers.await_ray()
    if opening and not job.inline:
        import raystudy.search.tune  # noqa: F401  a second of imports, while the writer opens the store
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(files.journal))
        with _opened(journal, opening):
            ready = feeder.wait_ready(READY_TIMEOUT_S)
        history = [*history, opening] if opening else history
        watcher.recount(history)
        observers: list[Observer] = [lambda _: feeder.notify(), CheckpointKeeper(spec, files, history), watcher]
        director = Director(spec, space, append=journal.append_patiently, history=history, observers=observers)
        if opening:
            watcher.begin(director)
            try:
                with _attended(director, watcher):
                    _run_trials(director, job, helpers.trainer)
            finally:
                watcher.end()
        watcher.say("Recording models and results in MLflow")
        feeder.close()  # it wraps up while Ray shuts down
        helpers.ray.close()
        if any(trial.reports for trial in director.record.trials.values()):
            watcher.say("Computing which factors matter")  # the writer does, once everything else is recorded
        try:
            recorded = feeder.finish(DRAIN_TIMEOUT_S)
        except KeyboardInterrupt:  # the study is over, and the writer goes on by itself
            recorded = feeder.has_recorded()
        return _outcome(director, ready, recorded)


@contextmanager
def _opened(journal: Journal, opening: StudyStarted | StudyResumed | None) -> Iterator[None]:
    """Write the driver's first event; a study that cannot start after all leaves no trace.

    A new study is in the journal before the store is ready, because the MLflow writer waits for that; a resumed one is noted
    only when the store has answered.
    """
    if isinstance(opening, StudyStarted):
        journal.append(opening)
    try:
        yield
    except BaseException:
        if isinstance(opening, StudyStarted):
            journal.path.unlink()
        raise
    if isinstance(opening, StudyResumed):
        journal.append(opening)


def _has_work(spec: StudySpec, record: StudyRecord) -> bool:
    """Whether the study has trials to run, or an end to write; one that has ended needs another budget to go on."""
    if record.state not in (StudyState.COMPLETED, StudyState.FAILED):
        return True
    unfinished = any(not trial.state.is_over for trial in record.trials.values())
    if spec.budget == StudySpec.from_dict(record.spec).budget:
        return unfinished and record.state is StudyState.FAILED  # it may be that no process came up: see Director.fail
    return unfinished or len(record.trials) < spec.budget.trials


def _run_trials(director: Director, job: Job, trainer: Trainer) -> None:
    resources = director.spec.resources
    if director.is_exhausted:  # the last driver died between the last trial and the end of the study
        director.finish()
    elif job.inline:
        from raystudy.search.inline import run_inline
        from raystudy.search.worker import Worker

        run_inline(director, Worker(trainer, logs=job.files.logs))
    else:
        from raystudy.search.capacity import cluster_slots
        from raystudy.search.packing import pack
        from raystudy.search.remote_probe import gpu_need_on_cluster
        from raystudy.search.tune import run_on_tune

        slots = cluster_slots(resources.cpu, resources.gpu, resources.concurrent, resources.retries)
        if job.trainer is None:
            ask = partial(gpu_need_on_cluster, director.spec, slots, tell, lambda: director.must_stop, job.sources)
            slots = pack(director.spec, slots, ask)
        run_on_tune(director, trainer, slots, logs=job.files.logs, quota=_quota(director.spec, slots, job.files))


def _quota(spec: StudySpec, slots: Slots, files: StudyPaths) -> Quota | None:
    """Return the study's share of a cluster where other studies may run too; a Ray of its own is all its own."""
    if not is_on_shared_ray():
        return None
    from raystudy.search.capacity import fitting_trials

    limit = sys.maxsize if spec.resources.concurrent == "auto" else slots.concurrent
    fit = partial(fitting_trials, slots.cpu, slots.gpu)
    share = Share(spec.name, files.driver, priority=float(spec.resources.priority), slots=fit)
    return lambda running, left: min(limit, share.quota(running, min(left, limit)))


@contextmanager
def _attended(director: Director, watcher: Watcher) -> Iterator[None]:
    """Let signals end the study, also one that is paused because its storage cannot be written."""
    with attended(watcher.say, lambda: bool(director.stop_reason)):
        try:
            with stopping_on_signals(director):
                yield
        except KeyboardInterrupt:
            director.request_stop("interrupted from the keyboard")
            try:
                director.finish()
            except StoppedWaiting as error:  # the end cannot be written either: a resume finds the study as it is
                name = director.spec.name
                raise StudyInterrupted(f"{error}; the study is stopped, `raystudy resume {name}` continues it") from error


def _outcome(director: Director, ready: Ready, recorded: bool) -> Outcome:
    record, spec = director.record, director.spec
    ranking = record.ranking(spec.metric, spec.mode)
    best: dict[str, Any] | None = None
    if ranking:
        trial = ranking[0]
        epoch = trial.best_epoch(spec.metric, spec.mode) or 0
        best = {
            "trial_id": trial.trial_id,
            "number": trial.number,
            "state": trial.state.value,
            "epoch": epoch,
            "config": dict(trial.config),
            "metrics": dict(trial.reports[epoch].metrics),
        }
    return Outcome(
        name=spec.name,
        state=record.state,
        reason=record.reason,
        trials=record.counts(),
        best=best,
        wall_seconds=round(record.busy_seconds, 3),
        epochs_trained=sum(len(trial.reports) for trial in record.trials.values()),
        tracking_uri=ready.tracking_uri,
        experiment_id=ready.experiment_id,
        run_id=ready.run_id,
        recorded=recorded,
    )


def _address(spec: StudySpec, setting: Setting) -> str:
    """Return where the study is recorded: what is asked for, then the study file, the environment, the local store."""
    return tracking_uri(setting.tracking_uri or spec.tracking_uri)


def _check_server(spec: StudySpec, setting: Setting) -> None:
    """Make sure that a tracking server answers: known in a moment, whereas images and weights take longer."""
    address = _address(spec, setting)
    if database(address) is None:
        check_reachable(address)


def _with_address(spec: StudySpec, setting: Setting) -> StudySpec:
    """Note in the study where it is recorded, so that a resume from another shell finds it; never a password."""
    address = _address(spec, setting)
    if address == paths.local_tracking_uri() or urlsplit(address).password:
        return spec
    return spec.model_copy(update={"tracking_uri": address})
