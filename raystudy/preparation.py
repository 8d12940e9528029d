"""What comes before a study: its images and weights are read while the MLflow writer and Ray get ready beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raystudy import paths
from raystudy.errors import InputError, Problem
from raystudy.host import ray_starting
from raystudy.paths import StudyPaths
from raystudy.preflight import check_classes
from raystudy.spec import StudySpec
from raystudy.tracking.feeder import Feeder
from raystudy.watcher import Watcher
from raystudy.work import Trainer

if TYPE_CHECKING:
    from raystudy.finetune.source_models import Sources


@dataclass(frozen=True, slots=True)
class Job:
    """A study that is to be run, and how.

    Attributes:
        spec: the study.
        files: of the study.
        watcher: who is shown what happens.
        sources: the registered models that trials begin with.
        address: the MLflow store.
        inline: without Ray, in this process.
        trainer: what trains the trials; None: fine-tuning on the study's images.
    """

    spec: StudySpec
    files: StudyPaths
    watcher: Watcher
    sources: Sources
    address: str
    inline: bool
    trainer: Trainer | None


@dataclass(frozen=True, slots=True)
class Helpers:
    """What a study runs with.

    Attributes:
        feeder: the MLflow writer; it may not be ready yet.
        ray: shuts Ray down when it is closed.
        await_ray: waits until Ray is there; raises if it cannot be.
        trainer: trains.
        about: what to note about the images.
    """

    feeder: Feeder
    ray: ExitStack
    await_ray: Callable[[], None]
    trainer: Trainer
    about: dict[str, Any]


@contextmanager
def prepared(job: Job, *, uses_ray: bool, known: str | None = None) -> Iterator[Helpers]:
    """Read the images and the weights, seconds of work for one core; the others prepare what comes then.

    The MLflow writer reads its libraries meanwhile; once the images are right, it opens the store, and Ray starts. Neither
    leaves a trace of the study if the weights are wrong.

    Args:
        job: the study.
        uses_ray: whether it runs on Ray.
        known: the fingerprint that the images have to have.

    Raises:
        InputError: the images or the weights are not usable.
    """
    with ExitStack() as stack:
        feeder = Feeder.prepare(job.files, job.address)
        stack.callback(_leave, feeder, job)
        about = _read_images(job, known)
        feeder.begin()  # it creates nothing that bears the study's name before the journal begins
        ray = stack.enter_context(ExitStack())
        await_ray = ray.enter_context(ray_starting(job.spec)) if uses_ray else lambda: None
        yield Helpers(feeder, ray, await_ray, _trainer(job), about)


def _leave(feeder: Feeder, job: Job) -> None:
    """Leave the writer to itself; where the study never began, it has nothing to write, and may not outlive its folder."""
    if job.files.journal.exists():
        feeder.finish(1.0)
    else:
        feeder.abandon()


def _read_images(job: Job, known: str | None) -> dict[str, Any]:
    """Decode the images; return what to note about them."""
    if job.trainer is not None:
        return {}
    spec, watcher = job.spec, job.watcher
    watcher.say(f"Reading images from {spec.data.source}")
    from raystudy.data import open_data

    data = open_data(spec, paths.cache())
    check_classes(spec, len(data.class_names))
    if known and data.fingerprint != known:
        raise InputError(Problem("data.source", f"the images of {spec.data.source} have changed since the study began"))
    for warning in data.warnings:
        watcher.say(f"warning: {warning}")
    return {
        "fingerprint": data.fingerprint,
        "classes": list(data.class_names),
        "images": len(data.labels),
        "training_images": len(data.splits.train),
        "validation_images": len(data.splits.validation),
        "skipped": [{"name": bad.name, "reason": bad.reason} for bad in data.bad],
        "warnings": list(data.warnings),
    }


def _trainer(job: Job) -> Trainer:
    """Load the weights; return what trains."""
    if job.trainer is not None:
        return job.trainer
    spec = job.spec
    job.watcher.say(f"Loading {', '.join(spec.backbones[:4])}{', ...' if len(spec.backbones) > 4 else ''}")
    from raystudy.finetune.trainer import FineTuneTrainer, check_weights

    check_weights(spec, job.sources)
    return FineTuneTrainer(spec, job.files.all_checkpoints, paths.cache(), sources=job.sources)
