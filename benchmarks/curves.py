"""Learning curves whose importance is known, stopped by ASHA as a study would stop them.

A trial's metric is y(x, t) = F(x) - D(x) r(t) + noise with r(1) = 1 and r(T) = 0, so the truth at T is that of F, built from
orthonormal functions (see `truths`). `warmup` changes D only: it makes training faster, not better. `dropout` does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit
from truths import Columns, Expansion, Factors, columns_at, indices_by_qmc, place, reports

from raystudy.search.sampler import explores
from raystudy.spec.sections import SearchSection

Floats = NDArray[np.float64]
Sampler = Literal["random", "tpe", "tpe alone"]
"""`tpe` as a study uses it: a third of the trials after the first ones is left to chance; `tpe alone` leaves none."""
Curve = Callable[[Columns, Floats], Floats]
"""The noiseless metric of n configurations at epochs, shape (n, epochs)."""

METRIC, BUDGET, RUNGS, REDUCTION, WORKERS = "value", 27, (1, 3, 9), 3, 8
SEARCH = SearchSection()
FACTORS: Factors = {
    "learning_rate": {"log_uniform": [1e-5, 1e-1]},
    "frozen_depth": {"int": [0, 18]},
    "optimizer": {"choice": ["sgd", "adam", "adamw"]},
    "weight_decay": {"log_uniform": [1e-6, 1e-2]},
    "warmup": {"uniform": [0.0, 0.5]},
    "dropout": {"uniform": [0.0, 0.5]},
}
SHARES = {
    "learning_rate": 0.478 * 0.64,
    "learning_rate^2": -0.478 * 0.36,
    "frozen_depth": 0.306 * 0.36,
    "frozen_depth^2": 0.306 * 0.64,
    "optimizer": 0.06,
    "optimizer^2": 0.06,
    "weight_decay": 0.019,
    "learning_rate frozen_depth": 0.077,
}
SD = 1.45
FINAL = Expansion.of_shares(FACTORS, SHARES, sd=SD)
SPEED = Expansion.of(FACTORS, {"": 2.5, "warmup": 0.6 * SD, "learning_rate": 0.3})


@dataclass(frozen=True)
class Simulated:
    """A study: its reports, and the epochs that it trained."""

    reports: pa.Table
    epochs: int


@dataclass(frozen=True, eq=False)
class Curves:
    """Learning curves with a known truth.

    Attributes:
        name: of the fixture.
        curve: the noiseless metric.
        noise: standard deviation of a report, and of a trial's own offset, by configuration, shape (n, 2).
        diverges: which configurations diverge at their second epoch; None for none.
        factors: in the study file's form.
        speed_only: the factor that only makes training faster.
        link: from the scale of curve and noise to that of the metric.
    """

    name: str
    curve: Curve
    noise: Callable[[Columns], Floats]
    diverges: Callable[[Columns], NDArray[np.bool_]] | None = None
    factors: Factors = field(default_factory=lambda: FACTORS)
    speed_only: str = "warmup"
    link: Callable[[Floats], Floats] = np.asarray

    def truth(self, epoch: int = BUDGET) -> dict[str, float]:
        """Return the first-order indices at an epoch, by quasi-Monte Carlo over 2^16 points."""

        def value(columns: Columns) -> Floats:
            return self.link(self.curve(columns, np.array([float(epoch)]))[:, 0])

        return dict(indices_by_qmc(value, self.factors, n=2**16).first_order)

    def simulate(self, n: int, seed: int, sampler: Sampler = "random", keep: float = 0.05) -> Simulated:
        """Run a study of `n` trials with ASHA."""
        return _Study(self, seed, keep).run(n, sampler)

    def full(self, n: int, seed: int) -> Simulated:
        """Run `n` random trials to their ends."""
        return _Study(self, seed, 0.0, stops=False).run(n, "random")


class Asha:
    """The stopping rule: at a rung a trial goes on if it is among the best floor(n / 3), at least one, of those seen there."""

    def __init__(self, keep: float, random: np.random.Generator) -> None:
        """Start with empty rungs."""
        self.tables: dict[tuple[Any, int], list[float]] = {}
        self.keep, self.random, self.kept = keep, random, set[int]()

    def stops(self, trial: int, epoch: int, value: float, cell: Any = None) -> bool:
        """Enter a report, and say whether its trial ends here."""
        if trial in self.kept or epoch not in RUNGS:
            return False
        table = self.tables.setdefault((cell, epoch), [])
        table.append(value)
        if sum(other > value for other in table) < max(1, len(table) // REDUCTION):
            return False
        if self.random.random() < self.keep:
            self.kept.add(trial)
            return False
        return True


class _Study:
    def __init__(self, curves: Curves, seed: int, keep: float, *, stops: bool = True) -> None:
        self.curves, self.random, self.seed, self.stopping = curves, np.random.default_rng(seed), seed, stops
        self.asha = Asha(keep, self.random)
        self.rows: list[tuple[int, int, float]] = []
        self.states: dict[int, str] = {}

    def run(self, n: int, sampler: Sampler) -> Simulated:
        study = _optuna_study(self.seed) if sampler != "random" else None
        explored = SEARCH.explore if sampler == "tpe" else 0.0
        configs: list[dict[str, Any]] = []
        asked: dict[int, optuna.Trial] = {}
        running: dict[int, Iterator[tuple[int, float]]] = {}
        while len(configs) < n or running:
            while len(configs) < n and len(running) < WORKERS:
                number = len(configs)
                if study is not None:
                    if explores(number, SEARCH.startup_trials, explored):
                        study.enqueue_trial(self._drawn())
                    asked[number] = study.ask(_distributions(self.curves.factors))
                    configs.append(dict(asked[number].params))
                else:
                    configs.append(self._drawn())
                running[number] = self._train(configs[number])
            for number in list(running):
                self._step(number, running, study, asked)
        return self._simulated(configs)

    def _drawn(self) -> dict[str, Any]:
        columns = columns_at(self.curves.factors, self.random.random((1, len(self.curves.factors))))
        return {name: column[0] for name, column in columns.items()}

    def _train(self, config: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
        columns = {name: np.array([value]) for name, value in config.items()}
        epochs = np.arange(1.0, BUDGET + 1)
        report, own = self.curves.noise(columns)[0]
        values = self.curves.curve(columns, epochs)[0] + own * self.random.standard_normal()
        values = self.curves.link(values + report * self.random.standard_normal(BUDGET))
        fails = self.curves.diverges is not None and bool(self.curves.diverges(columns)[0])
        for epoch, value in zip(range(1, BUDGET + 1), values, strict=True):
            yield epoch, math.nan if fails and epoch == 2 else float(value)

    def _step(self, number: int, running: dict[int, Any], study: optuna.Study | None, asked: dict[int, optuna.Trial]) -> None:
        """Let a trial train one epoch."""
        epoch, value = next(running[number])
        self.rows.append((number, epoch, value))
        if study is not None and math.isfinite(value):
            asked[number].report(value, epoch)
        if not math.isfinite(value):
            self._end(number, "diverged", running, study, asked)
        elif self.stopping and self.asha.stops(number, epoch, value):
            self._end(number, "pruned", running, study, asked)
        elif epoch == BUDGET:
            self._end(number, "completed", running, study, asked, value)

    def _end(
        self,
        number: int,
        state: str,
        running: dict[int, Any],
        study: optuna.Study | None,
        asked: dict[int, optuna.Trial],
        value: float | None = None,
    ) -> None:
        del running[number]
        self.states[number] = state
        if study is not None:
            told = {"completed": "COMPLETE", "pruned": "PRUNED", "diverged": "FAIL"}[state]
            study.tell(asked[number], value, state=optuna.trial.TrialState[told])

    def _simulated(self, configs: list[dict[str, Any]]) -> Simulated:
        trials = np.array([row[0] for row in self.rows])
        columns = {name: np.array([configs[trial][name] for trial in trials]) for name in self.curves.factors}
        values = {
            "epoch": pa.array([row[1] for row in self.rows]),
            METRIC: pa.array(np.array([row[2] for row in self.rows])),
            "state": [self.states[trial] for trial in trials],
            "kept": [int(trial) in self.asha.kept for trial in trials],
        }
        return Simulated(reports(columns, trials, values), len(self.rows))


def _optuna_study(seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(n_startup_trials=SEARCH.startup_trials, multivariate=True, seed=seed)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _distributions(factors: Factors) -> dict[str, optuna.distributions.BaseDistribution]:
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, form in factors.items():
        ((kind, values),) = form.items()
        if kind == "choice":
            found[name] = optuna.distributions.CategoricalDistribution(values)
        elif kind == "int":
            found[name] = optuna.distributions.IntDistribution(*values)
        else:
            found[name] = optuna.distributions.FloatDistribution(*values, log=kind == "log_uniform")
    return found


def _constant_noise(columns: Columns) -> Floats:
    return np.tile([0.2, 0.0], (len(columns["dropout"]), 1))


def _log_law(columns: Columns, epochs: Floats) -> Floats:
    return np.tile(np.log(BUDGET / epochs) / math.log(BUDGET), (len(columns["dropout"]), 1))


def _power_law(columns: Columns, epochs: Floats) -> Floats:
    exponent = 0.3 + 1.2 * place(FACTORS["warmup"], columns["warmup"])[:, None]
    return np.asarray((epochs**-exponent - BUDGET**-exponent) / (1 - BUDGET**-exponent))


def _smooth(shape: Curve) -> Curve:
    return lambda columns, epochs: FINAL(columns)[:, None] - SPEED(columns)[:, None] * shape(columns, epochs)


def separable() -> Curves:
    """All curves have one shape."""
    return Curves("separable", _smooth(_log_law), _constant_noise)


def non_separable() -> Curves:
    """Power laws whose exponent depends on the factor that only makes training faster."""
    return Curves("non-separable", _smooth(_power_law), _constant_noise)


def cliff() -> Curves:
    """Above a learning rate, which depends on the weight decay a little, nothing is learnt."""

    def curve(columns: Columns, epochs: Floats) -> Floats:
        fails = place(FACTORS["learning_rate"], columns["learning_rate"]) > 0.85 - 0.1 * place(
            FACTORS["weight_decay"], columns["weight_decay"]
        )
        return np.where(fails[:, None], -6.0, _smooth(_power_law)(columns, epochs))

    return Curves("cliff", curve, _constant_noise)


def step() -> Curves:
    """The last two frozen depths lose much."""

    def curve(columns: Columns, epochs: Floats) -> Floats:
        return np.asarray(_smooth(_log_law)(columns, epochs) - 4.0 * (columns["frozen_depth"] >= 17)[:, None])

    return Curves("step", curve, _constant_noise)


def noisy() -> Curves:
    """Noise and seed effect grow with the learning rate, from 0.3 to 3 times."""

    def noise(columns: Columns) -> Floats:
        growth = 0.3 * 10 ** place(FACTORS["learning_rate"], columns["learning_rate"])
        return np.asarray(growth[:, None] * np.array([0.2, 0.15]))

    return Curves("noise that grows", _smooth(_power_law), noise)


def accuracy() -> Curves:
    """A share of right answers: effects and noise add up on its logit."""

    def curve(columns: Columns, epochs: Floats) -> Floats:
        return np.asarray(1.0 + _smooth(_log_law)(columns, epochs))

    return Curves("accuracy", curve, _constant_noise, link=expit)


def diverging() -> Curves:
    """Above a learning rate trials diverge at their second epoch."""

    def diverges(columns: Columns) -> NDArray[np.bool_]:
        return np.asarray(place(FACTORS["learning_rate"], columns["learning_rate"]) > 0.8)

    return Curves("diverging", _smooth(_log_law), _constant_noise, diverges)
