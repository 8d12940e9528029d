"""How long a study takes: raystudy against the script that one would write today, on the same JPEGs.

    python benchmarks/study_speed.py                  the mixed study, 1 pair: learning rate, frozen depth, data fraction
    python benchmarks/study_speed.py --depth last     every trial trains the last unit and the head
    python benchmarks/study_speed.py --depth head     every trial is a linear probe
    python benchmarks/study_speed.py --smoke          a tiny run in about a minute; it judges nothing

The study: 12 trials of up to 9 epochs (ASHA, grace 1, reduction 3), EfficientNet-lite0 at 32 px, batches of 64, 1,582 JPEGs
of 320 px in 10 classes (scikit-learn's digits, enlarged), a validation share of 0.2, two trials at a time of one thread each.

A pair is runs of whole processes, each from the start of Python to its exit. First raystudy (the command `raystudy run`), with
nothing cached and no MLflow store, as a user has it the first time. Its journal says which configurations it trained for how
many epochs, and the stock script (`stock.py`) trains just these: with OptunaSearch, MLflowLoggerCallback and Tune as ever, but
each trial stopped at the number of epochs that it had in raystudy. So both train the same configurations for the same epochs:
who draws better ones, or has more luck in ASHA's order of arrival, is no part of the figure. (`--own-search` lets both use TPE
and ASHA of their own: equal settings, unequal work.) The script keeps no checkpoints and its MLflow database exists beforehand;
both are in its favour. Then raystudy runs once more with its caches warm, under another name. ASHA may decide otherwise there,
so that run is compared per epoch trained.

Three rates are printed. `images/s`: images trained over the wall time of the whole process. `in trials` and `in training` are
of one trial, i.e. of one core: images trained over the seconds for which raystudy's trials held their slot (set-up, prefix,
validation and checkpoints included; of the script only its epochs), and over those in the training loops alone, which the
points of `--depth last` and `--depth head` are about.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from points import Point
from processes import scratch
from stock import Job

UNITS = 18
"""Of EfficientNet-lite0."""
DEPTHS = {"mixed": {}, "last": {"frozen_depth": UNITS - 1}, "head": {"frozen_depth": UNITS}}


@dataclass(frozen=True)
class Study:
    """What both run.

    Attributes:
        depth: `mixed`, `last` or `head`.
        images: number of JPEGs.
        trials: number of them.
        epochs: the budget of each.
        slots: trials at a time.
        seed: of split, search and training.
        features: the study file's key of that name, where raystudy knows it.
        workers: decoding processes of the script's DataLoader.
        reuse_actors: whether the script reuses actors.
        own_search: whether both search by themselves.
    """

    depth: str
    images: int
    trials: int
    epochs: int
    slots: int
    seed: int
    features: str
    workers: int
    reuse_actors: bool
    own_search: bool

    @property
    def factors(self) -> dict[str, dict[str, Any]]:
        """What varies, in the form of the study file."""
        factors: dict[str, dict[str, Any]] = {"learning_rate": {"log_uniform": [1e-4, 3e-2]}}
        if not self.fixed:
            factors["frozen_depth"] = {"int": [0, UNITS]}
        return {**factors, "data_fraction": {"choice": [0.25, 0.5, 1.0]}}

    @property
    def fixed(self) -> dict[str, Any]:
        """What does not vary and is not at raystudy's default."""
        return {**DEPTHS[self.depth]}

    def file(self, name: str, images: Path) -> dict[str, Any]:
        """Return the study file as plain data."""
        from raystudy.spec import StudySpec

        features = {"features": self.features} if "features" in StudySpec.model_fields else {}
        return {
            "name": name,
            "data": {"source": f"folder:{images}", "image_size": 32, "validation": 0.2},
            "backbone": "efficientnet_lite0",
            "factors": self.factors,
            "fixed": {"batch_size": 64, **self.fixed},
            "budget": {"trials": self.trials, "epochs": self.epochs},
            "search": {"sampler": "tpe" if self.own_search else "random", "seed": self.seed},
            # As Ray Tune's ASHA: one cell, nothing kept beyond it; and no models, as the script logs none.
            "early_stopping": {"scheduler": "asha", "grace": 1, "reduction": 3, "within": [], "keep": 0},
            "resources": {"cpu": 1, "gpu": 0, "concurrent": self.slots},
            "keep_models": 0,
            **features,
        }


