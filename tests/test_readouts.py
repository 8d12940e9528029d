from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from journals import Clock, config_of, metrics_of, spec_dict, started, study_events
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score
from stores import empty_store, feed
from tiny import N_UNITS, build_tiny_backbone, conv_unit, tiny_data, tiny_hyper, tiny_model, tiny_plan, without_time
from torch import Tensor, nn

from raystudy.data import open_data
from raystudy.factors import Scalar
from raystudy.findings.figures import save
from raystudy.findings.readout_figures import readout_figure
from raystudy.findings.readouts import PER_UNIT, ReadOut, from_lines, to_line
from raystudy.finetune import model, readouts, readouts_probe, readouts_trial, trial
from raystudy.finetune.batches import ImageStore
from raystudy.finetune.checkpoint import Row
from raystudy.finetune.compute import Compute
from raystudy.finetune.freezing import freeze, phases
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.model import FineTuneModel, build_classifier
from raystudy.finetune.readouts_file import FILE, append, read
from raystudy.finetune.readouts_probe import probe_images
from raystudy.finetune.readouts_trial import ReadOuts
from raystudy.finetune.trainer import FineTuneTrainer, readout_epochs
from raystudy.finetune.trial import TrialRun
from raystudy.paths import StudyPaths
from raystudy.records import Event, Reported, StudyEnded, StudyRecord, StudyState, TrialEnded, TrialStarted, TrialState
from raystudy.spec import StudySpec
from raystudy.tracking import names
from raystudy.tracking.journal import read_journal
from raystudy.tracking.models import ModelKeeper
from raystudy.tracking.reader import StudyReader
from raystudy.tracking.readouts import store_readouts
from raystudy.tracking.store import Store, StoreDown
from raystudy.tracking.verify import compare
from raystudy.work import Ticket

CPU = Compute.choose("cpu", "float32")
EPOCHS = 4
CONFIGS: dict[str, dict[str, Scalar]] = {
    "full": {"dropout": 0.3, "optimizer": "sgd"},
    "frozen": {"frozen_depth": 2, "augmentation": "standard", "mixup": 0.4},
    "surgical": {"tuned_unit": 1, "batch_norm": "eval"},
    "gradual": {"strategy": "gradual", "lp_share": 0.9},
    "probe": {"frozen_depth": N_UNITS},
    "scratch": {"pretrained": False, "resolution": 6},
    "reinit": {"reinit_units": 2, "frozen_depth": 1},
}


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    readouts_trial._starts.clear()
    readouts_trial._keys.clear()
    yield
    readouts_trial._starts.clear()
    readouts_trial._keys.clear()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def run_of(
    folder: Path, config: dict[str, Scalar] | None = None, *, at: tuple[int, ...] = (2, EPOCHS), epochs: int = EPOCHS
) -> TrialRun:
    plan = dataclasses.replace(tiny_plan(config, epochs=epochs), readout_epochs=at)
    return TrialRun(plan, tiny_data(n_validation=40), folder, backbone=build_tiny_backbone)


def rows_of(run: TrialRun, n: int | None = None) -> list[Row]:
    return [without_time(row) for row in itertools.islice(run.epochs(), n)]


def untimed(found: list[ReadOut]) -> list[ReadOut]:
    return [dataclasses.replace(one, seconds=0.0) for one in found]


# CKA


