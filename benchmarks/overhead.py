"""What a study costs beside its training: raystudy against a plain Ray Tune script, on trials that take no time.

Both run the same number of no-op trials of --reports reports each, with the same sampler of Optuna over the same space, reused
actors and the same number of slots, each in a fresh process, in alternation. Plain Tune keeps no record at all; raystudy keeps
its journal and feeds MLflow (local SQLite). The figure is the ratio of the whole processes' wall times (imports and the start
of Ray included), pair by pair, and of the trials alone. Beside it: what raystudy takes after its last trial (MLflow is brought
up to date, the factors' importance is computed), the processor time of all processes (what other work on the machine disturbs
least), and the resident memory of the driver's process at the last report with its growth per report (of one report a trial:
per trial) from the first quarter to the half of all reports, and over the second half. It is flat per trial if the second
growth is not larger than the first.

The shapes are those of Ray's own scalability tests: many short trials, many results, big checkpoints.

    python benchmarks/overhead.py [--trials 50] [--pairs 3] [--slots 2] [--at-most 1.2]
    python benchmarks/overhead.py --trials 100,1000,10000 --pairs 1                       many short trials
    python benchmarks/overhead.py --trials 8 --reports 1000 --pairs 1                     many results
    python benchmarks/overhead.py --trials 8 --reports 5 --checkpoint-mib 100 --pairs 1   big checkpoints, after every report

TPE's own work grows with the number of trials (both wait for it); --sampler random leaves it out. Exit code 1 if the median
ratio of whole processes is above --at-most for any size, or if, from 1,000 reports on, the driver's memory grows more than
--memory-at-most times as fast in the second half as before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from points import Point, judge
from processes import processor_time, repeatedly, scratch

WARM_UP_TRIALS = 50
ENOUGH_REPORTS = 1_000
"""Below, the growth of the driver's memory is that of its start."""

SPACE = {
    "learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "weight_decay": {"log_uniform": [1e-6, 1e-2]},
    "momentum": {"uniform": [0.5, 0.99]},
    "dropout": {"uniform": [0.0, 0.5]},
    "label_smoothing": {"uniform": [0.0, 0.2]},
}


def score(config: Mapping[str, Any]) -> float:
    """Return the metric of a no-op trial: smooth, so that TPE has something to model."""
    return 1.0 - abs(float(config["dropout"]) - 0.2) - abs(float(config["momentum"]) - 0.9)


@dataclass(frozen=True)
class Shape:
    """What both run.

    Attributes:
        trials: how many.
        reports: of each trial.
        slots: trials at a time.
        sampler: `tpe` or `random`.
        checkpoint_mib: size of the checkpoint after every report, in MiB; 0 for none.
    """

    trials: int
    reports: int
    slots: int
    sampler: str
    checkpoint_mib: int

    def __str__(self) -> str:
        reports = f" of {self.reports:,} reports" if self.reports > 1 else ""
        saving = f", checkpoints of {self.checkpoint_mib} MiB" if self.checkpoint_mib else ""
        return f"{self.trials:,} no-op trials{reports}{saving}, {self.slots} slots, {self.sampler}"


@dataclass(frozen=True)
class Cost:
    """What a run took.

    Attributes:
        wall: seconds of the whole process.
        trials: seconds of the trials.
        after: seconds from the last trial to the end of the process.
        busy: processor seconds of all its processes, Ray's and the MLflow writer's included.
        driver_mib: resident memory of the driver's process at the last report, in MiB.
        early_kib: by how much that grew per report from the first quarter to the half of all reports, in KiB.
        late_kib: likewise over the second half.
    """

    wall: float
    trials: float
    after: float
    busy: float
    driver_mib: float
    early_kib: float
    late_kib: float


class NoOp:
    """A trial that takes no time but that of its checkpoints."""

    def __init__(self, ticket: Any, trainer: NoOpTrainer) -> None:
        self._ticket = ticket
        self._trainer = trainer

    def epochs(self) -> Iterator[dict[str, float]]:
        """Report."""
        value = score(self._ticket.config)
        for epoch in range(1, self._trainer.reports + 1):
            row = {"epoch": epoch, "val_accuracy": value, "val_loss": 1.0 - value, "train_loss": 1.0}
            if self._trainer.checkpoint_mib:
                self._save(row)
            yield row

    def _save(self, row: dict[str, float]) -> None:
        from raystudy.finetune.checkpoint import Checkpoint, save

        weights, epoch = {"weights": weights_of(self._trainer.checkpoint_mib)}, int(row["epoch"])
        save(self._trainer.folder / self._ticket.trial_id, Checkpoint(epoch, epoch, (row,), weights, {}, "", ""))

    def close(self) -> None:
        """Hold nothing."""


@dataclass(frozen=True)
class NoOpTrainer:
    """Opens trials that take no time; their checkpoints are kept as those of fine-tuning trials are."""

    reports: int
    checkpoint_mib: int = 0
    folder: Path = Path()

    def open(self, ticket: Any) -> NoOp:
        """Return the trial."""
        return NoOp(ticket, self)