@dataclass(frozen=True)
class Trained:
    """One trial: its configuration, the accuracy after each epoch, and the seconds in the training loop, over all epochs."""

    config: dict[str, Any]
    accuracy: tuple[float, ...]
    train_seconds: float


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        wall: seconds of the whole process.
        trials: all that reported.
        images_per_epoch: images trained in an epoch.
        held: seconds that trials held a slot, over all trials.
        split: where the wall time went, in seconds.
    """

    wall: float
    trials: tuple[Trained, ...]
    images_per_epoch: int
    held: float
    split: dict[str, float]

    @property
    def epochs(self) -> int:
        """Epochs trained, over all trials."""
        return sum(len(trial.accuracy) for trial in self.trials)

    @property
    def speed(self) -> float:
        """Images trained per second of wall time."""
        return self.epochs * self.images_per_epoch / self.wall

    @property
    def speed_in_training(self) -> float:
        """Images trained per second of the training loops: of one trial, on one core."""
        return self.epochs * self.images_per_epoch / sum(trial.train_seconds for trial in self.trials)

    @property
    def best(self) -> float:
        """The best validation accuracy."""
        return max(value for trial in self.trials for value in trial.accuracy)

    def __str__(self) -> str:
        return (
            f"{self.wall:7.1f} s  {self.epochs:3d} epochs  {self.speed:7.0f} images/s  "
            f"{self.speed * self.wall / self.held:8.0f} in trials  {self.speed_in_training:8.0f} in training  "
            f"best accuracy {self.best:.4f}"
        )


def write_images(folder: Path, count: int) -> None:
    """Write the first `count` digits out as JPEGs of 320 px, one sub-folder a class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * (255 / 16)).astype("uint8")).convert("RGB")
        image.resize((320, 320), Image.Resampling.BICUBIC).save(place / f"{index:05d}.jpg", quality=90)


