"""What is tried next: Optuna behind two words, `propose` and `tell`.

Rule 6: the randomness of a proposal derives from (study seed, trial number), never from a stream that trials share. So the
sampler is made anew for every proposal, and a study replayed from its journal proposes what the undisturbed one would have.
Optuna's own study lives in memory only; the journal is what lasts.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace

from raystudy.factors import PROBE_DEPTH, Scalar
from raystudy.records import TrialState
from raystudy.space import Space
from raystudy.spec import StudySpec

_OPTUNA_STATE = {
    TrialState.COMPLETED: optuna.trial.TrialState.COMPLETE,
    TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
    TrialState.DIVERGED: optuna.trial.TrialState.FAIL,
    TrialState.FAILED: optuna.trial.TrialState.FAIL,
}


def derived_seed(study_seed: int, number: int, purpose: str) -> int:
    """Return the seed of one use of randomness in one trial: 32 bits of SHA-256 over its three coordinates."""
    digest = hashlib.sha256(f"{study_seed}/{number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def explores(number: int, startup_trials: int, share: float) -> bool:
    """Whether trial `number` is left to chance although the sampler has a model: evenly spread over the trials.

    A sampler that goes for the optimum leaves so little elsewhere that what factors do over the declared space is not learnt
    from any number of trials; nearly all of these trials are stopped at the first rung, so they cost little.
    """
    later = number - startup_trials
    return later >= 0 and math.floor((later + 1) * share) > math.floor(later * share)


class _Tpe(TPESampler):
    """TPE with a search space that outlives it: found anew for every proposal, it costs the square of the trials."""

    def __init__(self, space: IntersectionSearchSpace, *, seed: int, n_startup_trials: int) -> None:
        super().__init__(seed=seed, n_startup_trials=n_startup_trials)
        self._kept_space = space

    def infer_relative_search_space(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """Return the factors that all trials so far have had in common."""
        found = self._kept_space.calculate(study, use_cache=True)
        return {name: distribution for name, distribution in found.items() if not distribution.single()}


class Sampler:
    """Proposes configurations and learns from trials."""

    def __init__(self, spec: StudySpec, space: Space) -> None:
        """Start without history."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._spec, self._space = spec, space
        self._trials: dict[str, optuna.Trial] = {}
        self._sobol: NDArray[np.float64] = np.empty((0, len(space.dimensions)))
        self._common_space = IntersectionSearchSpace(include_pruned=True)
        self._grid, self._grid_points = space.grid(), list[dict[str, Scalar]]()
        direction = "maximize" if spec.mode == "max" else "minimize"
        self.study = optuna.create_study(direction=direction, sampler=RandomSampler(seed=0))

    def propose(self, number: int, trial_id: str) -> dict[str, Scalar] | None:
        """Return the active factors of trial `number`; None when a grid is used up."""
        search = self._spec.search
        if number < len(search.points):
            return self._ask(number, trial_id, enqueue=self._start_point(search.points[number]))
        if search.sampler in ("tpe", "gp") and not explores(number, search.startup_trials, search.explore):
            return self._ask(number, trial_id)
        config = self._independent(number)
        if config is not None:
            self.adopt(number, trial_id, config)
        return config

    def adopt(self, number: int, trial_id: str, config: Mapping[str, Scalar]) -> None:
        """Take in a trial whose configuration is known already."""
        self._ask(number, trial_id, enqueue=config, sampled=False)

    def report(self, trial_id: str, epoch: int, value: float) -> None:
        """Tell an intermediate value."""
        self._trials[trial_id].report(value, epoch)

    def tell(self, trial_id: str, state: TrialState, value: float | None) -> None:
        """Tell that a trial is over; `value` is the objective at the last epoch, told for completed trials only (rule 2)."""
        trial = self._trials.pop(trial_id)
        self.study.tell(trial, value if state is TrialState.COMPLETED else None, state=_OPTUNA_STATE[state])

    def _ask(
        self, number: int, trial_id: str, *, enqueue: Mapping[str, Scalar] | None = None, sampled: bool = True
    ) -> dict[str, Scalar]:
        self.study.sampler = self._optuna_sampler(number) if sampled else RandomSampler(seed=0)
        if enqueue is not None:
            self.study.enqueue_trial(dict(enqueue))
        trial = self.study.ask()
        if trial.number != number:
            raise AssertionError(f"Optuna's trial {trial.number} stands for trial {number}")
        trial.set_user_attr("trial_id", trial_id)
        self._trials[trial_id] = trial
        return self._space.suggest(trial)

    def _optuna_sampler(self, number: int) -> BaseSampler:
        seed = derived_seed(self._spec.search.seed, number, "proposal")
        startup = self._spec.search.startup_trials
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match self._spec.search.sampler:
                case "tpe":
                    return _Tpe(self._common_space, seed=seed, n_startup_trials=startup)
                case "gp":
                    return GPSampler(seed=seed, n_startup_trials=max(startup, 1), deterministic_objective=False)
                case _:
                    return RandomSampler(seed=seed)

    def _start_point(self, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
        return {name: self._resolved(name, value) for name, value in point.items()}

    def _resolved(self, name: str, value: Scalar) -> Scalar:
        if value != PROBE_DEPTH:
            return value
        distribution = next(d.distribution for d in self._space.dimensions if d.name == name)
        high: Scalar = distribution.high if hasattr(distribution, "high") else max(distribution.choices)
        return high

    def _independent(self, number: int) -> dict[str, Scalar] | None:
        """Propose without regard to history: random, quasi-random, grid, and what tpe and gp leave to chance."""
        index = number - len(self._spec.search.points)
        match self._spec.search.sampler:
            case "grid":
                return self._grid_point(index)
            case "qmc":
                return self._space.at(self._sobol_point(index).tolist())
            case _:
                seed = derived_seed(self._spec.search.seed, number, "proposal")
                return self._space.at(np.random.default_rng(seed).random(len(self._space.dimensions)).tolist())

    def _grid_point(self, index: int) -> dict[str, Scalar] | None:
        while len(self._grid_points) <= index:
            point = next(self._grid, None)
            if point is None:
                return None
            self._grid_points.append(point)
        return self._grid_points[index]

    def _sobol_point(self, index: int) -> NDArray[np.float64]:
        """Return point `index` of a scrambled Sobol sequence, which depends on the study seed only.

        Blocks double in size: a sequence of 2^m points is balanced, and a longer one begins with the shorter one.
        """
        if index >= len(self._sobol):
            from scipy.stats import qmc  # half a second to import, which no other sampler should pay

            exponent = max(5, index.bit_length())
            seed = derived_seed(self._spec.search.seed, 0, "sobol")
            self._sobol = qmc.Sobol(len(self._space.dimensions), scramble=True, rng=seed).random_base2(exponent)
        point: NDArray[np.float64] = self._sobol[index]
        return point
