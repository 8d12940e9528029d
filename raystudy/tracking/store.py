"""The tracking store as raystudy uses it: the only module that calls MLflow's client.

Errors come in two kinds. `StoreDown`: try the same again later (no connection, a busy database, an error of the server).
`StoreRefused`: the same request will never succeed (the run was deleted, a param has another value).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from raystudy.environment import environment
from raystudy.errors import UnreachableError
from raystudy.tracking import names
from raystudy.tracking.address import CREDENTIALS, artifact_root, database, redact
from raystudy.tracking.content import Point, RunContent
from raystudy.tracking.local_database import HALF_MADE, commit_quickly, make_whole, settle
from raystudy.tracking.questions import PAGE, RUNS_PER_REQUEST, SMALL_PAGE, order_by_metric, trials_only, where

_PROGRESS_BAR = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
_SETTINGS = {
    # We retry ourselves, for as long as it takes; MLflow's own four minutes would only hide that a server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    _PROGRESS_BAR: "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
_METRICS_PER_REQUEST = 1000
_OTHERS_PER_REQUEST = 100
PERMANENT = frozenset(
    {
        "INVALID_PARAMETER_VALUE",
        "RESOURCE_DOES_NOT_EXIST",
        "RESOURCE_ALREADY_EXISTS",
        "INVALID_STATE",
        "BAD_REQUEST",
        "NOT_FOUND",
        "ENDPOINT_NOT_FOUND",
    }
)
UNAUTHORISED = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"})

_log = logging.getLogger(__name__)


def own_process(uri: str) -> None:
    """Set MLflow up for a process of our own that uses the store at `uri`.

    A user's process keeps its settings, since they are the whole process's.
    """
    os.environ.update(_SETTINGS)
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if database(uri) is not None:
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        event.listen(Engine, "connect", commit_quickly)


def read_libraries(uri: str) -> None:
    """Import what opening the store at `uri` imports, for seconds, and open nothing."""
    import mlflow.tracking

    if database(uri) is not None:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


class StoreDown(UnreachableError):
    """The store did not do it now, but may later."""


class StoreRefused(UnreachableError):
    """The store will never do it; `code` is MLflow's name for the reason."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as the store holds it.

    Attributes:
        run_id: its id in MLflow.
        experiment_id: the experiment it is in.
        name: shown in the UI.
        params: by name.
        tags: by name, MLflow's own among them.
        latest: of each metric the value with the highest step.
        status: in MLflow's words.
        started: milliseconds since 1970.
        ended: likewise, None before its first end.
    """

    run_id: str
    experiment_id: str
    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    latest: Mapping[str, float] = field(default_factory=dict)
    status: str = "RUNNING"
    started: int = 0
    ended: int | None = None


class Store:
    """One tracking store. Thread-safe as far as MLflow's client is, which is enough for reading."""

    def __init__(self, uri: str) -> None:
        """Connect; a local store that is not there yet is made.

        Raises:
            StoreDown: the store does not answer.
            StoreRefused: it is a database without all its tables.
        """
        from mlflow import MlflowClient

        self.uri = uri
        file = database(uri)
        try:
            with self.translated("open"):
                if file is not None:
                    make_whole(file, MlflowClient)
                self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        except StoreDown as error:
            if file is None or "already exists" not in str(error):
                raise
            raise StoreRefused(f"{error}; {HALF_MADE.format(file=file)}", "HALF_MADE") from error

    def settle(self) -> None:
        """See to it that what was written survives a power cut, where that is up to us."""
        if (file := database(self.uri)) is not None:
            settle(file)

    # Experiments

    def experiment(self, name: str) -> str | None:
        """Return the id of the experiment `name`, None where there is none.

        Raises:
            StoreRefused: it was deleted.
        """
        with self.translated("look for the experiment"):
            found = self.client.get_experiment_by_name(name)
        if found is None:
            return None
        if found.lifecycle_stage != "active":
            raise deleted(name, self.uri, found.experiment_id)
        return str(found.experiment_id)

    def experiment_or_new(self, name: str) -> str:
        """Return the id of the experiment `name`, created where there is none."""
        found = self.experiment(name)
        if found is not None:
            return found
        try:
            with self.translated("create the experiment"):
                created = self.client.create_experiment(
                    name, artifact_location=artifact_root(self.uri, name), tags={names.KIND: names.STUDY_KIND}
                )
        except StoreRefused as error:
            found = self.experiment(name)
            if found is None:
                raise error
            return found
        return str(created)

    def experiments(self) -> dict[str, str]:
        """Return the ids of all experiments that are not deleted, with their names."""
        return {
            str(experiment.experiment_id): str(experiment.name)
            for experiment in self.pages("list experiments", self.client.search_experiments)
        }

    # Runs

    def runs(self, experiments: Sequence[str], kind: str | None = None, **tags: str) -> list[StoredRun]:
        """Return the runs of `kind` that have the given `raystudy.` tags (without that prefix), oldest first."""
        condition = where(kind, tags)
        found: list[StoredRun] = []
        for start in range(0, len(experiments), RUNS_PER_REQUEST):
            ids = list(experiments[start : start + RUNS_PER_REQUEST])
            found += map(
                _stored,
                self.pages(
                    "search the runs",
                    partial(self.client.search_runs, ids, condition, max_results=PAGE, order_by=["attributes.start_time ASC"]),
                ),
            )
        return found

    def runs_by(self, experiment: str, metric: str, *, ascending: bool) -> Iterator[StoredRun]:
        """Yield the trials' runs in the order of a metric's latest value, those without it last; few are fetched at a time."""
        order = order_by_metric(metric, ascending=ascending)
        search = partial(self.client.search_runs, [experiment], trials_only(), max_results=SMALL_PAGE, order_by=[order])
        return map(_stored, self.pages("search the runs", search))

    def run(self, run_id: str) -> StoredRun:
        """Return a run."""
        with self.translated("read a run"):
            return _stored(self.client.get_run(run_id))

    def create_run(self, experiment: str, content: RunContent, tags: Mapping[str, str]) -> StoredRun:
        """Create a run for `content` that holds no more than `tags` yet."""
        with self.translated("create a run"):
            run = self.client.create_run(
                experiment,
                start_time=content.started,
                run_name=content.name,
                tags=dict(tags),
            )
        return _stored(run)

    def write(
        self, run_id: str, *, points: Sequence[Point] = (), params: Mapping[str, str] | None = None, tags: Mapping[str, str]
    ) -> None:
        """Write to a run, `tags` after everything else."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(point.key, point.value, point.time, point.step) for point in points]
        parameters = [Param(key, value) for key, value in (params or {}).items()]
        labels = [RunTag(key, value) for key, value in tags.items()]
        rounds = max(1, -(-len(metrics) // (_METRICS_PER_REQUEST - 2 * _OTHERS_PER_REQUEST)))
        size = _METRICS_PER_REQUEST - 2 * _OTHERS_PER_REQUEST
        for index in range(rounds):
            with self.translated("write to a run"):
                self.client.log_batch(
                    run_id,
                    metrics[index * size : (index + 1) * size],
                    parameters if index == 0 else [],
                    labels if index == rounds - 1 else [],
                )

    def set_status(self, run_id: str, status: str, ended: int | None) -> None:
        """Set a run's status, and its end unless that is None."""
        with self.translated("end a run"):
            if ended is None:
                self.client.update_run(run_id, status=status)
            else:
                self.client.set_terminated(run_id, status, ended)

    def delete_run(self, run_id: str) -> None:
        """Move a run to MLflow's bin."""
        with self.translated("delete a run"):
            self.client.delete_run(run_id)

    def history(self, run_id: str, metric: str) -> list[Point]:
        """Return every value of a metric as it was written, repetitions included."""
        with self.translated("read a metric"):
            rows = self.client.get_metric_history(run_id, metric)
        return [Point(row.key, int(row.step), float(row.value), int(row.timestamp)) for row in rows]

    # Artifacts

    def upload(self, run_id: str, file: Path) -> None:
        """Store `file` as an artifact of a run, under its own name."""
        with self.translated(f"store {file.name}"):
            self.client.log_artifact(run_id, str(file))

    def download(self, run_id: str, name: str, folder: Path) -> Path:
        """Fetch an artifact of a run into `folder`.

        Raises:
            StoreRefused: the run has no such artifact.
        """
        with self.translated(f"fetch {name}"):
            if name not in {item.path for item in self.client.list_artifacts(run_id)}:
                raise StoreRefused(f"run {run_id} at {redact(self.uri)} has no artifact {name!r}", "NO_ARTIFACT")
            with _no_progress_bar():
                return Path(self.client.download_artifacts(run_id, name, str(folder)))

    # Models

    def model_of(self, experiment: str, run_id: str) -> str | None:
        """Return the id of the model that was logged for a run, None if there is none."""
        return next((model.model_id for model in self._models(experiment, run_id) if str(model.status) == "READY"), None)

    def log_model(self, experiment: str, run_id: str, step: int, save: Callable[[Path, Any], None]) -> str:
        """Log a model for a run and return its id; what an attempt before this one left unfinished is deleted.

        Args:
            experiment: of the run.
            run_id: the run.
            step: the epoch of its weights.
            save: writes the model to a path, described by an MLflow `Model`; called once.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        for leftover in self._models(experiment, run_id):
            with self.translated("delete an unfinished model"):
                self.client.delete_logged_model(leftover.model_id)
        with self.translated("create a model"):
            logged = self.client.create_logged_model(experiment, name=names.MODEL_NAME, source_run_id=run_id)
        model = Model(
            artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
        )
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / names.MODEL_NAME
            save(target, model)
            with self.translated("store a model"):
                self.client.log_model_artifacts(logged.model_id, str(target))
                self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
                self.client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)

    def download_model(self, model_id: str, part: str, folder: Path) -> Path:
        """Fetch the sub-folder `part` of a logged model into `folder`; return where it lies."""
        from mlflow.artifacts import download_artifacts

        with self.translated("fetch a model"):
            uri = f"{self.client.get_logged_model(model_id).artifact_location}/{part}"
            with _no_progress_bar():
                return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=self.uri))

    def _models(self, experiment: str, run_id: str) -> list[Any]:
        return list(
            self.pages(
                "look for a model",
                partial(self.client.search_logged_models, [experiment], f"source_run_id = '{run_id}'"),
            )
        )

    def pages(self, what: str, fetch: Callable[..., Any]) -> Iterator[Any]:
        """Yield everything that a search of MLflow's client finds, page after page."""
        token: str | None = None
        while True:
            with self.translated(what):
                page = fetch(page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Turn whatever MLflow raises into `StoreDown` or `StoreRefused`, in one line and without secrets."""
        try:
            yield
        except UnreachableError:
            raise
        except Exception as error:  # MLflow lets errors of requests, sqlalchemy and the operating system through
            code = str(getattr(error, "error_code", ""))
            reason = redact((str(error).strip().splitlines() or [type(error).__name__])[0])[:500]
            message = f"cannot {doing} at {redact(self.uri)}: {reason}"
            if code in UNAUTHORISED:
                raise StoreDown(f"{message}; {CREDENTIALS}") from error
            if code in PERMANENT:
                raise StoreRefused(message, code) from error
            raise StoreDown(message) from error


def deleted(name: str, uri: str, experiment: str) -> StoreRefused:
    """Return the refusal of a study whose experiment was deleted."""
    return StoreRefused(
        f"the experiment {name!r} at {redact(uri)} was deleted; restore it "
        f"(mlflow experiments restore -x {experiment}) or give the study another name",
        "DELETED",
    )


def _no_progress_bar() -> AbstractContextManager[None]:
    """Keep MLflow from drawing a progress bar for each small file, which only its environment variable can."""
    return environment({_PROGRESS_BAR: "false"})


def _stored(run: Any) -> StoredRun:
    return StoredRun(
        run_id=run.info.run_id,
        experiment_id=str(run.info.experiment_id),
        name=run.info.run_name or "",
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        latest=dict(run.data.metrics),
        status=run.info.status,
        started=run.info.start_time,
        ended=run.info.end_time,
    )
