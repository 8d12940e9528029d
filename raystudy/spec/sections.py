"""The sections of a study file as closed, frozen models: an unknown key or a wrong type is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

METRICS: Mapping[str, Literal["max", "min"]] = {
    "val_accuracy": "max",
    "val_macro_f1": "max",
    "val_balanced_accuracy": "max",
    "val_loss": "min",
    "train_loss": "min",
}
"""The metrics that a trial reports and a study can aim at, with the direction in which each is better."""

Number = StrictInt | StrictFloat


def _none_is_zero(value: object) -> object:
    """Read `none` (and null) as 0: "keep: none" says what is meant better than "keep: 0"."""
    return 0 if value is None or value == "none" else value


class Section(BaseModel):
    """A part of the study file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(Section):
    """The images."""

    source: StrictStr = Field(min_length=1, description="folder: | parquet: | torchvision:NAME | sklearn:digits | idx:DIR")
    image_size: StrictInt = Field(default=224, ge=8, le=2048, description="side of the decoded images in pixels")
    validation: Number | StrictStr = Field(default=0.2, description="share of the images, or a second source")
    test: Number | StrictStr | None = Field(default=None, description="share or source that no decision ever sees")
    augmentation: Literal["none", "flip", "standard"] = "none"
    on_bad_image: Literal["error", "skip"] = "error"


class ObjectiveSection(Section):
    """What "best" means."""

    metric: StrictStr = "val_accuracy"
    mode: Literal["max", "min"] | None = Field(default=None, description="max or min; by default the metric's own direction")


class BudgetSection(Section):
    """How much may be spent."""

    trials: StrictInt = Field(default=32, ge=1, le=1_000_000)
    epochs: StrictInt = Field(default=27, ge=1, le=100_000, description="T, the epochs of a trial that is not stopped")
    hours: Annotated[Number, Field(gt=0, le=1_000_000)] | None = None
    unit: Literal["epoch", "subset_epoch"] = "epoch"
    gpu_hours: Annotated[Number, Field(gt=0, le=10_000_000)] | None = Field(
        default=None, description="GPUs held by trials, times hours; the study ends cleanly when they are used up"
    )


class SearchSection(Section):
    """How configurations are proposed."""

    sampler: Literal["tpe", "random", "qmc", "grid", "gp"] = "tpe"
    seed: StrictInt = Field(default=0, ge=0, le=2**31 - 1)
    startup_trials: StrictInt = Field(default=16, ge=0, description="random trials before tpe and gp start to model")
    explore: Annotated[Number, BeforeValidator(_none_is_zero), Field(ge=0, le=1)] = Field(
        default=0.33, description="share of the trials after those that tpe and gp leave to chance: the bad regions count too"
    )
    points: tuple[Mapping[str, StrictBool | StrictInt | StrictFloat | StrictStr], ...] = Field(
        default=(), description="configurations (or parts of them) to try first"
    )


class EarlyStoppingSection(Section):
    """How bad trials are stopped."""

    scheduler: Literal["asha", "none"] = "asha"
    grace: StrictInt = Field(default=1, ge=1, description="the first rung, in epochs")
    reduction: StrictInt = Field(default=3, ge=2, le=1000, description="of this many trials one goes on")
    within: tuple[StrictStr, ...] | None = Field(
        default=None, description="compare only trials with equal values of these factors (rule 4)"
    )
    keep: Annotated[Number, BeforeValidator(_none_is_zero), Field(ge=0, le=1)] = Field(
        default=0.05, description="share of the would-be-stopped trials that goes on as a hold-out (rule 5)"
    )


class ResourcesSection(Section):
    """What a trial gets, and how it is treated when its process dies."""

    cpu: StrictInt = Field(default=1, ge=1, le=1024)
    gpu: Literal["auto"] | Annotated[Number, Field(ge=0, le=64)] = "auto"
    concurrent: Literal["auto"] | Annotated[StrictInt, Field(ge=1, le=100_000)] = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    priority: Annotated[Number, Field(gt=0, le=1000)] = Field(
        default=1, description="weight against the other studies of a cluster: one of 2 gets twice the trials of one of 1"
    )
    gpu_hour_price: Annotated[Number, Field(ge=0, le=10_000)] | None = Field(
        default=None, description="what a GPU costs an hour, in any currency: the plan then says what the study will cost"
    )
    retries: StrictInt = Field(default=2, ge=0, le=100, description="times a trial is handed out again after its process died")
