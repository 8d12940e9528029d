"""Files of source models: a short form of a study whose trials are the models. `raystudy pretrain` reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from raystudy.errors import Problem, SpecError
from raystudy.factors import SELF_SUPERVISED, SUPERVISED, Scalar
from raystudy.spec.load import parse_sections
from raystudy.spec.sections import DataSection, ResourcesSection
from raystudy.spec.study import NAME_PATTERN, StudySpec

MOST_MODELS = 1000
_OWN = {
    "categories": "categories",
    "images_per_class": "images_per_category",
    "seed": "seeds",
    "training_objective": "objective",
    "pretrained": "pretrained",
    "backbone": "backbone",
}
"""What has a key of its own and does not go under `fixed`: a study's factor, and the key."""
_PLACES = {
    "factors.categories.choice": "categories",
    "factors.images_per_class.choice": "images_per_category",
    "factors.seed.choice": "seeds",
    "factors.training_objective.choice": "objective",
    "fixed.images_per_class": "images_per_category[0]",
    "fixed.seed": "seeds[0]",
    "fixed.training_objective": "objective[0]",
    "fixed.pretrained": "pretrained",
    "budget.epochs": "epochs",
    "budget.unit": "unit",
    "search.seed": "subset_seed",
}
"""Where the file says what the study says there."""

_LISTS = ("categories", "images_per_category", "seeds", "objective")
"""The keys whose every combination is a model."""

Categories = Annotated[StrictInt, Field(ge=2, le=1_000_000)]
Images = Annotated[StrictInt, Field(ge=0, le=1_000_000)]
Seed = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]
Objective = Literal["supervised", "self_supervised"]


class PretrainSpec(BaseModel):
    """Source models: every combination of categories, images per category, seeds and objectives, each trained to the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: StrictStr = Field(pattern=NAME_PATTERN)
    data: DataSection
    backbone: StrictStr = Field(min_length=1)
    pretrained: StrictBool = Field(default=False, description="whether to begin with pretrained weights, not random ones")
    categories: tuple[Categories, ...]
    images_per_category: tuple[Images, ...] = Field(default=(0,), description="numbers of training images a class; 0: all")
    seeds: tuple[Seed, ...] = Field(default=(0,), description="replicates")
    objective: tuple[Objective, ...] = Field(default=(SUPERVISED,), description="what they are trained for, one or both")
    epochs: StrictInt = Field(ge=1, le=100_000)
    unit: Literal["epoch", "subset_epoch"] = "epoch"
    subset_seed: Seed = Field(default=0, description="fixes which classes and which images are drawn")
    fixed: Mapping[str, StrictBool | StrictInt | StrictFloat | StrictStr] = Field(default_factory=dict)
    resources: ResourcesSection = ResourcesSection()
    tracking_uri: StrictStr | None = None


def is_pretraining(data: Any) -> bool:
    """Whether plain data is meant as a file of source models, not as a study."""
    return isinstance(data, Mapping) and "categories" in data and "factors" not in data


def compile_study(data: Any) -> tuple[dict[str, Any], list[Problem]]:
    """Return the study that a file of source models stands for, and what is wrong with the file by itself.

    The study is whole where nothing is wrong; otherwise it has what can be checked all the same.
    """
    if isinstance(data, Mapping) and isinstance(data.get("objective"), str):
        data = {**data, "objective": [data["objective"]]}
    sections, problems = parse_sections(data, PretrainSpec)
    if not isinstance(data, Mapping) or not data:
        return {}, problems
    problems += [problem for check in (_check_lists, _check_fixed) for problem in check(sections)]
    varying: dict[str, list[Any]] = {"categories": list(sections.get("categories") or (2,))}
    single: dict[str, Scalar] = {"pretrained": sections.get("pretrained", False)}
    for factor in ("images_per_class", "seed"):
        values = list(sections.get(_OWN[factor]) or (0,))
        if len(values) > 1:
            varying[factor] = values
        else:
            single[factor] = values[0]
    # Left out where it is what it is without being said: files from before it could be said stand for the same study.
    objectives = list(sections.get("objective") or (SUPERVISED,))
    if len(objectives) > 1:
        varying["training_objective"] = objectives
    elif objectives == [SELF_SUPERVISED]:
        single["training_objective"] = SELF_SUPERVISED
    number = _count(sections)
    study: dict[str, Any] = {
        name: data[name] for name in ("name", "data", "backbone", "resources", "tracking_uri") if name in data
    }
    study |= {
        "factors": {name: {"choice": values} for name, values in varying.items()},
        "fixed": {name: value for name, value in sections.get("fixed", {}).items() if name not in _OWN} | single,
        "budget": {"trials": number, "epochs": sections.get("epochs", 1), "unit": sections.get("unit", "epoch")},
        "search": {"sampler": "grid", "seed": sections.get("subset_seed", 0)},
        "early_stopping": "none",
        "keep_models": min(number, MOST_MODELS),
        "register": "all",
    }
    return study, problems


def parse_pretraining(data: Any, check: Callable[[Any], StudySpec], *, title: str) -> StudySpec:
    """Return the study that a file of source models stands for.

    Args:
        data: what the file says.
        check: makes a spec of the study's plain data, or raises SpecError.
        title: the file, for the message.

    Raises:
        SpecError: with every problem, each with its place in the file.
    """
    study, problems = compile_study(data)
    spec = None
    try:
        spec = check(study) if study else None
    except SpecError as error:
        # What the file's own check has said already is not said again.
        said = {problem.where for problem in problems}
        found = [Problem(_place_in_file(one.where), one.what, one.accepted) for one in error.problems]
        problems += [one for one in found if one.where not in said]
    if problems or spec is None:
        raise SpecError(problems, title=title)
    return spec


def _place_in_file(where: str) -> str:
    """Return the place in a file of source models for one in the study that it stands for."""
    known = next((place for place in _PLACES if where == place or where.startswith(f"{place}[")), None)
    return where if known is None else _PLACES[known] + where.removeprefix(known)


def _count(sections: Mapping[str, Any]) -> int:
    number = 1
    for key in _LISTS:
        number *= max(1, len(sections.get(key) or (0,)))
    return number


def _check_lists(sections: Mapping[str, Any]) -> Iterator[Problem]:
    for key in _LISTS:
        values: Sequence[Scalar] | None = sections.get(key)
        if values == ():
            yield Problem(key, f"is an empty list, expected one or more {'names' if key == 'objective' else 'numbers'}")
        for index, value in enumerate(values or ()):
            if values and value in values[:index]:
                yield Problem(f"{key}[{index}]", f"{value} is given twice")
    if (number := _count(sections)) > MOST_MODELS:
        yield Problem("categories", f"{number:,} models are asked for", f"at most {MOST_MODELS:,} of one name")


def _check_fixed(sections: Mapping[str, Any]) -> Iterator[Problem]:
    for name in sections.get("fixed", {}):
        if name in _OWN:
            yield Problem(f"fixed.{name}", "has a key of its own", f"write {_OWN[name]} at the top level")
