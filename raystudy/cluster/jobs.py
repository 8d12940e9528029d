"""Studies as Ray jobs: one job for each driver that a study has had, named after the study.

The job's entrypoint is the same `raystudy run` (or `resume`) that people type, on the cluster's head. The study file travels
in the job's environment, so that one HTTP request submits a study and nothing else has to be shipped.
"""

from __future__ import annotations

import getpass
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from raystudy import __version__
from raystudy.cluster.dashboard import Answer, Dashboard
from raystudy.errors import InputError, Problem, StudyBusyError, UnreachableError

STUDY_VARIABLE = "RAYSTUDY_STUDY"
"""Holds the study file in the environment of a job."""

CLIENT_VARIABLE = "RAYSTUDY_CLIENT_VERSION"
"""Tells the driver which version submitted it."""

_PREFIX = "raystudy-"
_COMMAND_PREFIX = "raystudy_command-"
_ATTEMPT = "~"
"""Between a study's name and the number of its driver: no name can have it, and URLs and file names may."""
_STUDY, _OWNER = "raystudy.study", "raystudy.owner"
_DRIVER_RESOURCE = "study_driver"
"""The head has so many of it as drivers may run at once; the others wait in Ray's queue."""
_STOP_WAIT_S = 120
"""How long a driver may take to end cleanly before Ray kills it: a trial's epoch is not waited for, MLflow may be slow."""
_LONGEST_FILE = 120_000
"""Linux takes 128 KiB for one variable of the environment."""
_NEW_HEAD_S = 20.0
"""How long a head that has just started answers before it can take a job."""
_POLL_S = 0.2

ACTIVE = ("PENDING", "RUNNING")
_REFUSALS = (InputError.exit_code, UnreachableError.exit_code)


@dataclass(frozen=True, slots=True)
class StudyJob:
    """One driver of a study.

    Attributes:
        job_id: Ray's submission id, safe in paths and URLs.
        study: the study's name.
        attempt: 1 for the first driver, one more for each resume.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: Ray's words about it.
        exit_code: of the driver, None while there is none.
        owner: who submitted it.
        submitted: seconds since 1970.
        has_started: whether a driver process was ever started.
    """

    job_id: str
    study: str
    attempt: int
    status: str
    message: str
    exit_code: int | None
    owner: str
    submitted: float
    has_started: bool

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.status in ACTIVE

    @property
    def was_refused(self) -> bool:
        """Whether its driver found bad input or an unreachable service and started nothing."""
        return self.exit_code in _REFUSALS

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StudyJob | None:
        """Read a row of Ray's list of jobs; None for a job that is no study's."""
        job_id = row.get("submission_id") or ""
        about = row.get("metadata") or {}
        if not job_id.startswith(_PREFIX):
            return None
        study, _, attempt = job_id.removeprefix(_PREFIX).partition(_ATTEMPT)
        code = row.get("driver_exit_code")
        return cls(
            job_id=job_id,
            study=study,
            attempt=int(attempt) if attempt.isdecimal() else 1,
            status=str(row.get("status", "")),
            message=str(row.get("message") or ""),
            exit_code=None if code is None else int(code),
            owner=about.get(_OWNER, ""),
            submitted=float(row.get("start_time") or 0) / 1000,
            has_started=bool(row.get("driver_node_id")),
        )


