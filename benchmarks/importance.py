"""How right the importance is: against exact answers, under early stopping, beside what others would say.

    python benchmarks/importance.py                                  everything, about half an hour on two cores
    python benchmarks/importance.py --only curves --repetitions 10   a part of it
    python benchmarks/importance.py --only recensoring --study NAME  on a real study that was run without early stopping
    python benchmarks/importance.py --only recensoring --log FILE.parquet --study STUDY.yaml  on its evidence in a file

Sections: functions (exact indices, 256 noiseless points), curves (learning curves stopped by ASHA), hard (cliffs, steps,
noise), cost (epochs that a right answer takes), speed, recensoring. Each prints its table as soon as it has it, progress goes
to stderr, and at the end there is a line per acceptance point of what was run: met or not met, with the figure.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # the repetitions run beside each other

import argparse
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import curves as fixtures
import numpy as np
import optuna
import pyarrow as pa
from peers import forest, optuna_importance
from points import Point
from truths import truths

from raystudy.findings.answer import Importance, Interval

T = TypeVar("T")
SECTIONS = ("functions", "curves", "hard", "cost", "speed", "recensoring")
PEERS = tuple((evaluator, completed) for evaluator in ("fanova", "ped_anova") for completed in (False, True))
MAKERS: dict[str, Callable[[], fixtures.Curves]] = {
    "separable": fixtures.separable,
    "non-separable": fixtures.non_separable,
    "cliff": fixtures.cliff,
    "step": fixtures.step,
    "noisy": fixtures.noisy,
    "accuracy": fixtures.accuracy,
    "diverging": fixtures.diverging,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, action="append")
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sizes", default="120,300")
    parser.add_argument("--samplers", default="random,tpe,tpe alone", help="of curves and cost: see curves.Sampler")
    parser.add_argument("--study", help="a finished study without early stopping, for recensoring; with --log its study file")
    parser.add_argument("--log", type=Path, help="parquet file of the table that raystudy.tracking.findings.evidence returns")
    parser.add_argument("--tracking-uri")
    asked = parser.parse_args()
    if asked.log and not asked.study:
        parser.error("--log takes --study STUDY.yaml too")
    chosen, samplers = asked.only or SECTIONS, asked.samplers.split(",")
    if unknown := set(samplers) - set(get_args(fixtures.Sampler)):
        parser.error(f"--samplers: there is no {', '.join(unknown)}")
    points: list[Point] = []
    with ProcessPoolExecutor(asked.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        if "functions" in chosen:
            points += functions(pool)
        if "curves" in chosen:
            points += stopped(pool, asked.repetitions, [int(size) for size in asked.sizes.split(",")], samplers)
        if "hard" in chosen:
            points += hard(pool, max(asked.repetitions // 4, 1))
        if "cost" in chosen:
            points += cost(pool, max(asked.repetitions // 8, 1), samplers)
        if "recensoring" in chosen:
            points += recensoring(pool, asked.study, asked.tracking_uri, asked.log)
    if "speed" in chosen:
        points += speed()
    if points:
        show("\nacceptance", "point", "figure", "limit")
    for point in points:
        show(point)


def answer(reports: pa.Table, factors: Any, metric: str, budget: int, seed: int = 0, **more: Any) -> Importance:
    """Ask without gpytorch's warning about torch.jit."""
    warnings.simplefilter("ignore")
    from raystudy.findings.importance import importance

    return importance(reports, factors, metric=metric, budget=budget, seed=seed, **{"details": False, **more})


