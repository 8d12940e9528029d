"""Regions of the factors as text: `learning_rate<0.01, 0.1<=data_fraction, optimizer=sgd, batch_size in 32|64`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from raystudy.errors import InputError, Problem
from raystudy.factors import Scalar
from raystudy.findings.axis import Axis

_FORM = "expected e.g. learning_rate<0.01, 0.1<=data_fraction, optimizer=sgd, batch_size in 32|64"
_SEPARATOR = re.compile(r",|\band\b")
_SIGN = re.compile(r"(<=|>=|!=|==|=|<|>)")
_AMONG = re.compile(r"^(\S+)\s+in\s+(.+)$")
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_BOOLS = {"true": True, "yes": True, "false": False, "no": False}


def terms(text: str) -> list[str]:
    """Return the comparisons in `text`, which commas or `and` separate; raise InputError if there is none."""
    found = [term.strip() for term in _SEPARATOR.split(text) if term.strip()]
    if not found:
        raise InputError(Problem("region", f"got {text!r}", _FORM))
    return found


def comparisons(term: str, names: Sequence[str]) -> Iterator[tuple[str, Callable[[Axis], Axis]]]:
    """Yield the comparisons in a term, two in `0.1<=data_fraction<=0.5`, each as a factor and what to do to its axis.

    Args:
        term: one comparison or two.
        names: the factors; a name that is none of them is yielded as it is.

    Raises:
        InputError: the term is no comparison; from what is yielded: the comparison makes no sense for the factor.
    """
    if match := _AMONG.match(term):
        yield match[1], partial(_compared, sign="in", text=match[2])
        return
    parts = [part.strip().strip("'\"") for part in _SIGN.split(term)]
    if len(parts) < 3 or not all(parts):
        raise InputError(Problem("", f"got {term!r}", _FORM))
    for left, sign, right in zip(parts[:-2:2], parts[1::2], parts[2::2], strict=True):
        if left not in names and (right in names or _spells_number(left)):
            yield right, partial(_compared, sign=_MIRRORED.get(sign, sign), text=left)
        else:
            yield left, partial(_compared, sign=sign, text=right)


def _compared(axis: Axis, *, sign: str, text: str) -> Axis:
    """Keep of an axis what a comparison admits."""
    values = [_read(axis, part.strip().strip("'\"")) for part in (text.split("|") if sign == "in" else [text])]
    if sign in ("=", "==", "in"):
        return axis.among(values)
    if sign == "!=":
        return axis.without(values[0])
    if not axis.is_numeric:
        raise InputError(Problem(axis.name, f"has no order, got {sign}", "expected = or !="))
    end = float(values[0])
    match sign:
        case "<=":
            return axis.between(-math.inf, end)
        case "<":
            return axis.between(-math.inf, math.nextafter(end, -math.inf))
        case ">=":
            return axis.between(end, math.inf)
    return axis.between(math.nextafter(end, math.inf), math.inf)


def _read(axis: Axis, text: str) -> Scalar:
    """Return the level that `text` spells, or else a number for a factor of numbers."""
    for level in () if isinstance(axis.levels, range) else axis.levels:
        if text == str(level) or (isinstance(level, bool) and _BOOLS.get(text.lower()) is level):
            return level
    try:
        number = float(text)
    except ValueError:
        raise InputError(Problem(axis.name, f"got {text!r}", axis.accepted)) from None
    position = axis.position(number)
    # Of levels the one meant, although 0.1 + 0.2 is not 0.3.
    return axis.at(position) if axis.levels and not math.isnan(position) else number


def _spells_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
