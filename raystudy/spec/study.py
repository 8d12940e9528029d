"""StudySpec: a study file, checked, frozen, with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from raystudy.factors import FACTORS, SOURCE_FACTORS, TARGET_FACTORS, Role, Scalar, defaults
from raystudy.spec.factor import Factor
from raystudy.spec.sections import (
    METRICS,
    BudgetSection,
    DataSection,
    EarlyStoppingSection,
    ObjectiveSection,
    ResourcesSection,
    SearchSection,
)
from raystudy.spec.sources import SOURCE, address_in, addresses
from raystudy.spec.text import dump_yaml

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_NOT_IN_FINGERPRINT: dict[str, Any] = {
    "name": True,
    "resources": {"cpu", "gpu", "concurrent", "priority", "gpu_hour_price", "retries"},
    "features": True,
    "keep_models": True,
    "registers": True,
    "tracking_uri": True,
    "budget": {"trials", "hours", "gpu_hours"},
}


class StudySpec(BaseModel):
    """One question: data, backbones, factors, budget. Built by `from_yaml` or `from_dict`, which check everything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: StrictStr = Field(pattern=NAME_PATTERN)
    data: DataSection
    backbone: StrictStr | tuple[StrictStr, ...] = Field(
        default="", description="what is fine-tuned; left out where `source` names source models"
    )
    objective: ObjectiveSection = ObjectiveSection()
    factors: Mapping[str, Factor]
    fixed: Mapping[str, StrictBool | StrictInt | StrictFloat | StrictStr] = Field(default_factory=dict)
    budget: BudgetSection = BudgetSection()
    search: SearchSection = SearchSection()
    early_stopping: EarlyStoppingSection = EarlyStoppingSection()
    resources: ResourcesSection = ResourcesSection()
    features: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="whether trials read the activations of frozen units instead of computing them; changes no result",
    )
    keep_models: StrictInt = Field(default=3, ge=0, le=1000)
    registers: Literal["best", "all"] = Field(
        default="best", alias="register", description="which kept models become versions of the registered model NAME"
    )
    tracking_uri: StrictStr | None = None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> StudySpec:
        """Read a study file; `overrides` are `key.path=value` as in `--set`. Raise SpecError with every problem."""
        from raystudy.spec.load import load_spec

        return load_spec(Path(path), overrides)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudySpec:
        """Check plain data in the study file's form. Raise SpecError with every problem."""
        from raystudy.spec.load import parse_spec

        return parse_spec(data)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data in the study file's form, everything that is at its default left out."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        data["factors"] = {
            name: factor.model_dump(mode="json", by_alias=True, exclude_none=True) for name, factor in self.factors.items()
        }
        return data

    def to_yaml(self) -> str:
        """Return the study file's text; `from_yaml` of it gives an equal spec."""
        return dump_yaml(self.to_dict())

    @property
    def fingerprint(self) -> str:
        """Identify what decides the results, in 16 hex digits.

        Left out: the name, where and how fast it runs, what is kept, and how long (`budget.trials`, `budget.hours`), so that a
        finished study can be extended. The order of the factors counts: samplers draw them one after another.
        """
        data = self.model_dump(mode="json", by_alias=True, exclude=_NOT_IN_FINGERPRINT)
        data["factors"] = list(data["factors"].items())
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def metric(self) -> str:
        """The objective's metric."""
        return self.objective.metric

    @property
    def mode(self) -> str:
        """`max` or `min`."""
        return self.objective.mode or METRICS[self.objective.metric]

    @property
    def has_sources(self) -> bool:
        """Whether source factors, not `backbone`, say what is fine-tuned."""
        return SOURCE in self.fixed or SOURCE in self.factors

    @property
    def backbones(self) -> tuple[str, ...]:
        """The backbone names, one or several; of source factors every registered model that they can name."""
        if self.has_sources:
            return addresses(self.factors, self.fixed)
        return (self.backbone,) if isinstance(self.backbone, str) else self.backbone

    @property
    def all_factors(self) -> dict[str, Factor]:
        """The factors that vary, in the file's order; several backbones make `backbone` the first of them."""
        if isinstance(self.backbone, str):
            return dict(self.factors)
        return {"backbone": Factor(choice=self.backbone), **self.factors}

    def role(self, factor: str) -> Role:
        """Return the role of a factor: what the file says, else the catalogue."""
        return self.all_factors[factor].role or FACTORS[factor].role

    @property
    def cells(self) -> tuple[str, ...]:
        """The factors within whose levels ASHA compares.

        What `within` says, else those about the source and about what there is to train on: data_fraction, images_per_class,
        class_imbalance, label_noise, categories and training_objective. Those that have levels, that is: no two trials share a
        value of a continuous one, and nothing would be compared.
        """
        if self.early_stopping.within is not None:
            return self.early_stopping.within
        about_data = SOURCE_FACTORS | TARGET_FACTORS
        return tuple(name for name, one in self.all_factors.items() if name in about_data and one.form in ("choice", "int"))

    def constants(self) -> dict[str, Scalar]:
        """Return the value of everything that does not vary: the catalogue's defaults, overridden by data and `fixed`."""
        values = {**defaults(), "augmentation": self.data.augmentation, **self.fixed}
        if isinstance(self.backbone, str):
            values["backbone"] = self.backbone
        return {name: value for name, value in values.items() if name not in self.all_factors}

    def full_config(self, active: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return every hyperparameter of a trial: its active factors, the fixed values, defaults for the rest.

        Where source factors say what is fine-tuned, `backbone` is the registered model that they name; with random weights,
        where they have no effect, the first one of the study, for its architecture.
        """
        config = {**defaults(), **self.constants(), **active}
        if self.has_sources:
            config["backbone"] = address_in(config) or self.backbones[0]
        return config
