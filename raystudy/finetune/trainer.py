"""The trainer that studies use: builds each trial's data, network and checkpoints, once per process where trials share them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import filelock

from raystudy.cache import Cache
from raystudy.data import PreparedData, open_data
from raystudy.finetune.backbone import Backbone, BackboneInfo, build_backbone, builder_with, unit_count
from raystudy.finetune.prefixes import Sharing
from raystudy.finetune.source_models import Sources, architecture_of
from raystudy.finetune.trial import TrialPlan, TrialRun
from raystudy.spec import StudySpec
from raystudy.storage import keep_trying
from raystudy.work import Ticket, Training

_OTHER_PROCESS_S = 120.0


@dataclass(frozen=True)
class FineTuneTrainer:
    """Opens fine-tuning trials of one study.

    Attributes:
        spec: the study.
        checkpoints: the folder with one sub-folder of checkpoints a trial.
        cache: where decoded images and activations are.
        device: `auto`, `cpu`, `cuda`, ...
        sources: the registered models that trials begin with.
    """

    spec: StudySpec
    checkpoints: Path
    cache: Path
    device: str = "auto"
    sources: Sources = field(default_factory=dict)

    def open(self, ticket: Ticket) -> Training:
        """Prepare the trial; it continues from its last checkpoint if it has one."""
        data = _shared_data(_Key(self.spec, self.cache))
        folder = self.checkpoints / ticket.trial_id
        build = builder_with(self.sources, _copy_of_shared)
        run = TrialRun(self.plan(ticket), data, folder, backbone=build, sharing=self._sharing(ticket))
        return _Exclusive(run, folder)

    def _sharing(self, ticket: Ticket) -> Sharing | None:
        spec = self.spec
        if spec.features == "off":
            return None
        depths = _depths(spec, architecture_of(str(ticket.config["backbone"]), self.sources)) * len(spec.backbones)
        return Sharing(spec.features, Cache(self.cache), mean_epochs(spec) * spec.budget.trials / depths, depths)

    def plan(self, ticket: Ticket) -> TrialPlan:
        """Return what the trial is to do."""
        spec = self.spec
        return TrialPlan(
            trial_id=ticket.trial_id,
            number=ticket.number,
            config=ticket.config,
            epochs=spec.budget.epochs,
            study_seed=spec.search.seed,
            metric=spec.metric,
            mode=spec.mode,
            epoch_unit=spec.budget.unit,
            device=self.device,
            threads=spec.resources.cpu,
            precision=spec.resources.precision,
            readout_epochs=readout_epochs(spec),
        )


def readout_epochs(spec: StudySpec) -> tuple[int, ...]:
    """Return the epochs after which trials read out what fine-tuning changed; none in a study that keeps no model.

    The rungs but the first, so that trials stopped there pay nothing, and the last epoch; without rungs 3, 9, 27, ...
    """
    if spec.keep_models == 0:
        return ()
    stopping, budget = spec.early_stopping, spec.budget.epochs
    first, factor = (1, 3) if stopping.scheduler == "none" else (stopping.grace, stopping.reduction)
    epochs, epoch = [], first * factor
    while epoch < budget:
        epochs.append(epoch)
        epoch *= factor
    return (*epochs, budget)


def mean_epochs(spec: StudySpec) -> float:
    """Return how many epochs a trial is expected to train: ASHA lets one in `reduction` and the hold-outs pass each rung."""
    stopping, budget = spec.early_stopping, spec.budget.epochs
    if stopping.scheduler == "none":
        return float(budget)
    passing = 1 / stopping.reduction
    passing += (1 - passing) * float(stopping.keep)
    total, reached, share, rung = 0.0, 0, 1.0, stopping.grace
    while reached < budget:
        total += share * (min(rung, budget) - reached)
        reached, rung, share = min(rung, budget), rung * stopping.reduction, share * passing
    return total


def _depths(spec: StudySpec, backbone: str) -> int:
    """Return how many depths of `backbone` trials of the study may share."""
    factors = spec.all_factors
    n_units = _unit_count(backbone)
    varying = {"tuned_unit", "strategy"} & factors.keys() or spec.constants().get("strategy", "ft") != "ft"
    factor = factors.get("frozen_depth")
    if varying or (factor is not None and factor.choice is None):
        return n_units
    return len(factor.choice) if factor is not None and factor.choice else 1


_unit_count = lru_cache(maxsize=16)(unit_count)
"""Asked for every trial, and a timm network is built to count its units."""


class _Exclusive:
    """A trial that no other process trains meanwhile.

    When a driver is killed, its Ray outlives it by seconds: a study resumed at once would have two processes write the
    checkpoints of one trial. The lock goes with the process that holds it, however that dies.
    """

    def __init__(self, run: TrialRun, folder: Path) -> None:
        self._run = run
        self._file = folder.with_suffix(".lock")
        self._lock = filelock.FileLock(self._file)

    def epochs(self) -> Iterator[Mapping[str, float]]:
        keep_trying(self._acquire, self._file)
        try:
            yield from self._run.epochs()
        finally:
            self._lock.release()

    def _acquire(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire(timeout=_OTHER_PROCESS_S)

    def close(self) -> None:
        self._run.close()
        self._lock.release(force=True)


@dataclass(frozen=True)
class _Key:
    """A study's images, as a key: two studies with equal data sections share them."""

    spec: StudySpec
    cache: Path

    def __hash__(self) -> int:
        return hash((self.spec.data.source, self.spec.search.seed, self.cache))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Key)
            and self.spec.data == other.spec.data
            and self.spec.search.seed == other.spec.search.seed
            and self.cache == other.cache
        )


@lru_cache(maxsize=1)
def _shared_data(key: _Key) -> PreparedData:
    return open_data(key.spec, key.cache)


@lru_cache(maxsize=4)
def _shared_backbone(name: str, image_size: int | None) -> Backbone:
    return build_backbone(name, pretrained=True, image_size=image_size)


def _copy_of_shared(name: str, *, pretrained: bool, seed: int, image_size: int | None) -> Backbone:
    """Build a backbone; pretrained weights are read from disk once per process and copied."""
    if pretrained:
        return copy.deepcopy(_shared_backbone(name, image_size))
    return build_backbone(name, pretrained=False, seed=seed, image_size=image_size)


def check_weights(spec: StudySpec, sources: Sources | None = None) -> Mapping[str, BackboneInfo]:
    """Load every backbone of the study once, so that missing weights stop it before anything starts.

    Args:
        spec: the study.
        sources: the registered models among its backbones.

    Returns:
        What is known of each backbone.

    Raises:
        BackboneError: weights cannot be loaded, or do not fit the image size.
    """
    size = int(spec.constants().get("resolution") or spec.data.image_size)
    build = builder_with(sources or {}, _shallow_copy_of_shared)
    is_pretrained = spec.constants().get("pretrained") is not False  # weights that no trial uses need not be there
    return {name: build(name, pretrained=is_pretrained, seed=0, image_size=size).info for name in spec.backbones}


def _shallow_copy_of_shared(name: str, *, pretrained: bool, seed: int, image_size: int | None) -> Backbone:
    if pretrained:
        return copy.copy(_shared_backbone(name, image_size))
    return build_backbone(name, pretrained=False, seed=seed, image_size=image_size)
