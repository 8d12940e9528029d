from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny import build_tiny_backbone, tiny_data

from raystudy.cli import main
from raystudy.data import PreparedData
from raystudy.data.prepared import BadImage
from raystudy.finetune.backbone import BackboneInfo
from raystudy.finetune.probe import BackboneSpeed, Probe
from raystudy.plan import Plan, Room, make_plan, plan_to_dict, render_plan
from raystudy.plan.contents import CostPlan, TimePlan
from raystudy.plan.cost import local_room
from raystudy.plan.forecast import cell_shares, count_grid, expected_trials, forecast
from raystudy.space import Space
from raystudy.spec import StudySpec

N_UNITS = 4
LEARNING_RATE = {"learning_rate": {"log_uniform": [1e-4, 1e-1]}}
DIGITS = {"source": "sklearn:digits", "image_size": 8}


def study(factors: Mapping[str, Any] | None = None, **sections: Any) -> tuple[StudySpec, Space]:
    """Return a study over the tiny backbone's four units, by default without early stopping."""
    defaults: dict[str, Any] = {"backbone": "resnet18", "early_stopping": "none", "data": DIGITS}
    spec = StudySpec.from_dict({"name": "s", "factors": factors or LEARNING_RATE, **defaults, **sections})
    return spec, Space.of(spec, n_units=N_UNITS)


def tiny_info() -> BackboneInfo:
    return build_tiny_backbone().info


def plan_of(
    factors: Mapping[str, Any] | None = None,
    *,
    data: PreparedData | None = None,
    probe: Probe | None = None,
    room: Room | None = None,
    **sections: Any,
) -> Plan:
    spec, space = study(factors, **sections)
    infos = [dataclasses.replace(tiny_info(), name=name) for name in spec.backbones]
    return make_plan(spec, space, data or tiny_data(n_validation=120), probe=probe, backbones=infos, cores=4, room=room)


def made_probe(*, gpus: int = 0, names: tuple[str, ...] = ("resnet18",)) -> Probe:
    speed = BackboneSpeed(N_UNITS, (0, 2, 4), (4.0, 2.0, 1.0), (1.0, 1.0, 0.0), 10.0, 3.0, 10)
    return Probe(dict.fromkeys(names, speed), 10, 8, "CPU, 1 thread a trial", gpus, "float32", 5.0)


def text_of(plan: Plan, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render_plan(plan))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


# The forecast


def asha(**settings: Any) -> dict[str, Any]:
    return {"scheduler": "asha", "grace": 1, "reduction": 3, "keep": 0, **settings}


def outlook(factors: Mapping[str, Any] | None = None, *, trials: int, epochs: int, **stopping: Any) -> Any:
    spec, space = study(factors, early_stopping=asha(**stopping), budget={"trials": trials, "epochs": epochs})
    return forecast(spec, cell_shares(spec, space, trials), trials)


def test_without_stopping_every_trial_trains_for_the_whole_budget() -> None:
    plan = plan_of(budget={"trials": 10_000, "epochs": 27})
    assert plan.stopping is None
    assert plan.forecast.epochs == plan.epochs_without_stopping == 270_000
    assert plan.forecast.epochs_range == (270_000, 270_000)
    assert plan.forecast.completed == plan.trials == 10_000


@pytest.mark.parametrize(
    ("trials", "epochs", "stopping"),
    [
        (50, 1, {}),  # no rung below the budget
        (50, 27, {"keep": 1}),  # everything that would stop is kept
        (1, 27, {}),  # nothing to compare with
    ],
)
def test_trials_that_are_never_stopped_train_for_the_whole_budget(trials: int, epochs: int, stopping: dict[str, Any]) -> None:
    result = outlook(trials=trials, epochs=epochs, **stopping)
    assert result.epochs == trials * epochs
    assert result.completed == trials


def test_a_trial_alone_in_its_cell_is_never_stopped() -> None:
    # 2,000 cells for 3 trials: that two of them meet is improbable, and the seed is fixed.
    factors = {"batch_size": {"int": [1, 2000]}}
    result = outlook(factors, trials=3, epochs=27, within=["batch_size"])
    assert result.epochs == 3 * 27