def gram_cka(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return CKA as HSIC of Gram matrices centred by the centring matrix: another way to the same number."""
    h = np.eye(len(x)) - 1 / len(x)

    def hsic(k: NDArray[Any], other: NDArray[Any]) -> float:
        return float(np.trace(k @ h @ other @ h))

    k, other = x @ x.T, y @ y.T
    return hsic(k, other) / math.sqrt(hsic(k, k) * hsic(other, other))


@pytest.mark.parametrize(("p", "q"), [(5, 7), (90, 40), (8, 90), (1, 3)])
def test_cka_is_that_of_centred_gram_matrices(p: int, q: int) -> None:
    x = normal(30, p) + 3
    y = torch.tanh(x @ normal(p, q, seed=1)) + 0.3 * normal(30, q, seed=2) - 1
    found = readouts.linear_cka(x.float(), y.float()).cka
    assert found == pytest.approx(gram_cka(x.float().numpy().astype(float), y.float().numpy().astype(float)), abs=1e-9)
    assert found is not None and 0 < found < 1


@pytest.mark.parametrize("d", [6, 50])
def test_cka_does_not_see_rotations_scales_and_shifts(d: int) -> None:
    x, y = normal(20, d), normal(20, d, seed=1)
    rotation = torch.linalg.qr(normal(d, d, seed=2)).Q
    plain, turned = readouts.linear_cka(x, y), readouts.linear_cka(3 * x @ rotation + 5, -0.1 * y)
    assert turned.cka == pytest.approx(plain.cka, abs=1e-10)
    assert turned.chance == pytest.approx(plain.chance, abs=1e-10)
    assert readouts.linear_cka(x, 7 * x @ rotation - 2).cka == pytest.approx(1, abs=1e-10)
    stretched = x * torch.linspace(0.01, 10, d)
    assert readouts.linear_cka(x, stretched).cka != pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("d", [4, 60])
def test_cka_by_chance_is_the_mean_over_shuffled_images(d: int) -> None:
    x, y = normal(20, d), normal(20, d, seed=1)
    generator = torch.Generator().manual_seed(0)
    shuffled = [readouts.linear_cka(x, y[torch.randperm(20, generator=generator)]).cka or 0.0 for _ in range(2000)]
    assert readouts.linear_cka(x, y).chance == pytest.approx(
        np.mean(shuffled), abs=4 * float(np.std(shuffled)) / math.sqrt(2000)
    )


def test_cka_of_features_that_never_vary_is_unknown() -> None:
    assert readouts.linear_cka(torch.ones(5, 3), normal(5, 3)) == (None, None)


# Weights


def test_weight_change_of_a_known_move() -> None:
    first, second = normal(4, 3).float(), normal(5, seed=1).float()
    pairs = [(first, first * 1.25), (second, second * 0.75)]
    assert readouts.weight_change(pairs) == pytest.approx(0.25, abs=1e-7)
    moved = [(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 1.0])), (torch.tensor([4.0]), torch.tensor([6.0]))]
    assert readouts.weight_change(moved) == pytest.approx(math.sqrt(1 + 4) / 5)
    assert readouts.weight_change([(first, first.clone())]) == 0
    assert readouts.weight_change([(torch.zeros(3), torch.ones(3))]) is None


@pytest.mark.parametrize("degrees", [1e-4, 0.3, 30, 90, 150, 180])
def test_angle_of_a_known_turn_whatever_the_lengths(degrees: float) -> None:
    u = normal(60)
    u /= u.norm()
    v = normal(60, seed=1)
    v = v - (v @ u) * u
    v /= v.norm()
    turned = 7 * (math.cos(math.radians(degrees)) * u + math.sin(math.radians(degrees)) * v)
    pairs = [(2 * u[:20], turned[:20]), (2 * u[20:].view(8, 5), turned[20:].view(8, 5))]
    assert readouts.weight_angle(pairs) == pytest.approx(degrees, rel=1e-6)


def test_the_angle_is_that_of_weights_in_front_of_a_norm() -> None:
    units = tiny_model().backbone.units
    assert readouts.scale_free(units[0]) == ["conv.weight"]
    assert readouts.scale_free(units[3]) == []
    assert readouts.scale_free(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3))) == ["1.weight"]


# Responses


def test_planted_dead_channels_are_counted() -> None:
    activity = torch.tensor([0.0, 0.0, 1e-4, 0.02, 1.0, 1.0, 1.0, 1.0])
    assert readouts.dead_share(activity) == 3 / 8
    assert readouts.dead_share(activity, 0.0) == 2 / 8
    assert readouts.dead_share(activity, 0.1) == 4 / 8
    assert readouts.dead_share(torch.zeros(4)) == 1


def test_selectivity_of_planted_channels() -> None:
    labels = torch.arange(40) % 4
    one_class = (labels == 2).double()
    everything_alike = torch.ones(40).double()
    in_turn = -torch.arange(40).double()
    assert readouts.selectivity(one_class[:, None], labels, 8) == 1
    assert readouts.selectivity(in_turn[:, None], labels, 8) == pytest.approx(0, abs=1e-12)
    both = torch.stack([one_class, in_turn, everything_alike], dim=1)
    assert readouts.selectivity(both, labels, 8) == pytest.approx(0.5)
    assert readouts.selectivity(everything_alike[:, None], labels, 8) is None
    assert readouts.selectivity(both, torch.zeros(40), 8) is None


def test_selectivity_is_the_entropy_of_the_classes_of_the_best_images() -> None:
    labels, features = torch.from_numpy(np.random.default_rng(0).integers(0, 5, 60)), normal(60, 7)
    expected = []
    for channel in features.T.numpy():
        best = labels.numpy()[np.argsort(-channel)[:12]]
        shares = np.bincount(best) / 12
        expected.append(1 + sum(p * math.log(p) for p in shares if p) / math.log(5))
    assert readouts.selectivity(features, labels, 12) == pytest.approx(np.mean(expected))


def test_equal_features_rank_in_the_order_of_the_images() -> None:
    rows = torch.tensor([[0.0, -0.0, 1.0, -1.0, 1.0, -2.5], [5.0, 5.0, 5.0, 5.0, 5.0, 6.0]])
    ranked = readouts._sort_keys(rows).sort(dim=1, descending=True).indices
    assert ranked.tolist() == rows.sort(dim=1, descending=True, stable=True).indices.tolist()
    random = normal(50, 128).float().round(decimals=1)
    expected = random.sort(dim=1, descending=True, stable=True).indices[:, :12]
    assert torch.equal(readouts._sort_keys(random).topk(12, dim=1).indices, expected)


def test_selectivity_by_chance_is_that_of_random_channels() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10 + [2] * 5)
    by_chance = readouts.selectivity(normal(45, 20_000), labels, 4)
    assert readouts.selectivity_chance(labels, 4) == pytest.approx(by_chance, abs=0.01)
    assert readouts.selectivity_chance(torch.zeros(5), 2) == 0


@pytest.mark.parametrize(("n", "n_top"), [(128, 12), (5000, 100), (1000, 100), (14, 2), (1, 1)])
def test_a_tenth_of_the_images_excite_most_and_at_most_a_hundred(n: int, n_top: int) -> None:
    assert readouts.top_images(n) == n_top


@pytest.mark.parametrize("shape", [(6, 4), (6, 9, 4), (6, 4, 3, 3), (6, 3, 3, 4)])
def test_outputs_of_every_layout_are_averaged_over_positions(shape: tuple[int, ...]) -> None:
    output = normal(*shape)
    as_rows = output.permute(0, 2, 3, 1) if shape == (6, 4, 3, 3) else output
    expected = as_rows.reshape(6, -1, 4)
    features, activity = readouts.pooled(output)
    torch.testing.assert_close(features, expected.mean(1).float())
    torch.testing.assert_close(activity, expected.abs().mean(1).float())


# Features


def test_silhouette_is_that_of_scikit_learn() -> None:
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 4, 50))
    features = normal(50, 9) + labels[:, None]
    assert readouts.silhouette(features, labels) == pytest.approx(silhouette_score(features, labels), abs=1e-9)
    alone = torch.cat([labels, torch.tensor([77])])
    more = torch.cat([features, torch.zeros(1, 9)])
    assert readouts.silhouette(more, alone) == pytest.approx(silhouette_score(more, alone), abs=1e-9)
    assert readouts.silhouette(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])) == 0
    assert readouts.silhouette(features, torch.zeros(50)) is None
    assert readouts.silhouette(features, torch.arange(50)) is None


@pytest.mark.parametrize("d", [1, 2, 8, 70])
def test_projection_is_that_on_the_first_singular_vectors(d: int) -> None:
    features = normal(30, d) * torch.linspace(1, 3, d)
    points, explained = readouts.project(readouts.gram(features))
    x = (features - features.mean(0)).numpy()
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    for axis in range(min(2, d)):
        column = u[:, axis] * s[axis]
        column *= np.sign(column[np.abs(column).argmax()])
        np.testing.assert_allclose(points[:, axis], column, atol=1e-7)
        assert explained[axis] == pytest.approx(s[axis] ** 2 / (s**2).sum())
    assert points.shape == (30, 2)


# A trial's


def test_the_probe_set_is_stratified_fixed_and_small() -> None:
    labels = np.repeat(np.arange(4), (50, 100, 200, 400)).astype(np.int64)
    validation = np.arange(0, 750, 2)
    chosen = probe_images(validation, labels, seed=3)
    assert len(set(chosen.tolist()) & set(validation.tolist())) == 128
    assert np.abs(np.bincount(labels[chosen]) - 128 / 15 * np.array([1, 2, 4, 8])).max() <= 2
    assert np.array_equal(chosen, probe_images(validation, labels, seed=3))
    assert not np.array_equal(chosen, probe_images(validation, labels, seed=4))
    many = np.arange(2000, dtype=np.int64) % 500
    assert len(set(many[probe_images(np.arange(2000), many, seed=0)].tolist())) == 128
    assert len(probe_images(np.arange(9), many, seed=0)) == 9


@pytest.mark.parametrize("name", CONFIGS)
def test_a_trial_is_bit_identical_with_and_without_readouts(name: str, tmp_path: Path) -> None:
    without, with_them = run_of(tmp_path / "a", CONFIGS[name], at=()), run_of(tmp_path / "b", CONFIGS[name], at=(1, 2, 3, 4))
    assert rows_of(without) == rows_of(with_them)
    states = [run.model.state_dict() for run in (without, with_them)]
    for (key, one), other in zip(states[0].items(), states[1].values(), strict=True):
        assert torch.equal(one, other), key
    assert not (tmp_path / "a" / FILE).exists()
    assert [one.epoch for one in read(tmp_path / "b")] == [0, 1, 2, 3, 4]


def test_a_readout_leaves_modes_gradients_and_random_state_as_they_were(tmp_path: Path) -> None:
    hyper, data = tiny_hyper(frozen_depth=1), tiny_data()
    model = tiny_model(hyper)
    freeze(model, phases(hyper, N_UNITS, 3)[0])
    classifier = build_classifier(model)
    before = [(module.training, module) for module in classifier.modules()]
    wanted = [parameter.requires_grad for parameter in classifier.parameters()]
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    randomness = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tobytes()
    taker = ReadOuts(
        lambda: tiny_model(hyper), data, ImageStore(data.images, data.labels, CPU), tmp_path,
        trained=(1, 2, 3), seed=0, compute=CPU, digest="",
    )  # fmt: skip
    taker.record(classifier, 1)
    assert len(read(tmp_path)) == 2
    assert [(module.training, module) for module in classifier.modules()] == before
    assert [parameter.requires_grad for parameter in classifier.parameters()] == wanted
    assert all(torch.equal(tensor, state[name]) for name, tensor in classifier.state_dict().items())
    assert torch.equal(torch.get_rng_state(), randomness[0])
    assert np.random.get_state(legacy=False)["state"]["key"].tobytes() == randomness[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_readouts_are_what_the_two_networks_say(name: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, CONFIGS[name], at=(EPOCHS,))
    rows_of(run)
    start, last = read(tmp_path)
    data = tiny_data(n_validation=40)
    chosen = probe_images(data.splits.validation, data.labels, seed=0)
    images = torch.from_numpy(data.images[chosen]).permute(0, 3, 1, 2).float()
    hyper = tiny_hyper(**{"batch_size": 8, "learning_rate": 0.01, **CONFIGS[name]})
    before, after = tiny_model(hyper).eval(), run.model.eval()
    preprocess = build_classifier(after, resolution=hyper.resolution).preprocess
    x = y = preprocess(images)
    for index in range(N_UNITS):
        old, new = before.backbone.units[index], after.backbone.units[index]
        with torch.no_grad():
            x, y = old(x), new(y)
        features = [one.mean((2, 3)).numpy() if one.dim() == 4 else one.numpy() for one in (x, y)]
        w0 = np.concatenate([one.detach().numpy().ravel() for one in old.parameters()]).astype(float)
        w = np.concatenate([one.detach().numpy().ravel() for one in new.parameters()]).astype(float)
        change = np.linalg.norm(w - w0) / np.linalg.norm(w0)
        assert last.weight_change[index] == pytest.approx(change, rel=1e-4, abs=1e-9)
        assert last.cka[index] == pytest.approx(gram_cka(*(one.astype(float) for one in features)), abs=1e-4)
        for one, output in ((start, x), (last, y)):
            level = output.abs().transpose(0, 1).flatten(1).mean(1).numpy()
            assert one.dead[index] == np.mean(level <= 0.01 * level.mean())
        if index < 3:
            u, v = (conv_unit(model, index).conv.weight.detach().double().flatten() for model in (before, after))
            cosine = float(u @ v / u.norm() / v.norm())
            assert last.angle[index] == pytest.approx(math.degrees(math.acos(min(1.0, cosine))), abs=1e-4)
    assert last.separability == pytest.approx(silhouette_score(y, data.labels[chosen]), abs=1e-4)
    assert start.weight_change == start.angle == (0.0,) * N_UNITS
    assert start.cka == (1.0,) * N_UNITS
    assert last.labels == tuple(data.labels[chosen].tolist())


def test_frozen_units_read_exactly_nothing_and_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[nn.Module] = []
    plain = ReadOuts._run
    monkeypatch.setattr(ReadOuts, "_run", lambda self, unit, batch: ran.append(unit) or plain(self, unit, batch))  # type: ignore[func-returns-value]
    run = run_of(tmp_path / "frozen", {"frozen_depth": 2})
    rows_of(run)
    for one in read(tmp_path / "frozen"):
        assert one.weight_change[:2] == one.angle[:2] == (0.0, 0.0)
        assert one.cka[:2] == (1.0, 1.0)
    last = read(tmp_path / "frozen")[-1]
    assert all(value and value > 0 for value in last.weight_change[2:])
    assert 0 < (last.cka[2] or 0) < 1
    assert not {id(unit) for unit in ran} & {id(unit) for unit in run.model.backbone.units[:2]}

    rows_of(run_of(tmp_path / "surgical", {"tuned_unit": 1}))
    last = read(tmp_path / "surgical")[-1]
    assert [value == 0 for value in last.weight_change] == [True, False, True, True]
    assert last.cka[0] == 1
    assert (last.cka[3] or 0) < 1, "a frozen unit behind a trained one still answers otherwise"

    ran.clear()
    rows_of(run_of(tmp_path / "probe", {"frozen_depth": N_UNITS}))
    assert not ran, "the trials before have shown what the starting network does"
    assert read(tmp_path / "probe")[-1].cka == (1.0,) * N_UNITS


def test_boundaries_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for depth in (1, 3, 2):
        rows_of(run_of(tmp_path / f"other-{depth}", {"frozen_depth": depth}))
    rows_of(run_of(tmp_path / "kept", {"frozen_depth": 2}))
    (start,) = readouts_trial._starts.values()
    assert set(start.boundaries) == {1, 2, 3}
    readouts_trial._starts.clear()
    monkeypatch.setattr(readouts_probe, "MOST_BOUNDARY_BYTES", 0)
    rows_of(run_of(tmp_path / "computed", {"frozen_depth": 2}))
    assert untimed(read(tmp_path / "kept")) == untimed(read(tmp_path / "computed"))


@pytest.mark.parametrize("name", ["full", "gradual", "frozen"])
def test_a_start_that_was_copied_is_the_one_that_is_built(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[str] = []
    build = model.build_model

    def counted(hyper: Hyperparameters, *args: Any, **more: Any) -> FineTuneModel:
        builds.append("built")
        return build(hyper, *args, **more)

    monkeypatch.setattr(trial, "build_model", counted)
    for folder in ("first", "copied"):
        builds.clear()
        rows_of(run_of(tmp_path / folder, CONFIGS[name]))
    assert len(builds) == 1, "the second trial of a process knows what it starts from"
    monkeypatch.setattr(readouts_trial, "_MOST_COPIED_BYTES", 0)
    rows_of(run_of(tmp_path / "built", CONFIGS[name]))
    assert len(builds) == 3
    assert untimed(read(tmp_path / "copied")) == untimed(read(tmp_path / "built"))


@pytest.mark.parametrize("name", ["full", "gradual", "frozen"])
def test_readouts_after_a_resume_are_those_of_an_uninterrupted_trial(name: str, tmp_path: Path) -> None:
    rows_of(run_of(tmp_path / "whole", CONFIGS[name]))
    whole = untimed(read(tmp_path / "whole"))
    assert [one.epoch for one in whole] == [0, 2, 4]
    for stop in range(1, EPOCHS):
        folder = tmp_path / f"stopped-{stop}"
        rows_of(run_of(folder, CONFIGS[name]), stop)
        readouts_trial._starts.clear()
        rows_of(run_of(folder, CONFIGS[name]))
        assert untimed(read(folder)) == whole


def test_an_epoch_that_a_crash_tore_or_that_came_twice_counts_once(tmp_path: Path) -> None:
    rows_of(run_of(tmp_path / "whole"))
    folder = tmp_path / "torn"
    rows_of(run_of(folder), 2)
    file = folder / FILE
    torn = file.read_text().splitlines()[-1]
    file.write_text(file.read_text().rstrip("\n")[: -len(torn) // 2])
    for path in folder.glob("epoch-*"):
        path.unlink()  # the checkpoint of epoch 2 never came to be
    rows_of(run_of(folder))
    assert len(file.read_text().splitlines()) > 3
    assert untimed(read(folder)) == untimed(read(tmp_path / "whole"))


def test_the_file_takes_lines_whole(tmp_path: Path) -> None:
    append(tmp_path / "new", "one\n")
    append(tmp_path / "new", "two, torn")
    append(tmp_path / "new", "three\n")
    assert (tmp_path / "new" / FILE).read_text().splitlines() == ["one", "two, torn", "three"]
    assert read(tmp_path / "new") == []
    assert read(tmp_path / "nowhere") == []


def test_no_failure_of_a_readout_is_one_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    expected = rows_of(run_of(tmp_path / "a", at=()))
    monkeypatch.setattr(readouts, "selectivity", fail)
    assert rows_of(run_of(tmp_path / "b")) == expected
    assert "no read-out of epoch 2: OutOfMemoryError: no room" in caplog.text
    monkeypatch.undo()
    (tmp_path / "c" / FILE).mkdir(parents=True)
    assert rows_of(run_of(tmp_path / "c")) == expected


def test_a_closed_trial_holds_no_network(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    rows_of(run)
    run.close()
    assert run._readouts is None


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"budget": {"trials": 4, "epochs": 27}}, (3, 9, 27)),
        ({"budget": {"trials": 4, "epochs": 10}}, (3, 9, 10)),
        ({"budget": {"trials": 4, "epochs": 16}, "early_stopping": {"grace": 2, "reduction": 2}}, (4, 8, 16)),
        ({"budget": {"trials": 4, "epochs": 30}, "early_stopping": {"scheduler": "none"}}, (3, 9, 27, 30)),
        ({"budget": {"trials": 4, "epochs": 1}}, (1,)),
        ({"budget": {"trials": 4, "epochs": 27}, "keep_models": 0}, ()),
    ],
)
def test_read_out_is_at_the_rungs_but_the_first_and_at_the_end(
    changes: dict[str, Any], epochs: tuple[int, ...], tmp_path: Path
) -> None:
    spec = StudySpec.from_dict(spec_dict(**changes))
    assert readout_epochs(spec) == epochs
    ticket = Ticket("t0000", 0, spec.full_config(config_of(0)))
    assert FineTuneTrainer(spec, tmp_path, tmp_path).plan(ticket).readout_epochs == epochs


# Files and figures


def made_up(epoch: int, *, n_units: int = 3, n_classes: int = 3) -> ReadOut:
    values: Callable[[float], tuple[float, ...]] = lambda level: tuple(level / (1 + unit) for unit in range(n_units))  # noqa: E731
    points = tuple((math.sin(k * (epoch + 1)), math.cos(3.0 * k)) for k in range(24))
    return ReadOut(
        epoch, tuple(f"block.{unit}" for unit in range(n_units)), values(0.1 * epoch), (None, *values(2.0 * epoch)[1:]),
        values(0.9), values(0.1), values(0.0), (None, *values(0.4)[1:]), 0.2, None if epoch else 0.1, points, (0.6, 0.2),
        tuple(k % n_classes for k in range(24)), 12, 0.01, 0.25,
    )  # fmt: skip


def test_a_readout_survives_its_line_and_unknown_entries() -> None:
    readout = made_up(3)
    assert from_lines([to_line(readout)]) == [readout]
    assert from_lines([json.dumps({**readout.to_dict(), "later": 1}), "{}", "[1]", "", "{", "null"]) == [readout]
    second = dataclasses.replace(readout, seconds=9.0)
    assert from_lines([to_line(readout), to_line(made_up(1)), to_line(second)]) == [made_up(1), second]


@pytest.mark.parametrize(
    ("n", "n_units", "n_classes"), [(1, 1, 1), (4, 18, 10), pytest.param(2, 120, 24, marks=pytest.mark.slow)]
)
def test_the_figure_can_be_drawn(n: int, n_units: int, n_classes: int, tmp_path: Path) -> None:
    shown = [made_up(3 * k, n_units=n_units, n_classes=n_classes) for k in range(n)]
    figure = readout_figure(shown, [f"class {k}" for k in range(n_classes)], title="t0001")
    save(figure, tmp_path / "readouts.png")
    assert (tmp_path / "readouts.png").read_bytes().startswith(b"\x89PNG")
    titles = " ".join(axes.get_title() for axes in figure.axes)
    assert "before fine-tuning: silhouette 0.10" in titles


# In MLflow


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyPaths:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    return StudyPaths.of("digits")


def write_made_up(folder: Path, epochs: tuple[int, ...]) -> None:
    append(folder, "".join(to_line(made_up(epoch)) for epoch in epochs))


@pytest.mark.slow
def test_readouts_come_into_a_run_once_and_are_no_reports(
    files: StudyPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = empty_store(tmp_path / "home")
    record = feed(files, uri, study_events(2))
    store = Store(uri)
    (run,) = store.runs([str(store.experiment("digits"))], names.TRIAL_KIND, trial_id="t0000")
    trial, folder = record.trials["t0000"], files.checkpoints("t0000")
    store_readouts(store, run.run_id, trial, folder, [])  # without a file there is nothing to store
    assert not any(map(str.startswith, store.run(run.run_id).latest, itertools.repeat(names.READOUT_PREFIX)))
    write_made_up(folder, (0, 3, 9, 27))  # of an epoch 27 the journal knows nothing
    table = StudyReader(store, "digits").trials()

    upload = Store.upload

    def crash(self: Store, run_id: str, file: Path) -> None:
        if file.name == names.READOUTS_FILE:
            raise StoreDown("away")
        upload(self, run_id, file)

    monkeypatch.setattr(Store, "upload", crash)
    with pytest.raises(StoreDown):
        store_readouts(store, run.run_id, trial, folder, ["a", "b", "c"])
    monkeypatch.setattr(Store, "upload", upload)
    for _ in range(2):
        store_readouts(store, run.run_id, trial, folder, ["a", "b", "c"])
    assert [point.step for point in store.history(run.run_id, "readout.cka.u02")] == [0, 3, 9]
    assert [point.value for point in store.history(run.run_id, "readout.weight_change.u01")] == pytest.approx([0, 0.15, 0.45])
    assert "readout.angle.u00" not in store.run(run.run_id).latest
    assert store.history(run.run_id, "readout.separability")[0].value == 0.1
    stored = json.loads(store.download(run.run_id, names.READOUTS_FILE, tmp_path).read_text())
    assert [one["epoch"] for one in stored["epochs"]] == [0, 3, 9]
    assert stored["classes"] == ["a", "b", "c"]
    assert store.download(run.run_id, names.READOUTS_FIGURE, tmp_path).exists()

    assert compare(store, record).ok
    assert StudyReader(store, "digits").trials() == table
    assert not any(name.startswith("readout") for name in StudyReader(store, "digits").collected_reports().column_names)
    monkeypatch.setattr(Store, "write", lambda *_, **__: pytest.fail("written again"))
    store_readouts(store, run.run_id, trial, folder, [])


@pytest.mark.slow
def test_readouts_that_cannot_be_stored_are_a_line_of_the_log(
    files: StudyPaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trial = StudyRecord.fold([*study_events(1)]).trials["t0000"]
    write_made_up(files.checkpoints("t0000"), (0, 3))
    store = Store(empty_store(tmp_path / "home"))
    store_readouts(store, "no-such-run", trial, files.checkpoints("t0000"), [])
    assert "the read-outs of trial t0000 are not stored: " in caplog.text


@pytest.mark.slow
def test_kept_models_come_with_their_readouts(files: StudyPaths, tmp_path: Path) -> None:
    data = {"source": "sklearn:digits", "image_size": 32}
    budget = {"trials": 1, "epochs": 2}
    spec = StudySpec.from_dict(spec_dict(data=data, budget=budget, early_stopping={"scheduler": "none"}))
    cache, clock = tmp_path / "cache", Clock()
    config = {**config_of(0), "frozen_depth": 17, "learning_rate": 0.01, "pretrained": True}
    events: list[Event] = [started(clock, spec.to_dict()), TrialStarted(clock(), "t0000", 0, config)]
    assert len(open_data(spec, cache).class_names) == 10
    trial = FineTuneTrainer(spec, files.all_checkpoints, cache, device="cpu").open(Ticket("t0000", 0, spec.full_config(config)))
    for row in trial.epochs():
        metrics = {name: value for name, value in row.items() if name != "epoch"}
        events.append(Reported(clock(), "t0000", int(row["epoch"]), metrics_of(0, 1) | metrics, "n"))
    events += [TrialEnded(clock(), "t0000", TrialState.COMPLETED, ""), StudyEnded(clock(), StudyState.COMPLETED, "")]
    trial.close()
    uri = empty_store(tmp_path / "home")
    record = feed(files, uri, events)
    store = Store(uri)
    experiment = str(store.experiment("digits"))
    (run,) = store.runs([experiment], names.TRIAL_KIND)
    ModelKeeper(store, experiment, files).keep(record, {"t0000": run.run_id})
    assert [point.step for point in store.history(run.run_id, "readout.cka.u17")] == [0, 2]
    assert len(run.latest) > 10 + 18 * len(PER_UNIT) - 1
    assert store.download(run.run_id, names.READOUTS_FIGURE, tmp_path).exists()
    assert compare(store, StudyRecord.fold(read_journal(files.journal))).ok
