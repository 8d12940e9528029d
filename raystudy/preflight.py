"""Everything that can be known to be wrong before anything starts, in one message."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from raystudy.data import check_source, is_uri, split_source
from raystudy.errors import InputError, Problem, SpecError
from raystudy.finetune.names import check_backbone, unit_count
from raystudy.space import Space
from raystudy.spec import StudySpec
from raystudy.spec.checks import check_study
from raystudy.spec.depths import check_depths
from raystudy.spec.load import parse_sections
from raystudy.spec.messages import number_hint
from raystudy.spec.text import apply_overrides, read_study_file, with_values


def read_study(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    tracking_uri: str | None = None,
    is_here: bool = True,
) -> StudySpec:
    """Read and check a study file: the file itself, that its images exist, that its backbones are known.

    Args:
        path: the study file; `-` is standard input.
        overrides: `key.path=value`, as in `--set`.
        name: replaces the file's name.
        tracking_uri: replaces the file's tracking address.
        is_here: whether the study will run on this machine, so that its files can be looked for.

    Raises:
        SpecError: with every problem, each with its place.
    """
    data = apply_overrides(read_study_file(path), overrides)
    if isinstance(data, Mapping):
        given = {"name": name, "tracking_uri": tracking_uri}
        data = {**data, **{key: value for key, value in given.items() if value is not None}}
    return check(data, title="standard input" if path == Path("-") else str(path), is_here=is_here)


def check(data: Any, *, title: str = "study", is_here: bool = True) -> StudySpec:
    """Check plain data in the study file's form, as `read_study` does."""
    sections, problems = parse_sections(data)
    problems += check_study(sections)
    problems += _check_images(sections, check_source if is_here else check_elsewhere)
    backbone_problems = _check_backbones(sections, check_backbone if is_here else _check_backbone_elsewhere)
    problems += backbone_problems
    # The number of units may stand in a file that only the cluster can see: it checks the depths then.
    if sections.get("backbone") and not backbone_problems and (is_here or not _names_files(sections["backbone"])):
        problems += _check_depths(sections, may_build=not problems)
    if problems:
        raise SpecError(problems, title=title)
    return StudySpec.model_construct(**sections)


def changing(values: Mapping[str, Any], *, title: str) -> Callable[[StudySpec], StudySpec]:
    """Return a function that changes a study's values, given by key path, and checks what comes out."""
    return lambda spec: check(with_values(spec.to_dict(), values), title=title) if values else spec


def space_of(spec: StudySpec) -> Space:
    """Return the search space of a checked study."""
    return Space.of(spec, n_units=smallest_unit_count(spec))


def smallest_unit_count(spec: StudySpec) -> int:
    """Return the number of units of the study's backbones, of the smallest where they differ.

    With several backbones `max` has to mean something that each of them can do.
    """
    return min(_units(name) for name in spec.backbones)


def _units(name: str) -> int:
    known = unit_count(name)
    return _built_unit_count(name) if known is None else known


@lru_cache(maxsize=64)
def _built_unit_count(name: str) -> int:
    from raystudy.finetune.backbone import unit_count as cut_and_count

    return cut_and_count(name)


def check_elsewhere(source: str) -> None:
    """Check a source of images that another machine will read: its form, and that it cannot mean a place on this one.

    Raises:
        DataError: otherwise.
    """
    scheme, location = split_source(source)
    if scheme in ("sklearn", "torchvision"):
        check_source(source)
    elif not is_uri(location):
        _require_absolute(location)


def _check_backbone_elsewhere(name: str) -> None:
    architecture, has_file, path = name.partition("file:")
    if not has_file:
        check_backbone(name)
        return
    _require_absolute(path)
    if architecture.endswith("@"):
        check_backbone(architecture.removesuffix("@"))


def _require_absolute(path: str) -> None:
    if not Path(path).is_absolute():
        what = "is relative to a folder of this machine, which the cluster cannot see"
        accepted = "expected a path on the cluster's storage that begins with /, or s3:// or gs://"
        raise InputError(Problem(path, what, accepted))


def _names_files(backbone: str | tuple[str, ...]) -> bool:
    return any("file:" in name for name in ([backbone] if isinstance(backbone, str) else backbone))


def _check_images(sections: Mapping[str, Any], check_one: Callable[[str], None]) -> list[Problem]:
    if (data := sections.get("data")) is None:
        return []
    places = {"data.source": data.source, "data.validation": data.validation, "data.test": data.test}
    return [
        problem
        for place, source in places.items()
        if isinstance(source, str) and not number_hint(source)  # a number in quotes: reported as such
        for problem in _problems(place, check_one, source)
    ]


def _check_backbones(sections: Mapping[str, Any], check_one: Callable[[str], None]) -> list[Problem]:
    backbone = sections.get("backbone")
    if isinstance(backbone, str):
        return _problems("backbone", check_one, backbone)
    return [
        problem for index, name in enumerate(backbone or ()) for problem in _problems(f"backbone[{index}]", check_one, name)
    ]


def _problems(place: str, check_one: Callable[[str], None], value: str) -> list[Problem]:
    """Return what `check_one` has against `value`, at its place in the study file."""
    try:
        check_one(value)
    except InputError as error:
        return [Problem(place, *_within(problem)) for problem in error.problems]
    return []


def _within(problem: Problem) -> tuple[str, str]:
    known = problem.where in ("", "backbone")  # the place in the study file says so already
    return (problem.what if known else f"{problem.where}: {problem.what}"), problem.accepted


def _check_depths(sections: Mapping[str, Any], *, may_build: bool) -> list[Problem]:
    """Check whatever counts units against the smallest backbone.

    Some backbones tell their number only when they are built, which takes seconds: not while there are other problems.
    """
    names = (sections["backbone"],) if isinstance(sections["backbone"], str) else sections["backbone"]
    if not may_build and any(unit_count(name) is None for name in names):
        return []
    try:
        counts = {name: _units(name) for name in names}
    except InputError as error:
        return [Problem("backbone", *_within(problem)) for problem in error.problems]
    smallest = min(names, key=counts.__getitem__)
    return check_depths(sections, counts[smallest], backbone=smallest)
