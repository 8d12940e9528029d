"""What raystudy adds to the time of real trials: between two trials, and between two epochs of half a minute.

    python benchmarks/trial_time.py                   both
    python benchmarks/trial_time.py --only start      warm trial start (about two minutes)
    python benchmarks/trial_time.py --only share      the service's share of the time at 30-s epochs (about five minutes)

Real studies (EfficientNet-lite0 at 32 px, two trials at a time of one thread each, local Ray, journal, MLflow on SQLite), the
trainer wrapped by one that writes down when what happens in the trial's process, all by one clock.

`start`: the same study of 16 trials of 2 epochs of scikit-learn's digits (learning rate, frozen depth, data fraction, drawn at
random), twice; the second time everything that trials share is cached. The start of a trial is the time from the moment at
which the last trial in the same process hands over its last metrics until the first batch of the next one enters its network
for training. In it: the report, the decision, the journal, the proposal, the hand-over, the network, its data. Beside it
stands the processor time of the trial's process meanwhile, which other work on the machine disturbs less.

`share`: 4 trials of 3 epochs of about --epoch-seconds (so many images as it takes, full fine-tuning). Pure training is
`epoch_seconds`, training and validation. From each process's first report to its last one, which leaves out what a study pays
once, everything else is the service's: checkpoints, reports, decisions, trial starts. To that is added, since it takes the same
cores, the processor time of every process of the study that trains nothing (driver, Ray, MLflow writer), while all slots are
at work: where one has no trial left, its core is free, and the libraries that compute findings are read on it.

Exit code 1 if the median start is above --start-at-most seconds or the share above --share-at-most.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from points import Point, judge
from processes import Used, processor_time, scratch

SLOTS = 2


@dataclass(frozen=True)
class Moment:
    """Something that happened in a trial's process.

    Attributes:
        what: `opened` (the trial was taken on), `batch` (its first batch enters the network), `reported`, or one of PARTS.
        trial_id: of which trial.
        time: seconds since 1970.
        cpu: processor time of the process so far, in seconds.
        pure: of a report: seconds of training and validation; of one of PARTS: its seconds.
    """

    what: str
    trial_id: str
    time: float
    cpu: float
    pure: float = 0.0


PARTS = {"checkpoint": ("checkpoint", "save"), "read-out": ("readouts_trial.ReadOuts", "record")}
"""What a trial's process does between training and report, and the function of `raystudy.finetune` that does it."""