def run_raystudy(study: Study, images: Path, folder: Path, name: str) -> Run:
    """Run the study with the home and the cache in `folder`, which are warm if a study ran there before."""
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(study.file(name, images)))  # JSON is YAML too
    environment = {**clean(), "RAYSTUDY_HOME": str(folder / "home"), "RAYSTUDY_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "raystudy", "run", str(file), "--json"]
    started = time.time()
    with (folder / f"{name}.out").open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = [(time.time(), line) for line in process.stderr]
        code = process.wait()
    ended = time.time()
    if code:
        raise SystemExit(f"raystudy failed:\n{''.join(line for _, line in said)[-3000:]}")
    return read_run(folder / "home" / "studies" / name / "journal.jsonl", study, started, ended, said)


def read_run(journal: Path, study: Study, started: float, ended: float, said: Sequence[tuple[float, str]]) -> Run:
    """Read a run off its journal and off when the process said what (times in seconds since 1970)."""
    from raystudy.records import StudyRecord
    from raystudy.tracking.journal import read_journal

    record = StudyRecord.fold(read_journal(journal))
    images = math.ceil(record.data["training_images"] / 64) * 64
    rows = [[report.metrics for _, report in sorted(trial.reports.items())] for trial in record.trials.values()]
    trials = tuple(
        Trained(
            config={**trial.config},
            accuracy=tuple(row["val_accuracy"] for row in own),
            train_seconds=sum(images / row["images_per_second"] for row in own),
        )
        for trial, own in zip(record.trials.values(), rows, strict=True)
        if own
    )
    first = min(trial.started for trial in record.trials.values())
    last = max(trial.ended or ended for trial in record.trials.values())
    when = {line.split(maxsplit=1)[0]: at for at, line in said if line.strip()}
    decode = when["Loading"] - when["Reading"]
    findings = when.get("Computing", ended)
    held = sum(report.seconds for trial in record.trials.values() for report in trial.reports.values())
    epochs = sum(row["epoch_seconds"] for own in rows for row in own)
    training = sum(trial.train_seconds for trial in trials)
    # Whatever else reports give in seconds is the prefix's computation, beside `epoch_seconds`.
    others = {name for own in rows for row in own for name in row if name.endswith("_seconds")} - {"epoch_seconds"}
    shared = sum(row.get(name, 0.0) for own in rows for row in own for name in others)
    slots = {
        "training (the suffix, where the prefix is cached)": training,
        "validation": epochs - training,
        "prefix, where reported": shared,
        "set-up of trials, checkpoints, prefix where not reported": held - epochs - shared,
        "slots without a trial: processes that start, scheduling": (last - first) * study.slots - held,
    }
    split = {
        "start-up: imports, weights, Ray, MLflow": first - started - decode,
        "decoding, the import of torch included": decode,
        **{what: seconds / study.slots for what, seconds in slots.items()},
        "after the last trial: MLflow, the end of Ray": findings - last,
        "which factors matter, and the exit": ended - findings,
    }
    return Run(ended - started, trials, images, held, split)


def run_stock(study: Study, images: Path, folder: Path, ours: Run) -> Run:
    """Run the stock script; unless it searches by itself, on what `ours` trained."""
    folder.mkdir()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    job = Job(
        images=str(images),
        storage=str(folder),
        tracking_uri=uri,
        factors=study.factors,
        fixed=study.fixed,
        trials=study.trials,
        epochs=study.epochs,
        slots=study.slots,
        seed=study.seed,
        workers=study.workers,
        reuse_actors=study.reuse_actors,
        replay=None if study.own_search else [(trial.config, len(trial.accuracy)) for trial in ours.trials],
    )
    job.write(folder / "job.json")
    script = str(Path(__file__).with_name("stock.py"))
    run_script([script, "--create-store", uri], folder)
    started = time.perf_counter()
    answer = json.loads(run_script([script, str(folder / "job.json")], folder).splitlines()[-1])
    wall = time.perf_counter() - started
    trials = tuple(
        Trained(
            config=trial["config"],
            accuracy=tuple(row["val_accuracy"] for row in trial["rows"]),
            train_seconds=sum(row["train_seconds"] for row in trial["rows"]),
        )
        for trial in answer["trials"]
    )
    training = sum(trial.train_seconds for trial in trials)
    epochs = sum(row["epoch_seconds"] for trial in answer["trials"] for row in trial["rows"])
    split = {
        "start-up and end: imports, Ray": wall - answer["fit_seconds"],
        "training, decoding included": training / study.slots,
        "validation, decoding included": (epochs - training) / study.slots,
        "processes that start, weights, MLflow, scheduling": answer["fit_seconds"] - epochs / study.slots,
    }
    return Run(wall, trials, ours.images_per_epoch, epochs, split)


def run_script(arguments: list[str], folder: Path) -> str:
    """Run a Python script in `folder`; return what it printed."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=clean(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def clean() -> dict[str, str]:
    """Return the environment without what would lead to another Ray or MLflow."""
    return {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}


@dataclass(frozen=True)
class Pair:
    """The three runs of a pair."""

    ours: Run
    stock: Run
    warm: Run

    @property
    def wall(self) -> float:
        """How many times shorter raystudy's wall time is."""
        return self.stock.wall / self.ours.wall

    @property
    def in_training(self) -> float:
        """How many times more images raystudy trains per second of the training loops."""
        return self.ours.speed_in_training / self.stock.speed_in_training

    @property
    def warm_per_epoch(self) -> float:
        """How many times shorter an epoch is with warm caches, in wall time of the whole over epochs trained."""
        return (self.stock.wall / self.stock.epochs) / (self.warm.wall / self.warm.epochs)


def measure_pair(study: Study, images: Path, folder: Path, number: int) -> Pair:
    """Run raystudy cold, the script, and raystudy warm; print each as soon as it is there."""
    place = folder / f"pair{number}"
    place.mkdir()
    ours = run_raystudy(study, images, place, "cold")
    print(f"pair {number}: raystudy, cold  {ours}", flush=True)
    stock = run_stock(study, images, place / "stock", ours)
    print(f"        stock           {stock}", flush=True)
    warm = run_raystudy(study, images, place, "warm")
    print(f"        raystudy, warm  {warm}", flush=True)
    pair = Pair(ours, stock, warm)
    print(
        f"        wall time {pair.wall:.2f} x, images/s {ours.speed / stock.speed:.2f} x, "
        f"in training {pair.in_training:.2f} x; warm: wall time per epoch {pair.warm_per_epoch:.2f} x",
        flush=True,
    )
    for title, run in (("raystudy, cold", ours), ("raystudy, warm", warm), ("stock", stock)):
        print(f"  {title}, seconds of wall time (of trials: per slot)")
        for what, seconds in run.split.items():
            print(f"    {seconds:7.2f}  {seconds / run.wall:4.0%}  {what}")
    return pair


def judge(study: Study, pairs: Sequence[Pair]) -> None:
    """Print a line per acceptance point."""
    equal = statistics.median(pair.stock.epochs / pair.ours.epochs for pair in pairs)
    wall = statistics.median(pair.wall for pair in pairs)
    rate = statistics.median(pair.in_training for pair in pairs)
    points = [Point("epochs trained, stock over raystudy", equal, 1.0, 1.0)] if not study.own_search else []
    what, figure, least = {
        "mixed": ("mixed study: wall time, stock over raystudy with nothing cached", wall, 4.0),
        "last": ("last unit: images/s in training, raystudy over stock", rate, 10.0),
        "head": ("head only: images/s in training, raystudy over stock", rate, 40.0),
    }[study.depth]
    points.append(Point(what, figure, least))
    for point in points:
        print(point)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", choices=tuple(DEPTHS), default="mixed")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--images", type=int, default=1582)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", choices=("auto", "on", "off"), default="auto", help="raystudy's cache of frozen prefixes")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes of the script's DataLoader")
    parser.add_argument("--reuse-actors", action="store_true", help="let the script reuse actors, which is off by default")
    parser.add_argument("--own-search", action="store_true", help="let both search by themselves")
    parser.add_argument("--smoke", action="store_true", help="200 images, 3 trials, 2 epochs")
    asked = parser.parse_args()
    if asked.smoke:
        asked.images, asked.trials, asked.epochs = 200, 3, 2
    study = Study(**{part.name: getattr(asked, part.name) for part in fields(Study)})
    with scratch() as folder:
        images = folder / "images"
        write_images(images, study.images)
        size = statistics.mean(path.stat().st_size for path in images.rglob("*.jpg")) / 1024
        print(
            f"{study.depth}: {study.trials} trials of up to {study.epochs} epochs, {study.images} JPEGs of {size:.1f} KiB, "
            f"{study.slots} at a time, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        pairs = [measure_pair(study, images, folder, number + 1) for number in range(asked.pairs)]
    if asked.smoke:
        print("a smoke run judges nothing")
    else:
        judge(study, pairs)


if __name__ == "__main__":
    main()