@pytest.mark.parametrize(("trials", "reduction", "keep"), [(60, 3, 0.0), (60, 2, 0.0), (60, 3, 0.3), (300, 4, 0.05)])
def test_one_rung_agrees_with_the_closed_form(trials: int, reduction: int, keep: float) -> None:
    # The m-th value of exchangeable ones has any rank from 1 to m with equal probability, whatever came before.
    goes_on = [max(1, m // reduction) / m for m in range(1, trials + 1)]
    reach = sum(p + (1 - p) * keep for p in goes_on)
    result = outlook(trials=trials, epochs=2, reduction=reduction, keep=keep)
    assert result.arrivals == (trials,)
    spread = np.sqrt(sum(p * (1 - p) for p in goes_on) / 12)
    assert result.completed == pytest.approx(reach, abs=4 * spread + 0.01 * trials)
    assert result.epochs == pytest.approx(trials + result.completed)
    assert result.hold_outs == pytest.approx(keep * sum(1 - p for p in goes_on), abs=4 * spread + 0.01 * trials)


def test_of_two_trials_the_second_goes_on_every_other_time() -> None:
    assert outlook(trials=2, epochs=27).completed == pytest.approx(1.5, abs=0.3)


@pytest.mark.parametrize("trials", [800, 100_000])
def test_one_large_cell_spends_at_each_rung_the_share_that_successive_halving_promises(trials: int) -> None:
    # 1 + 2/3 + 6/9 + 18/27 epochs a trial; rungs that are not yet filled let a few more through.
    result = outlook(trials=trials, epochs=27)
    assert result.epochs == pytest.approx(3 * trials, rel=0.12)
    assert result.arrivals == pytest.approx([trials, trials / 3, trials / 9], rel=0.12)
    low, high = result.epochs_range
    assert low < result.epochs < high


def test_the_extrapolation_to_many_trials_agrees_with_playing_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outlook(trials=400, epochs=9)
    monkeypatch.setattr("raystudy.plan.forecast._MOST_SIMULATED", 150)
    assert outlook(trials=400, epochs=9).epochs == pytest.approx(whole.epochs, rel=0.05)


def test_the_same_study_gives_the_same_forecast() -> None:
    assert outlook(trials=40, epochs=9, keep=0.1) == outlook(trials=40, epochs=9, keep=0.1)


def test_more_cells_stop_fewer_trials() -> None:
    factors = {"batch_size": {"int": [1, 10]}, **LEARNING_RATE}
    one = outlook(factors, trials=40, epochs=27)
    ten = outlook(factors, trials=40, epochs=27, within=["batch_size"])
    assert ten.epochs > one.epochs


# Cells and grids


def test_cells_have_the_shares_of_the_declared_distribution() -> None:
    factors = {
        "optimizer": {"choice": ["sgd", "adamw"]},
        "schedule": {"choice": ["constant", "cosine", "step"], "when": {"optimizer": "sgd"}},
        **LEARNING_RATE,
    }
    spec, space = study(factors, early_stopping=asha(within=["schedule"]))
    shares = cell_shares(spec, space, 30)
    assert shares == pytest.approx({(None,): 1 / 2, ("constant",): 1 / 6, ("cosine",): 1 / 6, ("step",): 1 / 6})


def test_cells_are_by_default_those_of_data_fraction_and_backbone() -> None:
    factors = {"data_fraction": {"choice": [0.1, 0.5, 1.0]}, **LEARNING_RATE}
    stopping = plan_of(factors, backbone=["resnet18", "resnet34"], early_stopping=asha(), budget={"trials": 30}).stopping
    assert stopping is not None
    assert stopping.cells == 6
    assert stopping.trials_per_cell == pytest.approx((5, 5))


def test_more_cells_than_can_be_listed_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystudy.plan.forecast._MOST_CONFIGURATIONS", 500)
    factors = {"batch_size": {"int": [1, 5000]}, "resolution": {"int": [8, 2008]}}
    spec, space = study(factors, early_stopping=asha(within=["batch_size", "resolution"]))
    shares = cell_shares(spec, space, 100)
    assert len(shares) > 490
    assert sum(shares.values()) == pytest.approx(1)


def test_no_cell_factors_are_one_cell() -> None:
    spec, space = study(early_stopping=asha())
    assert cell_shares(spec, space, 10) == {(): 1}


NAMES = ("momentum", "weight_decay", "dropout", "mixup", "label_smoothing")


@st.composite
def grids(draw: st.DrawFn) -> dict[str, Any]:
    factors: dict[str, Any] = {}
    for index, name in enumerate(NAMES[: draw(st.integers(1, 5))]):
        values = [0.1 * (k + 1) for k in range(draw(st.integers(1, 4)))]
        factors[name] = {"choice": values}
        if index and draw(st.booleans()):
            parent = draw(st.sampled_from(NAMES[:index]))
            factors[name]["when"] = {parent: draw(st.sampled_from(factors[parent]["choice"]))}
    return factors


@settings(max_examples=60, deadline=None)
@given(grids())
def test_the_grid_is_counted_as_it_is_enumerated(factors: dict[str, Any]) -> None:
    _, space = study(factors, search={"sampler": "grid"})
    assert count_grid(space) == sum(1 for _ in space.grid())


def test_a_huge_grid_is_counted_at_once() -> None:
    factors = {"batch_size": {"int": [1, 60_000]}, "resolution": {"int": [1, 2000]}, "frozen_depth": {"int": [0, "max"]}}
    _, space = study(factors, search={"sampler": "grid"})
    assert count_grid(space) == 60_000 * 2000 * (N_UNITS + 1)


def test_a_condition_on_a_huge_range_is_counted_at_once() -> None:
    factors = {"seed": {"int": [0, 2**31 - 1]}, "optimizer": {"choice": ["sgd", "adamw"], "when": {"seed": [5, 7]}}}
    _, space = study(factors, search={"sampler": "grid"})
    assert count_grid(space) == 2**31 + 2


def test_a_grid_ends_a_study_after_its_start_points_and_its_last_point() -> None:
    spec, space = study(
        {"optimizer": {"choice": ["sgd", "adamw"]}},
        search={"sampler": "grid", "points": [{"optimizer": "sgd"}]},
        budget={"trials": 10},
    )
    assert expected_trials(spec, count_grid(space)) == 3


# The plan


def test_each_depth_says_what_it_freezes_and_what_is_left_to_train() -> None:
    (backbone,) = plan_of(data=tiny_data(n_classes=3)).backbones
    info = tiny_info()
    total = sum(info.unit_parameters)
    assert backbone.parameters == total
    assert backbone.head_parameters == (info.n_features + 1) * 3
    assert [row.unit for row in backbone.depths] == ["", *info.unit_names]
    assert [row.frozen for row in backbone.depths] == [0, *itertools.accumulate(info.unit_parameters)]
    assert all(row.frozen + row.trained == total + backbone.head_parameters for row in backbone.depths)
    assert backbone.depths[-1].frozen_share == 1


@pytest.mark.parametrize(
    ("sections", "depths"),
    [
        ({}, {0}),
        ({"fixed": {"frozen_depth": "max"}}, {4}),
        ({"factors": {"frozen_depth": {"int": [1, "max"]}}}, {1, 2, 3, 4}),
        ({"factors": {"frozen_depth": {"choice": [0, "max"]}}}, {0, 4}),
    ],
)
def test_the_depths_of_the_study_are_marked(sections: dict[str, Any], depths: set[int]) -> None:
    (backbone,) = plan_of(**sections).backbones
    assert {row.depth for row in backbone.depths if row.in_study} == depths


def test_factors_are_described_in_words() -> None:
    factors = {
        "learning_rate": {"log_uniform": [1e-4, 0.1]},
        "frozen_depth": {"int": [0, "max"]},
        "momentum": {"uniform": [0.8, 0.9], "step": 0.05, "when": {"optimizer": ["sgd"]}},
        "optimizer": {"choice": ["sgd", "adamw"], "role": "scientific"},
        "batch_size": {"log_int": [8, 256]},
    }
    described = {factor.name: (factor.values, factor.role, factor.condition) for factor in plan_of(factors).factors}
    assert described == {
        "learning_rate": ("0.0001 to 0.1, uniform on the logarithm", "nuisance", ""),
        "frozen_depth": ("0 to 4, whole numbers", "scientific", ""),
        "optimizer": ("one of sgd, adamw", "scientific", ""),
        "momentum": ("0.8 to 0.9, uniform, in steps of 0.05", "nuisance", "optimizer is sgd"),
        "batch_size": ("8 to 256, whole numbers, uniform on the logarithm", "nuisance", ""),
    }


def test_steps_of_an_epoch_count_the_full_split_unless_the_unit_is_the_subset() -> None:
    factors = {"batch_size": {"choice": [5, 10]}, "data_fraction": {"choice": [0.5, 1.0]}}
    data = tiny_data(n_train=30, n_validation=120)
    assert plan_of(factors, data=data).steps_per_epoch == (3, 6)
    assert plan_of(factors, data=data, budget={"unit": "subset_epoch"}).steps_per_epoch == (2, 6)


def test_the_plan_is_plain_data_for_json() -> None:
    plan = plan_of(early_stopping=asha(), probe=made_probe())
    content = json.loads(json.dumps(plan_to_dict(plan), allow_nan=False))
    assert content["cost"]["unit"] == "CPU-hours"
    assert content["gpu_hours"] is None
    assert content["trials"] == plan.trials
    assert content["backbones"][0]["depths"][4]["unit"] == "pool"


def test_planning_imports_neither_torch_nor_ray_nor_mlflow_nor_rich() -> None:
    code = "import sys, raystudy.plan; print({'torch', 'ray', 'mlflow', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_a_study_on_standard_input_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYSTUDY_CACHE", str(tmp_path))
    spec, _ = study(backbone="efficientnet_lite0", data={"source": "sklearn:digits", "image_size": 32})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(spec.to_yaml().encode())))
    with pytest.raises(SystemExit, match="0"):
        main(["validate", "-", "--no-probe"])
    assert capsys.readouterr().out.endswith("s is right; nothing was started\n")


