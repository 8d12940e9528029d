"""How right the importance is: against exact answers, under early stopping, beside what others would say.

    python benchmarks/importance.py                                  everything, about half an hour on two cores
    python benchmarks/importance.py --only curves --repetitions 10   a part of it
    python benchmarks/importance.py --only recensoring --study NAME  on a real study that was run without early stopping

Sections: functions (exact indices, 256 noiseless points), curves (learning curves stopped by ASHA), hard (cliffs, steps,
noise), cost (epochs that a right answer takes), speed, recensoring. Each prints its table as soon as it has it.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # the repetitions run beside each other

import argparse
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import curves as fixtures
import numpy as np
import optuna
import pyarrow as pa
from peers import forest, optuna_importance
from truths import truths

from raystudy.findings.answer import Importance

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
    parser.add_argument("--study", help="a finished study without early stopping, for recensoring")
    parser.add_argument("--tracking-uri")
    asked = parser.parse_args()
    chosen = asked.only or SECTIONS
    with ProcessPoolExecutor(asked.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        if "functions" in chosen:
            functions(pool)
        if "curves" in chosen:
            stopped(pool, asked.repetitions, [int(size) for size in asked.sizes.split(",")])
        if "hard" in chosen:
            hard(pool, max(asked.repetitions // 4, 1))
        if "cost" in chosen:
            cost(pool, max(asked.repetitions // 8, 1))
        if "recensoring" in chosen:
            recensoring(pool, asked.study, asked.tracking_uri)
    if "speed" in chosen:
        speed()


def answer(reports: pa.Table, factors: Any, metric: str, budget: int, seed: int = 0, **more: Any) -> Importance:
    """Ask without gpytorch's warning about torch.jit."""
    warnings.simplefilter("ignore")
    from raystudy.findings.importance import importance

    return importance(reports, factors, metric=metric, budget=budget, seed=seed, **{"details": False, **more})


