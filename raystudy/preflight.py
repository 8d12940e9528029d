"""Everything that can be known to be wrong before anything starts, in one message."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from raystudy.data import check_source, is_uri, split_source
from raystudy.errors import InputError, Problem, SpecError
from raystudy.finetune.names import check_backbone, unit_count
from raystudy.finetune.source_models import Sources, architecture_of
from raystudy.space import Space
from raystudy.spec import StudySpec
from raystudy.spec.checks import check_study
from raystudy.spec.depths import check_depths
from raystudy.spec.load import parse_sections
from raystudy.spec.messages import number_hint
from raystudy.spec.pretrain import is_pretraining, parse_pretraining
from raystudy.spec.sources import is_registered
from raystudy.spec.text import apply_overrides, read_study_file, with_values


def read_study(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    tracking_uri: str | None = None,
    is_here: bool = True,
    is_for_sources: bool = False,
) -> StudySpec:
    """Read and check a study file: the file itself, that its images exist, that its backbones are known.

    A file of source models (`raystudy pretrain`) is a short form of a study file, and is read as the study it stands for.

    Args:
        path: the study file; `-` is standard input.
        overrides: `key.path=value`, as in `--set`.
        name: replaces the file's name.
        tracking_uri: replaces the file's tracking address.
        is_here: whether the study will run on this machine, so that its files can be looked for.
        is_for_sources: whether it must be a file of source models.

    Raises:
        SpecError: with every problem, each with its place.
    """
    data = apply_overrides(read_study_file(path), overrides)
    if isinstance(data, Mapping):
        given = {"name": name, "tracking_uri": tracking_uri}
        data = {**data, **{key: value for key, value in given.items() if value is not None}}
    title = "standard input" if path == Path("-") else str(path)
    if is_for_sources or is_pretraining(data):
        return check_pretraining(data, title=title, is_here=is_here)
    return check(data, title=title, is_here=is_here)


def check_pretraining(data: Any, *, title: str = "source models", is_here: bool = True) -> StudySpec:
    """Check plain data in the form of a file of source models; return the study that trains them.

    Raises:
        SpecError: with every problem, each with its place in that file.
    """
    return parse_pretraining(data, lambda study: check(study, title=title, is_here=is_here), title=title)


def check(data: Any, *, title: str = "study", is_here: bool = True) -> StudySpec:
    """Check plain data in the study file's form, as `read_study` does."""
    sections, problems = parse_sections(data)
    problems += check_study(sections)
    problems += _check_images(sections, check_source if is_here else check_elsewhere)
    backbone_problems = _check_backbones(sections, check_backbone if is_here else _check_backbone_elsewhere)
    problems += backbone_problems
    # The number of units may stand in a file that only the cluster can see, or in a registry that nobody has asked yet
    # (`check_units`): the depths are checked then.
    counted = sections.get("backbone") and not backbone_problems and not any(map(is_registered, _names(sections)))
    if counted and (is_here or not any("file:" in name for name in _names(sections))):
        problems += _check_depths(sections, may_build=not problems)
    if problems:
        raise SpecError(problems, title=title)
    return StudySpec.model_construct(**sections)


def changing(values: Mapping[str, Any], *, title: str) -> Callable[[StudySpec], StudySpec]:
    """Return a function that changes a study's values, given by key path, and checks what comes out."""
    return lambda spec: check(with_values(spec.to_dict(), values), title=title) if values else spec


def check_units(spec: StudySpec, sources: Sources) -> None:
    """Check what counts units, in a study that begins with registered models: theirs are known when they are fetched.

    Raises:
        SpecError: with every problem.
    """
    if sources:
        counts = {name: _units(architecture_of(name, sources)) for name in spec.backbones}
        smallest = min(counts, key=counts.__getitem__)
        sections = {"factors": spec.factors, "fixed": spec.fixed, "search": spec.search}
        if problems := check_depths(sections, counts[smallest], backbone=smallest):
            raise SpecError(problems, title=spec.name)


def check_classes(spec: StudySpec, n_classes: int) -> None:
    """Check that the study asks for no more categories than its images have classes.

    Raises:
        SpecError: with every value that is too many.
    """
    factor = spec.factors.get("categories")
    values = {"fixed.categories": spec.fixed.get("categories", 0)}
    if factor is not None:
        listed = factor.choice if factor.choice is not None else factor.bounds
        values |= {f"factors.categories.{factor.form}[{index}]": value for index, value in enumerate(listed)}
    what = f"but {spec.data.source} has {n_classes} classes"
    if problems := [
        Problem(place, f"got {value}, {what}", f"expected at most {n_classes}")
        for place, value in values.items()
        if int(value) > n_classes
    ]:
        raise SpecError(problems, title=spec.name)


def space_of(spec: StudySpec, sources: Sources | None = None) -> Space:
    """Return the search space of a checked study; `sources` are the registered models among its backbones."""
    return Space.of(spec, n_units=smallest_unit_count(spec, sources))


def smallest_unit_count(spec: StudySpec, sources: Sources | None = None) -> int:
    """Return the number of units of the study's backbones, of the smallest where they differ.

    With several backbones `max` has to mean something that each of them can do.

    Raises:
        BackboneError: a registered model is not among `sources`.
    """
    return min(_units(architecture) for architecture in {architecture_of(name, sources or {}) for name in spec.backbones})


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
    if scheme == "torchvision":
        from raystudy.data.torchvision_sets import parse

        parse(location, is_here=False)
    elif scheme == "sklearn":
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


def _names(sections: Mapping[str, Any]) -> tuple[str, ...]:
    backbone = sections["backbone"]
    return (backbone,) if isinstance(backbone, str) else backbone


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
        return _problems("backbone", check_one, backbone) if backbone else []
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
    names = _names(sections)
    if not may_build and any(unit_count(name) is None for name in names):
        return []
    try:
        counts = {name: _units(name) for name in names}
    except InputError as error:
        return [Problem("backbone", *_within(problem)) for problem in error.problems]
    smallest = min(names, key=counts.__getitem__)
    return check_depths(sections, counts[smallest], backbone=smallest)