# Time


def test_the_wall_time_follows_from_the_probe() -> None:
    # 30 images in steps of 10 of 4 s, 120 validation images at 10 a second, 1 s for the checkpoint: 25 s an epoch.
    plan = plan_of(fixed={"batch_size": 10}, budget={"trials": 8, "epochs": 2}, resources={"cpu": 2}, probe=made_probe())
    assert plan.time is not None
    assert plan.time.epoch_seconds == pytest.approx(25)
    assert plan.time.concurrent == 2  # of 4 cores
    assert plan.time.seconds == pytest.approx((16 * 25 + 8 * 3) / 2)


def test_frozen_trials_and_fewer_pixels_are_cheaper() -> None:
    def seconds(**fixed: Any) -> float:
        time = plan_of(fixed={"batch_size": 10, **fixed}, probe=made_probe()).time
        assert time is not None
        return time.epoch_seconds

    assert seconds(frozen_depth="max") == pytest.approx(3 + 12)
    assert seconds(frozen_depth=1) == pytest.approx(9 + 12 + 1)
    assert seconds(resolution=4) == pytest.approx((12 + 12) / 4 + 1)
    assert seconds(strategy="lp_ft", lp_share=0.5) == pytest.approx((12 + 3) / 2 + 12 + 1)


def test_without_labels_there_are_two_views_an_image_and_class_means_of_those_that_are_trained_on() -> None:
    factors = {"training_objective": {"choice": ["supervised", "self_supervised"]}}
    time = plan_of(factors, fixed={"batch_size": 10}, probe=made_probe()).time
    assert time is not None
    assert (time.fastest_epoch_seconds, time.slowest_epoch_seconds) == (25, 2 * 12 + (120 + 30) / 10 + 1)