class Clocked:
    """A trial that writes down when it begins to train and when it reports."""

    def __init__(self, inner: Any, note: Any) -> None:
        self._inner, self._note = inner, note

    def epochs(self) -> Iterator[Mapping[str, float]]:
        """Train as ever."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        def note_first(module: Any, _: object) -> None:
            if module.training:  # whatever is only evaluated, such as frozen units for the cache, is part of the start
                hook.remove()
                self._note("batch")

        hook = register_module_forward_pre_hook(note_first)
        for row in self._inner.epochs():
            self._note("reported", row["epoch_seconds"])
            yield row

    def close(self) -> None:
        """Free what the trial holds."""
        self._inner.close()


@dataclass(frozen=True)
class ClockedTrainer:
    """Opens the trials of `inner`; each process writes into a file of its own in `folder`."""

    inner: Any
    folder: Path

    def open(self, ticket: Any) -> Clocked:
        """Prepare the trial."""

        def note(what: str, pure: float = 0.0) -> None:
            moment = Moment(what, ticket.trial_id, time.time(), time.process_time(), pure)
            with (self.folder / f"{os.getpid()}.jsonl").open("a") as file:
                file.write(json.dumps(vars(moment)) + "\n")

        note("opened")
        for part, (owner, name) in PARTS.items():
            _clock(part, owner, name, note)
        return Clocked(self.inner.open(ticket), note)


def _clock(part: str, owner: str, name: str, note: Any) -> None:
    """Write down how long each call of a function takes from now on."""
    module, _, cls = owner.partition(".")
    place: Any = importlib.import_module(f"raystudy.finetune.{module}")
    place = getattr(place, cls) if cls else place
    inner = getattr(place, name)
    inner = getattr(inner, "__wrapped__", inner)  # of the trial before

    @functools.wraps(inner)
    def clocked(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*arguments, **options)
        finally:
            note(part, time.perf_counter() - began)

    setattr(place, name, clocked)


def run_study(file: Path, folder: Path) -> None:
    """Run the study of a file in this process, clocked."""
    # The processes of Ray find the classes of this file under its name, not as `__main__`.
    from trial_time import ClockedTrainer

    from raystudy import paths
    from raystudy.data import open_data
    from raystudy.driver import Setting, run
    from raystudy.finetune.trainer import FineTuneTrainer
    from raystudy.spec import StudySpec

    spec = StudySpec.from_dict(json.loads(file.read_text()))
    open_data(spec, paths.cache())
    inner = FineTuneTrainer(spec, paths.StudyPaths.of(spec.name).all_checkpoints, paths.cache())
    outcome = run(spec, Setting(trainer=ClockedTrainer(inner, folder)))
    assert outcome.trials == {"completed": spec.budget.trials}, outcome
    assert outcome.recorded


@dataclass(frozen=True)
class Run:
    """A clocked study.

    Attributes:
        wall: seconds of its whole process.
        processes: of each trial's process what happened, in order.
        service: the processor time of all other processes of the study.
    """

    wall: float
    processes: tuple[tuple[Moment, ...], ...]
    service: Used

    def service_seconds(self, first: float, last: float) -> dict[str, float]:
        """Return the processor time that the service took between two moments, by who took it."""
        total = dict.fromkeys(("Ray's own processes", "driver", "MLflow writer"), 0.0)
        for use in self.service.values():
            times, used = zip(*use.samples, strict=True)
            total[_who(use.command)] += float(np.interp(last, times, used) - np.interp(first, times, used, left=0.0))
        return total


def _who(command: str) -> str:
    if "raystudy.tracking" in command:
        return "MLflow writer"
    return "driver" if f"{Path(__file__).name} --study" in command else "Ray's own processes"


def measure(spec: Mapping[str, Any], folder: Path) -> Run:
    """Run a study in a fresh process, with the home and the cache in `folder`."""
    place = folder / str(spec["name"])
    place.mkdir()
    (place / "study.json").write_text(json.dumps(spec))
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"RAYSTUDY_HOME": f"{folder}/home", "RAYSTUDY_CACHE": f"{folder}/cache"}
    started = time.time()
    with processor_time(folder) as used:
        command = [sys.executable, __file__, "--study", str(place / "study.json")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the study failed:\n{done.stderr[-3000:]}")
    files = sorted(place.glob("*.jsonl"))
    processes = tuple(tuple(Moment(**json.loads(line)) for line in file.read_text().splitlines()) for file in files)
    trials = {int(file.stem) for file in files}
    return Run(time.time() - started, processes, {pid: samples for pid, samples in used.items() if pid not in trials})


def study(name: str, source: str, *, trials: int, epochs: int, **parts: Any) -> dict[str, Any]:
    """Return a study file as plain data."""
    return {
        "name": name,
        "data": {"source": source, "image_size": 32, "validation": 0.2},
        "backbone": "efficientnet_lite0",
        "factors": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        "budget": {"trials": trials, "epochs": epochs},
        "search": {"sampler": "random"},
        "early_stopping": "none",
        "resources": {"cpu": 1, "gpu": 0, "concurrent": SLOTS},
    } | parts


# The start of a trial


@dataclass(frozen=True)
class Start:
    """The start of a trial in a process that has had one: seconds from the last metrics of the one before.

    Attributes:
        total: until its first batch enters the network.
        decided: until it is taken on: report, decisions, journal, proposal, hand-over.
        cpu: processor time of the trial's process meanwhile.
    """

    total: float
    decided: float
    cpu: float


def starts(process: Sequence[Moment]) -> list[Start]:
    """Return the starts of a process's trials but the first."""
    found = []
    opened = [index for index, moment in enumerate(process) if moment.what == "opened"]
    for index in opened[1:]:
        before, taken = process[index - 1], process[index]
        first = next(moment for moment in process[index:] if moment.what == "batch")
        found.append(Start(first.time - before.time, taken.time - before.time, first.cpu - before.cpu))
    return found


