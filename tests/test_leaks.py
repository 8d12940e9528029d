"""One process trains hundreds of trials, as actors do that are handed from trial to trial: nothing of them stays behind.

Each trial has its network, its optimiser, its log, its checkpoints, a lock and mapped activations; all frozen depths and both
optimisers come by, some trials diverge, run out of memory or are stopped half way.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import N_UNITS, build_tiny_backbone, tiny_data
from toys import toy_spec

from raystudy.errors import Diverged, OutOfMemory
from raystudy.factors import Scalar
from raystudy.finetune import prefixes, trainer
from raystudy.finetune.trainer import FineTuneTrainer
from raystudy.finetune.trial import TrialRun
from raystudy.records import TrialState
from raystudy.search.worker import Worker
from raystudy.spec import StudySpec
from raystudy.work import Ticket

TRIALS, SETTLED = 200, 50
"""By then every depth, optimiser and mishap has come by several times, and what is kept on purpose is there."""
EPOCHS = 2

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")]


@dataclasses.dataclass(frozen=True)
class Holdings:
    """What the process has.

    Attributes:
        memory: bytes that are the process's own, without files that are mapped.
        files: open file descriptors.
        mapped: distinct files mapped into memory.
        threads: Python's and everybody else's.
        tensors: live ones.
        handlers: of the logger that writes trials' logs.
        on_gpu: bytes in live tensors there.
    """

    memory: int
    files: int
    mapped: int
    threads: int
    tensors: int
    handlers: int
    on_gpu: int

    @classmethod
    def now(cls) -> Holdings:
        """Look, after everything that can be collected has been."""
        gc.collect()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
        return cls(
            memory=int(status["RssAnon"].split()[0]) * 1024,
            files=len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            mapped=len({fields[5] for fields in maps if len(fields) == 6}),
            threads=max(int(status["Threads"]), threading.active_count()),
            tensors=sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()),
            handlers=len(logging.getLogger("raystudy").handlers),
            on_gpu=torch.cuda.memory_allocated() if torch.cuda.is_available() else 0,
        )


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let trials train the tiny backbone on tiny images, through the trainer that studies use."""
    data = dataclasses.replace(tiny_data(n_train=32, n_validation=16, side=16), pixels="tiny-16")
    # pytest keeps every line that reaches the root logger.
    monkeypatch.setattr(logging.getLogger("raystudy"), "propagate", False)
    monkeypatch.setattr(trainer, "build_backbone", build_tiny_backbone)
    monkeypatch.setattr(trainer, "unit_count", lambda _: N_UNITS)
    monkeypatch.setattr(trainer, "open_data", lambda *_: data)
    caches: list[Any] = [trainer._shared_data, trainer._shared_backbone]
    for cache in caches:
        cache.cache_clear()
    prefixes._readers.clear()
    yield
    for cache in caches:
        cache.cache_clear()
    prefixes._readers.clear()


def study() -> StudySpec:
    return toy_spec(budget={"trials": TRIALS, "epochs": EPOCHS}, features="on", early_stopping="none")


def config_of(number: int) -> Mapping[str, Scalar]:
    """Return a configuration; they repeat every 20 trials."""
    return study().full_config(
        {
            "batch_size": 8,
            "frozen_depth": number % (N_UNITS + 1),
            "optimizer": ("sgd", "adamw")[number % 2],
            "momentum": 0.9,
            "learning_rate": 0.01,
            "data_fraction": (0.5, 1.0)[number // 5 % 2],
        }
    )


def train(worker: Worker, number: int) -> TrialState | None:
    """Train a trial to its end, or for an epoch only, as where it is pruned; return how it ended by itself."""
    worker.start(Ticket(f"t{number:04d}", number, config_of(number)))
    for _ in range(1 if number % 7 == 0 else EPOCHS):
        step = worker.step()
        if step.state is not None:
            return step.state
    return None


def have_mishaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fifth of the trials end in the middle of an epoch."""
    original = TrialRun._validate

    def validate(self: TrialRun, *args: Any) -> Any:
        if self.plan.number % 10 == 3:
            raise Diverged("a loss is nan")
        if self.plan.number % 10 == 6:
            raise OutOfMemory("no room")
        return original(self, *args)

    monkeypatch.setattr(TrialRun, "_validate", validate)


def holdings_over_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> tuple[Holdings, Holdings]:
    """Train all trials in this process; return what it had after the first 50 and what it had in the end."""
    have_mishaps(monkeypatch)
    worker = Worker(FineTuneTrainer(study(), tmp_path / "checkpoints", tmp_path / "cache", device), logs=tmp_path / "logs")
    ended: list[TrialState | None] = []
    settled = Holdings.now()
    for number in range(TRIALS):
        ended.append(train(worker, number))
        if number + 1 == SETTLED:
            worker.close()
            settled = Holdings.now()
    worker.close()
    assert {TrialState.DIVERGED, TrialState.FAILED, None} == set(ended)
    assert ended.count(None) > TRIALS / 2
    assert next((tmp_path / "cache").rglob("*activations*"), None) is not None  # activations were stored, and read
    return settled, Holdings.now()


@pytest.mark.usefixtures("small_networks")
def test_two_hundred_trials_leave_nothing_behind_in_their_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled, last = holdings_over_a_study(tmp_path, monkeypatch, "cpu")
    print(settled, last, sep="\n")
    assert last.tensors <= settled.tensors
    assert last.files <= settled.files
    assert last.threads <= settled.threads
    assert last.handlers <= settled.handlers
    # Readers of activations are kept on purpose, eight of them at most, each of few blocks.
    assert last.mapped <= settled.mapped + prefixes._READERS_KEPT
    # Allocators keep pieces of what was freed, but the same ones trial after trial. A trial here holds over 100 KB in its
    # images, activations, network and optimiser: 150 trials that left a third of that would be 5 MB.
    assert last.memory - settled.memory < 5_000_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("small_networks")
def test_two_hundred_trials_leave_nothing_behind_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled, last = holdings_over_a_study(tmp_path, monkeypatch, "cuda")
    assert last.tensors <= settled.tensors
    # What readers keep there is bounded by their number; so few images take far less than 1 MB in all of them together.
    assert last.on_gpu <= settled.on_gpu + 2**20
    prefixes._readers.clear()
    gc.collect()
    assert torch.cuda.memory_allocated() <= 2**25  # the libraries' own workspaces
