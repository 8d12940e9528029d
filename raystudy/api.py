"""What Python users call to run studies; what comes back is the study as MLflow tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raystudy import driver, host, preflight
from raystudy.driver import Setting
from raystudy.query import Study
from raystudy.spec import StudySpec
from raystudy.studies import open_study
from raystudy.watcher import Watcher


def run(spec: StudySpec, *, inline: bool = False, tracking_uri: str | None = None, watcher: Watcher | None = None) -> Study:
    """Run a new study to its end.

    Args:
        spec: the study.
        inline: without Ray, in this process, one trial after another; the same results.
        tracking_uri: where to record it; by default what `spec` says, then MLFLOW_TRACKING_URI, then a local store.
        watcher: who is shown what happens.

    Returns:
        The study; `.state` says how it went.

    Raises:
        InputError: the study file, its images or its weights are not usable; nothing was started.
        StudyBusyError: there is a study of that name already.
        UnreachableError: the tracking store does not answer; nothing was started.
    """
    checked = preflight.check(spec.to_dict(), title=spec.name)
    outcome = driver.run(checked, Setting(inline=inline, tracking_uri=tracking_uri), watcher)
    return open_study(outcome.name, tracking_uri)


def resume(
    name: str,
    *,
    changes: Mapping[str, Any] | None = None,
    inline: bool = False,
    tracking_uri: str | None = None,
    watcher: Watcher | None = None,
) -> Study:
    """Continue a study that was interrupted or whose process died, or extend a finished one.

    Args:
        name: the study.
        changes: values by key path, e.g. `{"budget.trials": 100}`; only what
            decides no result may change: the budget, resources, features and keep_models.
        inline: as for `run`.
        tracking_uri: as for `run`.
        watcher: as for `run`.

    Raises:
        NotFoundError: there is no such study on this machine.
        SpecError: `changes` touch what decides the results.
        StudyBusyError: another process is running it.
    """
    outcome = driver.resume(
        name, preflight.changing(changes or {}, title=name), Setting(inline=inline, tracking_uri=tracking_uri), watcher
    )
    return open_study(outcome.name, tracking_uri)


def stop(name: str) -> int:
    """Ask the process that runs the study on this machine to stop cleanly; return its process id."""
    return host.stop(name)
