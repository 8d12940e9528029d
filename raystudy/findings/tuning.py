"""Configurations in groups, for comparisons in which nuisance factors are tuned: the best of each group counts."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from raystudy.findings.curves import Floats
from raystudy.findings.design import NODES, Bools, Design
from raystudy.findings.measure import Measure

TUNINGS, QUESTIONS = 64, 8
"""Values of the nuisance factors that are tried for each of so many combinations of the other scientific factors."""


def tuning_design(measure: Measure, scientific: Collection[str], seed: int, *, nodes: int = NODES) -> Design:
    """Return base configurations in groups of `TUNINGS`: the scientific factors are the same within a group.

    Args:
        measure: the distribution of configurations.
        scientific: the factors that are not tuned.
        seed: of the configurations.
        nodes: values along a continuous factor.
    """
    design = Design.of(measure, TUNINGS * QUESTIONS, seed, nodes=nodes)
    u = design.u.reshape(QUESTIONS, TUNINGS, -1).copy()
    for name in measure.names:
        if name in scientific:
            u[:, :, design.index(name)] = u[:, :1, design.index(name)]
    return Design(measure, u.reshape(QUESTIONS * TUNINGS, -1), design.nodes)


def best_of_groups(values: Floats, active: Bools) -> Floats:
    """Return the best of each group at each node, averaged over the groups, shape (draws, nodes).

    Args:
        values: of functions, more is better, at the configurations and nodes, shape (draws, n, nodes).
        active: in which configurations the factor along which the nodes lie has an effect, shape (n,).
    """
    grouped = values.reshape(len(values), QUESTIONS, TUNINGS, -1)
    having = active.reshape(QUESTIONS, TUNINGS)
    best: Floats = np.where(having[None, :, :, None], grouped, -np.inf).max(axis=2)
    return np.asarray(best[:, having.any(axis=1)].mean(axis=1))
