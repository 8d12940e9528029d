"""Importance as others compute it, fed as users of Ray Tune and Optuna feed it."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pyarrow as pa
from curves import BUDGET, METRIC, _distributions
from sklearn.ensemble import RandomForestRegressor
from truths import Factors

from raystudy.findings.measure import Measure, sobol_points


def optuna_importance(reports: pa.Table, factors: Factors, *, evaluator: str, completed_only: bool) -> dict[str, float] | None:
    """Return Optuna's importance; None where it gives none.

    Args:
        reports: of all trials.
        factors: as declared.
        evaluator: `fanova` or `ped_anova`.
        completed_only: leave out stopped trials, as Optuna does if it is told of them; else each counts as complete with its
            last value, as Ray Tune tells Optuna.
    """
    distributions = _distributions(factors)
    study = optuna.create_study(direction="maximize")
    last: dict[str, dict[str, Any]] = {row["trial_id"]: row for row in reports.to_pylist()}
    for row in last.values():
        if np.isfinite(row[METRIC]) and (row["epoch"] == BUDGET or not completed_only):
            params = {name: row[name] for name in factors}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=row[METRIC]))
    chosen = (
        optuna.importance.FanovaImportanceEvaluator(seed=0)
        if evaluator == "fanova"
        else optuna.importance.PedAnovaImportanceEvaluator()
    )
    try:
        return dict(optuna.importance.get_param_importances(study, evaluator=chosen))
    except (ValueError, RuntimeError, ZeroDivisionError):
        return None


def forest(reports: pa.Table, factors: Factors) -> dict[str, float]:
    """Return first-order indices of a random forest on trials that were all run to the budget."""
    measure = Measure.of(factors)
    rows = [row for row in reports.to_pylist() if row["epoch"] == BUDGET]
    x, _ = measure.encode({name: [row[name] for row in rows] for name in factors})
    model = RandomForestRegressor(n_estimators=64, min_samples_leaf=2, random_state=0)
    model.fit(x, [row[METRIC] for row in rows])
    base = sobol_points(512, len(factors), 0)
    variance = float(model.predict(measure.points(sobol_points(4096, len(factors), 1))[0]).var())
    found = {}
    for j, name in enumerate(measure.names):
        u, weights, _ = measure.grid(name, 16)
        means = []
        for place in u:
            moved = base.copy()
            moved[:, j] = place
            means.append(model.predict(measure.points(moved)[0]).mean())
        mean = float(np.average(means, weights=weights))
        found[name] = float(np.average((np.array(means) - mean) ** 2, weights=weights)) / max(variance, 1e-12)
    return found
