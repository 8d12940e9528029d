"""From plain data to a StudySpec, collecting every problem on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from raystudy.errors import Problem, SpecError
from raystudy.spec.checks import check_study
from raystudy.spec.factor import Factor
from raystudy.spec.messages import nearest, problems_of, shown
from raystudy.spec.sources import PARTS
from raystudy.spec.study import StudySpec
from raystudy.spec.text import apply_overrides, read_study_file


def load_spec(path: Path, overrides: Sequence[str] = ()) -> StudySpec:
    """Read, override and check the study file at `path`; one of source models is read as the study that it stands for."""
    from raystudy.spec.pretrain import is_pretraining, parse_pretraining  # which is made of what is defined here

    data = apply_overrides(read_study_file(path), overrides)
    if is_pretraining(data):
        return parse_pretraining(data, lambda study: parse_spec(study, title=str(path)), title=str(path))
    return parse_spec(data, title=str(path))


def parse_spec(data: Any, *, title: str = "study") -> StudySpec:
    """Check plain data; raise SpecError with every problem, each with its place."""
    sections, problems = parse_sections(data)
    problems += check_study(sections)
    if problems:
        raise SpecError(problems, title=title)
    return StudySpec.model_construct(**sections)


def parse_sections(data: Any, model: type[BaseModel] = StudySpec) -> tuple[dict[str, Any], list[Problem]]:
    """Check each section by itself, so that one bad section does not hide what is wrong in the others.

    Args:
        data: what the file says.
        model: whose fields are the sections.

    Returns:
        The sections that are right, defaults filled in, and the problems of those that are not.
    """
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if not isinstance(data, Mapping) or not data:
        what = "a study: name, data, backbone, factors, budget" if model is StudySpec else ", ".join(fields)
        return {}, [Problem("", f"got {_kind(data)}, expected {what}, ...")]
    problems = [Problem(str(key), "unknown key", nearest(str(key), fields)) for key in data if key not in fields]
    sections: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            _parse_section(name, _shorthand(name, data[name]), field, sections, problems)
        elif field.is_required() or (name == "backbone" and not _names_sources(data)):
            problems.append(Problem(name, "is missing", _EXPECTED.get(name, "")))
        else:
            sections[name] = field.get_default(call_default_factory=True)
    return sections, problems


_EXPECTED = {
    "name": "expected a name for the study, e.g. flowers-resnet50",
    "data": "expected at least {source: folder:/path/to/images}",
    "backbone": "expected the name of a pretrained network, e.g. resnet50 or efficientnet_lite0",
    "factors": "expected at least one factor, e.g. learning_rate: {log_uniform: [1e-4, 1e-1]}",
    "categories": "expected the numbers of classes to train on, e.g. [2, 4, 10]",
    "epochs": "expected how long each model is trained, e.g. 10",
}


def _names_sources(data: Mapping[str, Any]) -> bool:
    """Whether source factors say what is fine-tuned, so that no backbone is missing."""
    places = (data.get("factors"), data.get("fixed"))
    return any(name in place for place in places if isinstance(place, Mapping) for name in PARTS)


def _shorthand(name: str, value: Any) -> Any:
    """Expand the short forms that the study file allows."""
    if name == "early_stopping" and (value is None or value == "none"):
        return {"scheduler": "none"}
    if name == "backbone" and isinstance(value, list):
        return tuple(value)
    return value


def _parse_section(name: str, value: Any, field: Any, sections: dict[str, Any], problems: list[Problem]) -> None:
    if name == "factors":
        _parse_factors(value, sections, problems)
        return
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and not isinstance(value, Mapping):
        keys = ", ".join(field.annotation.model_fields)
        problems.append(Problem(name, f"got {_kind(value)}, expected a section with {keys}"))
        return
    adapter: TypeAdapter[Any] = TypeAdapter(_annotated(field))
    try:
        sections[name] = adapter.validate_python(value)
    except ValidationError as error:
        problems += problems_of(error, name, field.annotation)


def _annotated(field: Any) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _parse_factors(value: Any, sections: dict[str, Any], problems: list[Problem]) -> None:
    if not isinstance(value, Mapping):
        problems.append(Problem("factors", f"got {_kind(value)}", _EXPECTED["factors"]))
        return
    if not value:
        problems.append(Problem("factors", "is empty", _EXPECTED["factors"]))
        return
    factors: dict[str, Factor] = {}
    for name, body in value.items():
        place = f"factors.{name}"
        if not isinstance(body, Mapping):
            problems.append(
                Problem(
                    place,
                    f"got {_kind(body)}",
                    "expected e.g. {uniform: [0, 1]} or {choice: [a, b]}; a value that does not vary goes under fixed",
                )
            )
            continue
        try:
            factors[str(name)] = Factor.model_validate({key: _tupled(item) for key, item in body.items()})
        except ValidationError as error:
            problems += problems_of(error, place, Factor)
    sections["factors"] = factors
    if len(factors) < len(value):
        # Conditions and points may speak of a factor that is there but broken: those are not missing.
        sections["_broken_factors"] = [str(name) for name in value if name not in factors]


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    # Of mappings and lists not what they hold: aliases let a few lines stand for more than memory does.
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list) else shown(value)
