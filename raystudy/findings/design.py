"""Where the surrogate is read: quasi-random configurations under the declared distribution, and nodes along each factor.

For factor j the integrals of Sobol's indices are taken over base configurations (all factors quasi-random) with j's value
replaced by each of L nodes: the mean over the configurations is the factor's main effect E[f | x_j], whose variance over the
nodes is the numerator of the first-order index; the mean over the configurations of the variance over the nodes is that of
the total index, E[Var(f | all but x_j)] (Saltelli et al. 2008, "Global Sensitivity Analysis", chapter 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raystudy.factors import Scalar
from raystudy.findings.curves import Floats
from raystudy.findings.measure import Measure, sobol_points

Bools = NDArray[np.bool_]

NODES = 16
"""Values along a continuous factor."""
REPLICATES = 4
"""Independently scrambled point sets that make up the base, so that the integration error can be told."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Values along one factor.

    Attributes:
        u: their places in the unit interval, shape (L,).
        weights: their probabilities, shape (L,), sum 1.
        labels: the values.
        x: encoded configurations of which only the factor's columns count, shape (L, width).
    """

    u: Floats
    weights: Floats
    labels: tuple[Scalar, ...]
    x: Floats


@dataclass(frozen=True)
class Design:
    """Base configurations and nodes.

    Attributes:
        measure: the declared distribution, restricted or not.
        u: base points of the unit cube, replicate after replicate, shape (n, factors).
        nodes: along each varying factor.
    """

    measure: Measure
    u: Floats
    nodes: dict[str, Nodes]

    @classmethod
    def of(cls, measure: Measure, size: int, seed: int, *, nodes: int = NODES) -> Design:
        """Return a design of `size` base configurations in `REPLICATES` point sets."""
        each = size // REPLICATES
        dimensions = len(measure.names)
        u = np.concatenate([sobol_points(each, dimensions, seed * REPLICATES + part) for part in range(REPLICATES)])
        return cls(measure, u, {name: _nodes(measure, name, nodes) for name in measure.varying})

    @cached_property
    def encoded(self) -> tuple[Floats, Bools]:
        """The base configurations, shape (n, width), and which factors are active in them, shape (n, factors)."""
        return self.measure.points(self.u)

    @property
    def x(self) -> Floats:
        """The encoded base configurations, shape (n, width)."""
        return self.encoded[0]

    def active(self, factor: str) -> Bools:
        """Return in which base configurations a factor is active, shape (n,)."""
        return self.encoded[1][:, self.index(factor)]

    def index(self, factor: str) -> int:
        """Return the position of a factor."""
        return self.measure.names.index(factor)

    def is_gate(self, factor: str) -> bool:
        """Whether other factors are active or not by the value of this one."""
        return any(factor in axis.when for axis in self.measure.axes)

    def replaced(self, factor: str, node: int) -> Floats:
        """Return the encoded base configurations with a factor at one of its nodes, the factors it gates with it."""
        u = self.u.copy()
        u[:, self.index(factor)] = self.nodes[factor].u[node]
        return self.measure.points(u)[0]

    def parts(self) -> Sequence[slice]:
        """Return the base configurations of each replicate."""
        each = len(self.u) // REPLICATES
        return [slice(part * each, (part + 1) * each) for part in range(REPLICATES)]


def _nodes(measure: Measure, name: str, size: int) -> Nodes:
    u, weights, labels = measure.grid(name, size)
    axis = measure.axis(name)
    x = np.zeros((len(u), measure.width))
    x[:, axis.columns] = axis.code(axis.positions(u))
    return Nodes(u, weights, tuple(labels), x)
