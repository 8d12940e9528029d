"""Configurations in groups, for comparisons in which nuisance factors are tuned: the best of each group counts.

The best is the one that all functions drawn from the posterior make best on average, and each function is read there: what
somebody who tunes by what is known would get. The best of each function by itself would credit every region that nobody has
looked at with the best that may be hidden there (measured: docs/importance.md).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from raystudy.findings.curves import Floats, Ints
from raystudy.findings.design import NODES, Bools, Design
from raystudy.findings.measure import Measure, sobol_points

TUNINGS, QUESTIONS = 256, 8
"""Values of the nuisance factors that are tried for each of so many combinations of the other scientific factors."""


def tuning_design(
    measure: Measure, scientific: Collection[str], seed: int, *, nodes: int = NODES, tunings: int = TUNINGS
) -> Design:
    """Return base configurations in `QUESTIONS` groups: the scientific factors are the same within a group.

    Args:
        measure: the distribution of configurations.
        scientific: the factors that are not tuned.
        seed: of the configurations.
        nodes: values along a continuous factor.
        tunings: size of a group.
    """
    design = Design.of(measure, tunings * QUESTIONS, seed, nodes=nodes)
    u = design.u.reshape(QUESTIONS, tunings, -1).copy()
    same = [design.index(name) for name in measure.names if name in scientific]
    # Points of their own: a few out of a larger set would not be spread over each factor.
    u[:, :, same] = sobol_points(QUESTIONS, u.shape[2], seed)[:, None, same]
    return Design(measure, u.reshape(len(design.u), -1), design.nodes)


def best_of_groups(values: Floats, active: Bools) -> Floats:
    """Return the functions at the best configuration of each group at each node, averaged over the groups, (draws, nodes).

    Args:
        values: of all functions of a posterior, more is better, at the configurations and nodes, shape (draws, n, nodes).
        active: in which configurations the factor along which the nodes lie has an effect, shape (n,).
    """
    best = chosen(values, active)
    return np.asarray(values[:, best, np.arange(values.shape[2])].mean(axis=1))


def chosen(values: Floats, active: Bools) -> Ints:
    """Return the indices of the best configurations, shape (groups, nodes), of groups in which the factor is active at all.

    Args:
        values: as for `best_of_groups`.
        active: likewise.
    """
    having = active.reshape(QUESTIONS, -1)
    mean = values.mean(axis=0).reshape(*having.shape, -1)
    best = np.where(having[:, :, None], mean, -np.inf).argmax(axis=1) + np.arange(QUESTIONS)[:, None] * having.shape[1]
    return np.asarray(best[having.any(axis=1)])
