"""What a study found at each of its sources: the metric, the best learning rate and the best frozen depth, as posterior draws.

The surrogate of `raystudy.importance` is fitted once, to all trials, and read with the source fixed at each level. Every draw
is one function over all levels, and all levels are read at the same configurations: so differences between levels hold
neither the chance of other configurations nor that of other functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raystudy.errors import InputError, Problem
from raystudy.factors import Scalar
from raystudy.findings.curves import Floats
from raystudy.findings.design import Design
from raystudy.findings.draws import Draws
from raystudy.findings.fitting import Fitted, Posterior, fewer, fit
from raystudy.findings.importance import FEWEST_AT_END, FEWEST_TRIALS
from raystudy.findings.indices import values_along
from raystudy.findings.measure import Measure
from raystudy.findings.observations import Observations, observe
from raystudy.findings.question import asked
from raystudy.findings.threads import one_pool
from raystudy.findings.transfer.relation import DEPTH, MEAN, RATE, TUNED
from raystudy.findings.tuning import best_of_groups, tuning_design
from raystudy.spec import Factor, StudySpec
from raystudy.spec.depths import resolved_factors

MOST_LEVELS = 64
"""Levels of a source factor: each costs as much as all the rest of its effect."""
BACKBONE = "backbone"
"""The factor that a list of backbones is."""
_FACTOR_OF = {RATE: "learning_rate", DEPTH: "frozen_depth"}
_NODES, _TUNINGS = 32, 64
"""Values along one factor, and values of the nuisance factors that are tried: all functions are read at all of them."""
_SETS = 12
"""Sets of hyperparameters whose functions are read: 72 draws."""


@dataclass(frozen=True, slots=True)
class LevelResults:
    """What was found at each level of a source factor.

    Attributes:
        source: the factor; None for a study with one source.
        levels: its values that trials were run with; a single None without a factor.
        n_trials: trials with a report at each level.
        draws: by result (`MEAN`, `TUNED`, `RATE`, `DEPTH` of `relation`), shape (draws, levels).
        left_out: results and levels that are not there, each with the reason.
    """

    source: str | None
    levels: tuple[Scalar | None, ...]
    n_trials: tuple[int, ...]
    draws: dict[str, Floats]
    left_out: dict[str, str] = field(default_factory=dict)

    def at(self, level: Scalar | None) -> LevelResults:
        """Return what was found at one level; no levels where it is not there."""
        kept = [k for k, known in enumerate(self.levels) if known == level]
        draws = {name: values[:, kept] for name, values in self.draws.items()} if kept else {}
        return replace(self, levels=tuple(level for _ in kept), n_trials=tuple(self.n_trials[k] for k in kept), draws=draws)


def results_of(
    spec: StudySpec, reports: pa.Table, *, source: str | None = None, n_units: int | None = None, seed: int = 0
) -> LevelResults:
    """Return the results of a recorded study at each of its sources.

    Args:
        spec: the study.
        reports: all of its reports, such as `open_study(NAME).reports()`.
        source: the factor whose levels are sources; by default `backbone` where there are several.
        n_units: what `max` stands for in frozen depths, needed where the study speaks of it.
        seed: of the fit and the draws.

    Raises:
        InputError: as for `results_by_level`.
    """
    factors = resolved_factors(spec.all_factors, n_units)
    return results_by_level(
        reports,
        factors,
        source=source or (BACKBONE if BACKBONE in factors else None),
        metric=spec.metric,
        budget=spec.budget.epochs,
        mode=spec.mode,
        roles={name: spec.role(name) for name in factors},
        seed=seed,
    )


@one_pool
def results_by_level(
    reports: pa.Table,
    factors: Mapping[str, Factor | Mapping[str, Any]],
    *,
    source: str | None = None,
    metric: str,
    budget: int,
    mode: str = "max",
    roles: Mapping[str, str] | None = None,
    seed: int = 0,
) -> LevelResults:
    """Return the results of a study at each of its sources.

    Args:
        reports: as `raystudy.importance` takes them.
        factors: the declared factors, likewise.
        source: the factor whose levels are sources; None: the study has one source, and one column of results.
        metric: the column that is explained, read at `budget`.
        budget: T.
        mode: whether `max` or `min` of the metric is wanted.
        roles: `scientific` or `nuisance` by factor. The metric is tuned over the nuisance factors and averaged over the
            scientific ones other than the source; without roles it is tuned over all.
        seed: of the fit and the draws.

    Returns:
        Draws of: the metric averaged over all other factors; the metric tuned; the learning rate (log10) and the frozen depth
        at which the tuned metric is best, where they vary. No levels and the reason, where the trials allow nothing.

    Raises:
        InputError: wrong arguments, a source without levels, or a table that does not hold what it must.
    """
    asked(factors, metric, budget, mode, None, seed, None, None, roles or {}, plan=False, details=False)  # its checks
    measure = Measure.of(factors)
    levels = _levels(measure, source)
    observed = observe(reports, measure, metric=metric, budget=budget)
    if reason := _too_little(observed, metric, budget):
        return LevelResults(source, (), (), {}, {"levels": reason})
    reporting = observed.of(observed.reporting)
    counts = _counts(reporting, measure, source, levels)
    left_out = {f"{source}={level}": "no trial with it has reported" for level, n in counts.items() if not n}
    there = tuple(level for level, n in counts.items() if n)
    measure = measure.given(_constant(reporting, source))
    if source is not None and measure.share_active(source) < 1:
        when = ", ".join(measure.axis(source).when)
        raise InputError(Problem(source, f"has an effect only under a condition on {when}", "ask about that factor, or fix it"))
    left_out |= {
        name: f"{factor} does not vary"
        for name, factor in _FACTOR_OF.items()
        if factor == source or factor not in measure.varying
    }
    fitted = fit(reporting, tuple(axis.columns for axis in measure.axes), budget, seed)
    posterior = fewer(fitted.draws(), _SETS)
    scientific = [name for name in measure.names if (roles or {}).get(name) == "scientific"]
    reader = _Reader(fitted, posterior, scientific, 1.0 if mode == "max" else -1.0)
    each = [reader.read(measure.given({source: level}) if source and level is not None else measure) for level in there]
    # A conditional factor may vary at some levels only.
    names = [name for name in (MEAN, TUNED, RATE, DEPTH) if any(name in one for one in each)]
    nothing = np.full(sum(draws.size for _, draws in posterior), np.nan)
    found = {name: np.stack([one.get(name, nothing) for one in each], axis=1) for name in names}
    return LevelResults(source, there, tuple(counts[level] for level in there), found, left_out)


def joined(studies: Sequence[LevelResults]) -> dict[str, Floats]:
    """Return the results of several studies, of several targets, as one: the levels of the first, then those of the second, ...

    Each must have been read with a seed of its own, or the chance in their draws is the same and cancels.

    Returns:
        By result, shape (draws, pairs), as `relate` takes them; nan where a study has no such result.
    """
    having = [one for one in studies if one.levels]
    names = list(dict.fromkeys(name for one in having for name in one.draws))
    nothing = [np.full_like(one.draws[MEAN], np.nan) for one in having]
    return {
        name: np.concatenate([one.draws.get(name, none) for one, none in zip(having, nothing, strict=True)], axis=1)
        for name in names
    }


def _levels(measure: Measure, source: str | None) -> tuple[Scalar | None, ...]:
    """Return the levels of the source factor in the order of its declaration."""
    if source is None:
        return (None,)
    axis = measure.axis(source)
    if not axis.levels:
        raise InputError(Problem(source, "is continuous: it has no levels that are sources", "use a factor of `choice`"))
    if len(axis.levels) > MOST_LEVELS:
        raise InputError(Problem(source, f"has {len(axis.levels)} levels", f"at most {MOST_LEVELS} can be read"))
    return tuple(axis.levels)


def _too_little(observed: Observations, metric: str, budget: int) -> str:
    """Return why nothing can be said, empty if something can; the bounds are those of `raystudy.importance`."""
    reporting = len(observed.reporting)
    if reporting < FEWEST_TRIALS:
        return f"{reporting} trials with a report of {metric} are too few: it takes at least {FEWEST_TRIALS}, better 100"
    reached = len(np.unique(observed.trial[observed.epochs >= budget]))
    if reached < FEWEST_AT_END:
        return f"{reached} trials reached epoch {budget}: at least {FEWEST_AT_END} are needed"
    if float(np.ptp(observed.values)) == 0:
        return f"{metric} is {observed.values[0]:g} in every report"
    return ""


def _counts(
    reporting: Observations, measure: Measure, source: str | None, levels: Sequence[Scalar | None]
) -> dict[Scalar | None, int]:
    """Return how many trials there are of each level."""
    if source is None:
        return {None: len(reporting.trials)}
    positions = [measure.axis(source).position(value) for value in reporting.configs[source]]
    return {level: positions.count(number) for number, level in enumerate(levels)}


def _constant(reporting: Observations, source: str | None) -> dict[str, Scalar]:
    """Return the factors, the source aside, that have one value only among the trials, with that value."""
    once = [name for name, n in reporting.varied.items() if n == 1 and name != source]
    return {name: next(value for value in reporting.configs[name] if value is not None) for name in once}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the surrogate under a measure.

    Attributes:
        fitted: the surrogate.
        posterior: functions drawn from it.
        scientific: the factors that are not tuned.
        better: 1 where more is better, -1 where less is.
    """

    fitted: Fitted
    posterior: Posterior
    scientific: Sequence[str]
    better: float

    def read(self, measure: Measure) -> dict[str, Floats]:
        """Return the results under `measure`, shape (draws,) each."""
        design = tuning_design(measure, self.scientific, self.fitted.seed + 1, nodes=_NODES, tunings=_TUNINGS)
        each = [self._values(draws, design) for _, draws in self.posterior]
        return dict(self._results({name: np.concatenate([one[name] for one in each]) for name in each[0]}, design))

    def _values(self, draws: Draws, design: Design) -> dict[str, Floats]:
        """Return functions at the design, shape (draws, n), and by factor along its nodes, shape (draws, n, nodes)."""
        coefficients, inverse = self.fitted.coefficients(self.fitted.budget), self.fitted.response.inverse
        points = draws.points(design.x)
        found = {MEAN: inverse(draws.at(points, coefficients))}
        for factor in _FACTOR_OF.values():
            if factor in design.nodes:
                found[factor] = inverse(values_along(draws, design, points, factor, coefficients))
        draws.forget()
        return found

    def _results(self, values: Mapping[str, Floats], design: Design) -> Iterator[tuple[str, Floats]]:
        yield MEAN, values[MEAN].mean(axis=1)
        everywhere = np.ones(len(design.u), dtype=bool)
        yield TUNED, self.better * best_of_groups(self.better * values[MEAN][:, :, None], everywhere)[:, 0]
        for name, factor in _FACTOR_OF.items():
            if factor in values:
                labels = np.array(design.nodes[factor].labels, np.float64)
                best = labels[best_of_groups(self.better * values[factor], design.active(factor)).argmax(axis=1)]
                yield name, np.log10(best) if name == RATE else best