def measure_starts(folder: Path, trials: int) -> float:
    """Print how long trials take to start; return the median with warm caches, in seconds."""
    factors = {
        "learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "frozen_depth": {"int": [0, "max"]},
        "data_fraction": {"choice": [0.25, 0.5, 1.0]},
    }
    median = 0.0
    for name in ("cold", "warm"):
        run = measure(study(name, "sklearn:digits", trials=trials, epochs=2, factors=factors), folder)
        found = [start for process in run.processes for start in starts(process)]
        totals = sorted(start.total for start in found)
        median = statistics.median(totals)
        print(
            f"trial start, caches {name}: median {median:.3f} s, p90 {np.quantile(totals, 0.9):.3f} s, "
            f"from {totals[0]:.3f} to {totals[-1]:.3f} s ({len(found)} starts in {len(run.processes)} processes), "
            f"of which {statistics.median(start.decided for start in found):.3f} s until the process has the trial; "
            f"processor time of the process: median {statistics.median(start.cpu for start in found):.3f} s; "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    return median


# The service's share


def write_images(folder: Path, count: int) -> str:
    """Write noisy images of four classes as IDX files; return the source."""
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.uint8) % 4
    images = rng.integers(0, 90, size=(count, 28, 28), dtype=np.uint8) + 40 * labels[:, None, None]
    folder.mkdir()
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        file.write(b"\x00\x00\x08\x03" + np.array(images.shape, ">u4").tobytes() + images.astype(np.uint8).tobytes())
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(b"\x00\x00\x08\x01" + np.array([count], ">u4").tobytes() + labels.tobytes())
    return f"idx:{folder}"


def reports(run: Run) -> list[list[Moment]]:
    """Return the reports of each process, in order."""
    return [[moment for moment in process if moment.what == "reported"] for process in run.processes]


def measure_share(folder: Path, trials: int, epochs: int, seconds: float) -> float:
    """Print the service's share of the time; return it."""
    sample = 640
    full = {"fixed": {"frozen_depth": 0}}
    first = measure(study("rate", write_images(folder / "few", sample), trials=SLOTS, epochs=2, **full), folder)
    pure = [report.pure for process in reports(first) for report in process[1:]]
    count = round(sample * seconds / statistics.mean(pure))
    run = measure(study("share", write_images(folder / "many", count), trials=trials, epochs=epochs, **full), folder)
    processes = reports(run)
    later = [report.pure for process in processes for report in process[1:]]
    period = sum(process[-1].time - process[0].time for process in processes)
    beside = period - sum(later)
    begin, end = max(process[0].time for process in processes), min(process[-1].time for process in processes)
    trained = SLOTS * (end - begin) * sum(later) / period  # seconds of pure training while all slots are at work
    service = {name: seconds / trained for name, seconds in run.service_seconds(begin, end).items()}
    share = beside / sum(later) + sum(service.values())
    parts = dict.fromkeys(PARTS, 0.0)
    for process, told in zip(run.processes, processes, strict=True):
        for moment in process:
            if moment.what in parts and moment.time > told[0].time:
                parts[moment.what] += moment.pure
    parts["reports, decisions, starts"] = beside - sum(parts.values())
    everything = sum(report.pure for process in processes for report in process)
    print(
        f"{trials} trials of {epochs} epochs of {statistics.mean(later):.1f} s ({count:,} images), {SLOTS} at a time: "
        f"{len(later)} epochs and {trials - len(processes)} trial starts measured, pure training {sum(later):.1f} s; "
        f"trials' processes besides {_split(parts, sum(later))}; "
        f"processor time of all other processes, {end - begin:.0f} s with all slots at work, {sum(service.values()):.2%}: "
        f"{', '.join(f'{name} {part:.2%}' for name, part in service.items())}; share {share:.2%}; "
        f"once a study (start, cold processes, end, findings): {run.wall - everything / SLOTS - beside / SLOTS:.1f} s; "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return share


def _split(seconds: Mapping[str, float], pure: float) -> str:
    total = sum(seconds.values())
    parts = ", ".join(f"{name} {part:.2f} s" for name, part in seconds.items())
    return f"{total:.2f} s ({total / pure:.2%}: {parts})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("start", "share"))
    parser.add_argument("--trials", type=int, help="default: 16 (start) and 4 (share)")
    parser.add_argument("--epochs", type=int, default=3, help="of share")
    parser.add_argument("--epoch-seconds", type=float, default=30.0)
    parser.add_argument("--start-at-most", type=float, default=0.5)
    parser.add_argument("--share-at-most", type=float, default=0.02)
    parser.add_argument("--study", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.study:
        run_study(asked.study, asked.study.parent)
        return
    points = []
    with scratch() as folder:
        if asked.only != "share":
            median = measure_starts(folder, asked.trials or 16)
            points.append(Point("warm trial start, median, in seconds", median, high=asked.start_at_most))
        if asked.only != "start":
            share = measure_share(folder, asked.trials or 4, asked.epochs, asked.epoch_seconds)
            what = f"service over pure training, {asked.epoch_seconds:g}-s epochs"
            points.append(Point(what, share, high=asked.share_at_most))
    judge(points)


if __name__ == "__main__":
    main()