def test_the_study_takes_at_least_as_long_as_one_whole_trial() -> None:
    plan = plan_of(fixed={"batch_size": 10}, budget={"trials": 2, "epochs": 9}, probe=made_probe())
    assert plan.time is not None
    assert plan.time.seconds == pytest.approx(9 * 25 + 3)


@pytest.mark.parametrize(
    ("resources", "gpus", "gpu", "concurrent", "abreast"),
    [
        ({"cpu": 1}, 0, 0, 8, 8),
        ({"cpu": 3}, 0, 0, 2, 2),
        ({"cpu": 16}, 0, 0, 1, 1),
        ({"concurrent": 2}, 0, 0, 2, 2),
        ({"concurrent": 100}, 0, 0, 8, 8),
        ({"cpu": 1}, 2, 1, 2, 2),
        ({"gpu": 0.25}, 2, 0.25, 8, 2),  # sharing a GPU is sharing its speed
        ({"gpu": 0.25, "cpu": 4}, 1, 0.25, 2, 1),
        ({"gpu": 0.25, "concurrent": 1}, 2, 0.25, 1, 1),
        ({"gpu": 2}, 4, 2, 2, 2),
        ({"gpu": 0}, 2, 0, 8, 8),
        ({"gpu": 1}, 0, 0, 8, 8),  # a machine without a GPU was measured
    ],
)
def test_as_many_trials_run_as_fit(resources: dict[str, Any], gpus: int, gpu: float, concurrent: int, abreast: int) -> None:
    spec, _ = study(resources=resources)
    room = local_room(spec, made_probe(gpus=gpus), cores=8)
    assert room == Room(spec.resources.cpu, gpu, concurrent, abreast)


