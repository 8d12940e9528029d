"""How many trials share a GPU: the decision, what is measured for it, and what trials that run out of memory change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import build_tiny_backbone, tiny_data
from toys import N_UNITS, toy_spec

from raystudy.errors import OutOfMemory, RaystudyError
from raystudy.finetune import gpu_share
from raystudy.finetune.gpu_memory import CudaMeter, GpuNeed, largest, measure_need
from raystudy.finetune.trial import TrialRun
from raystudy.search import capacity
from raystudy.search.capacity import Slots, most_per_gpu
from raystudy.search.packing import MOST, Packing, pack, trials_per_gpu
from raystudy.space import Space
from raystudy.spec import StudySpec
from raystudy.storage import attended

GIB = 2**30
WHOLE = Slots(cpu=1, gpu=1.0, concurrent=1, retries=2)


# The decision


@pytest.mark.parametrize(
    ("need", "total", "most", "expected"),
    [
        (10, 80, 4, 4),  # seven would fit
        (20, 80, 4, 3),  # 72 of 80 are divided
        (36, 80, 4, 2),
        (37, 80, 4, 1),
        (90, 80, 4, 1),  # does not fit at all: it is to fail in words
        (10, 80, 2, 2),
        (10, 80, 0, 1),
        (0, 80, 4, 4),
    ],
)
def test_as_many_trials_share_a_gpu_as_fit(need: int, total: int, most: int, expected: int) -> None:
    assert trials_per_gpu(need * GIB, total * GIB, most=most) == expected


@given(st.integers(1, 200 * GIB), st.integers(1, 200 * GIB), st.integers(0, 100))
def test_trials_that_share_never_need_more_than_nine_tenths_together(need: int, total: int, most: int) -> None:
    count = trials_per_gpu(need, total, most=most)
    assert 1 <= count <= MOST
    assert count <= max(most, 1)
    assert count == 1 or count * need <= 0.9 * total


# What the machines allow


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Any:
    def have(nodes: list[dict[str, float]], groups: list[tuple[dict[str, float], int]] | None = None) -> None:
        monkeypatch.setattr(capacity, "_nodes", lambda: nodes)
        monkeypatch.setattr(capacity, "_node_groups", lambda: iter(groups or []))

    return have


@pytest.mark.parametrize(
    ("nodes", "groups", "cpu", "trials", "expected"),
    [
        ([{"CPU": 16, "GPU": 1}], [], 1, 64, 16),
        ([{"CPU": 16, "GPU": 1}], [], 4, 64, 4),
        ([{"CPU": 16, "GPU": 1}], [], 4, 3, 3),
        ([{"CPU": 16, "GPU": 4}], [], 1, 64, 4),
        ([{"CPU": 16, "GPU": 4}], [], 1, 4, 1),  # a GPU for each
        ([{"CPU": 16, "GPU": 4}], [], 1, 5, 2),
        ([{"CPU": 2, "GPU": 4}], [], 1, 64, 1),
        ([{"CPU": 64, "GPU": 1}, {"CPU": 2, "GPU": 1}], [], 1, 64, 2),  # or the second one's trials would fill half a GPU
        ([{"CPU": 0, "GPU": 1}, {"CPU": 8, "GPU": 1}], [], 1, 64, 8),  # nothing runs on the first
        ([{"CPU": 64}], [({"CPU": 8, "GPU": 1}, 4)], 1, 64, 8),  # none yet
        ([{"CPU": 64}], [({"CPU": 8, "GPU": 1}, 40)], 1, 64, 2),
        ([{"CPU": 64}], [], 1, 64, 1),
    ],
)
def test_cpus_and_other_gpus_bound_how_many_share(
    nodes: Any, groups: Any, cpu: int, trials: int, expected: int, machines: Any
) -> None:
    machines(nodes, groups)
    assert most_per_gpu(cpu, trials) == expected


def asked(
    need: GpuNeed | Exception | None, spec: StudySpec | None = None, slots: Slots = WHOLE
) -> tuple[Slots, list[str], int]:
    """Return what `pack` makes of a measurement, what it says, and how often it asks for it."""
    said: list[str] = []
    times = []

    def measure() -> GpuNeed | None:
        times.append(1)
        if isinstance(need, Exception):
            raise need
        return need

    with attended(said.append, lambda: False):
        found = pack(spec or toy_spec(), slots, measure)
    return found, said, len(times)


def test_the_study_is_packed_by_its_largest_trial_and_says_so(machines: Any) -> None:
    machines([{"CPU": 16, "GPU": 2}])
    slots, said, _ = asked(GpuNeed(20 * GIB, 80 * GIB, "H100"))
    assert slots == Slots(cpu=1, gpu=1 / 3, concurrent=6, retries=2, learns=True)
    assert said == ["The largest trial needs 20.0 of the 80.0 GiB of H100: 3 trials share a GPU"]


@pytest.mark.parametrize("need", [None, RaystudyError("the node died"), OutOfMemory("CUDA out of memory")])
def test_without_a_measurement_each_trial_has_a_gpu_to_itself(need: Any, machines: Any) -> None:
    machines([{"CPU": 16, "GPU": 2}])
    assert asked(need)[0] == WHOLE


def test_a_trial_that_fits_once_has_a_gpu_to_itself(machines: Any) -> None:
    machines([{"CPU": 16, "GPU": 2}])
    slots, said, _ = asked(GpuNeed(50 * GIB, 80 * GIB))
    assert slots == WHOLE
    assert said == ["The largest trial needs 50.0 of the 80.0 GiB of a GPU: each trial has a GPU to itself"]


@pytest.mark.parametrize(
    ("resources", "slots"),
    [({"gpu": 1}, WHOLE), ({"gpu": 0.5}, Slots(1, 0.5, 2, 2)), ({}, Slots(1, 0.0, 8, 2)), ({"concurrent": 2}, WHOLE)],
    ids=["given", "a share is given", "no GPUs", "no more at a time than GPUs"],
)
def test_nothing_is_measured_where_the_answer_does_not_matter(resources: Any, slots: Slots, machines: Any) -> None:
    machines([{"CPU": 16, "GPU": 2}])
    found, _, times = asked(GpuNeed(GIB, 80 * GIB), toy_spec(resources=resources), slots)
    assert (found, times) == (slots, 0)


# What trials that run out of memory change


def packed(count: int, *, learns: bool = True) -> Packing:
    return Packing(Slots(1, 1 / count, 2 * count, 2, learns=learns), lambda gpu: 2 * round(1 / gpu))


def test_each_round_of_running_out_of_memory_leaves_one_trial_fewer_on_a_gpu() -> None:
    shared = packed(4)
    assert shared.retry_alone("t1", 1 / 4)
    assert (shared.gpu, shared.concurrent, shared.learnt) == (1 / 3, 6, 6)
    assert not shared.retry_alone("t2", 1 / 4)  # it was packed with the first one
    assert shared.retry_alone("t3", 1 / 3)
    assert shared.retry_alone("t4", 1 / 2)
    assert (shared.gpu, shared.concurrent) == (1.0, 2)
    assert shared.waiting == {"t1", "t2", "t3", "t4"}


def test_a_share_from_the_study_file_does_not_change() -> None:
    shared = packed(2, learns=False)
    assert not shared.retry_alone("t1", 0.5)
    assert (shared.gpu, shared.learnt, shared.waiting) == (0.5, None, {"t1"})


# What is measured


class Scale:
    """Plays a GPU's memory: every trial peaks at what is given for it."""

    def __init__(self, *peaks: int) -> None:
        self.peaks, self.started = peaks, 0

    def start(self) -> None:
        self.started += 1

    def peak(self) -> int:
        return self.peaks[self.started - 1]

    def context(self) -> int:
        return 7

    def total(self) -> int:
        return 1000

    def name(self) -> str:
        return "a toy"


