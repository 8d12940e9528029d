"""Getting hold of a study: one that is recorded somewhere, or one that is submitted to a cluster."""

from __future__ import annotations

from raystudy import host
from raystudy.cluster.dashboard import find_address
from raystudy.cluster.service import Cluster
from raystudy.paths import StudyPaths
from raystudy.query import Control, Study, lazy_study
from raystudy.records import StudyState
from raystudy.spec import StudySpec


class LocalControl:
    """Studies that run on this machine."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        """Resume with `tracking_uri`, by default where the study was recorded."""
        self._tracking_uri = tracking_uri

    def state(self, name: str, journal: str | None) -> StudyState | None:
        """Return how the study was left if nobody runs it any more."""
        return None if journal is None else host.driver_state(name, journal)

    def stop(self, name: str) -> None:
        """Ask the process to end cleanly."""
        host.stop(name)

    def resume(self, name: str) -> None:
        """Continue the study in this process until it ends."""
        from raystudy.driver import Setting, resume  # imports Optuna, which asking does not need

        resume(name, setting=Setting(tracking_uri=self._tracking_uri))


class ClusterControl:
    """Studies that run on a cluster. Connects when it is first asked."""

    def __init__(self, address: str | None) -> None:
        """Look after the studies of the cluster whose dashboard is at `address`."""
        self._address = address

    def state(self, name: str, journal: str | None) -> StudyState | None:  # noqa: ARG002
        """Return whether a driver waits or runs; None where the cluster has never heard of the study."""
        return Cluster(self._address).state(name)

    def stop(self, name: str) -> None:
        """Ask the driver to end cleanly."""
        Cluster(self._address).stop(name)

    def resume(self, name: str) -> None:
        """Submit another driver."""
        Cluster(self._address).resume(name)


def submit(spec: StudySpec, address: str | None = None, *, resume: bool = False, tracking_uri: str | None = None) -> Study:
    """Submit a study to a cluster and return at once; `.wait()` waits for its end, and `.state` may say `queued` at first.

    Args:
        spec: the study. Its images and weights are looked for on the cluster.
        address: the cluster's dashboard, such as http://head:8265; by default RAY_API_SERVER_ADDRESS.
        resume: continue a study of this name if there is one.
        tracking_uri: where this process finds the cluster's MLflow; by default MLFLOW_TRACKING_URI.

    Raises:
        SpecError: the study file is wrong; nothing was submitted.
        StudyBusyError: there is a study of that name.
        UnreachableError: no cluster answers, the token is missing or wrong, or another version of raystudy runs there.
    """
    from raystudy.preflight import check

    checked = check(spec.to_dict(), title=spec.name, is_here=False)
    Cluster(address).submit(checked, resume=resume, wait=False)
    return lazy_study(spec.name, tracking_uri, ClusterControl(address))


def open_study(name: str, tracking_uri: str | None = None, *, address: str | None = None) -> Study:
    """Open a study, running or over. Needs MLflow only; a cluster is asked only to stop or resume, or where it is named.

    Args:
        name: the study.
        tracking_uri: where MLflow is; by default where the study was recorded if it was run here, then as for `run`.
        address: the dashboard of the cluster that runs it; by default RAY_API_SERVER_ADDRESS.

    Raises:
        NotFoundError: there is no study of that name; near misses are named.
        UnreachableError: the store does not answer.
    """
    study = lazy_study_on(name, tracking_uri, address)
    study.metric  # noqa: B018  is it there?
    return study


def lazy_study_on(name: str, tracking_uri: str | None = None, address: str | None = None) -> Study:
    """Return a study that is looked for when it is first asked for; see `open_study`."""
    return lazy_study(name, tracking_uri, _control_of(name, tracking_uri, address))


def _control_of(name: str, tracking_uri: str | None, address: str | None) -> Control | None:
    if find_address(address) is not None:
        return ClusterControl(address)
    return LocalControl(tracking_uri) if StudyPaths.of(name).journal.exists() else None
