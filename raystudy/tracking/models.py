"""The models that a study keeps: logged at their best epoch, the best one registered, all loadable without unpickling.

Each is logged in MLflow's own format (a torch.export graph) for serving, and beside it, as `extra_files`, as weights in
safetensors with a card that says how to rebuild the module. Both take float images of 0 to 255 and do their own scaling.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystudy import paths
from raystudy.errors import InputError, NotFoundError, UnreachableError
from raystudy.paths import StudyPaths
from raystudy.records import StudyRecord, StudyState, TrialRecord
from raystudy.spec import StudySpec
from raystudy.spec.sources import alias_of
from raystudy.tracking import names
from raystudy.tracking.content import spec_of
from raystudy.tracking.provenance import training_of, version_tags
from raystudy.tracking.readouts import store_readouts
from raystudy.tracking.registry import Registry
from raystudy.tracking.sources import read_notes
from raystudy.tracking.store import Store

if TYPE_CHECKING:
    from raystudy.finetune.model import BackboneFactory, Classifier

_log = logging.getLogger(__name__)

_EXAMPLE_BATCH = 2  # torch.export makes a batch dimension of 1 a constant
_GREY = 128.0


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A trial's model at its best epoch.

    Attributes:
        classifier: in eval mode, on the CPU, with its preprocessing inside.
        card: what `model.json` says: class names, preprocessing, backbone, and the trial it came from.
    """

    classifier: Classifier
    card: Mapping[str, Any]

    @property
    def class_names(self) -> list[str]:
        """The class names, in the order of the logits."""
        return list(self.card["class_names"])

    @property
    def trial_id(self) -> str:
        """The trial it came from."""
        return str(self.card["provenance"]["trial_id"])

    @property
    def epoch(self) -> int:
        """The epoch of its weights."""
        return int(self.card["provenance"]["epoch"])


class ModelKeeper:
    """Logs the models of one study."""

    def __init__(self, store: Store, experiment_id: str, files: StudyPaths) -> None:
        """Work in `store` on the study whose checkpoints are in `files`."""
        self._store, self._experiment_id, self._files = store, experiment_id, files

    def keep(self, record: StudyRecord, run_ids: dict[str, str]) -> None:
        """Log the models of the best trials that are not logged yet, and let the alias `best` point at the best one.

        With each go the read-outs of what fine-tuning changed in it.

        A trial without a checkpoint here is passed over. Repeating this after it broke off anywhere logs nothing twice.
        """
        spec = spec_of(record)
        if record.state is not StudyState.COMPLETED:
            return
        for rank, trial in enumerate(record.ranking(spec.metric, spec.mode)[: spec.keep_models]):
            run_id = run_ids[trial.trial_id]
            model_id = self._store.model_of(self._experiment_id, run_id) or self._log_model(record, trial, run_id)
            classes = list(record.data.get("classes", ()))
            if model_id is not None:
                self._register(spec, trial, model_id, run_id, classes, is_best=rank == 0)
            store_readouts(self._store, run_id, trial, self._files.checkpoints(trial.trial_id), classes)

    def _register(
        self, spec: StudySpec, trial: TrialRecord, model_id: str, run_id: str, classes: list[str], *, is_best: bool
    ) -> None:
        registry = Registry(self._store)
        if spec.registers == "all":
            registry.register(spec.name, model_id, run_id, alias_of(trial.config), version_tags(spec, trial, classes))
        if is_best:
            registry.register(spec.name, model_id, run_id, names.BEST_ALIAS)

    def _log_model(self, record: StudyRecord, trial: TrialRecord, run_id: str) -> str | None:
        spec, folder = spec_of(record), self._files.checkpoints(trial.trial_id)
        if not folder.is_dir() or not record.data.get("classes"):
            _log.info("trial %s has no checkpoint here: its model is not logged", trial.trial_id)
            return None
        try:
            from raystudy.finetune.backbone import builder_with

            build = builder_with(read_notes(record.data))
            kept = load_kept(spec, trial, list(record.data["classes"]), folder, backbone=build)
            self._log_per_class(spec, kept, run_id)
            return self._log_kept(kept, run_id)
        except UnreachableError:
            raise
        except Exception as error:  # exporting runs the network's own code; a study is complete without its models
            _log.warning("the model of trial %s is not logged: %s", trial.trial_id, error, exc_info=True)
            return None

    def _log_kept(self, kept: KeptModel, run_id: str) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            files = Path(scratch)
            write_model(kept, files)
            model_id = self._store.log_model(self._experiment_id, run_id, kept.epoch, partial(_save, kept, files))
        _log.info("logged the model of trial %s as models:/%s", kept.trial_id, model_id)
        return model_id

    def _log_per_class(self, spec: StudySpec, kept: KeptModel, run_id: str) -> None:
        """Store the share of right answers among each class's validation images."""
        try:
            accuracies = per_class_accuracy(spec, kept)
        except (InputError, OSError) as error:
            _log.warning("no accuracy per class for trial %s: %s", kept.trial_id, error)
            return
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / names.PER_CLASS_FILE
            file.write_text(json.dumps(accuracies, indent=2, ensure_ascii=False))
            self._store.upload(run_id, file)


