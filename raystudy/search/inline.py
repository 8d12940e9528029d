"""A study in this process, one trial after another, without Ray: the same results, steppable in a debugger."""

from __future__ import annotations

from raystudy.records import StudyState, TrialRecord, TrialState
from raystudy.search.director import Director
from raystudy.search.worker import Worker
from raystudy.work import Ticket


def run_inline(director: Director, worker: Worker) -> StudyState:
    """Run the study to its end and return how it went."""
    resources = director.spec.resources
    director.place(cpu=resources.cpu, gpu=0.0 if resources.gpu == "auto" else float(resources.gpu), concurrent=1)
    try:
        while (trial := director.next_trial()) is not None:
            _run_trial(director, worker, trial)
    finally:
        worker.close()
    return director.finish()


def _run_trial(director: Director, worker: Worker, trial: TrialRecord) -> None:
    worker.start(Ticket(trial.trial_id, trial.number, director.config(trial)))
    while not director.must_stop:
        step = worker.step()
        if step.metrics is None:
            director.end(trial.trial_id, step.state or TrialState.FAILED, step.reason)
            return
        if not director.report(trial.trial_id, step.metrics, node=worker.node, seconds=step.seconds):
            return
