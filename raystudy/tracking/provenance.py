"""Where a kept model came from: what its card says, and the tags of its version in the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raystudy.data import category_order
from raystudy.factors import Scalar
from raystudy.records import TrialRecord
from raystudy.spec import StudySpec
from raystudy.tracking import names

_LONGEST_TAG = 5000


def training_of(spec: StudySpec, config: Mapping[str, Scalar], classes: Sequence[str]) -> dict[str, Any]:
    """Return what a trial was trained on, as plain data.

    Args:
        spec: the study.
        config: the trial's active factors.
        classes: the names of all classes of the data, in the order of the labels.
    """
    full = spec.full_config(config)
    number = int(full["categories"])
    labels = category_order(len(classes), seed=spec.search.seed)[: number or None]
    return {
        "data": spec.data.source,
        "image_size": spec.data.image_size,
        "categories": number or len(classes),
        "classes_used": [classes[label] for label in sorted(labels)],
        "images_per_category": int(full["images_per_class"]) or None,
        "objective": str(full["training_objective"]),
        "data_fraction": float(full["data_fraction"]),
        "seed": int(full["seed"]),
        "epochs": spec.budget.epochs,
        "pretrained": bool(full["pretrained"]),
        "fingerprint": spec.fingerprint,
    }


def version_tags(spec: StudySpec, trial: TrialRecord, classes: Sequence[str]) -> dict[str, str]:
    """Return the tags of the registered version that a trial's model becomes."""
    about = training_of(spec, trial.config, classes)
    row = trial.reports[trial.best_epoch(spec.metric, spec.mode) or trial.epochs].metrics
    values = {
        **about,
        "classes_used": ", ".join(about["classes_used"]),
        "images_per_category": about["images_per_category"] or "all",
        "study": spec.name,
        "trial_id": trial.trial_id,
        spec.metric: row[spec.metric],
        **({"val_accuracy": row["val_accuracy"]} if "val_accuracy" in row else {}),
    }
    return {names.PREFIX + key: _text(value) for key, value in values.items()}


def _text(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text[:_LONGEST_TAG]