# GPU-hours and money

WORK_S = 16 * 25 + 8 * 3
"""Eight trials of two epochs of 25 s, each set up in 3 s."""


def estimate_of(
    resources: dict[str, Any], *, gpus: int = 0, room: Room | None = None, **sections: Any
) -> tuple[TimePlan, CostPlan]:
    sections = {"fixed": {"batch_size": 10}, "budget": {"trials": 8, "epochs": 2}, **sections}
    plan = plan_of(resources=resources, probe=made_probe(gpus=gpus), room=room, **sections)
    assert plan.time is not None
    assert plan.cost is not None
    return plan.time, plan.cost


@pytest.mark.parametrize(
    ("resources", "gpus", "unit", "per_trial", "seconds"),
    [
        ({}, 0, "CPU-hours", 1, WORK_S),
        ({"cpu": 2}, 0, "CPU-hours", 2, 2 * WORK_S),
        ({"cpu": 2, "gpu": 0}, 1, "CPU-hours", 2, 2 * WORK_S),
        ({"cpu": 2}, 1, "GPU-hours", 1, WORK_S),
        ({"gpu": 2}, 4, "GPU-hours", 2, 2 * WORK_S),
        ({"gpu": 0.25}, 1, "GPU-hours", 0.25, WORK_S),  # a quarter of a GPU for four times as long
        ({"gpu": 0.25, "concurrent": 1}, 1, "GPU-hours", 0.25, WORK_S / 4),  # all of its speed
        ({"gpu": 0.5, "concurrent": 3}, 1, "GPU-hours", 0.5, WORK_S),
    ],
)
def test_hours_are_those_for_which_trials_hold_their_processors(
    resources: dict[str, Any], gpus: int, unit: str, per_trial: float, seconds: float
) -> None:
    _, cost = estimate_of(resources, gpus=gpus)
    assert (cost.unit, cost.per_trial) == (unit, per_trial)
    assert cost.hours == pytest.approx(seconds / 3600)
    assert cost.hours == cost.hours_without_stopping
    assert cost.hours_range == (cost.hours, cost.hours)
    assert (cost.price, cost.money, cost.money_range, cost.money_without_stopping) == (None, None, None, None)