def weights_of(mib: int) -> Any:
    """Return a tensor of so many MiB."""
    import torch

    return torch.rand(mib * 2**18)


@contextmanager
def memory_samples() -> Iterator[list[tuple[float, int]]]:
    """Gather this process's resident memory: (seconds since 1970, bytes), five times a second while the context lasts."""
    samples: list[tuple[float, int]] = []
    process = psutil.Process()
    with repeatedly(lambda: samples.append((time.time(), process.memory_info().rss)), seconds=0.2):
        yield samples


def growth(samples: Sequence[tuple[float, int]], reports: Sequence[float]) -> dict[str, float]:
    """Return the memory at the last report, and its growth per report before and in the second half of them.

    Args:
        samples: from `memory_samples`.
        reports: when each report came in, in seconds since 1970, ascending.
    """
    times, last = [at for at, _ in samples], len(reports) - 1

    def kib(report: int) -> float:
        return samples[min(bisect_left(times, reports[report]), len(samples) - 1)][1] / 2**10

    def between(first: int, second: int) -> float:
        return (kib(second) - kib(first)) / max(second - first, 1)

    quarter, half = last // 4, last // 2
    return {"driver_mib": kib(last) / 2**10, "early_kib": between(quarter, half), "late_kib": between(half, last)}


def run_raystudy(shape: Shape) -> dict[str, float]:
    """Run the study with journal and MLflow.

    Returns:
        The seconds between the first and the last event of its trials, when the last was, and the driver's memory.
    """
    from raystudy.driver import Setting, run
    from raystudy.paths import StudyPaths
    from raystudy.spec import StudySpec
    from raystudy.tracking.journal import read_journal

    name = f"overhead-{os.getpid()}"
    spec = StudySpec.from_dict(
        {
            "name": name,
            "data": {"source": "sklearn:digits"},
            "backbone": "efficientnet_lite0",
            "factors": SPACE,
            "budget": {"trials": shape.trials, "epochs": shape.reports},
            "search": {"sampler": shape.sampler},
            "early_stopping": "none",
            "keep_models": 0,
            "resources": {"concurrent": shape.slots, "gpu": 0},
        }
    )
    with memory_samples() as samples:
        trainer = NoOpTrainer(shape.reports, shape.checkpoint_mib, StudyPaths.of(name).all_checkpoints)
        outcome = run(spec, Setting(trainer=trainer))
    assert outcome.trials == {"completed": shape.trials}, outcome
    assert outcome.recorded
    before = ("study_started", "study_placed")
    events = [event for event in read_journal(StudyPaths.of(name).journal) if event.kind not in before]
    reported = [event.time for event in events if event.kind == "reported"]
    return {"trials": events[-1].time - events[0].time, "ended": events[-1].time, **growth(samples, reported)}


def run_plain(shape: Shape) -> dict[str, float]:
    """Run the same trials as a plain Tune script would; return how long `fit` took, when it ended, and the driver's memory."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import optuna
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    reported: list[float] = []

    class Plain(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.values, self.left = config, shape.reports

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            value = score(self.values)
            self.left -= 1
            return {"val_accuracy": value, "val_loss": 1.0 - value, "train_loss": 1.0, "done": self.left == 0}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Save what is asked for; without this method Tune ends every trial with an error and never reuses an actor."""
            if shape.checkpoint_mib:
                import torch

                torch.save({"weights": weights_of(shape.checkpoint_mib)}, f"{checkpoint_dir}/model.pt")

        def load_checkpoint(self, checkpoint: object) -> None:
            """Load nothing."""

    class Clock(tune.Callback):  # type: ignore[misc]
        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
            del iteration, trials, trial, result, info
            reported.append(time.time())

    real = optuna.distributions.FloatDistribution
    space = {
        name: real(*next(iter(factor.values())), log=next(iter(factor)) == "log_uniform") for name, factor in SPACE.items()
    }
    ray.init(address="local", include_dashboard=False, num_cpus=os.cpu_count(), log_to_driver=False, logging_level="ERROR")
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=0, n_startup_trials=16),
        "random": lambda: optuna.samplers.RandomSampler(seed=0),
    }
    search = OptunaSearch(space, metric="val_accuracy", mode="max", sampler=samplers[shape.sampler]())
    kept = {"checkpoint_frequency": 1, "num_to_keep": 1} if shape.checkpoint_mib else {}
    tuner = tune.Tuner(
        tune.with_resources(Plain, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=shape.trials,
            max_concurrent_trials=shape.slots,
            reuse_actors=True,
            metric="val_accuracy",
            mode="max",
        ),
        run_config=tune.RunConfig(
            name="plain",
            storage_path=os.environ["PLAIN_STORAGE"],
            verbose=0,
            callbacks=[Clock()],
            checkpoint_config=tune.CheckpointConfig(**kept),
        ),
    )
    with memory_samples() as samples:
        started = time.perf_counter()
        results = tuner.fit()
        took, ended = time.perf_counter() - started, time.time()
    assert len(results) == shape.trials and results.num_errors == 0
    ray.shutdown()
    return {"trials": took, "ended": ended, **growth(samples, reported)}