class Jobs:
    """The studies' jobs of one cluster."""

    def __init__(self, dashboard: Dashboard) -> None:
        """Ask `dashboard`."""
        self._dashboard = dashboard

    @property
    def address(self) -> str:
        """The dashboard's address."""
        return self._dashboard.address

    def all(self) -> list[StudyJob]:
        """Return every study's jobs, in the order in which they were submitted."""
        found = [job for row in self._dashboard.get("/api/jobs/") if (job := StudyJob.of(row)) is not None]
        return sorted(found, key=lambda job: (job.submitted, job.attempt))

    def drivers(self) -> dict[str, StudyJob]:
        """Return the last driver of every study; those that refused to start have changed nothing and do not count."""
        return {job.study: job for job in sorted(self.all(), key=lambda job: job.attempt) if not job.was_refused}

    def of(self, study: str) -> list[StudyJob]:
        """Return the jobs of a study, the first one first."""
        return [job for job in self.all() if job.study == study]

    def get(self, job_id: str) -> StudyJob | None:
        """Return a job as it is now, None if it is gone."""
        answer = self._dashboard.request("GET", f"/api/jobs/{quote(job_id)}")
        return StudyJob.of(answer.body) if answer.status == 200 and isinstance(answer.body, dict) else None

    def submit(self, study: str, command: Iterable[str], *, study_file: str = "", owner: str = "") -> StudyJob:
        """Submit a driver.

        Args:
            study: the study's name.
            command: the arguments of `raystudy` that the driver runs with.
            study_file: the text of the study file, which the driver gets on standard input.
            owner: who submits it; by default this user.

        Raises:
            StudyBusyError: the study has a job that waits or runs.
            UnreachableError: the cluster refuses the job.
        """
        if len(study_file.encode()) > _LONGEST_FILE:
            what = f"the study file has {len(study_file.encode()):,} bytes"
            raise InputError(Problem("", what, f"at most {_LONGEST_FILE:,} travel with a job; put it on the cluster's storage"))
        nodes = self._dashboard.nodes()
        self._dashboard.check_version(nodes)
        before = self.of(study)
        if before and before[-1].is_active:
            raise StudyBusyError(f"the study {study!r} is {_in_words(before[-1])} on {self.address} already")
        attempt = max((job.attempt for job in before), default=0) + 1
        owner = owner or getpass.getuser()
        job_id = f"{_PREFIX}{study}" + (f"{_ATTEMPT}{attempt}" if attempt > 1 else "")
        environment = {
            "RAYSTUDY_OWNER": owner,
            CLIENT_VARIABLE: __version__,
            "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S),
        }
        if study_file:
            environment[STUDY_VARIABLE] = study_file
        # A cluster that was not started from our files has no queue for drivers: all of them run at once there.
        resources = {_DRIVER_RESOURCE: 1.0} if any(_DRIVER_RESOURCE in row["resources_total"] for row in nodes) else {}
        self._create(job_id, _entrypoint(command, study_file), {_STUDY: study, _OWNER: owner}, environment, resources)
        job = self.get(job_id)
        if job is None:
            raise UnreachableError(f"the cluster at {self.address} took the job {job_id} and does not know it any more")
        return job

    def run(self, command: Iterable[str], *, study_file: str = "") -> tuple[int, str]:
        """Run a `raystudy` command on the head and return its exit code and output; `study_file` is its standard input.

        Raises:
            UnreachableError: the cluster refuses the job.
        """
        job_id = f"{_COMMAND_PREFIX}{time.time_ns()}"
        self._create(job_id, _entrypoint(command, study_file), {}, {STUDY_VARIABLE: study_file} if study_file else {}, {})
        while (row := self._row(job_id))["status"] in ACTIVE:
            time.sleep(_POLL_S)
        code = row.get("driver_exit_code")
        return (1 if code is None else int(code)), self.log(job_id)

    def stop(self, job: StudyJob) -> None:
        """Ask a driver to end cleanly; returns at once.

        Raises:
            UnreachableError: the cluster does not pass it on.
        """
        answer = self._dashboard.request("POST", f"/api/jobs/{quote(job.job_id)}/stop")
        if answer.status != 200:
            raise UnreachableError(f"the cluster at {self.address} did not stop the job {job.job_id} ({_reason(answer)})")

    def log(self, job_id: str) -> str:
        """Return what a job has printed so far, nothing where it was never started."""
        answer = self._dashboard.request("GET", f"/api/jobs/{quote(job_id)}/logs")
        if answer.status != 200 or not isinstance(answer.body, dict):
            return ""
        text = str(answer.body.get("logs", ""))
        # What comes before is Ray's: the set-up of the environment, and a repetition of the command.
        before, found, rest = text.partition(f"Running entrypoint for job {job_id}: ")
        command, _, after = rest.partition("\n")
        if command.endswith("<<END_OF_STUDY"):
            after = after.partition("\nEND_OF_STUDY\n")[2]
        return after if found else before

    def _row(self, job_id: str) -> Mapping[str, Any]:
        row: Mapping[str, Any] = self._dashboard.get(f"/api/jobs/{quote(job_id)}")
        return row

    def _create(
        self,
        job_id: str,
        entrypoint: str,
        metadata: Mapping[str, str],
        environment: Mapping[str, str],
        resources: Mapping[str, float],
    ) -> None:
        body = {
            "submission_id": job_id,
            "entrypoint": entrypoint,
            "metadata": dict(metadata),
            "runtime_env": {"env_vars": dict(environment)},
            "entrypoint_resources": dict(resources),
        }
        deadline = time.monotonic() + _NEW_HEAD_S
        while (answer := self._dashboard.request("POST", "/api/jobs/", body=body)).status != 200:
            if "No available agent" not in str(answer.body) or time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        if answer.status == 200:
            return
        if "already exists" in str(answer.body):
            raise StudyBusyError(f"the cluster at {self.address} has a job {job_id} already")
        raise UnreachableError(f"the cluster at {self.address} refuses the job ({_reason(answer)})")


def _reason(answer: Answer) -> str:
    """Return what the dashboard said, of a traceback the last line."""
    last = str(answer.body).strip().splitlines()[-1:] or [""]
    return f"{answer.status}: {last[0][:300]}"


def _entrypoint(command: Iterable[str], study_file: str) -> str:
    """Return the shell command of a job that runs `raystudy`, with the study file on its standard input if there is one.

    The shell is replaced by it: Ray stops a job by a signal to all of its processes, and would then wait in vain for a driver
    whose shell was gone first, where nobody reaps orphans (in a container for instance).
    """
    line = "exec " + shlex.join(["raystudy", *command])
    return f"{line} <<END_OF_STUDY\n${STUDY_VARIABLE}\nEND_OF_STUDY" if study_file else line


def _in_words(job: StudyJob) -> str:
    return "queued" if job.status == "PENDING" else "running"