def load_kept(
    spec: StudySpec, trial: TrialRecord, classes: list[str], folder: Path, *, backbone: BackboneFactory | None = None
) -> KeptModel:
    """Build a trial's model at its best epoch from its checkpoints in `folder`.

    Args:
        spec: the study.
        trial: the trial.
        classes: the class names, in the order of the labels.
        folder: the trial's checkpoints.
        backbone: builds backbones; by default those of `raystudy.finetune`.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged or another model's.
        BackboneError: the backbone cannot be built.
    """
    from raystudy.finetune.checkpoint import load_best_weights
    from raystudy.finetune.hyperparameters import Hyperparameters
    from raystudy.finetune.model import build_classifier, build_model
    from raystudy.finetune.model_card import describe
    from raystudy.finetune.seeds import TrialSeeds

    hyper = Hyperparameters.from_config(spec.full_config(trial.config))
    seeds = TrialSeeds(spec.search.seed, trial.number, hyper.seed)
    model = build_model(hyper, len(classes), image_size=spec.data.image_size, seeds=seeds, backbone=backbone)
    checkpoint = load_best_weights(folder, model)
    classifier = build_classifier(model, resolution=hyper.resolution).eval()
    provenance = {
        "study": spec.name,
        "trial_id": trial.trial_id,
        "number": trial.number,
        "epoch": checkpoint.epoch,
        "config": dict(trial.config),
        "metrics": {name: value for name, value in checkpoint.row.items() if name != "epoch"},
        **training_of(spec, trial.config, classes),
    }
    size = spec.data.image_size
    card = describe(classifier, class_names=classes, image_size=size, backbone=hyper.backbone, provenance=provenance)
    return KeptModel(classifier, card)


def write_model(kept: KeptModel, folder: Path) -> None:
    """Write the weights, the card and the class names into `folder`; the first two in the form of `raystudy export`."""
    from safetensors.torch import save

    from raystudy.finetune.names import BACKBONE_KEY

    # Clones, because safetensors refuses tensors that share memory.
    state = {name: tensor.cpu().contiguous().clone() for name, tensor in kept.classifier.model.state_dict().items()}
    weights = save(state, metadata={BACKBONE_KEY: kept.card["backbone"]["architecture"], "format": "pt"})
    (folder / names.MODEL_WEIGHTS).write_bytes(weights)
    (folder / names.MODEL_CARD).write_text(json.dumps(kept.card, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / names.CLASSES_FILE).write_text(json.dumps(kept.class_names, ensure_ascii=False), encoding="utf-8")


def read_model(folder: Path, *, backbone: BackboneFactory | None = None) -> KeptModel:
    """Rebuild the model that `write_model` wrote; in eval mode, on the CPU. Nothing is unpickled.

    Raises:
        InputError: a file is missing or damaged, or they do not belong together.
    """
    from raystudy.finetune.backbone import build_backbone
    from raystudy.finetune.export import load_exported

    classifier = load_exported(folder, build=backbone or build_backbone)
    return KeptModel(classifier, json.loads((folder / names.MODEL_CARD).read_text(encoding="utf-8")))


def fetch_model(store: Store, experiment_id: str, run_id: str) -> KeptModel:
    """Fetch and rebuild the model of a trial's run.

    Raises:
        NotFoundError: the trial is not among those whose models are kept.
    """
    model_id = store.model_of(experiment_id, run_id)
    if model_id is None:
        raise NotFoundError(f"run {run_id} has no model: only the best keep_models trials of a finished study keep theirs")
    with tempfile.TemporaryDirectory() as scratch:
        return read_model(store.download_model(model_id, names.MODEL_EXTRAS, Path(scratch)))


def per_class_accuracy(spec: StudySpec, kept: KeptModel) -> dict[str, float | None]:
    """Return the share of right answers among each class's validation images, None for a class without any.

    Raises:
        DataError: the images cannot be read any more.
    """
    from raystudy.data import open_data
    from raystudy.finetune.batches import ImageStore, evaluation_batches
    from raystudy.finetune.compute import Compute
    from raystudy.finetune.metrics import evaluate

    data = open_data(spec, paths.cache())
    compute = Compute.choose("cpu", "float32")
    batches = evaluation_batches(ImageStore(data.images, data.labels, compute), data.splits.validation)
    shares = evaluate(kept.classifier, batches, n_classes=len(kept.class_names), compute=compute).per_class_accuracy
    return {name: None if share != share else float(share) for name, share in zip(kept.class_names, shares, strict=True)}


def _save(kept: KeptModel, extra: Path, target: Path, model: Any) -> None:
    """Write the model in MLflow's format to `target`, described by MLflow's `model`."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    side, n_classes = kept.card["image_size"], len(kept.class_names)
    float32 = np.dtype(np.float32)
    mlflow.pytorch.save_model(
        kept.classifier,
        str(target),
        mlflow_model=model,
        signature=ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, 3, side, side))]), outputs=Schema([TensorSpec(float32, (-1, n_classes))])
        ),
        input_example=np.full((_EXAMPLE_BATCH, 3, side, side), _GREY, dtype=np.float32),
        extra_files=[str(extra / name) for name in (names.MODEL_WEIGHTS, names.MODEL_CARD, names.CLASSES_FILE)],
        # Named, since MLflow would otherwise find them out by loading the model in another process.
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
        metadata={
            "classes": kept.class_names,
            "trial_id": kept.trial_id,
            "architecture": kept.card["backbone"]["architecture"],
        },
        serialization_format="pt2",
    )
