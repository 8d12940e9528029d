"""Checks of what counts the backbone's units, wherever a study speaks of it: frozen_depth, reinit_units, tuned_unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raystudy.errors import Problem
from raystudy.factors import PROBE_DEPTH, Scalar
from raystudy.spec.factor import Factor

UNIT_FACTORS = ("frozen_depth", "reinit_units", "tuned_unit")


def check_depths(sections: Mapping[str, Any], n_units: int, *, backbone: str = "the backbone") -> list[Problem]:
    """Return every place where the study goes beyond a backbone's units.

    Args:
        sections: the sections of a study that are right by themselves; those that are missing are skipped.
        n_units: the number of units of the backbone, of the smallest where there are several.
        backbone: its name.
    """
    problems: list[Problem] = []
    for place, name, value in _values(sections):
        top = n_units - 1 if name == "tuned_unit" else n_units
        if isinstance(value, (int, float)) and value > top:
            problems.append(Problem(place, f"got {value}, but {backbone} has {n_units} units", f"expected at most {top}"))
    return problems + list(_check_twins(sections, n_units))


def resolved(name: str, value: Scalar, n_units: int | None) -> Scalar:
    """Return `value` of the factor `name` with the number that `max` stands for."""
    if name != "frozen_depth" or value != PROBE_DEPTH:
        return value
    assert n_units is not None, "max needs the number of units"
    return n_units


def resolved_factors(factors: Mapping[str, Factor], n_units: int | None) -> dict[str, Factor]:
    """Return the factors as they were drawn from: `max` is a number, and conditions speak of other factors only.

    Args:
        factors: of a study that is right: a condition on something that is fixed always holds.
        n_units: what `max` stands for, needed where `asks_for_units` says so.
    """
    return {name: _resolved_factor(name, factor, factors, n_units) for name, factor in factors.items()}


def asks_for_units(factors: Mapping[str, Factor]) -> bool:
    """Whether a factor or a condition speaks of `max`."""
    return any(name == "frozen_depth" and value == PROBE_DEPTH for _, name, value in _values({"factors": factors}))


def _resolved_factor(name: str, factor: Factor, factors: Mapping[str, Factor], n_units: int | None) -> Factor:
    when = {
        parent: tuple(resolved(parent, value, n_units) for value in (wanted if isinstance(wanted, tuple) else (wanted,)))
        for parent, wanted in (factor.when or {}).items()
        if parent in factors
    }
    changes: dict[str, Any] = {"when": when or None}
    if factor.choice is not None:
        changes["choice"] = tuple(resolved(name, value, n_units) for value in factor.choice)
    elif factor.int_ is not None:
        changes["int_"] = tuple(resolved(name, bound, n_units) for bound in factor.int_)
    return factor.model_copy(update=changes)


def _values(sections: Mapping[str, Any]) -> Iterator[tuple[str, str, Scalar]]:
    """Yield the place, the factor and the value of everything that counts units."""
    factors: Mapping[str, Factor] = sections.get("factors", {})
    for name in UNIT_FACTORS:
        if name in sections.get("fixed", {}):
            yield f"fixed.{name}", name, sections["fixed"][name]
        if name in factors:
            factor = factors[name]
            for index, value in enumerate(factor.choice if factor.choice is not None else factor.bounds):
                yield f"factors.{name}.{factor.form}[{index}]", name, value
        for other, factor in factors.items():
            wanted = (factor.when or {}).get(name, ())
            for value in wanted if isinstance(wanted, tuple) else (wanted,):
                yield f"factors.{other}.when.{name}", name, value
        for index, point in enumerate(sections["search"].points if "search" in sections else ()):
            if name in point:
                yield f"search.points[{index}].{name}", name, point[name]


def _check_twins(sections: Mapping[str, Any], n_units: int) -> Iterator[Problem]:
    factor = sections.get("factors", {}).get("frozen_depth")
    if factor is not None and factor.choice and {PROBE_DEPTH, n_units} <= set(factor.choice):
        index = factor.choice.index(PROBE_DEPTH)
        yield Problem(f"factors.frozen_depth.choice[{index}]", f"{PROBE_DEPTH} is {n_units} here, which is given twice")