def test_hours_and_money_follow_from_the_expected_epochs() -> None:
    plan = plan_of(**CLEAN, resources={"gpu_hour_price": 7200}, probe=made_probe(gpus=1))
    low, high = plan.forecast.epochs_range
    assert plan.cost is not None

    def hours(epochs: float) -> float:
        return (epochs * 25 + 40 * 3) / 3600

    assert plan.cost.hours == pytest.approx(hours(plan.forecast.epochs))
    assert plan.cost.hours_range == pytest.approx((hours(low), hours(high)))
    assert plan.cost.hours_without_stopping == pytest.approx(hours(40 * 9))
    assert plan.cost.money == pytest.approx(7200 * plan.cost.hours)
    assert plan.cost.money_range == pytest.approx((7200 * hours(low), 7200 * hours(high)))
    assert plan.cost.money_without_stopping == pytest.approx(7200 * hours(40 * 9))


def test_where_no_gpu_is_used_a_price_of_gpus_costs_nothing() -> None:
    _, cost = estimate_of({"gpu_hour_price": 2})
    assert cost.money is None


def test_on_a_cluster_its_slots_count_not_this_machines_cores() -> None:
    time, cost = estimate_of({"gpu_hour_price": 2}, room=Room(2, 1.0, 6, 6, node="gpu-7"))
    assert (time.node, time.concurrent) == ("gpu-7", 6)
    assert time.seconds == pytest.approx(max(WORK_S / 6, 3 + 2 * 25))
    assert cost.unit == "GPU-hours"
    assert cost.hours == pytest.approx(WORK_S / 3600)
    assert cost.money == pytest.approx(WORK_S / 1800)


def test_no_more_trials_run_at_a_time_than_there_are() -> None:
    time, cost = estimate_of({"gpu": 0.1}, room=Room(1, 0.1, 100, 10))
    assert time.concurrent == 8
    assert cost.hours == pytest.approx(0.1 * WORK_S / 3600)  # each has a GPU to itself


# Warnings

CLEAN: dict[str, Any] = {"budget": {"trials": 40, "epochs": 9}, "early_stopping": asha(), "fixed": {"batch_size": 10}}

DOUBTS: list[tuple[str, dict[str, Any]]] = [
    ("no rung below budget.epochs = 1", {"budget": {"trials": 40, "epochs": 1}}),
    ("all 16 trials are random", {"budget": {"trials": 16, "epochs": 9}}),
    ("search.points has 2 configurations", {"budget": {"trials": 1}, "search": {"points": [{"learning_rate": 0.01}] * 2}}),
    (
        "the grid has 240 points, but budget.trials leaves room for 40",
        {"factors": {"batch_size": {"int": [1, 240]}}, "fixed": {}, "search": {"sampler": "grid"}},
    ),
    (
        "the study ends after 12 of 40",
        {"factors": {"batch_size": {"int": [1, 12]}}, "fixed": {}, "search": {"sampler": "grid"}},
    ),
    (
        "only 2.0 trials are expected in each of the 20 cells of batch_size",
        {"factors": {"batch_size": {"int": [1, 20]}}, "fixed": {}, "early_stopping": asha(within=["batch_size"])},
    ),
    (
        "schedule is in question, but active in about",
        {
            "factors": {
                "dropout": {"choice": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]},
                "schedule": {"choice": ["constant", "cosine"], "role": "scientific", "when": {"dropout": 0.5}},
            }
        },
    ),
    (
        "data_fraction is in question and has 20 levels: 2.0 trials a level",
        {"factors": {"data_fraction": {"choice": [k / 20 for k in range(1, 21)]}}, "early_stopping": asha(within=[])},
    ),
    (
        "momentum also varies where it has no effect",
        {"factors": {"momentum": {"uniform": [0.8, 0.9]}, "optimizer": {"choice": ["sgd", "adamw"]}}},
    ),
    ("momentum varies but has no effect: it needs optimizer: sgd", {"factors": {"momentum": {"uniform": [0.8, 0.9]}}}),
    (
        "frozen_depth has no effect wherever tuned_unit",
        {"factors": {"tuned_unit": {"int": [-1, 3]}, "frozen_depth": {"int": [0, "max"]}}},
    ),
    ("an epoch is a single optimiser step", {"fixed": {"batch_size": 64}}),
    ("budget.gpu_hours limits nothing", {"budget": {"trials": 40, "epochs": 9, "gpu_hours": 5}, "resources": {"gpu": 0}}),
    (
        "GPU-hours and budget.gpu_hours is 0.5: about 65 %",
        {"budget": {"trials": 40, "epochs": 9, "gpu_hours": 0.5}, "probe": made_probe(gpus=1)},
    ),
    (
        "on the cluster and budget.hours is 0.05",
        {"budget": {"trials": 40, "epochs": 9, "hours": 0.05}, "probe": made_probe(), "room": Room(1, 0, 4, 4, node="n")},
    ),
    (
        "on this machine and budget.hours is 0.05: about",
        {"budget": {"trials": 40, "epochs": 9, "hours": 0.05}, "probe": made_probe()},
    ),
]


