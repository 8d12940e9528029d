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
