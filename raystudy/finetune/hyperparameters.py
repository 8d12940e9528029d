"""A trial's configuration as typed values: one field per factor of the catalogue, none missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from rapidfuzz import process

from raystudy.errors import Problem, SpecError
from raystudy.factors import FACTORS, PROBE_DEPTH, SELF_SUPERVISED, Scalar, defaults


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """One value per factor; what each means is said once, in `raystudy.factors.FACTORS`."""

    learning_rate: float
    optimizer: Literal["sgd", "adamw"]
    momentum: float
    weight_decay: float
    batch_size: int
    schedule: Literal["constant", "cosine", "step"]
    warmup: float
    frozen_depth: int | Literal["max"]
    tuned_unit: int
    reinit_units: int
    strategy: Literal["ft", "lp_ft", "gradual"]
    lp_share: float
    head_lr_multiplier: float
    layer_decay: float
    batch_norm: Literal["train", "eval"]
    batch_norm_momentum: float
    l2_sp: float
    label_smoothing: float
    dropout: float
    mixup: float
    cutmix: float
    clip_grad_norm: float
    augmentation: Literal["none", "flip", "standard"]
    resolution: int
    data_fraction: float
    images_per_class: int
    class_imbalance: float
    label_noise: float
    categories: int
    training_objective: Literal["supervised", "self_supervised"]
    pretrained: bool
    source: str
    source_categories: int
    source_images_per_category: int
    source_objective: Literal["supervised", "self_supervised"]
    source_seed: int
    backbone: str
    seed: int

    @classmethod
    def from_config(cls, config: Mapping[str, Scalar]) -> Self:
        """Check `config` and fill it up with the catalogue's defaults.

        Args:
            config: values of some factors, by name: those that the study varies (and that are active) or fixes.

        Raises:
            SpecError: with one problem per unknown name or refused value.
        """
        problems = [problem for name, value in config.items() if (problem := _refuse(name, value)) is not None]
        if problems:
            raise SpecError(problems, title="configuration")
        values: dict[str, Any] = {name: _convert(name, value) for name, value in {**defaults(), **config}.items()}
        return cls(**values)

    def resolve(self, n_units: int) -> Self:
        """Return the same with a number for `frozen_depth: max`, checked against a backbone of `n_units` units.

        Raises:
            SpecError: where a unit is named that the backbone does not have.
        """
        depth = n_units if self.frozen_depth == PROBE_DEPTH else self.frozen_depth
        highest = {"frozen_depth": n_units, "tuned_unit": n_units - 1, "reinit_units": n_units}
        resolved = replace(self, frozen_depth=depth)
        problems = [
            Problem(name, f"got {getattr(resolved, name)}, but the backbone has {n_units} units", f"at most {limit}")
            for name, limit in highest.items()
            if getattr(resolved, name) > limit
        ]
        if problems:
            raise SpecError(problems, title="configuration")
        return resolved

    @property
    def is_self_supervised(self) -> bool:
        """Whether training sees no labels."""
        return self.training_objective == SELF_SUPERVISED

    @property
    def sees_stored_images(self) -> bool:
        """Whether training sees each image as it is stored, every time, so that what frozen units make of it is one thing."""
        return self.augmentation == "none" and self.mixup == self.cutmix == 0 and not self.is_self_supervised

    def as_dict(self) -> dict[str, Scalar]:
        """Return the values by factor name."""
        return asdict(self)


def _refuse(name: str, value: Scalar) -> Problem | None:
    info = FACTORS.get(name)
    if info is None:
        match = process.extractOne(name, FACTORS.keys(), score_cutoff=70)
        hint = f"did you mean {match[0]}?" if match else f"expected one of {', '.join(FACTORS)}"
        return Problem(name, "is not a factor", hint)
    # The backbone's default is the empty name: the caller may hand over a built backbone instead of naming one.
    refusal = None if value == info.default else info.refusal(value)
    return None if refusal is None else Problem(name, refusal)


def _convert(name: str, value: Scalar) -> Scalar:
    """Give `value` the type of its factor: YAML and samplers write 1 for 1.0 and 64.0 for 64."""
    kind = FACTORS[name].kind
    if kind == "float":
        return float(value)
    return int(value) if kind == "int" and value != PROBE_DEPTH else value
