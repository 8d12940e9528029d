"""How runs are asked for, in MLflow's words: conditions, orders, sizes of pages."""

from __future__ import annotations

from collections.abc import Mapping

from raystudy.tracking import names

RUNS_PER_REQUEST = 100
"""Experiments whose runs are asked for at a time."""
PAGE = 1000
SMALL_PAGE = 50


def where(kind: str | None, tags: Mapping[str, str]) -> str:
    """Return MLflow's condition that a run is of `kind` and has the given tags, `raystudy.` before those without a dot."""
    wanted = {key if "." in key else f"raystudy.{key}": value for key, value in tags.items()}
    if kind is not None:
        wanted[names.KIND] = kind
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())


def trials_only() -> str:
    """Return MLflow's condition that a run is a trial."""
    return where(names.TRIAL_KIND, {})


def order_by_metric(metric: str, *, ascending: bool) -> str:
    """Return MLflow's order by a metric's latest value."""
    return f"metrics.`{metric}` {'ASC' if ascending else 'DESC'}"
