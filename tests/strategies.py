"""Hypothesis strategies for study files and their factors, as plain data in the study file's form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from raystudy.factors import FACTORS, PROBE_DEPTH, FactorInfo, Scalar
from raystudy.spec.sources import PARTS

Plain = dict[str, Any]

N_UNITS = 18
"""The units of efficientnet_lite0, the backbone of all studies drawn here."""

VARIABLE = tuple(name for name in FACTORS if name not in ("backbone", *PARTS))
"""What a study may vary by itself: not its backbone, nor what names source models, which goes together."""
_WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", max_size=20)
NAMES = st.builds(str.__add__, st.sampled_from("abcXYZ0123456789"), _WORDS)
"""Names that a study may have, those that YAML would take for numbers among them."""


@dataclass(frozen=True, slots=True)
class _Range:
    low: float
    high: float
    positive: bool


def _range(info: FactorInfo) -> _Range:
    high = {"frozen_depth": N_UNITS, "reinit_units": N_UNITS, "tuned_unit": N_UNITS - 1}.get(info.name, info.high)
    # A study whose training is self-supervised is refused batches of one image.
    low = 2 if info.name == "batch_size" else info.low
    assert low is not None and high is not None
    return _Range(low, high, info.positive)


def scalars() -> SearchStrategy[Any]:
    """Whatever a YAML file may hold where a value is expected."""
    return st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))


def values(name: str) -> SearchStrategy[Scalar]:
    """Values that the factor `name` may have."""
    info = FACTORS[name]
    if info.kind == "bool":
        return st.booleans()
    if info.kind == "categorical":
        return st.sampled_from(info.choices)
    bounds = _range(info)
    if info.kind == "float":
        return st.floats(bounds.low, bounds.high, exclude_min=bounds.positive)
    whole = st.integers(int(bounds.low), int(bounds.high))
    return whole | st.just(PROBE_DEPTH) if name == "frozen_depth" else whole


def factors(name: str) -> SearchStrategy[Plain]:
    """The factor `name` in one of the forms that go with it, without condition."""
    kind = FACTORS[name].kind
    forms = [_choices(name)]
    if kind == "float":
        forms += [_float_ranges(name, log=False), _float_ranges(name, log=True), _stepped_ranges(name)]
    if kind == "int":
        forms += [_int_ranges(name), _log_int_ranges(name)]
    return st.one_of(forms).flatmap(_with_role)


def _with_role(factor: Plain) -> SearchStrategy[Plain]:
    roles = st.sampled_from([None, "scientific", "nuisance", "fixed"])
    return roles.map(lambda role: {**factor, "role": role} if role else factor)


def _choices(name: str) -> SearchStrategy[Plain]:
    # `max` is the same as the number of units: one of the two.
    lists = st.lists(values(name), min_size=1, max_size=4, unique=True)
    return lists.filter(lambda chosen: not {PROBE_DEPTH, N_UNITS} <= set(chosen)).map(lambda chosen: {"choice": chosen})


@st.composite
def _float_ranges(draw: DrawFn, name: str, *, log: bool) -> Plain:
    bounds = _range(FACTORS[name])
    ends = st.floats(max(bounds.low, 1e-9) if log or bounds.positive else bounds.low, bounds.high)
    low, high = sorted(draw(st.lists(ends, min_size=2, max_size=2, unique=True)))
    return {"log_uniform" if log else "uniform": [low, high]}


@st.composite
def _stepped_ranges(draw: DrawFn, name: str) -> Plain:
    """Ranges with a step, in numbers of few decimals, as people write them."""
    bounds = _range(FACTORS[name])
    ends = st.integers(int(bounds.low * 1000) + bounds.positive, min(int(bounds.high * 1000), 10**6))
    low, high = sorted(draw(st.lists(ends, min_size=2, max_size=2, unique=True)))
    step = draw(st.integers(1, high - low))
    return {"uniform": [low / 1000, high / 1000], "step": step / 1000}


@st.composite
def _int_ranges(draw: DrawFn, name: str) -> Plain:
    bounds = _range(FACTORS[name])
    whole = st.integers(int(bounds.low), int(bounds.high))
    low, high = sorted(draw(st.lists(whole, min_size=2, max_size=2, unique=True)))
    if name == "frozen_depth" and draw(st.booleans()):
        return {"int": [low, PROBE_DEPTH]}
    step = draw(st.none() | st.integers(1, high - low))
    return {"int": [low, high], "step": step} if step else {"int": [low, high]}


@st.composite
def _log_int_ranges(draw: DrawFn, name: str) -> Plain:
    bounds = _range(FACTORS[name])
    whole = st.integers(max(1, int(bounds.low)), int(bounds.high))
    low, high = sorted(draw(st.lists(whole, min_size=2, max_size=2, unique=True)))
    return {"log_int": [low, high]}


def few_levels(factor: Plain) -> list[Scalar] | None:
    """Return (some of) the levels of a factor that a condition may speak of, None for one that has too many."""
    if "choice" in factor:
        return list(factor["choice"])
    if "int" not in factor:
        return None
    low, high = factor["int"]
    return [low, PROBE_DEPTH] if high == PROBE_DEPTH else [*range(low, high + 1, factor.get("step", 1))[:5]]


@st.composite
def factor_sections(draw: DrawFn, *, listed: bool = False) -> tuple[Plain, Plain]:
    """The sections `factors` and `fixed`, with conditions; `listed` for factors that a grid can list."""
    names = draw(st.lists(st.sampled_from(VARIABLE), min_size=1, max_size=7, unique=True))
    n_fixed = draw(st.integers(0, len(names) - 1))
    fixed = {name: draw(values(name)) for name in names[:n_fixed]}
    varied: Plain = {}
    for name in names[n_fixed:]:
        forms = factors(name)
        body = draw(forms.filter(lambda factor: few_levels(factor) is not None) if listed else forms)
        condition = draw(_conditions(varied, fixed))
        varied[name] = {**body, "when": condition} if condition else body
    order = draw(st.permutations(list(varied)))
    return {name: varied[name] for name in order}, fixed


@st.composite
def _conditions(draw: DrawFn, varied: Mapping[str, Plain], fixed: Mapping[str, Scalar]) -> Plain:
    known = {name: levels for name, factor in varied.items() if (levels := few_levels(factor))}
    known |= {name: [value] for name, value in fixed.items()}
    if not known:
        return {}
    parents = draw(st.lists(st.sampled_from(sorted(known)), max_size=2, unique=True))
    return {parent: draw(_wanted(known[parent])) for parent in parents}


def _wanted(levels: list[Scalar]) -> SearchStrategy[Any]:
    one = st.sampled_from(levels)
    return one | st.lists(one, min_size=1, max_size=3, unique=True)


@st.composite
def studies(draw: DrawFn, *, listed: bool = False) -> Plain:
    """Study files that are right, with any of their sections left out that may be."""
    varied, fixed = draw(factor_sections(listed=listed))
    all_listed = all(few_levels(factor) is not None for factor in varied.values())
    samplers = ["grid"] if listed else ["tpe", "random", "qmc", "gp", *(["grid"] if all_listed else [])]
    cells = [name for name, factor in varied.items() if few_levels(factor) is not None]
    epochs = draw(st.integers(1, 200))
    optional: Plain = {
        "fixed": fixed,
        "objective": draw(st.sampled_from([{"metric": "val_loss"}, {"metric": "val_macro_f1", "mode": "max"}])),
        "budget": {"epochs": epochs, "trials": draw(st.integers(1, 1000)), "hours": draw(st.none() | st.floats(0.1, 99))},
        "early_stopping": draw(st.just("none") | _stopping(epochs, cells)),
        "resources": {"cpu": draw(st.integers(1, 8)), "gpu": draw(st.just("auto") | st.floats(0, 4))},
        "keep_models": draw(st.integers(0, 9)),
        "tracking_uri": draw(st.sampled_from([None, "http://host:5000", "sqlite:////tmp/mlflow.db"])),
    }
    needed = {"fixed"} | ({"budget"} if isinstance(optional["early_stopping"], dict) else set())
    left_out = draw(st.sets(st.sampled_from(sorted(optional)))) - needed
    return {
        "name": draw(NAMES),
        "data": {"source": "sklearn:digits", "image_size": draw(st.integers(8, 64)), "validation": draw(st.floats(0.1, 0.9))},
        "backbone": "efficientnet_lite0",
        "factors": varied,
        "search": {"sampler": draw(st.sampled_from(samplers)), "seed": draw(st.integers(0, 2**31 - 1))},
        **{key: value for key, value in optional.items() if key not in left_out},
    }


@st.composite
def _stopping(draw: DrawFn, epochs: int, cells: list[str]) -> Plain:
    within = draw(st.none() | st.lists(st.sampled_from(cells), unique=True)) if cells else None
    keep = draw(st.just("none") | st.floats(0, 1))
    return {"grace": draw(st.integers(1, epochs)), "reduction": draw(st.integers(2, 9)), "within": within, "keep": keep}
