"""What a study costs beside its training: raystudy against a plain Ray Tune script, on trials that take no time.

Both run the same number of no-op trials of one report each, with Optuna's TPE over the same space, reused actors and the
same number of slots, each in a fresh process, in alternation. Plain Tune keeps no record at all; raystudy keeps its
journal and feeds MLflow (local SQLite). The figure is the ratio of the whole processes' wall
times (imports and the start of Ray included), pair by pair, and of the trials alone.

    python benchmarks/overhead.py [--trials 50] [--pairs 3] [--slots 2] [--at-most 1.2]

Exit code 1 if the median ratio of whole processes is above --at-most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


class NoOp:
    """A trial that takes no time."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def epochs(self) -> Iterator[dict[str, float]]:
        """Report once."""
        value = score(self._config)
        yield {"epoch": 1, "val_accuracy": value, "val_loss": 1.0 - value, "train_loss": 1.0}

    def close(self) -> None:
        """Hold nothing."""


class NoOpTrainer:
    """Opens trials that take no time."""

    def open(self, ticket: Any) -> NoOp:
        """Return the trial."""
        return NoOp(ticket.config)


def run_raystudy(trials: int, slots: int) -> float:
    """Run the study with journal and MLflow; return the seconds between the first and the last event of its trials."""
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
            "budget": {"trials": trials, "epochs": 1},
            "early_stopping": "none",
            "keep_models": 0,
            "resources": {"concurrent": slots, "gpu": 0},
        }
    )
    outcome = run(spec, Setting(trainer=NoOpTrainer()))
    assert outcome.trials == {"completed": trials}, outcome
    assert outcome.recorded
    before = ("study_started", "study_placed")
    events = [event for event in read_journal(StudyPaths.of(name).journal) if event.kind not in before]
    return events[-1].time - events[0].time


def run_plain(trials: int, slots: int) -> float:
    """Run the same trials as a plain Tune script would; return the seconds that `fit` took."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import optuna
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    class Plain(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.values = config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.values = new_config
            return True

        def step(self) -> dict[str, Any]:
            value = score(self.values)
            return {"val_accuracy": value, "val_loss": 1.0 - value, "train_loss": 1.0, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Save nothing: without this, Tune ends every trial with an error and never reuses an actor."""

        def load_checkpoint(self, checkpoint: object) -> None:
            """Load nothing."""

    real = optuna.distributions.FloatDistribution
    space = {
        name: real(*next(iter(factor.values())), log=next(iter(factor)) == "log_uniform") for name, factor in SPACE.items()
    }
    ray.init(address="local", include_dashboard=False, num_cpus=os.cpu_count(), log_to_driver=False, logging_level="ERROR")
    search = OptunaSearch(
        space, metric="val_accuracy", mode="max", sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=16)
    )
    tuner = tune.Tuner(
        tune.with_resources(Plain, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=trials,
            max_concurrent_trials=slots,
            reuse_actors=True,
            metric="val_accuracy",
            mode="max",
        ),
        run_config=tune.RunConfig(name="plain", storage_path=os.environ["PLAIN_STORAGE"], verbose=0),
    )
    started = time.perf_counter()
    results = tuner.fit()
    took = time.perf_counter() - started
    assert len(results) == trials and results.num_errors == 0
    ray.shutdown()
    return took


def measure(way: str, trials: int, slots: int, folder: str) -> tuple[float, float]:
    """Run one way in a fresh process; return (wall seconds of the process, seconds of the trials)."""
    environment = {**os.environ, "RAYSTUDY_HOME": f"{folder}/home", "PLAIN_STORAGE": f"{folder}/plain"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, __file__, "--way", way, "--trials", str(trials), "--slots", str(slots)]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    return wall, json.loads(done.stdout.splitlines()[-1])["trials_s"]


def compare(trials: int, pairs: int, slots: int) -> float:
    """Measure in alternation, print every figure, and return the median ratio of whole processes."""
    print(f"{trials} no-op trials, {slots} slots, {pairs} pairs, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    ratios, inner = [], []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(pairs + 1):
            plain, plain_trials = measure("plain", trials, slots, folder)
            ours, our_trials = measure("raystudy", trials, slots, folder)
            # The first pair fills the file cache and creates the local MLflow database, once per machine; it does not count.
            if pair:
                ratios.append(ours / plain)
                inner.append(our_trials / plain_trials)
            print(
                f"{f'pair {pair}' if pair else 'warm-up'}: plain Tune {plain:6.2f} s (trials {plain_trials:6.2f} s)   "
                f"raystudy {ours:6.2f} s (trials {our_trials:6.2f} s)   "
                f"ratio {ours / plain:.2f} (trials {our_trials / plain_trials:.2f})",
                flush=True,
            )
    print(
        f"ratio of wall times: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}; "
        f"of the trials alone: median {statistics.median(inner):.2f}"
    )
    return statistics.median(ratios)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--at-most", type=float, default=1.2)
    parser.add_argument("--way", choices=("raystudy", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        # Ray finds the classes of this file by its folder.
        sys.path.insert(0, str(Path(__file__).parent))
        took = {"raystudy": run_raystudy, "plain": run_plain}[options.way](options.trials, options.slots)
        print(json.dumps({"trials_s": took}))
        return
    if compare(options.trials, options.pairs, options.slots) > options.at_most:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