def show(*cells: object) -> None:
    """Print a row of a table."""
    print(" | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells), flush=True)


def watched(results: Iterator[T], total: int, what: str) -> list[T]:
    """Return the results, and say on stderr how many there are."""
    found: list[T] = []
    for result in results:
        found.append(result)
        print(f"{what}: {len(found)} of {total}", file=sys.stderr, flush=True)
    return found


# Exact answers


def functions(pool: ProcessPoolExecutor) -> Iterator[Point]:
    show("\nfunction, 256 noiseless points", "largest error: first-order", "total", "limit")
    for name, first, total in pool.map(one_function, range(len(truths()))):
        limit = 0.03 if name == "log measure" else 0.05
        show(name, first, total, limit)
        yield Point(f"{name}: largest error of first-order and total", max(first, total), high=limit)


def one_function(number: int) -> tuple[str, float, float]:
    truth = truths()[number]
    table = truth.sample(256, seed=1)
    metric = next(name for name in table.column_names if name not in {"trial_id", "epoch", *truth.factors})
    found = answer(table, truth.factors, metric, 1)
    first = {share.name: share.first_order for share in found.shares}
    total = {share.name: share.total for share in found.shares}
    return truth.name, _largest(first, truth.first_order), _largest(total, truth.total)


def _largest(found: dict[str, Any], truth: dict[str, float]) -> float:
    return max(abs(float(found[name].value if found.get(name) else 0.0) - value) for name, value in truth.items())


# Learning curves stopped by ASHA


@dataclass(frozen=True)
class Run:
    """One repetition: errors of the first-order indices, what the intervals hold, and what others say."""

    errors: dict[str, float]
    covered: dict[str, bool]
    identified: dict[str, bool]
    top_two: bool
    speed_is_zero: bool
    epochs: int
    peers: dict[str, tuple[float, bool] | None]


@cache
def truth_of(name: str) -> dict[str, float]:
    return MAKERS[name]().truth()


def one_run(task: tuple[str, int, int, Any, bool]) -> Run:
    name, size, seed, sampler, with_peers = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves, truth = MAKERS[name](), truth_of(name)
    study = curves.simulate(size, seed, sampler)
    found = answer(study.reports, curves.factors, fixtures.METRIC, fixtures.BUDGET, seed)
    shares = {share.name: share for share in found.shares}
    first = {key: share.first_order for key, share in shares.items() if share.first_order}
    # Where the answer gives no bar it has no error and covers nothing.
    errors = {key: abs(first[key].value - value) if key in first else math.nan for key, value in truth.items()}
    covered = {key: key in first and first[key].low - 1e-9 <= value <= first[key].high for key, value in truth.items()}
    peers = {}
    for evaluator, completed in PEERS if with_peers else ():
        other = optuna_importance(study.reports, curves.factors, evaluator=evaluator, completed_only=completed)
        told = None if other is None else (_mean_error(other, truth), _top(other) == _top(truth))
        peers[f"{evaluator}, {'completed only' if completed else 'as Ray Tune feeds it'}"] = told
    return Run(
        errors,
        # A truth of nought comes from quasi-Monte Carlo as ±0.0005.
        {key: inside or (abs(truth[key]) < 0.001 and _has_zero(first.get(key))) for key, inside in covered.items()},
        {key: share.verdict != "not identified" for key, share in shares.items()},
        _top({key: interval.value for key, interval in first.items()}) == _top(truth),
        _has_zero(first.get(curves.speed_only)),
        study.epochs,
        peers,
    )


def _has_zero(interval: Interval | None) -> bool:
    return interval is not None and interval.low == 0


def _mean_error(found: dict[str, float], truth: dict[str, float]) -> float:
    return float(np.mean([abs(found[name] - value) for name, value in truth.items()]))


def _top(found: dict[str, float]) -> list[str]:
    return sorted(sorted(found, key=lambda name: -found[name])[:2])


def stopped(pool: ProcessPoolExecutor, repetitions: int, sizes: Sequence[int], samplers: Sequence[str]) -> Iterator[Point]:
    show(
        f"\ncurves stopped by ASHA, {repetitions} repetitions",
        "trials",
        "sampler",
        "MAE",
        "two largest right",
        "speed-only has 0",
        "coverage",
        "least of a large factor",
        "bars not given",
    )
    large = [key for key, value in truth_of("separable").items() if value > 0.1]
    every: list[Run] = []
    for size in sizes:
        for name in ("separable", "non-separable"):
            for sampler in samplers:
                tasks = [(name, size, seed, sampler, seed < 10) for seed in range(repetitions)]
                runs = watched(pool.map(one_run, tasks), repetitions, f"{name}, {size} trials, {sampler}")
                every += runs
                error, top, zero, coverage = _summary(runs)
                least = min(float(np.mean([run.covered[key] for run in runs])) for key in large)
                silent = int(np.isnan([list(run.errors.values()) for run in runs]).sum())
                show(name, size, sampler, error, top, zero, coverage, least, silent)
                _show_peers(runs)
                what = f"{name}, {size} trials, {sampler}"
                yield Point(f"{what}: mean absolute error", error, high=0.03 if size >= 300 else 0.05)
                yield Point(f"{what}: two largest right", top, low=0.95)
                yield Point(f"{what}: the speed-only factor's interval has 0", zero, low=0.95)
    each = {key: float(np.mean([run.covered[key] for run in every])) for key in truth_of("separable")}
    overall = float(np.mean(list(each.values())))
    show("90 % intervals", "over all factors and repetitions", overall, "limits 0.85 to 0.95")
    show("each large factor", *(f"{key} {each[key]:.3f}" for key in large), "limit 0.8")
    yield Point("90 % intervals: coverage over all factors and repetitions", overall, low=0.85, high=0.95)
    yield from (Point(f"90 % intervals: coverage of {key}", each[key], low=0.8) for key in large)


def _summary(runs: Sequence[Run]) -> Iterator[float]:
    yield float(np.nanmean([list(run.errors.values()) for run in runs]))
    yield float(np.mean([run.top_two for run in runs]))
    yield float(np.mean([run.speed_is_zero for run in runs]))
    yield float(np.mean([list(run.covered.values()) for run in runs]))


def _show_peers(runs: Sequence[Run]) -> None:
    asked = [run.peers for run in runs if run.peers]
    for name in asked[0] if asked else ():
        told = [found for peers in asked if (found := peers[name]) is not None]
        if told:
            show(f"    {name}", f"{len(told)} of {len(asked)} answered", "MAE", float(np.mean([one[0] for one in told])),
                 "two largest right", float(np.mean([one[1] for one in told])))  # fmt: skip
        else:
            show(f"    {name}", "no answer")


def hard(pool: ProcessPoolExecutor, repetitions: int) -> Iterator[Point]:
    show(
        f"\nhard truths, 300 trials, {repetitions} repetitions",
        "MAE",
        "two largest right",
        "coverage",
        "largest mean error of a factor that is identified",
        "largest single one",
        "not identified",
    )
    for name in ("cliff", "step", "noisy", "accuracy"):
        tasks = [(name, 300, seed, "random", False) for seed in range(repetitions)]
        runs = watched(pool.map(one_run, tasks), repetitions, name)
        mean, top, _, covered = _summary(runs)
        known = {key: [run.errors[key] for run in runs if run.identified[key]] for key in runs[0].errors}
        worst = max((float(np.mean(errors)) for errors in known.values() if errors), default=0.0)
        single = max((max(errors) for errors in known.values() if errors), default=0.0)
        unknown = sum(not ok for run in runs for ok in run.identified.values())
        show(name, mean, top, covered, worst, single, f"{unknown} of {len(runs) * len(known)}")
        yield Point(f"{name}: largest mean error of an identified factor", worst, high=0.06)
        yield Point(f"{name}: largest single error of an identified factor", single, high=0.06)
    named = list(pool.map(one_divergence, range(min(repetitions, 5))))
    show("diverging", f"learning_rate decides who diverges: named first in {sum(named)} of {len(named)}")
    yield Point("diverging: learning_rate named first", sum(named) / len(named), low=1)


def one_divergence(seed: int) -> bool:
    curves = fixtures.diverging()
    found = answer(curves.simulate(120, seed).reports, curves.factors, fixtures.METRIC, fixtures.BUDGET, seed)
    return found.trouble is not None and bool(found.trouble.shares) and found.trouble.shares[0].name == "learning_rate"


# What a right answer costs


def cost(pool: ProcessPoolExecutor, repetitions: int, samplers: Sequence[str]) -> Iterator[Point]:
    show(
        f"\nepochs until the mean absolute error is 0.03, non-separable curves, {repetitions} repetitions",
        "trials",
        "epochs",
        "MAE",
    )
    stopped_sizes = (30, 40, 60, 80, 120, 200, 300)
    forest_sizes = (50, 100, 200, 300, 400, 600)
    sizes: dict[str, tuple[int, ...]] = {"forest, every trial to T": forest_sizes}
    sizes |= dict.fromkeys(samplers, stopped_sizes)
    needed = {way: _needed(pool, way, some, repetitions) for way, some in sizes.items()}
    full = needed.pop("forest, every trial to T")
    least = full or float(forest_sizes[-1] * fixtures.BUDGET)  # where the forest never got there, it takes more than this
    for way, epochs in needed.items():
        ratio = least / epochs if epochs else math.nan
        if epochs:
            more = "" if full else "more than "
            show(
                f"stopped by ASHA, {way}", f"{epochs:.0f} epochs against {more}{least:.0f}: one part in {ratio:.1f}", "limit 6"
            )
        else:
            show(f"stopped by ASHA, {way}", f"not right with {stopped_sizes[-1]} trials")
        yield Point(f"epochs of a forest over ours, {way}", ratio, low=6)


def _needed(pool: ProcessPoolExecutor, way: str, sizes: Sequence[int], repetitions: int) -> float | None:
    for size in sizes:
        tasks = [(way, size, seed) for seed in range(repetitions)]
        errors, epochs = zip(*watched(pool.map(one_cost, tasks), repetitions, f"{way}, {size} trials"), strict=True)
        show(way, size, f"{np.mean(epochs):.0f}", float(np.mean(errors)))
        if np.mean(errors) <= 0.03:  # never where an answer lacks a bar
            return float(np.mean(epochs))
    return None


def one_cost(task: tuple[str, int, int]) -> tuple[float, int]:
    way, size, seed = task
    if way != "forest, every trial to T":
        run = one_run(("non-separable", size, 1000 + seed, way, False))
        return float(np.mean(list(run.errors.values()))), run.epochs
    curves = fixtures.non_separable()
    study = curves.full(size, 1000 + seed)
    return _mean_error(forest(study.reports, curves.factors), truth_of("non-separable")), study.epochs


# Real logs


HOW = """
recensoring: skipped, it takes a real study that was run without early stopping, such as benchmarks/recensoring.yaml:
    raystudy run STUDY.yaml
    python benchmarks/importance.py --only recensoring --study NAME [--tracking-uri URI]
or its evidence (raystudy.tracking.findings.evidence(reports, trials, factors, metric)) as a parquet file:
    python benchmarks/importance.py --only recensoring --log FILE.parquet --study STUDY.yaml"""


def recensoring(pool: ProcessPoolExecutor, name: str | None, tracking_uri: str | None, log: Path | None) -> Iterator[Point]:
    if name is None:
        print(HOW, flush=True)
        return
    spec, reports = _logged(name, tracking_uri, log)
    factors = _resolved(spec)
    whole = answer(reports, factors, spec.metric, spec.budget.epochs, mode=spec.mode)
    everything = _first_orders(whole)
    show(f"\nrecensoring {name}, {reports.num_rows} reports", *(f"{key} {value:.3f}" for key, value in everything.items()))
    if not everything:
        show("no bars for the whole study", *whole.notes)
    orders = (None, *range(5))
    tasks = [(reports, factors, spec.metric, spec.budget.epochs, spec.mode, spec.cells, order) for order in orders]
    worst, same = [], []
    for order, (stopped_reports, found, identified) in zip(orders, pool.map(one_recensoring, tasks), strict=True):
        differences = {key: abs(found.get(key, math.nan) - value) for key, value in everything.items()}
        worst.append(max(differences.values(), default=math.nan))
        same.append(bool(everything) and _top(found) == _top(everything))
        show(
            "the journal's order" if order is None else f"order {order}",
            f"{stopped_reports} reports",
            f"largest difference {worst[-1]:.3f}",
            f"{len(identified)} of {len(everything)} identified",
            f"same first two {same[-1]}",
        )
    yield Point("recensoring in the journal's order: largest difference of a first-order index", worst[0], high=0.05)
    yield Point("recensoring in five other orders: the same", float(np.max(worst[1:])), high=0.05)
    yield Point("recensoring: same first two", float(np.mean(same)), low=1)


def _logged(name: str, tracking_uri: str | None, log: Path | None) -> tuple[Any, pa.Table]:
    """Return a study's specification and all that is known of its trials."""
    if log:
        import pyarrow.parquet as pq

        from raystudy.spec import StudySpec

        return StudySpec.from_yaml(name), pq.read_table(log)
    from raystudy import open_study

    study = open_study(name, tracking_uri=tracking_uri)
    return study.spec, study.reports()


def _resolved(spec: Any) -> Any:
    from raystudy.spec.depths import asks_for_units, resolved_factors

    n_units = None
    if asks_for_units(spec.all_factors):
        from raystudy.preflight import smallest_unit_count

        n_units = smallest_unit_count(spec)
    return resolved_factors(spec.all_factors, n_units)


def _first_orders(found: Importance) -> dict[str, float]:
    return {share.name: share.first_order.value for share in found.shares if share.first_order}


def one_recensoring(task: tuple[Any, ...]) -> tuple[int, dict[str, float], set[str]]:
    """Replay ASHA on whole curves, in the order in which they began or in a random one, and ask again.

    Returns:
        The number of reports that are left, each factor's first-order index, and the factors that are identified.
    """
    reports, factors, metric, budget, mode, cells, order = task
    random = np.random.default_rng(order or 0)
    by_trial: dict[str, list[dict[str, Any]]] = {}
    for row in reports.to_pylist():
        by_trial.setdefault(row["trial_id"], []).append(row)
    asha = fixtures.Asha(0.05, random)
    kept_rows: list[dict[str, Any]] = []
    better = 1.0 if mode == "max" else -1.0
    for number, trial in enumerate(by_trial if order is None else random.permutation(list(by_trial))):
        seen: list[dict[str, Any]] = []
        for row in sorted(by_trial[trial], key=lambda row: row["epoch"] or 0):
            seen.append(row)
            value, cell = row[metric], tuple(row[name] for name in cells)
            reported = bool(row["epoch"]) and value is not None and math.isfinite(value) and row["epoch"] < budget
            if reported and asha.stops(number, row["epoch"], better * value, cell):
                if "state" in row:  # how it ended later is not known
                    seen = [one | {"state": "pruned"} for one in seen]
                break
        kept_rows += [one | {"kept": number in asha.kept} if "kept" in one else one for one in seen]
    found = answer(pa.Table.from_pylist(kept_rows, schema=reports.schema), factors, metric, budget, mode=mode)
    return len(kept_rows), _first_orders(found), {share.name for share in found.shares if share.verdict != "not identified"}


# Seconds


def speed() -> Iterator[Point]:
    import torch

    torch.set_num_threads(2)
    show("\nwhole answers, 2 threads", "trials", "reports", "seconds", "limit")
    curves = fixtures.non_separable()
    for size, reports, limit in ((300, curves.simulate(300, 0).reports, 20), (10_000, _large(10_000), 60)):
        began = time.perf_counter()
        answer(reports, curves.factors, fixtures.METRIC, fixtures.BUDGET, details=True)
        took = time.perf_counter() - began
        show("", size, reports.num_rows, took, limit)
        yield Point(f"seconds for {size} trials of {reports.num_rows} reports", took, high=limit)


def _large(n: int) -> pa.Table:
    """Return reports of `n` trials that were all run to the end."""
    from truths import columns_at, reports, sobol

    curves = fixtures.non_separable()
    columns = columns_at(curves.factors, sobol(n, len(curves.factors), 0))
    values = curves.curve(columns, np.arange(1.0, fixtures.BUDGET + 1))
    values = values + 0.2 * np.random.default_rng(0).standard_normal(values.shape)
    trials = np.repeat(np.arange(n), fixtures.BUDGET)
    epochs = np.tile(np.arange(1, fixtures.BUDGET + 1), n)
    return reports(
        {name: column[trials] for name, column in columns.items()}, trials, {"epoch": epochs, fixtures.METRIC: values.ravel()}
    )


if __name__ == "__main__":
    main()