def space_of(spec: StudySpec) -> Space:
    return Space.of(spec, n_units=N_UNITS)


def test_the_largest_trial_has_the_least_frozen_and_the_largest_batches() -> None:
    spec = toy_spec(
        factors={
            "batch_size": {"choice": [16, 128, 64]},
            "frozen_depth": {"int": [2, "max"]},
            "resolution": {"choice": [16, 0]},
            "optimizer": {"choice": ["sgd", "adamw"]},
            "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
            "mixup": {"uniform": [0.0, 0.4]},
            "cutmix": {"choice": [0.0, 1.0]},
            "training_objective": {"choice": ["self_supervised", "supervised"]},
        },
    )
    config = largest(spec, space_of(spec))
    expected = {
        "batch_size": 128,
        "frozen_depth": 2,
        "resolution": 0,  # 0 is the images' own size, here 32
        "optimizer": "adamw",
        "mixup": 0.4,
        "cutmix": 1.0,
        "training_objective": "self_supervised",
    }
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(("depth", "expected"), [({"choice": ["max"]}, N_UNITS), ({"choice": [3, 1, "max"]}, 1)])
def test_the_least_frozen_of_listed_depths(depth: Any, expected: int) -> None:
    spec = toy_spec(factors={"frozen_depth": depth, "learning_rate": {"log_uniform": [1e-4, 1e-1]}})
    assert largest(spec, space_of(spec))["frozen_depth"] in (expected, "max" if expected == N_UNITS else expected)


