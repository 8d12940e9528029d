"""Studies on a cluster, from anywhere: submit, resume, stop, follow, and why a driver gave up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from raystudy.cluster.dashboard import Dashboard, required_address
from raystudy.cluster.jobs import Jobs, StudyJob
from raystudy.errors import (
    InputError,
    NotFoundError,
    Problem,
    RaystudyError,
    StudyBusyError,
    StudyFailedError,
    StudyInterrupted,
    UnreachableError,
)
from raystudy.event_lines import event_from_text, whole_lines
from raystudy.records import Event, StudyState
from raystudy.spec import StudySpec

_ACCEPT_S = 30.0
"""How long a driver may take to read its study file, images and weights before `submit` stops waiting for its verdict."""
_QUEUED_S = 8.0
"""A driver that has not been started by then waits for a place."""
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Submitted:
    """A study that a cluster has taken.

    Attributes:
        job: its driver.
        state: `running`: its driver has checked everything; `starting`: it has not yet; `queued`: it waits for a place.
    """

    job: StudyJob
    state: str


class Cluster:
    """A cluster that runs studies, as its users see it."""

    def __init__(self, address: str | None = None) -> None:
        """Connect.

        Args:
            address: the dashboard's, such as http://127.0.0.1:8265; by default RAY_API_SERVER_ADDRESS.

        Raises:
            InputError: no address is given, or it is none.
            UnreachableError: nobody answers there, or the token is missing or wrong.
        """
        self.jobs = Jobs(Dashboard(required_address(address)))

    @property
    def address(self) -> str:
        """The dashboard's address."""
        return self.jobs.address

    def submit(self, spec: StudySpec, *, resume: bool = False, wait: bool = True) -> Submitted:
        """Submit a study.

        Args:
            spec: the study, checked without its images: the cluster's head looks for them.
            resume: continue a study of this name if there is one.
            wait: for the driver's verdict on images, weights and tracking store, unless it has to queue.

        Raises:
            StudyBusyError: there is a study of that name.
            RaystudyError: what the driver had against it, with its exit code; the study was not started.
        """
        before = self._drivers(spec.name)
        if before and not resume and not before[-1].is_active:
            raise StudyBusyError(
                f"there is a study {spec.name!r} on {self.address} already: `raystudy resume {spec.name}` continues it, "
                "--resume does so here, --name renames this one"
            )
        command = ["run", "-", "--events", *(["--resume"] if resume else [])]
        job = self.jobs.submit(spec.name, command, study_file=spec.to_yaml())
        return self._accepted(job) if wait else Submitted(job, "starting")

    def resume(self, study: str, overrides: tuple[str, ...] = (), *, wait: bool = True) -> Submitted:
        """Continue a study whose driver has ended, however that was; its journal is on the cluster's storage.

        Raises:
            StudyBusyError: it is running.
            RaystudyError: what the driver had against it, with its exit code.
        """
        changes = [word for override in overrides for word in ("--set", override)]
        job = self.jobs.submit(study, ["resume", study, "--events", *changes])
        return self._accepted(job) if wait else Submitted(job, "starting")

    def plan(self, spec: StudySpec, *, as_json: bool = False) -> str:
        """Return what `raystudy validate` prints on the cluster: everything checked and measured there, nothing started.

        Raises:
            RaystudyError: what is wrong, with its exit code.
        """
        code, output = self.jobs.run(["validate", "-", *(["--json"] if as_json else [])], study_file=spec.to_yaml())
        if code:
            raise _error(code, last_words(output))
        return output

    def state(self, study: str) -> StudyState | None:
        """Return `queued` or `running` while a driver waits or runs, `interrupted` if none does; None if none ever did."""
        found = self._drivers(study)
        if not found:
            return None
        return {"PENDING": StudyState.QUEUED, "RUNNING": StudyState.RUNNING}.get(found[-1].status, StudyState.INTERRUPTED)

    def stop(self, study: str) -> StudyJob:
        """Ask a study's driver to end cleanly, or take it out of the queue; return the job as it was.

        Raises:
            NotFoundError: no driver of it waits or runs.
        """
        job = self.driver(study)
        if not job.is_active:
            raise NotFoundError(f"nobody is running the study {study!r} on {self.address}")
        self.jobs.stop(job)
        return job

    def events(self, study: str, *, pause: Callable[[float], None] = time.sleep) -> Iterator[Event | None]:
        """Yield what has happened in a study and what happens until its driver ends; None where nothing new came for a while.

        Raises:
            NotFoundError: the cluster knows no job of it.
            RaystudyError: what the driver had against the study, with its exit code; it was not started.
        """
        job = self.driver(study)
        while job.status == "PENDING":
            yield None
            pause(_POLL_S)
            job = self._known(job)
        from raystudy.cluster.tail import tail

        for line in whole_lines(tail(self.address, job.job_id)):
            event = event_from_text(line)
            if event is not None:
                yield event
        job = self._known(job)
        if job.was_refused:
            raise self._refused(job, self.jobs.log(job.job_id))

    def trial_log(self, study: str, trial: str) -> str:
        """Return a trial's log, which lies on the cluster's storage.

        Raises:
            NotFoundError: there is no such study or trial.
        """
        code, output = self.jobs.run(["logs", study, trial])
        if code:
            raise NotFoundError(last_words(output) or f"the log of {trial} could not be read")
        return output

    def driver(self, study: str) -> StudyJob:
        """Return the last driver of a study.

        Raises:
            NotFoundError: the cluster knows none.
        """
        found = self._drivers(study)
        if not found:
            raise NotFoundError(f"the cluster at {self.address} has never run a study {study!r}")
        return found[-1]

    def _drivers(self, study: str) -> list[StudyJob]:
        """Return the jobs of a study that have not been refused: those have changed nothing."""
        return [job for job in self.jobs.of(study) if not job.was_refused]

    def _known(self, job: StudyJob) -> StudyJob:
        """Return a job as it is now."""
        now = self.jobs.get(job.job_id)
        if now is None:
            raise UnreachableError(f"the cluster at {self.address} has lost the job {job.job_id}")
        return now

    def _accepted(self, job: StudyJob) -> Submitted:
        """Wait until the driver has begun the study, has refused it, or is found waiting for a place."""
        deadline, queued_until = time.monotonic() + _ACCEPT_S, time.monotonic() + _QUEUED_S
        while time.monotonic() < deadline:
            now = self._known(job)
            log = self.jobs.log(job.job_id) if now.status != "PENDING" else ""
            if any(event_from_text(line) for line in log.splitlines()):
                return Submitted(now, "running")
            if not now.is_active:
                raise self._refused(now, log)
            if now.status == "PENDING" and time.monotonic() > queued_until:
                return Submitted(now, "queued")
            time.sleep(_POLL_S)
        return Submitted(job, "starting")

    def _refused(self, job: StudyJob, log: str) -> RaystudyError:
        words = last_words(log) or job.message or f"its driver ended as {job.status}"
        return _error(job.exit_code, words)


def _error(code: int | None, words: str) -> RaystudyError:
    """Return the error with which a driver ended."""
    if code == 2:
        return InputError(Problem("", f"on the cluster: {words}"))
    kind: type[RaystudyError] = {3: UnreachableError, 130: StudyInterrupted}.get(code or 0, StudyFailedError)
    return kind(f"on the cluster: {words}")


def last_words(log: str) -> str:
    """Return the error that a driver ended with: from the line that begins with `error: ` on; else its last line."""
    lines = [line for line in log.splitlines() if line.strip() and event_from_text(line) is None]
    for index, line in enumerate(lines):
        if line.startswith("error: "):
            return "\n".join([line.removeprefix("error: "), *lines[index + 1 :]])
    return lines[-1] if lines else ""
