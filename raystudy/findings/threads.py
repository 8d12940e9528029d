"""One pool of threads at a time.

numpy and torch bring a pool each, of as many threads as there are processors. A thread that has nothing to do spins for a
while before it sleeps: where small computations alternate between the two, each pool's idle threads keep the processors
from the other's (measured on two processors: an answer from 300 trials took 48 s, with one pool 15 s).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

P = ParamSpec("P")
R = TypeVar("R")


def one_pool(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function compute with one thread of numpy's pool, for the whole process while it runs; torch's stays as it is."""

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with threadpool_limits(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited
