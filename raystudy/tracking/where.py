"""Conditions on trials: `data_fraction=0.1, optimizer=sgd, learning_rate<0.01`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raystudy.errors import InputError, Problem
from raystudy.factors import FACTORS, Scalar
from raystudy.records import TrialState
from raystudy.spec.messages import nearest
from raystudy.tracking.content import factor_kind
from raystudy.tracking.rows import TrialRow

Predicate = Callable[[TrialRow], bool]

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_TERM = re.compile(r"^\s*([^\s<>=!]+)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*$", re.DOTALL)
_ABOUT = {"number": "int", "epochs": "int", "state": "state", "node": "text"}
"""What can be asked of a trial besides its factors and its metrics."""
_FORM = "expected NAME=VALUE, with = != < <= > or >=, several separated by commas"
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison. A trial in which `name` is not active or was never reported does not meet it."""

    name: str
    sign: str
    value: Scalar

    def __call__(self, trial: TrialRow) -> bool:
        """Say whether `trial` meets the condition."""
        found = value_of(trial, self.name)
        return found is not None and _OPERATORS[self.sign](found, self.value)


@dataclass(frozen=True, slots=True)
class Where:
    """Conditions that all have to be met; none at all is met by every trial."""

    conditions: tuple[Condition, ...]

    def __call__(self, trial: TrialRow) -> bool:
        """Say whether `trial` meets every condition."""
        return all(condition(trial) for condition in self.conditions)


def value_of(trial: TrialRow, name: str) -> Scalar | None:
    """Return a factor's value, a metric at the best epoch, or number, epochs, state or node; None where there is none."""
    if name in _ABOUT:
        value: Scalar = getattr(trial, name)
        return value
    return trial.config.get(name, trial.best.get(name))


def parse_where(text: str, factors: Iterable[str], metrics: Iterable[str]) -> Where:
    """Read an expression such as `data_fraction=0.1, optimizer=sgd, learning_rate<0.01`.

    Args:
        text: comparisons separated by commas or `and`; values may stand in quotes.
        factors: the study's factors.
        metrics: the metrics that its trials report; they are compared at each trial's best epoch.

    Raises:
        InputError: with one problem per comparison that cannot be understood.
    """
    terms = [term for term in re.split(r",|\band\b", text) if term.strip()]
    conditions: list[Condition] = []
    problems: list[Problem] = [] if terms else [Problem("where", f"got {text!r}", _FORM)]
    for term in terms:
        match = _TERM.match(term)
        if match is None:
            problems.append(Problem("where", f"got {term.strip()!r}", _FORM))
        else:
            _add(match[1], match[2], match[3].strip("'\""), factors, metrics, conditions, problems)
    return _checked(conditions, problems)


def equal_to(values: Mapping[str, Scalar], factors: Iterable[str], metrics: Iterable[str]) -> Where:
    """Return the condition that every name has exactly its value; see `parse_where` for the errors."""
    conditions: list[Condition] = []
    problems: list[Problem] = []
    for name, value in values.items():
        _add(name, "=", str(value), factors, metrics, conditions, problems)
    return _checked(conditions, problems)


def _checked(conditions: list[Condition], problems: list[Problem]) -> Where:
    if problems:
        raise InputError(problems)
    return Where(tuple(conditions))


def _add(
    name: str,
    sign: str,
    text: str,
    factors: Iterable[str],
    metrics: Iterable[str],
    conditions: list[Condition],
    problems: list[Problem],
) -> None:
    kind = _kind(name, factors, metrics)
    known = [*factors, *metrics, *_ABOUT]
    if kind is None:
        what = "does not vary in this study" if name in FACTORS else "is neither a factor nor a metric of this study"
        problems.append(Problem(f"where: {name}", what, nearest(name, known)))
        return
    if sign not in ("=", "==", "!=") and kind not in ("int", "float"):
        problems.append(Problem(f"where: {name}", f"has no order, got {sign}", "expected = or !="))
        return
    try:
        conditions.append(Condition(name, sign, _value(text, kind)))
    except (ValueError, KeyError):
        problems.append(Problem(f"where: {name}", f"got {text!r}", f"expected {_accepted(kind)}"))


def _kind(name: str, factors: Iterable[str], metrics: Iterable[str]) -> str | None:
    if name in factors:
        return factor_kind(name)
    return "float" if name in metrics else _ABOUT.get(name)


def _value(text: str, kind: str) -> Scalar:
    match kind:
        case "float" | "int":
            return float(text)
        case "bool":
            return _BOOLS[text.lower()]
        case "state":
            return TrialState(text).value
    return text


def _accepted(kind: str) -> str:
    words = {"float": "a number", "int": "a whole number", "bool": "true or false", "state": f"one of {', '.join(TrialState)}"}
    return words.get(kind, "a text")