def test_the_largest_trial_is_trained_on_every_backbone_and_the_hungriest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = toy_spec(
        backbone=["efficientnet_lite0", "efficientnet_lite1"],
        factors={"learning_rate": {"log_uniform": [1e-4, 1e-1]}, "batch_size": {"choice": [4, 8]}},
        fixed={"frozen_depth": 1},
    )
    trained: list[int] = []
    original = TrialRun._run_epoch

    def run_epoch(self: TrialRun, parts: Any, epoch: int) -> Any:
        row = original(self, parts, epoch)
        trained.append(int(self.plan.config["batch_size"]))
        return row

    monkeypatch.setattr(TrialRun, "_run_epoch", run_epoch)
    before = torch.random.get_rng_state()
    meter = Scale(300, 200)
    need = measure_need(spec, space_of(spec), tiny_data(), device="cpu", backbone=build_tiny_backbone, meter=meter)
    assert need == GpuNeed(307, 1000, "a toy")
    assert meter.started == 2
    assert trained == [8, 8, 8, 8]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_largest_trial_that_does_not_fit_is_said_to_be_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_epoch(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrialRun, "_run_epoch", run_epoch)
    spec = toy_spec()
    with pytest.raises(OutOfMemory):
        measure_need(spec, space_of(spec), tiny_data(), device="cpu", backbone=build_tiny_backbone, meter=Scale(1))


def test_the_driver_counts_what_torch_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The context of a process is what is taken beyond torch's own reservations."""
    meter = CudaMeter(torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 9 * GIB)
    assert (meter.context(), meter.total()) == (GIB, 80 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 11 * GIB)
    assert meter.context() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_real_gpu_is_measured() -> None:
    spec = toy_spec()
    need = measure_need(spec, space_of(spec), tiny_data(), backbone=build_tiny_backbone)
    assert 2**20 < need.need < need.total
    assert need.gpu_name


# What a process keeps on a GPU that it shares


@pytest.mark.parametrize(
    ("share", "free", "held", "expected"),
    [(1.0, 70, 10, 70), (0.5, 70, 10, 35), (0.5, 20, 10, 20), (0.25, 70, 30, 0)],
)
def test_a_process_takes_no_more_than_its_share_leaves(share: float, free: int, held: int, expected: int) -> None:
    assert gpu_share.room_of(share, free=free, total=100, held=held) == expected


def test_the_share_is_that_of_the_last_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    try:
        gpu_share.take(0.5)
        assert gpu_share.room(torch.device("cuda")) == 45
        for whole in (0.0, 1.0, 2.0):
            gpu_share.take(whole)
            assert gpu_share.room(torch.device("cuda")) == 70
    finally:
        gpu_share.take(1.0)