def measure(way: str, shape: Shape, folder: Path) -> Cost:
    """Run one way in a fresh process."""
    environment = {**os.environ, "RAYSTUDY_HOME": f"{folder}/home", "PLAIN_STORAGE": f"{folder}/plain"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    numbers = ("--trials", str(shape.trials), "--reports", str(shape.reports), "--slots", str(shape.slots))
    others = ("--sampler", shape.sampler, "--checkpoint-mib", str(shape.checkpoint_mib))
    command = [sys.executable, __file__, "--way", way, *numbers, *others]
    started = time.perf_counter()
    with processor_time(folder) as used:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall, now = time.perf_counter() - started, time.time()
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    busy = sum(use.samples[-1][1] for use in used.values())
    return Cost(wall=wall, after=now - answer.pop("ended"), busy=busy, **answer)


def measure_pair(shape: Shape, folder: Path, title: str) -> tuple[Cost, Cost]:
    """Run both ways, plain Tune first, and print the figures."""
    plain, ours = measure("plain", shape, folder), measure("raystudy", shape, folder)
    per = "trial" if shape.reports == 1 else "report"
    print(
        f"{title}: plain Tune {plain.wall:6.2f} s (trials {plain.trials:6.2f} s)   "
        f"raystudy {ours.wall:6.2f} s (trials {ours.trials:6.2f} s, after {ours.after:6.2f} s)   "
        f"ratio {ours.wall / plain.wall:.2f} (trials {ours.trials / plain.trials:.2f})   "
        f"processor time {plain.busy:.1f} and {ours.busy:.1f} s   "
        f"driver {plain.driver_mib:.0f} and {ours.driver_mib:.0f} MiB, "
        f"{plain.early_kib:+.1f} and {ours.early_kib:+.1f} KiB a {per} up to the half, "
        f"{plain.late_kib:+.1f} and {ours.late_kib:+.1f} after it",
        flush=True,
    )
    return plain, ours


def compare(shape: Shape, pairs: int, folder: Path) -> tuple[float, float]:
    """Measure in alternation and print every figure.

    Returns:
        The median ratio of whole processes, and of the driver's growth in the second half of the reports over that before; 0
        for too few reports to tell.
    """
    print(f"{shape}, {pairs} pairs, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    measured = [measure_pair(shape, folder, f"pair {pair + 1}") for pair in range(pairs)]
    ratios = [ours.wall / plain.wall for plain, ours in measured]
    inner = [ours.trials / plain.trials for plain, ours in measured]
    until = [(ours.wall - ours.after) / (plain.wall - plain.after) for plain, ours in measured]
    print(
        f"ratio of wall times: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}; "
        f"of the trials alone: median {statistics.median(inner):.2f}; "
        f"up to the last trial: median {statistics.median(until):.2f}",
        flush=True,
    )
    grows = statistics.median(ours.late_kib / max(ours.early_kib, 1.0) for _, ours in measured)
    return statistics.median(ratios), grows if shape.trials * shape.reports >= ENOUGH_REPORTS else 0.0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="50", help="a number, or several with commas")
    parser.add_argument("--reports", type=int, default=1, help="of each trial")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--sampler", choices=("tpe", "random"), default="tpe")
    parser.add_argument("--checkpoint-mib", type=int, default=0, help="size of the checkpoint after every report")
    parser.add_argument("--at-most", type=float, default=1.2)
    parser.add_argument("--memory-at-most", type=float, default=1.2)
    parser.add_argument("--way", choices=("raystudy", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    rest = (options.reports, options.slots, options.sampler, options.checkpoint_mib)
    shapes = [Shape(int(size), *rest) for size in options.trials.split(",")]
    if options.way:
        # Ray finds the classes of this file by its folder.
        sys.path.insert(0, str(Path(__file__).parent))
        took = {"raystudy": run_raystudy, "plain": run_plain}[options.way](shapes[0])
        print(json.dumps(took))
        return
    with scratch() as folder:
        # It fills the file cache and creates the local MLflow database, once per machine; it does not count.
        measure_pair(replace(shapes[0], trials=min(WARM_UP_TRIALS, shapes[0].trials), reports=1), folder, "warm-up")
        found = [compare(shape, options.pairs, folder) for shape in shapes]
    points = [
        point
        for shape, (ratio, grows) in zip(shapes, found, strict=True)
        for point in (
            Point(f"{shape}: wall time over plain Ray Tune's", ratio, high=options.at_most),
            Point(f"{shape}: growth of the driver's memory, second half over before", grows, high=options.memory_at_most),
        )
    ]
    judge(points)


if __name__ == "__main__":
    main()