def show(*cells: object) -> None:
    """Print a row of a table."""
    print(" | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells), flush=True)


# Exact answers


def functions(pool: ProcessPoolExecutor) -> None:
    show("\nfunction, 256 noiseless points", "largest error: first-order", "total", "limit")
    for name, first, total in pool.map(one_function, range(len(truths()))):
        show(name, first, total, 0.03 if name == "log measure" else 0.05)


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
    errors = {key: abs(first[key].value - value) for key, value in truth.items()}
    covered = {key: first[key].low - 1e-9 <= value <= first[key].high for key, value in truth.items()}
    peers = {}
    for evaluator, completed in PEERS if with_peers else ():
        other = optuna_importance(study.reports, curves.factors, evaluator=evaluator, completed_only=completed)
        told = None if other is None else (_mean_error(other, truth), _top(other) == _top(truth))
        peers[f"{evaluator}, {'completed only' if completed else 'as Ray Tune feeds it'}"] = told
    return Run(
        errors,
        # A truth of nought comes from quasi-Monte Carlo as ±0.0005.
        {key: inside or (abs(truth[key]) < 0.001 and first[key].low == 0) for key, inside in covered.items()},
        {key: share.verdict != "not identified" for key, share in shares.items()},
        _top({key: interval.value for key, interval in first.items()}) == _top(truth),
        first[curves.speed_only].low == 0,
        study.epochs,
        peers,
    )


def _mean_error(found: dict[str, float], truth: dict[str, float]) -> float:
    return float(np.mean([abs(found[name] - value) for name, value in truth.items()]))


def _top(found: dict[str, float]) -> list[str]:
    return sorted(sorted(found, key=lambda name: -found[name])[:2])


def stopped(pool: ProcessPoolExecutor, repetitions: int, sizes: Sequence[int]) -> None:
    show(
        f"\ncurves stopped by ASHA, {repetitions} repetitions",
        "trials",
        "sampler",
        "MAE",
        "two largest right",
        "speed-only has 0",
        "coverage",
    )
    every: list[Run] = []
    for size in sizes:
        for name in ("separable", "non-separable"):
            for sampler in ("random", "tpe"):
                tasks = [(name, size, seed, sampler, seed < 10) for seed in range(repetitions)]
                runs = list(pool.map(one_run, tasks))
                every += runs
                show(name, size, sampler, *_summary(runs))
                _show_peers(runs)
    large = [key for key, value in truth_of("separable").items() if value > 0.1]
    each = {key: float(np.mean([run.covered[key] for run in every])) for key in truth_of("separable")}
    show("90 % intervals", "over all factors and repetitions", float(np.mean(list(each.values()))), "limits 0.85 to 0.95")
    show("each large factor", *(f"{key} {each[key]:.3f}" for key in large), "limit 0.8")


def _summary(runs: Sequence[Run]) -> Iterator[float]:
    yield float(np.mean([list(run.errors.values()) for run in runs]))
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


def hard(pool: ProcessPoolExecutor, repetitions: int) -> None:
    show(
        f"\nhard truths, 300 trials, {repetitions} repetitions",
        "MAE",
        "two largest right",
        "coverage",
        "largest mean error of a factor that is identified",
        "not identified",
    )
    for name in ("cliff", "step", "noisy", "accuracy"):
        runs = list(pool.map(one_run, [(name, 300, seed, "random", False) for seed in range(repetitions)]))
        mean, top, _, covered = _summary(runs)
        known = {key: [run.errors[key] for run in runs if run.identified[key]] for key in runs[0].errors}
        worst = max(float(np.mean(errors)) for errors in known.values() if errors)
        unknown = sum(not ok for run in runs for ok in run.identified.values())
        show(name, mean, top, covered, worst, f"{unknown} of {len(runs) * len(known)}")
    named = list(pool.map(one_divergence, range(min(repetitions, 5))))
    show("diverging", f"learning_rate decides who diverges: named first in {sum(named)} of {len(named)}")


def one_divergence(seed: int) -> bool:
    curves = fixtures.diverging()
    found = answer(curves.simulate(120, seed).reports, curves.factors, fixtures.METRIC, fixtures.BUDGET, seed)
    return found.trouble is not None and found.trouble.shares[0].name == "learning_rate"


# What a right answer costs


def cost(pool: ProcessPoolExecutor, repetitions: int) -> None:
    show(
        f"\nepochs until the mean absolute error is 0.03, non-separable curves, {repetitions} repetitions",
        "trials",
        "epochs",
        "MAE",
    )
    stopped_sizes = (30, 45, 60, 90, 120, 200)
    sizes = {"forest, every trial to T": (60, 100, 150, 200, 300, 400), "random": stopped_sizes, "tpe": stopped_sizes}
    needed = {way: _needed(pool, way, some, repetitions) for way, some in sizes.items()}
    full = needed.pop("forest, every trial to T")
    for way, epochs in needed.items():
        if full and epochs:
            show(
                f"stopped by ASHA, {way}", f"{epochs:.0f} epochs against {full:.0f}: one part in {full / epochs:.1f}", "limit 6"
            )


def _needed(pool: ProcessPoolExecutor, way: str, sizes: Sequence[int], repetitions: int) -> float | None:
    for size in sizes:
        errors, epochs = zip(*pool.map(one_cost, [(way, size, seed) for seed in range(repetitions)]), strict=True)
        show(way, size, f"{np.mean(epochs):.0f}", float(np.mean(errors)))
        if np.mean(errors) <= 0.03:
            return float(np.mean(epochs))
    return None


def one_cost(task: tuple[str, int, int]) -> tuple[float, int]:
    way, size, seed = task
    if way in ("random", "tpe"):
        run = one_run(("non-separable", size, 1000 + seed, way, False))
        return float(np.mean(list(run.errors.values()))), run.epochs
    curves = fixtures.non_separable()
    study = curves.full(size, 1000 + seed)
    return _mean_error(forest(study.reports, curves.factors), truth_of("non-separable")), study.epochs


# Real logs


def recensoring(pool: ProcessPoolExecutor, name: str | None, tracking_uri: str | None) -> None:
    if name is None:
        print("\nrecensoring: run a study with early_stopping.scheduler none, then --only recensoring --study NAME")
        return
    from raystudy import open_study

    study = open_study(name, tracking_uri=tracking_uri)
    spec, reports = study.spec, study.reports()
    factors = {
        key: factor.model_dump(by_alias=True, exclude_none=True, exclude={"role"}) for key, factor in spec.all_factors.items()
    }
    whole = answer(reports, factors, spec.metric, spec.budget.epochs, mode=spec.mode)
    everything = _first_orders(whole)
    show(f"\nrecensoring {name}, {reports.num_rows} reports", *(f"{key} {value:.3f}" for key, value in everything.items()))
    tasks = [(reports, factors, spec.metric, spec.budget.epochs, spec.mode, spec.cells, seed) for seed in range(6)]
    for seed, (stopped_reports, found) in enumerate(pool.map(one_recensoring, tasks)):
        worst = max(abs(found[key] - value) for key, value in everything.items())
        show(
            f"order {seed}",
            f"{stopped_reports} reports",
            f"largest difference {worst:.3f}",
            f"same first two {_top(found) == _top(everything)}",
        )


def _first_orders(found: Importance) -> dict[str, float]:
    return {share.name: share.first_order.value if share.first_order else 0.0 for share in found.shares}


def one_recensoring(task: tuple[Any, ...]) -> tuple[int, dict[str, float]]:
    """Replay ASHA on whole curves that arrive in some order, and ask again."""
    reports, factors, metric, budget, mode, cells, seed = task
    random = np.random.default_rng(seed)
    by_trial: dict[str, list[dict[str, Any]]] = {}
    for row in reports.to_pylist():
        by_trial.setdefault(row["trial_id"], []).append(row)
    asha, kept_rows = fixtures.Asha(0.05, random), []
    better = 1.0 if mode == "max" else -1.0
    for number, trial in enumerate(random.permutation(list(by_trial))):
        for row in sorted(by_trial[trial], key=lambda row: row["epoch"]):
            kept_rows.append(row)
            cell = tuple(row[name] for name in cells)
            if row["epoch"] < budget and asha.stops(number, row["epoch"], better * row[metric], cell):
                break
    found = answer(pa.Table.from_pylist(kept_rows, schema=reports.schema), factors, metric, budget, mode=mode)
    return len(kept_rows), _first_orders(found)


# Seconds


def speed() -> None:
    import torch

    torch.set_num_threads(2)
    show("\nwhole answers, 2 threads", "trials", "reports", "seconds", "limit")
    curves = fixtures.non_separable()
    for size, reports, limit in ((300, curves.simulate(300, 0).reports, 20), (10_000, _large(10_000), 60)):
        began = time.perf_counter()
        answer(reports, curves.factors, fixtures.METRIC, fixtures.BUDGET, details=True)
        show("", size, reports.num_rows, time.perf_counter() - began, limit)


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
