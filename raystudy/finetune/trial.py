"""One trial from configuration to metrics, in plain PyTorch: no Ray, no MLflow, steppable in a debugger."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from raystudy.data import PreparedData, Selected, Selection, select
from raystudy.errors import Diverged
from raystudy.factors import Scalar
from raystudy.finetune import checkpoint as checkpoints
from raystudy.finetune.activations import Reader
from raystudy.finetune.backbone import Backbone
from raystudy.finetune.batches import (
    BatchOrder,
    ImageStore,
    TrainingBatches,
    evaluation_batch_size,
    evaluation_batches,
    stored_batches,
)
from raystudy.finetune.checkpoint import Checkpoint, Row
from raystudy.finetune.compute import Compute, out_of_memory_as_error
from raystudy.finetune.fit import Fitter, Length
from raystudy.finetune.freezing import check_units, trainable_units
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.metrics import Evaluation, evaluate
from raystudy.finetune.model import BackboneFactory, Classifier, FineTuneModel, build_classifier, build_model
from raystudy.finetune.nearest_mean import fit_nearest_mean
from raystudy.finetune.prefixes import Prefixes, Sharing, Split
from raystudy.finetune.readouts_trial import ReadOuts, StartingWeights, starting_weights
from raystudy.finetune.seeds import TrialSeeds

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """What one trial is to do.

    Attributes:
        trial_id: its id, the same in every system.
        number: its number in the study, from 0.
        config: values of the active and the fixed factors, by name; the catalogue's defaults fill it up.
        epochs: the budget T; the schedule spans it even if the trial is stopped before.
        study_seed: the study's seed.
        metric: the objective, one of the metrics of a row.
        mode: `max` or `min`.
        epoch_unit: `epoch`: as many steps as one pass over the full training split; `subset_epoch`: over the trial's own.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        threads: CPU threads; None leaves torch's setting.
        precision: `auto`, `float32` or `bf16`.
        readout_epochs: after which it is read out what training has changed; no metric depends on it.
    """

    trial_id: str
    number: int
    config: Mapping[str, Scalar]
    epochs: int
    study_seed: int
    metric: str = "val_accuracy"
    mode: str = "max"
    epoch_unit: str = "epoch"
    device: str = "auto"
    threads: int | None = None
    precision: str = "auto"
    readout_epochs: tuple[int, ...] = ()

    @property
    def seeds(self) -> TrialSeeds:
        """Where this trial's random numbers come from."""
        return TrialSeeds(self.study_seed, self.number, Hyperparameters.from_config(self.config).seed)

    def fingerprint(self, data: PreparedData) -> str:
        """Return a digest of everything that decides this trial's metrics, apart from the machine and its precision."""
        hyper = Hyperparameters.from_config(self.config).as_dict()
        about = [hyper, self.number, self.epochs, self.study_seed, self.metric, self.mode, self.epoch_unit]
        return hashlib.sha256(json.dumps([*about, data.fingerprint], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a running trial consists of; dropped as a whole when it is closed."""

    model: FineTuneModel
    classifier: Classifier
    store: ImageStore
    fitter: Fitter
    trained_names: frozenset[str]
    frozen_digest: str
    start: StartingWeights | None
    prefixes: Prefixes | None


class TrialRun:
    """Runs a trial in `workdir`, from its last checkpoint there if it has one.

    Args:
        plan: what to do.
        data: the decoded images.
        workdir: this trial's own directory, created where needed.
        backbone: a pretrained backbone to start from a copy of, or what builds backbones; by default the plan names one.
        sharing: how activations of frozen units are shared with other trials; None: they are computed.

    Raises:
        SpecError: on a configuration that cannot be; nothing is built yet.
    """

    def __init__(
        self,
        plan: TrialPlan,
        data: PreparedData,
        workdir: Path,
        *,
        backbone: Backbone | BackboneFactory | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self.plan = plan
        self.hyper = Hyperparameters.from_config(plan.config)
        self.compute = Compute.choose(plan.device, plan.precision)
        self._data = data
        self._workdir = workdir
        self._backbone = backbone
        self._sharing = sharing
        self._rows: tuple[Row, ...] = ()
        self._parts: _Parts | None = None
        self._readouts: ReadOuts | None = None

    def epochs(self) -> Iterator[Row]:
        """Train, and yield the metrics of each epoch after its checkpoint is on disk.

        Where a checkpoint exists, its epoch's row comes first, once more (who asked before may not have received it), and
        training continues with the next epoch.

        Raises:
            Diverged: on a non-finite loss or metric.
            OutOfMemory: where the host's or the device's memory does not suffice.
            CheckpointError: where the checkpoint in `workdir` belongs to another trial.
        """
        with out_of_memory_as_error():
            # Only `self` holds the parts, so that `close` frees them even while this generator is suspended.
            self._parts = self._build()
            self._rows = self._resume(self._parts)
        if self._rows:
            yield dict(self._rows[-1])
        while self._parts is not None and len(self._rows) < self.plan.epochs:
            with out_of_memory_as_error():
                row = self._run_epoch(self._parts, len(self._rows) + 1)
            yield dict(row)

    @property
    def model(self) -> FineTuneModel:
        """The model as it is now, from the first row of `epochs` until `close`."""
        return self._running.model

    @property
    def _running(self) -> _Parts:
        if self._parts is None:
            raise RuntimeError(f"trial {self.plan.trial_id} has not started yet, or is closed")
        return self._parts

    def close(self) -> None:
        """Free the trial's memory, the GPU's included."""
        self._parts = self._readouts = None
        self._backbone = None
        gc.collect()
        if self.compute.is_gpu:
            torch.cuda.empty_cache()

    def _build(self) -> _Parts:
        if self.plan.threads is not None:
            torch.set_num_threads(self.plan.threads)
        self.compute.reset_peak_memory()
        data, hyper, seeds = self._data, self.hyper, self.plan.seeds
        labels = self._selected.labels  # first: data that cannot give what is asked for are refused before weights are read
        side = int(data.images.shape[1])
        model = build_model(hyper, len(data.class_names), image_size=side, seeds=seeds, backbone=self._backbone)
        check_units(model)
        trained = trained_names(model, hyper)
        classifier = build_classifier(model, resolution=hyper.resolution).to(self.compute.device)
        store = ImageStore(data.images, labels, self.compute)
        start = (
            starting_weights(model, trainable_units(hyper, model.backbone.info.n_units)) if self.plan.readout_epochs else None
        )
        fitter = self._fitter(model, classifier, store)
        prefixes = self._prefixes(classifier, store)
        return _Parts(model, classifier, store, fitter, trained, checkpoints.frozen_digest(model, trained), start, prefixes)

    def _prefixes(self, classifier: Classifier, store: ImageStore) -> Prefixes | None:
        if self._sharing is None or not self._data.pixels:
            return None
        return Prefixes(self._sharing, classifier, store, self._data.pixels, hyper=self.hyper, compute=self.compute)

    def _fitter(self, model: FineTuneModel, classifier: Classifier, store: ImageStore) -> Fitter:
        hyper, seeds = self.hyper, self.plan.seeds
        order = BatchOrder(self._subset, hyper.batch_size, seeds)
        batches = TrainingBatches(store, order, preprocess=classifier.preprocess, hyper=hyper, seeds=seeds)
        length = Length(self.plan.epochs, math.ceil(self._passed_over / hyper.batch_size))
        return Fitter(model, batches, hyper=hyper, length=length, seeds=seeds, compute=self.compute)

    @cached_property
    def _selected(self) -> Selected:
        """What this trial trains and validates on, and its labels."""
        data, hyper = self._data, self.hyper
        wanted = Selection(
            hyper.data_fraction, hyper.images_per_class, hyper.class_imbalance, hyper.label_noise, hyper.categories
        )
        return select(wanted, data.splits, data.labels, n_classes=len(data.class_names), seed=self.plan.study_seed)

    @property
    def _subset(self) -> NDArray[np.int64]:
        """The images that this trial trains on."""
        return self._selected.train

    @property
    def _passed_over(self) -> int:
        """How many images an epoch passes over."""
        return len(self._subset) if self.plan.epoch_unit == "subset_epoch" else len(self._data.splits.train)

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        """What this trial needs of the training and of the validation images."""
        order, validation = self._selected.order, self._selected.validation
        n_needed = int(np.flatnonzero(np.isin(order, self._subset)).max()) + 1
        return (
            Split("train", order, n_needed, self._passed_over / n_needed, self.hyper.batch_size),
            Split("validation", validation, len(validation), 1.0, self._evaluation_batch_size),
        )

    @property
    def _evaluation_batch_size(self) -> int:
        return evaluation_batch_size(self.hyper.resolution or int(self._data.images.shape[1]))

    def _resume(self, parts: _Parts) -> tuple[Row, ...]:
        """Bring `parts` to the state of the last checkpoint; return the rows up to it."""
        last = checkpoints.load_last(self._workdir, fingerprint=self.plan.fingerprint(self._data))
        if last is None:
            return ()
        checkpoints.restore_weights(parts.model, last)
        parts.fitter.load_state(last.optimizer, last.epoch)
        _log.info("trial %s continues after epoch %d of %d", self.plan.trial_id, last.epoch, self.plan.epochs)
        return last.rows

    def _run_epoch(self, parts: _Parts, epoch: int) -> Row:
        began = time.perf_counter()
        depth = parts.fitter.prefix_depth(epoch)
        stored, stored_validation = self._stored(parts, depth)
        started = time.perf_counter()
        trained = parts.fitter.train(epoch, stored)
        if self.hyper.is_self_supervised:
            images = evaluation_batches(parts.store, self._subset, batch_size=self._evaluation_batch_size)
            fit_nearest_mean(parts.classifier, images, compute=self.compute)
        scores = self._validate(parts, stored_validation)
        row = {
            "epoch": epoch,
            "train_loss": trained.loss,
            "val_loss": scores.loss,
            "val_accuracy": scores.accuracy,
            "val_macro_f1": scores.macro_f1,
            "val_balanced_accuracy": scores.balanced_accuracy,
            "images_per_second": trained.images_per_second,
            "epoch_seconds": time.perf_counter() - started,
            "prefix_seconds": started - began,
            "stored_units": depth if stored else 0,
            **self.compute.peak_memory(),
        }
        _check_finite(row)
        self._rows = (*self._rows, row)
        if epoch in self.plan.readout_epochs:
            self._read_out(parts, epoch)
        checkpoints.save(self._workdir, self._checkpoint(parts))
        return row

    def _read_out(self, parts: _Parts, epoch: int) -> None:
        """Write down what training has changed so far, which changes nothing in the trial."""
        data, hyper = self._data, self.hyper
        if self._readouts is None:
            n_classes, side, seeds = len(data.class_names), int(data.images.shape[1]), self.plan.seeds
            build = partial(build_model, hyper, n_classes, image_size=side, seeds=seeds, backbone=self._backbone)
            self._readouts = ReadOuts(
                build,
                data,
                parts.store,
                self._workdir,
                trained=trainable_units(hyper, parts.model.backbone.info.n_units),
                seed=self.plan.study_seed,
                compute=self.compute,
                digest=parts.frozen_digest,
                start=parts.start,
            )
        self._readouts.record(parts.classifier, epoch)

    def _stored(self, parts: _Parts, depth: int) -> tuple[Reader | None, Reader | None]:
        """Return the activations of the first `depth` units on training and validation images, where they are stored."""
        if parts.prefixes is None:
            return None, None
        train, validation = self._splits
        return parts.prefixes.reader(depth, train), parts.prefixes.reader(depth, validation)

    def _validate(self, parts: _Parts, stored: Reader | None) -> Evaluation:
        batch_size = self._evaluation_batch_size
        indices, n_classes = self._selected.validation, len(self._data.class_names)
        if stored is None:
            batches = evaluation_batches(parts.store, indices, batch_size=batch_size)
            return evaluate(parts.classifier, batches, n_classes=n_classes, compute=self.compute)
        parts.classifier.eval()
        batches = stored_batches(parts.store, stored, indices, batch_size=batch_size)
        rest = partial(parts.model.rest, depth=stored.depth)
        return evaluate(rest, batches, n_classes=n_classes, compute=self.compute)

    def _checkpoint(self, parts: _Parts) -> Checkpoint:
        state = parts.model.state_dict()
        return Checkpoint(
            epoch=len(self._rows),
            best_epoch=best_epoch(self._rows, self.plan.metric, self.plan.mode),
            rows=self._rows,
            weights={name: tensor for name, tensor in state.items() if name in parts.trained_names},
            optimizer=parts.fitter.state(),
            frozen_digest=parts.frozen_digest,
            fingerprint=self.plan.fingerprint(self._data),
        )


def load_classifier(
    plan: TrialPlan,
    workdir: Path,
    *,
    n_classes: int,
    image_size: int,
    backbone: Backbone | BackboneFactory | None = None,
) -> Classifier:
    """Return the model of a trial's best epoch with its preprocessing, on the CPU and in eval mode.

    Args:
        plan: the trial's plan.
        workdir: its working directory.
        n_classes: number of classes of its data.
        image_size: side of its data's images in pixels.
        backbone: as for `TrialRun`.

    Raises:
        CheckpointError: where the best checkpoint is missing, damaged or another model's.
    """
    hyper = Hyperparameters.from_config(plan.config)
    model = build_model(hyper, n_classes, image_size=image_size, seeds=plan.seeds, backbone=backbone)
    checkpoints.load_best_weights(workdir, model)
    return build_classifier(model, resolution=hyper.resolution).eval()


def trained_names(model: FineTuneModel, hyper: Hyperparameters) -> frozenset[str]:
    """Return the names of all tensors in `model`'s state dict that training may change in any phase."""
    units = trainable_units(hyper, model.backbone.info.n_units)
    prefixes = ("head.", *(f"backbone.units.{index}." for index in units))
    return frozenset(name for name in model.state_dict() if name.startswith(prefixes))


def best_epoch(rows: Sequence[Row], metric: str, mode: str) -> int:
    """Return the epoch with the best `metric`; among equals the earliest."""
    sign = 1 if mode == "max" else -1
    best = max(rows, key=lambda row: sign * row[metric])
    return int(best["epoch"])


def _check_finite(row: Row) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} is {value} after epoch {row['epoch']:.0f}")
