"""How right effects are with the nuisance factors tuned, after studies that ASHA stopped.

    python benchmarks/effects.py                      120 trials, both kinds of curves, random and TPE, 12 repetitions
    python benchmarks/effects.py --trials 300 --repetitions 20

Truth: the noiseless curves of `curves.py` at the last epoch, the best of 1,024 values of the nuisance factors, averaged over
the other scientific factors. Errors are in units of the standard deviation of the metric over the space. frozen_depth and
optimizer are scientific, all else is tuned; learning_rate is shown too, whose worst values no study looks at for long.

Exit code 1 if less than --coverage-at-least of the 90 % intervals of a scientific factor hold the truth.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import curves as fixtures
import numpy as np
from importance import MAKERS, answer
from numpy.typing import NDArray
from points import Point, judge
from truths import columns_at

from raystudy.findings.design import Design
from raystudy.findings.measure import Measure, sobol_points

SCIENTIFIC, SHOWN = ("frozen_depth", "optimizer"), ("frozen_depth", "optimizer", "learning_rate")
Levels = list[tuple[float, bool]]
"""Of each level of a factor the error, and whether its interval holds the truth."""


@cache
def truth(name: str, factor: str) -> tuple[float, ...]:
    """Return what is best at each node of a factor with the nuisance factors tuned."""
    curves = MAKERS[name]()
    names, nodes = list(curves.factors), Design.of(Measure.of(curves.factors), 64, 0).nodes[factor]
    u = np.tile(sobol_points(1024, len(names), 0), (32, 1, 1))
    same = [names.index(one) for one in SCIENTIFIC]
    u[:, :, same] = sobol_points(32, len(names), 1)[:, None, same]
    found = []
    for place in nodes.u:
        u[:, :, names.index(factor)] = place
        found.append(float(_final(curves, u.reshape(-1, len(names))).reshape(u.shape[:2]).max(axis=1).mean()))
    return tuple(found)


def _final(curves: fixtures.Curves, u: NDArray[np.float64]) -> NDArray[np.float64]:
    columns = columns_at(curves.factors, u)
    return curves.link(curves.curve(columns, np.array([float(fixtures.BUDGET)]))[:, 0])


def one_run(task: tuple[str, int, fixtures.Sampler, int]) -> dict[str, Levels]:
    name, trials, sampler, seed = task
    curves = MAKERS[name]()
    spread = float(_final(curves, np.random.default_rng(0).random((4096, len(curves.factors)))).std())
    roles = {factor: "scientific" if factor in SCIENTIFIC else "nuisance" for factor in curves.factors}
    reports = curves.simulate(trials, seed, sampler).reports
    found = answer(reports, curves.factors, fixtures.METRIC, fixtures.BUDGET, seed, details=True, roles=roles)
    errors: dict[str, Levels] = {}
    for effect in (effect for effect in found.effects if effect.factor in SHOWN):
        profiles = [level.profile for level in effect.levels]
        errors[effect.factor] = [
            ((profile.value - exact) / spread, profile.low <= exact <= profile.high)
            for profile, exact in zip(profiles, truth(name, effect.factor), strict=True)
            if profile is not None
        ]
    return errors


def measure(pool: ProcessPoolExecutor, trials: int, repetitions: int, least: float) -> Iterator[Point]:
    print("curves | trials | sampler | factor | mean error | root mean square | 90 % intervals that hold it")
    for name in ("separable", "non-separable"):
        samplers: tuple[fixtures.Sampler, ...] = ("random", "tpe")
        for sampler in samplers:
            runs = list(pool.map(one_run, [(name, trials, sampler, seed) for seed in range(repetitions)]))
            for factor in SHOWN:
                levels = [level for run in runs for level in run.get(factor, [])]
                errors = np.array([error for error, _ in levels])
                held = float(np.mean([inside for _, inside in levels])) if levels else math.nan
                rms = float(np.sqrt(np.mean(errors**2)))
                print(f"{name} | {trials} | {sampler} | {factor} | {errors.mean():+.3f} | {rms:.3f} | {held:.3f}", flush=True)
                if factor in SCIENTIFIC:
                    yield Point(f"{name}, {sampler}: coverage of {factor}, others tuned", held, low=least)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--repetitions", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--coverage-at-least", type=float, default=0.8)
    asked = parser.parse_args()
    with ProcessPoolExecutor(asked.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        judge(list(measure(pool, asked.trials, asked.repetitions, asked.coverage_at_least)))


if __name__ == "__main__":
    main()
