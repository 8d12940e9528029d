"""Checks across the sections of a study file: what each part means next to the others and to the catalogue of factors.

Everything here works on the sections that are right by themselves and skips what is missing, so that one message can list
all problems. What needs the disk or the network (images, weights, servers) is checked elsewhere, before anything starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from raystudy.errors import Problem
from raystudy.factors import FACTORS, PROBE_DEPTH, SELF_SUPERVISED, FactorInfo, Scalar
from raystudy.spec.factor import Factor
from raystudy.spec.messages import nearest, number_hint
from raystudy.spec.sections import METRICS
from raystudy.spec.sources import check_registering, check_sources

Sections = Mapping[str, Any]
_ADDRESSES = "expected http(s)://HOST:PORT or sqlite:///PATH"


def check_study(sections: Sections) -> list[Problem]:
    """Return every problem that the parts of a study have with one another."""
    checks: tuple[Callable[[Sections], Iterator[Problem]], ...] = (
        _check_data,
        _check_backbone,
        check_sources,
        _check_objective,
        _check_factors,
        _check_conditions,
        _check_fixed,
        _check_objective_of_training,
        _check_budget,
        _check_search,
        _check_points,
        _check_early_stopping,
        _check_tracking,
        check_registering,
    )
    return [problem for check in checks for problem in check(sections)]


def _factors(sections: Sections) -> dict[str, Factor]:
    factors: dict[str, Factor] = dict(sections.get("factors", {}))
    backbone = sections.get("backbone")
    if isinstance(backbone, tuple) and backbone:
        factors.setdefault("backbone", Factor.model_construct(choice=backbone))
    return factors


def _check_data(sections: Sections) -> Iterator[Problem]:
    if not (data := sections.get("data")):
        return
    shares = {}
    for name in ("validation", "test"):
        value = getattr(data, name)
        if hint := number_hint(value):
            yield Problem(f"data.{name}", f"got the text {value!r}, expected a share or a second source", hint)
        elif isinstance(value, (int, float)):
            shares[name] = value
            if not 0 < value < 1:
                yield Problem(f"data.{name}", f"got {value}", "expected a share between 0 and 1, or a second source")
    if len(shares) == 2 and all(0 < share < 1 for share in shares.values()) and sum(shares.values()) >= 1:
        yield Problem("data", f"validation {shares['validation']} and test {shares['test']} leave nothing to train on")


def _check_backbone(sections: Sections) -> Iterator[Problem]:
    backbone = sections.get("backbone")
    if isinstance(backbone, tuple):
        if not backbone:
            yield Problem("backbone", "is an empty list, expected one or more names")
        for index, name in enumerate(backbone):
            if name in backbone[:index]:
                yield Problem(f"backbone[{index}]", f"{name!r} is given twice")
    if "backbone" in sections.get("factors", {}):
        yield Problem("factors.backbone", "is given by the top-level key", "write backbone: [name, name] to vary it")


def _check_objective(sections: Sections) -> Iterator[Problem]:
    if not (objective := sections.get("objective")):
        return
    if objective.metric not in METRICS:
        yield Problem("objective.metric", f"nothing reports {objective.metric!r}", nearest(objective.metric, METRICS))
    elif objective.mode not in (None, METRICS[objective.metric]):
        better = METRICS[objective.metric]
        yield Problem(
            "objective.mode",
            f"got {objective.mode}, but {objective.metric} is better the {'larger' if better == 'max' else 'smaller'} it is",
            f"expected {better}",
        )


def _check_factors(sections: Sections) -> Iterator[Problem]:
    factors, fixed = sections.get("factors", {}), sections.get("fixed", {})
    for name in (*factors, *sections.get("_broken_factors", ())):
        place = f"factors.{name}"
        if name not in FACTORS:
            yield Problem(place, "unknown factor", nearest(name, FACTORS))
            continue
        if name in fixed:
            yield Problem(place, "is also under fixed", "a factor either varies or is fixed")
        if name != "backbone" and name in factors:
            yield from _check_values(place, name, factors[name])


def _check_values(place: str, name: str, factor: Factor) -> Iterator[Problem]:
    info = FACTORS[name]
    if factor.form == "choice":
        for index, value in enumerate(factor.choice or ()):
            if refusal := info.refusal(value):
                yield Problem(f"{place}.choice[{index}]", refusal, _intention(value, info))
        return
    if info.kind in ("categorical", "bool"):
        levels = ", ".join(map(str, info.choices or (True, False)))
        yield Problem(f"{place}.{factor.form}", f"{name} is not a number", f"expected choice: [{levels}]")
        return
    if info.kind == "int" and factor.form in ("uniform", "log_uniform"):
        form = "log_int" if factor.form == "log_uniform" else "int"
        yield Problem(f"{place}.{factor.form}", f"{name} takes whole numbers", f"expected {form}: [low, high]")
        return
    if info.kind == "float" and factor.form in ("int", "log_int"):
        yield Problem(f"{place}.{factor.form}", f"{name} is a real number", "expected uniform, log_uniform or choice")
        return
    for index, bound in enumerate(factor.bounds):
        if bound == PROBE_DEPTH and name != "frozen_depth":
            yield Problem(
                f"{place}.{factor.form}[{index}]",
                f"{PROBE_DEPTH!r} goes with frozen_depth only",
                f"expected {info.accepted()}",
            )
        elif refusal := info.refusal(bound):
            yield Problem(f"{place}.{factor.form}[{index}]", refusal)
        elif info.off is not None and bound == info.off:
            what = f"got {bound}, which sets no limit and is not the smallest value"
            yield Problem(f"{place}.{factor.form}[{index}]", what, f"expected at least {info.low}")


def _intention(value: object, info: FactorInfo) -> str:
    """Say what was probably meant by a value that the factor cannot have."""
    if info.kind in ("int", "float"):
        return number_hint(value)
    hint = nearest(value, [str(choice) for choice in info.choices]) if isinstance(value, str) else ""
    return hint.partition("?")[0] + "?" if hint.startswith("did") else ""


def _check_conditions(sections: Sections) -> Iterator[Problem]:
    factors, fixed = _factors(sections), sections.get("fixed", {})
    broken = sections.get("_broken_factors", set())
    for name, factor in factors.items():
        for parent, wanted in (factor.when or {}).items():
            place = f"factors.{name}.when.{parent}"
            values = wanted if isinstance(wanted, tuple) else (wanted,)
            if parent == name:
                yield Problem(place, "a factor cannot depend on itself")
            elif parent in factors:
                yield from _check_condition_values(place, factors[parent], parent, values)
            elif parent in fixed:
                if fixed[parent] not in values:
                    yield Problem(place, f"{parent} is fixed to {fixed[parent]!r}: the factor would never be active")
            elif parent not in broken:
                yield Problem(place, f"there is no factor {parent!r} in this study", nearest(parent, [*factors, *fixed]))
    yield from _check_cycles(factors)


def _check_condition_values(place: str, parent: Factor, name: str, values: tuple[Scalar, ...]) -> Iterator[Problem]:
    if not values:
        yield Problem(place, "is an empty list: the factor would never be active")
    if parent.form not in ("choice", "int"):
        yield Problem(place, f"{name} is continuous", "a condition needs a factor with few values (choice or int)")
        return
    for value in values:
        if not _contains(parent, value):
            yield Problem(place, f"{name} never is {value!r}", _accepted(parent))


def _check_cycles(factors: Mapping[str, Factor]) -> Iterator[Problem]:
    def parents(name: str) -> list[str]:
        return [parent for parent in (factors[name].when or {}) if parent in factors and parent != name]

    for name in factors:
        path, frontier = {name}, parents(name)
        while frontier:
            parent = frontier.pop()
            if parent == name:
                yield Problem(f"factors.{name}.when", "the conditions go round in a circle")
                break
            if parent not in path:
                path.add(parent)
                frontier += parents(parent)


def _check_fixed(sections: Sections) -> Iterator[Problem]:
    for name, value in sections.get("fixed", {}).items():
        if name == "backbone":
            yield Problem("fixed.backbone", "is given by the top-level key", "write backbone: NAME")
        elif name not in FACTORS:
            yield Problem(f"fixed.{name}", "unknown factor", nearest(name, FACTORS))
        elif refusal := FACTORS[name].refusal(value):
            yield Problem(f"fixed.{name}", refusal, _intention(value, FACTORS[name]))


def _check_objective_of_training(sections: Sections) -> Iterator[Problem]:
    """Refuse batches of one image where images are told from one another."""
    factors, fixed = sections.get("factors", {}), sections.get("fixed", {})
    varying = factors.get("training_objective")
    objectives = (fixed.get("training_objective"),) if varying is None else varying.choice or ()
    if SELF_SUPERVISED not in objectives:
        return
    what, accepted = f"training_objective: {SELF_SUPERVISED} tells the images of a batch from one another", "at least 2"
    if fixed.get("batch_size") == 1:
        yield Problem("fixed.batch_size", f"got 1, but {what}", accepted)
    sizes = factors.get("batch_size")
    if sizes is not None and 1 in (sizes.choice if sizes.choice is not None else sizes.bounds[:1]):
        yield Problem("factors.batch_size", f"may be 1, but {what}", accepted)


def _check_budget(sections: Sections) -> Iterator[Problem]:
    budget, stopping = sections.get("budget"), sections.get("early_stopping")
    if budget and stopping and stopping.scheduler == "asha" and stopping.grace > budget.epochs:
        yield Problem(
            "early_stopping.grace",
            f"the first rung, epoch {stopping.grace}, is beyond budget.epochs = {budget.epochs}",
            f"expected at most {budget.epochs}",
        )


def _check_search(sections: Sections) -> Iterator[Problem]:
    search = sections.get("search")
    if not search or search.sampler != "grid":
        return
    for name, factor in sections.get("factors", {}).items():
        if factor.form not in ("choice", "int"):
            yield Problem(
                f"factors.{name}.{factor.form}",
                "a grid needs listed values",
                "expected choice: [...] or int: [low, high]",
            )


def _check_points(sections: Sections) -> Iterator[Problem]:
    if "factors" not in sections:
        return
    search, factors = sections.get("search"), _factors(sections)
    broken = sections.get("_broken_factors", set())
    for index, point in enumerate(search.points if search else ()):
        for name, value in point.items():
            place = f"search.points[{index}].{name}"
            if name in broken:
                continue
            if name not in factors:
                yield Problem(place, "does not vary in this study", nearest(name, factors))
            elif not _contains(factors[name], value):
                yield Problem(place, f"got {value!r}, which is none of the factor's values", _accepted(factors[name]))


def _contains(factor: Factor, value: Scalar) -> bool:
    if factor.choice is not None:
        return any(isinstance(choice, bool) is isinstance(value, bool) and choice == value for choice in factor.choice)
    low, high = factor.bounds
    if isinstance(value, (bool, str)):
        return value == PROBE_DEPTH == high
    if factor.form in ("int", "log_int") and not isinstance(value, int):
        return False
    steps = (value - low) / factor.step if factor.step and math.isfinite(value) else 0.0
    return low <= value and (high == PROBE_DEPTH or value <= high) and math.isclose(steps, round(steps), abs_tol=1e-8)


def _accepted(factor: Factor) -> str:
    if factor.choice is not None:
        return f"expected one of {', '.join(map(str, factor.choice))}"
    low, high = factor.bounds
    noun = "a whole number" if factor.form in ("int", "log_int") else "a number"
    return f"expected {noun} from {low} to {high}" + (f" in steps of {factor.step}" if factor.step else "")


def _check_early_stopping(sections: Sections) -> Iterator[Problem]:
    if "factors" not in sections:
        return
    stopping, factors = sections.get("early_stopping"), _factors(sections)
    broken = sections.get("_broken_factors", set())
    for index, name in enumerate((stopping and stopping.within) or ()):
        place = f"early_stopping.within[{index}]"
        if name in broken:
            continue
        if name not in factors:
            yield Problem(place, f"{name!r} does not vary in this study", nearest(name, factors))
        elif factors[name].form not in ("choice", "int"):
            yield Problem(place, f"{name} is continuous: no two trials would be compared", "expected a factor with few values")


def _check_tracking(sections: Sections) -> Iterator[Problem]:
    if (uri := sections.get("tracking_uri")) is None:
        return
    try:
        has_password, is_store = urlsplit(uri).password, _is_store(uri)
    except ValueError as error:
        yield Problem("tracking_uri", f"got {uri!r}, which is no address ({error})", _ADDRESSES)
        return
    if has_password:
        yield Problem(
            "tracking_uri",
            "holds a password, which would be recorded with the study",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead",
        )
    elif not is_store:
        yield Problem("tracking_uri", f"got {uri!r}", _ADDRESSES)


def _is_store(uri: str) -> bool:
    parts = urlsplit(uri)
    dialect = parts.scheme.partition("+")[0]  # SQLAlchemy's form, mysql+pymysql for instance
    if dialect == "sqlite":
        # A database in memory would be gone with the process that writes it.
        return uri.startswith(f"{parts.scheme}:///") and parts.path not in ("/", "/:memory:")
    is_known = parts.scheme in ("http", "https") or dialect in ("postgresql", "mysql", "mssql")
    return is_known and bool(parts.hostname) and parts.port != 0