def test_a_sound_study_raises_no_doubts() -> None:
    factors = {
        "frozen_depth": {"int": [0, "max"]},
        "optimizer": {"choice": ["sgd", "adamw"]},
        "momentum": {"uniform": [0.8, 0.9], "when": {"optimizer": "sgd"}},
    }
    assert plan_of(factors, **CLEAN, probe=made_probe()).warnings == ()


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_sufficient_budget_of_gpu_hours_raises_no_doubts(gpus: int) -> None:
    sections = {**CLEAN, "budget": {"trials": 40, "epochs": 9, "gpu_hours": 100}}
    assert plan_of(**sections, probe=made_probe(gpus=gpus)).warnings == ()


@pytest.mark.parametrize(("words", "sections"), DOUBTS, ids=[words[:40] for words, _ in DOUBTS])
def test_what_keeps_a_study_from_its_answer_is_said(words: str, sections: dict[str, Any]) -> None:
    sections = {**CLEAN, **sections}
    (doubt,) = [warning for warning in plan_of(**sections).warnings if words in warning]
    assert doubt


def test_a_small_validation_split_is_pointed_out() -> None:
    (doubt,) = plan_of(data=tiny_data(n_validation=14), **CLEAN).warnings
    assert "14 validation images: an accuracy of 90 % is known to within about 16 points" in doubt


def test_backbones_of_different_depths_are_pointed_out() -> None:
    spec, space = study({"frozen_depth": {"int": [0, "max"]}}, backbone=["resnet18", "resnet34"], **CLEAN)
    longer = dataclasses.replace(tiny_info(), n_units=5, unit_names=tuple("abcde"), unit_parameters=(1, 2, 3, 4, 5))
    plan = make_plan(spec, space, tiny_data(n_validation=120), backbones=[tiny_info(), longer], cores=1)
    assert [warning for warning in plan.warnings if "(resnet18 4, resnet34 5)" in warning]


# Rendering


@pytest.mark.parametrize("width", [80, 100])
def test_every_part_of_the_plan_is_shown_within_the_width(width: int) -> None:
    sections = {**CLEAN, "resources": {"gpu_hour_price": 1234.5}, "budget": {"trials": 4000, "epochs": 9, "gpu_hours": 1e6}}
    room = Room(4, 1.0, 64, 64, node="ip-10-0-17-254.eu-central-1.compute.internal")
    plan = plan_of({"frozen_depth": {"int": [0, "max"]}, **LEARNING_RATE}, **sections, probe=made_probe(), room=room)
    text = text_of(plan, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())  # lines may be broken anywhere between words
    for part in (
        "class 0",
        "pool (linear probe)",
        "learning_rate",
        "batch_size 10",
        "tpe, seed 0",
        "asha",
        "an epoch (",
        "time on cluster",
        "GPU-hours",
        "money",
        "GPU budget 1,000,000 GPU-hours",
    ):
        assert part in words
    assert "…" not in text  # nothing was cut off


def rows_of(plan: Plan) -> dict[str, str]:
    """Return the rows under the heading Cost, by their names."""
    lines = text_of(plan, width=140).split("\nCost  ")[1].splitlines()[1:]
    rows = [re.split(r"  +", line.strip(), maxsplit=1) for line in lines if line.startswith("  ") and line.strip()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def with_cost(**changes: Any) -> Plan:
    plan = plan_of(**CLEAN, resources={"gpu_hour_price": 2}, probe=made_probe(gpus=1))
    assert plan.cost is not None
    return dataclasses.replace(plan, cost=dataclasses.replace(plan.cost, **changes), warnings=())


def test_gpu_hours_and_money_are_shown_with_their_ranges_and_without_stopping() -> None:
    plan = with_cost(
        hours=1234.56, hours_range=(20.04, 1999.5), hours_without_stopping=0.012345 + 1e6,
        price=1234.5, money=1234567.891, money_range=(0.005, 12.3), money_without_stopping=2e6,
    )  # fmt: skip
    rows = rows_of(plan)
    assert rows["GPU-hours"] == "about 1,235 (20 to 2,000), 1,000,000 without stopping"
    assert rows["money"] == "about 1,234,567.89 (0.01 to 12.30), 2,000,000.00 without stopping, at 1,234.5 a GPU-hour"
    assert "CPU-hours" not in rows


def test_what_is_certain_or_unknown_is_not_shown() -> None:
    rows = rows_of(with_cost(unit="CPU-hours", hours=3.0, hours_range=(3.0, 3.0), hours_without_stopping=3.0, money=None))
    assert rows["CPU-hours"] == "about 3"
    assert not {"money", "GPU-hours", "GPU budget", "time budget"} & rows.keys()


def test_the_cluster_and_its_measured_node_are_named() -> None:
    rows = rows_of(plan_of(**CLEAN, probe=made_probe(), room=Room(1, 1.0, 6, 6, node="gpu-7")))
    assert rows["measured"].startswith("CPU, 1 thread a trial, float32, on gpu-7: about 25 s an epoch")
    assert rows["time on cluster"].endswith("6 trials at a time")
    assert "time here" not in rows


def test_budgets_are_shown() -> None:
    rows = rows_of(plan_of(budget={"hours": 4, "gpu_hours": 1250.5}, probe=made_probe(gpus=1)))
    assert (rows["time budget"], rows["GPU budget"]) == ("4 h", "1,250.5 GPU-hours")


def test_without_a_probe_everything_else_is_shown() -> None:
    plan = plan_of(**CLEAN, resources={"gpu_hour_price": 2})
    assert (plan.time, plan.cost) == (None, None)
    rows = rows_of(plan)
    assert rows["time and cost"] == "not estimated (no probe)"
    assert {"with stopping", "expected trials"} <= rows.keys()
    assert not {"GPU-hours", "CPU-hours", "money"} & rows.keys()
    assert "asha, rungs at epoch 1, 3" in text_of(plan)
    assert "40 trials of up to 9 epochs" in text_of(plan)


def test_names_from_outside_are_shown_as_they_are() -> None:
    data = dataclasses.replace(
        tiny_data(),
        class_names=("[bold]x[/bold]", "ünï 猫", "[/]"),
        bad=tuple(BadImage(f"[red]{k}.jpg", "empty file") for k in range(7)),
        warnings=("a [link=x]warning[/link]",),
    )
    text = text_of(plan_of(data=data))
    for part in ("[bold]x[/bold]", "ünï 猫", "[/]", "[red]4.jpg: empty file", "and 2 more", "a [link=x]warning[/link]"):
        assert part in text


def test_many_classes_and_many_units_are_shortened() -> None:
    names = tuple(f"class {k:03}" for k in range(300))
    data = dataclasses.replace(tiny_data(), class_names=names)
    spec, space = study()
    sizes = tuple(range(1, 104))
    info = dataclasses.replace(tiny_info(), n_units=103, unit_names=tuple(f"unit{k}" for k in sizes), unit_parameters=sizes)
    text = text_of(make_plan(spec, space, data, backbones=[info], cores=1))
    assert "288 more, by size" in text
    assert "24 of 104 depths are shown" in text
    assert "unit103 (linear probe)" in text
    assert len(text.splitlines()) < 80
