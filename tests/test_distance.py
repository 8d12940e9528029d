"""How far a source is from a target: every measure against another way to compute it, features, and the command."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import write_idx
from numpy.typing import NDArray
from rich.console import Console
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment, minimize
from scipy.stats import norm, ortho_group, spearmanr, wasserstein_distance
from tiny import build_tiny_backbone, tiny_data
from toys import toy_spec

from raystudy.cache import Cache
from raystudy.cli import _call
from raystudy.cli.distance import shown
from raystudy.errors import DataError, SpecError
from raystudy.findings.transfer import (
    COVARIATES,
    MEASURES,
    Distance,
    LevelResults,
    Sample,
    class_means,
    distance,
    emd_similarity,
    frechet_distance,
    head_probabilities,
    leep,
    logme,
    movers_distance,
    proxy_a_distance,
    squared_mmd,
)
from raystudy.findings.transfer.relation import DEPTH, MEAN
from raystudy.finetune.backbone import Backbone
from raystudy.finetune.compute import Compute
from raystudy.finetune.digests import tensors_digest
from raystudy.finetune.embed import draw, embed
from raystudy.finetune.source_models import SourceModel, file_digest
from raystudy.finetune.transfer import KIND, Place, Taking, measure
from raystudy.spec import StudySpec

Floats = NDArray[np.float64]

SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)
CPU = Compute(torch.device("cpu"), "float32")
TOLERANCE = 1e-4
"""To which every measure has to agree with another way to compute it; most agree to rounding."""

DISTANCES = {"emd": movers_distance, "frechet": frechet_distance, "mmd": squared_mmd}
each_distance = pytest.mark.parametrize("name", DISTANCES)


def two_sets(seed: int) -> tuple[Floats, Floats]:
    """Return two sets of features of one width, of different sizes, places and spreads."""
    rng = np.random.default_rng(seed)
    n, m, width = rng.integers(2, 9, 3)
    scale = 10 ** rng.uniform(-2, 2)
    return scale * rng.normal(size=(n, width)), scale * rng.normal(rng.uniform(-2, 2), rng.uniform(0.1, 3), size=(m, width))


def labelled(n: int, width: int, n_classes: int, *, signal: float, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return features whose first columns tell the class, the better the larger `signal`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    features = rng.normal(size=(n, width))
    features[:, :n_classes] += signal * (labels[:, None] == np.arange(n_classes))[:, :width]
    return features, labels


# Earth mover's distance


@given(SEEDS)
@few
def test_of_points_on_a_line_it_is_the_area_between_the_distribution_functions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k, m = rng.integers(1, 12, 2)
    x, y, a, b = rng.normal(size=k), rng.normal(1, 3, m), rng.integers(1, 500, k), rng.integers(1, 500, m)
    expected = wasserstein_distance(x, y, a, b)
    assert movers_distance(x[:, None], y[:, None], a, b) == pytest.approx(expected, abs=TOLERANCE)


@given(SEEDS)
@few
def test_of_equally_many_equal_masses_it_is_the_cheapest_assignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    cost = np.sqrt(((x[:, None] - y) ** 2).sum(axis=2))
    expected = cost[linear_sum_assignment(cost)].mean()
    assert movers_distance(x, y) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_the_unit_of_the_features_does_not_matter_to_the_solver(unit: float) -> None:
    x, y = two_sets(3)
    assert movers_distance(x * unit, y * unit) == pytest.approx(movers_distance(x, y) * unit, rel=1e-6)


def test_classes_weigh_what_the_data_set_has_of_them_not_what_was_drawn() -> None:
    features = np.array([[0.0], [2.0], [10.0], [12.0]])
    drawn = Sample.of("drawn", features, np.array([0, 0, 2, 2]), np.array([30, 5, 10]))
    means, sizes = class_means(drawn)
    assert means.tolist() == [[1], [11]]
    assert sizes.tolist() == [30, 10]
    assert movers_distance(means, np.array([[1.0]]), sizes) == pytest.approx(10 * 10 / 40)


def test_the_similarity_is_that_of_the_paper() -> None:
    assert emd_similarity(0) == 1
    assert emd_similarity(48) == pytest.approx(math.exp(-0.48))


# Distances of distributions


def crosses(mean: Floats, spread: Floats) -> Floats:
    """Return points with exactly this mean, and a diagonal covariance with these standard deviations."""
    width = len(mean)
    arms = np.diag(spread) * np.sqrt((2 * width - 1) / 2)
    points: Floats = mean + np.concatenate([arms, -arms])
    return points


@given(SEEDS)
@few
def test_frechet_of_diagonal_gaussians_has_a_closed_form(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (mean, other), (spread, wider) = rng.normal(size=(2, 4)), rng.uniform(0, 2, (2, 4))
    expected = ((mean - other) ** 2).sum() + ((spread - wider) ** 2).sum()
    assert frechet_distance(crosses(mean, spread), crosses(other, wider)) == pytest.approx(expected, abs=TOLERANCE)


def test_frechet_agrees_with_the_matrix_square_root() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)), rng.normal(1, 2, (30, 5))
    s, t = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet_distance(x, y) == pytest.approx(expected, abs=TOLERANCE)


@given(SEEDS, st.sampled_from([None, 0.5]))
@few
def test_mmd_agrees_with_a_double_loop(seed: int, bandwidth: float | None) -> None:
    x, y = two_sets(seed)
    both = [*x, *y]
    apart = [math.dist(both[i], both[j]) for i in range(len(both)) for j in range(i)]
    h = bandwidth or float(np.median(apart))

    def mean(pairs: list[tuple[Floats, Floats]]) -> float:
        return sum(math.exp(-(math.dist(p, q) ** 2) / (2 * h**2)) for p, q in pairs) / len(pairs)

    within = [mean([(p, q) for i, p in enumerate(s) for j, q in enumerate(s) if i != j]) for s in (x, y)]
    expected = sum(within) - 2 * mean([(p, q) for p in x for q in y])
    assert squared_mmd(x, y, bandwidth=bandwidth) == pytest.approx(expected, abs=TOLERANCE)


def test_mmd_has_no_bias() -> None:
    rng = np.random.default_rng(0)
    found = [squared_mmd(*rng.normal(size=(2, 10, 2)), bandwidth=1) for _ in range(300)]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(len(found))
    assert min(found) < 0


@each_distance
@given(seed=SEEDS)
@few
def test_distances_are_symmetric_and_not_negative_and_know_neither_order_nor_axes(name: str, seed: int) -> None:
    between = DISTANCES[name]
    x, y = two_sets(seed)
    found = between(x, y)
    close = pytest.approx(found, rel=1e-6, abs=1e-9)
    assert between(y, x) == close
    # The unbiased estimate of a squared MMD is the biased one, which is not negative, less at most this.
    assert found >= (-1 / len(x) - 1 / len(y) if name == "mmd" else 0)
    rng = np.random.default_rng(seed)
    assert between(rng.permutation(x), rng.permutation(y)) == close
    if x.shape[1] > 1:
        turn = ortho_group.rvs(x.shape[1], random_state=rng)
        assert between(x @ turn, y @ turn) == close


@each_distance
def test_a_set_is_at_no_distance_from_itself(name: str) -> None:
    x, _ = two_sets(1)
    assert DISTANCES[name](x, x) == pytest.approx(0, abs=1e-9) or name == "mmd"
    assert DISTANCES[name](np.ones((3, 2)), np.ones((4, 2))) == pytest.approx(0, abs=1e-9)


# Proxy A-distance


def test_sets_that_can_be_told_apart_are_at_distance_2() -> None:
    x = np.random.default_rng(0).uniform(size=(30, 3))
    found = proxy_a_distance(x, x + 5)
    assert (found.error, found.value, found.standard_error, found.n_images) == (0, 2, 0, 30)


def test_equal_sets_are_at_distance_0_though_every_image_is_in_both() -> None:
    x = np.random.default_rng(0).normal(size=(41, 60))
    assert proxy_a_distance(x, x).value == 0


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_gaussians_are_at_the_distance_of_the_best_classifier(gap: float) -> None:
    rng = np.random.default_rng(1)
    found = [proxy_a_distance(rng.normal(size=(600, 1)), rng.normal(gap, 1, (800, 1)), seed=seed) for seed in range(20)]
    assert {one.n_images for one in found} == {600}
    # In standard errors. Unclipped: at gap 0 the values are a half above 0, and 0.
    expected = norm.cdf(-gap / 2)
    off = [4 * (one.error - expected) / one.standard_error for one in found]
    assert abs(np.mean(off)) < 4 / math.sqrt(len(off))
    assert 0.5 < np.std(off) < 2


def test_the_a_distance_is_symmetric_and_repeats() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 4)), rng.normal(0.5, 1, (40, 4))
    assert proxy_a_distance(x, y, seed=3) == proxy_a_distance(y, x, seed=3) == proxy_a_distance(x, y, seed=3)
    assert len({proxy_a_distance(x, y, seed=seed).error for seed in range(5)}) > 1


# LogME and LEEP


def dense_evidence(features: Floats, indicator: Floats) -> float:
    """Return the largest log evidence per image, from the covariance of the labels as it stands."""
    n = len(features)

    def negative(logs: Floats) -> float:
        a, b = np.exp(logs.clip(-40, 40))
        covariance = np.eye(n) / b + features @ features.T / a
        _, log_determinant = np.linalg.slogdet(covariance)
        quadratic = indicator @ np.linalg.solve(covariance, indicator)
        return float(log_determinant + quadratic + n * math.log(2 * math.pi)) / (2 * n)

    options = {"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000}
    starts = ((0.0, 0.0), (6.0, 0.0), (0.0, 4.0))
    return max(-float(minimize(negative, at, method="Nelder-Mead", options=options).fun) for at in starts)


@pytest.mark.parametrize(("n", "width", "signal"), [(40, 5, 1), (25, 40, 1), (60, 20, 3), (40, 5, 0)])
def test_logme_is_the_evidence_at_its_maximum(n: int, width: int, signal: float) -> None:
    features, labels = labelled(n, width, 2, signal=signal, seed=n)
    expected = np.mean([dense_evidence(features, (labels == label).astype(float)) for label in range(2)])
    assert logme(features, labels) == pytest.approx(float(expected), abs=TOLERANCE)


def test_logme_is_larger_where_features_tell_the_classes() -> None:
    found = [logme(*labelled(90, 6, 3, signal=signal, seed=0)) for signal in (0, 1, 3)]
    assert found == sorted(found)
    assert found[0] < found[2]


@given(SEEDS)
@few
def test_logme_knows_neither_order_nor_axes_nor_scale(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, labels = labelled(int(rng.integers(4, 20)), 4, 2, signal=1, seed=seed)
    close = pytest.approx(logme(features, labels), abs=1e-6)
    order = rng.permutation(len(labels))
    assert logme(features[order], labels[order]) == close
    assert logme(features @ ortho_group.rvs(4, random_state=rng) * 7, labels) == close


@pytest.mark.parametrize("features", [np.zeros((4, 2)), np.ones((4, 2)), np.eye(4)])
def test_logme_is_finite_for_features_that_say_nothing_or_all(features: Floats) -> None:
    assert math.isfinite(logme(features, np.array([0, 1, 0, 1])))


@given(SEEDS)
@few
def test_leep_agrees_with_a_loop_and_is_at_most_0(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(2, 12)), int(rng.integers(1, 5))
    theta = rng.dirichlet(np.full(m, 0.3), n)
    labels = np.append(rng.integers(0, 3, n - 1), 3)
    labels[0] = 0
    joint = {(y, z): sum(theta[i, z] for i in range(n) if labels[i] == y) / n for y in range(4) for z in range(m)}
    total = 0.0
    for i in range(n):
        conditional = [joint[labels[i], z] / sum(joint[y, z] for y in range(4)) for z in range(m) if theta[i, z] > 0]
        total += math.log(sum(p * q for p, q in zip(conditional, theta[i][theta[i] > 0], strict=True)))
    found = leep(theta, labels)
    assert found == pytest.approx(total / n, abs=TOLERANCE)
    assert found <= 0
    order = rng.permutation(n)
    assert leep(theta[order], labels[order]) == pytest.approx(found, abs=1e-9)


def test_leep_of_a_head_that_knows_the_answer_is_0_and_of_one_that_knows_nothing_the_entropy() -> None:
    labels = np.array([0, 1, 1, 1])
    assert leep(np.eye(2)[labels], labels) == 0
    assert leep(np.full((4, 3), 1 / 3), labels) == pytest.approx(0.25 * math.log(0.25) + 0.75 * math.log(0.75))


def test_the_head_of_a_source_is_fitted_to_it() -> None:
    features, labels = labelled(60, 5, 3, signal=4, seed=0)
    said = head_probabilities(Sample.of("source", features, labels), features)
    assert said.shape == (60, 3)
    assert said.sum(axis=1) == pytest.approx(1)
    assert (said.argmax(axis=1) == labels).mean() > 0.9


# Bad input


GOOD = np.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize("name", [*DISTANCES, "a_distance"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (np.full((3, 2), np.nan), "target: 3 of its 3 images have features that are not finite"),
        (np.ones((0, 2)), "target: has 0 images"),
        (np.ones((4, 3)), "the source has 2 features an image, the target 3"),
        (np.ones(4), "the shape"),
    ],
)
def test_distances_refuse_what_they_cannot_measure(name: str, other: Floats, message: str) -> None:
    between: Any = {**DISTANCES, "a_distance": proxy_a_distance}[name]
    with pytest.raises(DataError, match=message):
        between(GOOD, other)


@pytest.mark.parametrize("between", [frechet_distance, squared_mmd, proxy_a_distance])
def test_a_distribution_needs_two_images(between: Any) -> None:
    with pytest.raises(DataError, match="source: has 1 image; at least 2 are needed"):
        between(GOOD[:1], GOOD)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(4, np.int64), "all its images are of one class; at least 2"),
        (np.zeros(3, np.int64), "expected 4 whole numbers"),
        (np.array([0, 1, 0, -1]), "expected 4 whole numbers"),
        (np.ones(4), "expected 4 whole numbers"),
    ],
)
def test_labels_must_be_classes(labels: NDArray[Any], message: str) -> None:
    for call in (logme, lambda features, classes: Sample.of("set", features, classes)):
        with pytest.raises(DataError, match=message):
            call(GOOD, labels)
    with pytest.raises(DataError, match=message):
        leep(np.full((4, 2), 0.5), labels)


@pytest.mark.parametrize("rows", [np.full((2, 2), 0.6), np.array([[1.5, -0.5], [1, 0]]), np.full((2, 2), np.nan)])
def test_leep_refuses_what_is_no_probability(rows: Floats) -> None:
    with pytest.raises(DataError, match=r"source head: .*(probabilities|not finite)"):
        leep(rows, np.array([0, 1]))


@pytest.mark.parametrize("weights", [[0, 0, 0, 0], [1, -1, 1, 1], [1, 1], [1, math.inf, 1, 1]])
def test_masses_must_be_masses(weights: list[float]) -> None:
    with pytest.raises(DataError, match="source: its weights are"):
        movers_distance(GOOD, GOOD, np.array(weights))


@pytest.mark.parametrize("bandwidth", [0, -1, math.nan])
def test_a_kernel_has_a_width(bandwidth: float) -> None:
    with pytest.raises(DataError, match="bandwidth"):
        squared_mmd(GOOD, GOOD, bandwidth=bandwidth)


def test_class_sizes_must_cover_what_was_drawn() -> None:
    with pytest.raises(DataError, match="do not cover"):
        Sample.of("set", GOOD, np.array([0, 0, 1, 1]), np.array([2, 1]))


# Pairs


def test_a_pair_has_every_measure_and_what_it_was_computed_from() -> None:
    source = Sample.of("s", *labelled(40, 4, 3, signal=3, seed=0))
    near = Sample.of("n", *labelled(30, 4, 3, signal=3, seed=1))
    far = Sample.of("f", labelled(30, 4, 3, signal=3, seed=1)[0] @ np.diag([3, -2, 1, 1]) + 4, near.labels)
    first, second = distance(source, near), distance(source, far)
    assert (first.source_images, first.target_images, first.source_classes, first.target_classes) == (40, 30, 3, 3)
    assert first.compared_images == 30
    for kind in MEASURES:
        closer, farther = getattr(first, kind.name), getattr(second, kind.name)
        assert math.isfinite(closer)
        if kind.name != "logme":
            assert closer < farther if kind.closer == "smaller" else closer > farther, kind.name


def test_a_backbone_that_never_saw_labels_has_no_leep_and_every_other_measure() -> None:
    source = Sample.of("s", *labelled(40, 4, 3, signal=3, seed=0))
    target = Sample.of("n", *labelled(30, 4, 3, signal=3, seed=1))
    with_head, without = distance(source, target), distance(source, target, has_head=False)
    assert without.leep is None
    assert with_head.leep is not None
    assert {**asdict(without), "leep": with_head.leep} == asdict(with_head)


# Features


def features_of(backbone: Backbone, **how: Any) -> Sample:
    data = tiny_data()
    return embed(data, data.splits.train, backbone, name="tiny", compute=CPU, **how)


def test_features_are_those_of_the_backbone_in_eval_mode() -> None:
    backbone = build_tiny_backbone().train()
    found = features_of(backbone)
    assert backbone.training
    data, info = tiny_data(), backbone.info
    images = torch.from_numpy(data.images[data.splits.train]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = backbone.eval()((images - torch.tensor(info.mean).view(3, 1, 1)) / torch.tensor(info.std).view(3, 1, 1))
    assert found.features == pytest.approx(expected.numpy(), abs=1e-5)
    assert found.labels.tolist() == data.labels[data.splits.train].tolist()
    assert found.class_sizes.tolist() == [10, 10, 10]


def test_at_most_so_many_images_of_a_class_are_drawn_by_the_seed_and_a_smaller_draw_lies_in_a_larger() -> None:
    data = tiny_data()
    draws = [draw(data.splits.train, data.labels, per_class=n, seed=4) for n in (2, 5, 100)]
    assert [np.bincount(data.labels[drawn]).tolist() for drawn in draws] == [[2] * 3, [5] * 3, [10] * 3]
    assert set(draws[0]) < set(draws[1]) < set(draws[2])
    assert draws[2].tolist() == data.splits.train.tolist()
    assert set(draws[1]) != set(draw(data.splits.train, data.labels, per_class=5, seed=5))
    drawn = features_of(build_tiny_backbone(), per_class=2)
    assert (len(drawn.features), drawn.class_sizes.tolist()) == (6, [10, 10, 10])


def test_weights_that_give_no_numbers_are_refused() -> None:
    backbone = build_tiny_backbone()
    with torch.no_grad():
        next(backbone.parameters()).fill_(math.nan)
    with pytest.raises(DataError, match="tiny: 30 of its 30 images have features that are not finite"):
        features_of(backbone)


def test_the_digest_is_that_of_all_weights_and_statistics() -> None:
    backbone = build_tiny_backbone()
    before = tensors_digest(backbone.state_dict().items())
    assert tensors_digest(build_tiny_backbone().state_dict().items()) == before
    backbone.get_buffer("units.0.norm.running_mean").add_(1)
    assert tensors_digest(backbone.state_dict().items()) != before


# The command


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three sets of small images; every backbone is the tiny one."""
    monkeypatch.setenv("RAYSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raystudy.finetune.transfer.build_backbone", build_tiny_backbone)
    for name, n_classes in (("a", 3), ("b", 4), ("c", 2)):
        write_idx(tmp_path / name, n_classes=n_classes, per_class=5, side=8)
    return [f"idx:{tmp_path / name}" for name in "abc"]


def ask(*arguments: str) -> int:
    return _call(["distance", *arguments], debug=False)


TINY = ("--backbone", "resnet18", "--image-size", "8")


def test_the_table_says_what_was_measured_and_which_direction_means_closer(
    places: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(*places, *TINY) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"from {places[0]} under tiny"
    assert lines[1].startswith("12 images, 3 classes, 8 px; 0.00")
    rows = [line.split() for line in lines if line.startswith("idx:")]
    assert [row[:3] for row in rows] == [[places[1], "16", "4"], [places[2], "8", "2"]]
    assert all(len(row) == 3 + len(MEASURES) for row in rows)
    smaller, larger = out.partition("closer where larger:")[::2]
    for kind in MEASURES:
        assert kind.what in (smaller if kind.closer == "smaller" else larger)


def test_the_document_has_every_number(places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(*places, *TINY, "--backbone", "resnet34", "--per-class", "3", "--seed", "5", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["per_class"], document["seed"], document["split"]) == (3, 5, "train")
    assert [kind["closer"] for kind in document["measures"]] == [kind.closer for kind in MEASURES]
    assert len(document["pairs"]) == 4
    pair = document["pairs"][0]
    assert (pair["source"], pair["target"], pair["source_images"], pair["target_images"]) == (*places[:2], 9, 12)
    assert pair["parameters"] == sum(p.numel() for p in build_tiny_backbone().parameters())
    assert all(isinstance(pair[kind.name], float) for kind in MEASURES)


def test_a_pair_is_computed_once_and_again_where_anything_changed(places: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []

    def counting(*arguments: Any, **how: Any) -> Sample:
        computed.append(how["name"])
        return embed(*arguments, **how)

    monkeypatch.setattr("raystudy.finetune.transfer.embed", counting)

    def measured(taking: Taking) -> list[dict[str, Any]]:
        computed.clear()
        source, *targets = map(Place, places)
        found = measure(source, targets, ["resnet18"], taking, cache_dir=Path("cache"))
        return [asdict(pair.distance) for pair in found]

    taking = Taking(image_size=8)
    first = measured(taking)
    assert computed == places
    assert len([entry for entry in Cache(Path("cache")).entries() if entry.kind == KIND]) == 2
    assert measured(taking) == first
    assert computed == []
    assert {type(first[0][name]) for name in ("source_images", "compared_images")} == {int}
    for changed in (Taking(image_size=9), Taking(8, per_class=2), Taking(8, seed=1), Taking(8, resolution=4)):
        assert measured(changed) != first
        assert computed == places

    def other_weights(name: str, **how: Any) -> Backbone:
        return build_tiny_backbone(name, **{**how, "pretrained": False, "seed": 9})

    monkeypatch.setattr("raystudy.finetune.transfer.build_backbone", other_weights)
    assert measured(taking) != first
    assert computed == places


def test_under_a_self_supervised_source_model_there_is_no_leep_and_it_is_said_why(places: list[str], tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"tiny")
    with_labels, without = (
        SourceModel(f"models:/s@c2{end}", "s", "1", "r", "m", "resnet18", file_digest(file), file, what)
        for end, what in (("", "supervised"), ("-self", "self_supervised"))
    )
    sources = {source.address: source for source in (with_labels, without)}
    source, target, _ = map(Place, places)
    for _ in range(2):  # the second time from the cache
        found = measure(source, [target], list(sources), Taking(8), cache_dir=Path("cache"), sources=sources)
        one, two = (pair.to_dict() for pair in found)
        assert isinstance(one["leep"], float)
        assert "absent" not in one
        assert (two["leep"], list(two["absent"])) == (None, ["leep"])
        assert two["logme"] == one["logme"]
        console = Console(width=300, file=io.StringIO())
        with console.capture() as captured:
            console.print(shown(found, Taking(8)))
        lines = captured.get().splitlines()
        (said,) = [line for line in lines if line.startswith("no LEEP: ")]
        assert "trained without labels" in said
        assert [line.split()[-2] == "-" for line in lines if line.startswith("idx:")] == [False, True]


def test_a_set_is_closer_to_itself_than_another(places: list[str]) -> None:
    source, other, _ = map(Place, places)
    same, away = (pair.distance for pair in measure(source, [source, other], ["resnet18"], Taking(8), cache_dir=Path("cache")))
    assert (same.emd, same.emd_similarity, same.a_distance) == (0, 1, 0)
    assert away.emd > 0
    assert isinstance(away, Distance)


def test_a_study_names_target_and_backbone(places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study.yaml"
    text = f"{{name: s, data: {{source: '{places[1]}', image_size: 8, validation: 0.4}}, backbone: [resnet18, resnet34], "
    study.write_text(text + "factors: {learning_rate: {log_uniform: [1e-4, 1e-1]}}, budget: {trials: 2, epochs: 2}}")
    assert ask(str(study), "--source", places[0], "--json") == 0
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert [(pair["source"], pair["target"], pair["image_size"]) for pair in pairs] == [(*places[:2], 8)] * 2
    assert (pairs[0]["source_images"], pairs[0]["target_images"]) == (12, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        (("sklearn:digits",), "expected SOURCE and at least one TARGET"),
        (("study.yaml",), "give --source with the study file study.yaml"),
        (("sklearn:digits", "sklearn:digits"), "--backbone is missing"),
        (("a.yaml", "b.yaml", "--source", "sklearn:digits"), "expected one study file"),
        (("none.yaml", "--source", "sklearn:digits"), "none.yaml: no such file"),
        (("sklearn:digits", "sklearn:digits", "--backbone", "resnet18", "--per-class", "0"), "per-class"),
        (("sklearn:digits", "sklearn:digits", "--backbone", "resnet18", "--device", "quantum"), "device: got 'quantum'"),
    ],
)
def test_bad_input_ends_with_2_in_words(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@dataclass
class Recorded:
    """A study as the command sees it."""

    name: str
    spec: StudySpec

    def reports(self) -> pa.Table:
        return pa.table({})


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four sets of images, a to d, each with a study of its name; in that of d the frozen depth does not vary."""
    studies = {}
    for number, name in enumerate("abcd"):
        write_idx(tmp_path / name, n_classes=2 + number, per_class=5, side=8)
        studies[name] = Recorded(name, toy_spec(name=name, data={"source": f"idx:{tmp_path / name}"}, backbone="resnet18"))

    def found(spec: StudySpec, reports: pa.Table, **how: Any) -> LevelResults:
        assert (reports.num_rows, how) == (0, {"n_units": None, "seed": "abcd".index(spec.name)})
        draws = {name: np.full((5, 1), float("abcd".index(spec.name))) for name in (MEAN, DEPTH)}
        if spec.name == "d":
            return LevelResults(None, (None,), (9,), {MEAN: draws[MEAN]}, {DEPTH: "frozen_depth does not vary"})
        return LevelResults(None, (None,), (9,), draws)

    monkeypatch.setattr("raystudy.findings.transfer.levels.results_of", found)
    monkeypatch.setattr("raystudy.studies.open_study", lambda name, **_: studies[name])
    return [f"idx:{tmp_path / name}" for name in "abcd"]


ALL = tuple(part for name in "abcd" for part in ("--results", name))


def test_distances_are_related_to_what_studies_found(
    places: list[str], recorded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(places[0], *recorded, *TINY, *ALL) == 0
    out = capsys.readouterr().out
    assert "what distance has to do with a, b, c, d under resnet18" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(f"{MEAN} ")]
    assert [row[1] for row in rows] == [name for name in COVARIATES if name != "parameters"]
    assert {row[2] for row in rows} == {"4"}
    assert "No relation is told from none." in out
    assert "With 4 pairs no p-value can be below 0.083" in out
    assert out.count("3 pairs are too few for a rank correlation: the smallest p-value possible is 0.33.") == 1
    assert f"d: {DEPTH}: frozen_depth does not vary" in out


def test_relations_are_in_the_document_for_each_backbone_with_results(
    places: list[str], recorded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(places[0], *recorded, *TINY, "--backbone", "resnet34", *ALL, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["pairs"]) == 8
    assert {row["backbone"] for row in document["relations"]} == {"resnet18"}
    first = document["relations"][0]
    similarities = [pair["emd_similarity"] for pair in document["pairs"][:4]]
    assert (first["covariate"], first["result"], first["n_pairs"]) == ("emd_similarity", MEAN, 4)
    assert first["rho"]["value"] == pytest.approx(spearmanr(similarities, range(4)).statistic)
    assert document["left_out"] == [f"d: {DEPTH}: frozen_depth does not vary"]
    assert document["cautions"]


def test_a_study_of_other_images_is_refused_before_anything_is_computed(
    places: list[str], recorded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(places[0], recorded[0], *TINY, *ALL) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--results a" not in err
    for name, images in zip("bcd", recorded[1:], strict=True):
        assert f"--results {name}: its images are {images}; expected one of the targets: {recorded[0]}" in err
    assert not Path("cache").exists()


def test_all_sources_and_backbones_that_are_wrong_are_named_and_nothing_is_computed(
    places: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(places[0], "idx:/nowhere", "foldr:/x", "--backbone", "resnet19", "--backbone", "resnet18") == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 3
    for line, words in zip(lines, ("/nowhere", "did you mean folder:/x?", "unknown backbone 'resnet19'"), strict=True):
        assert words in line
    assert not Path("cache").exists()


def test_settings_from_python_are_checked_too() -> None:
    place = Place("sklearn:digits")
    with pytest.raises(SpecError) as caught:
        measure(place, [place], ["resnet18"], Taking(-1, per_class=0, seed=-1), cache_dir=Path("nowhere"))
    assert len(caught.value.problems) == 3


@pytest.mark.slow
def test_real_digits_are_closer_to_digits_than_to_bars(tmp_path: Path) -> None:
    write_idx(tmp_path / "bars", n_classes=4, per_class=40, side=16)
    digits, bars = Place("sklearn:digits"), Place(f"idx:{tmp_path / 'bars'}")
    taking = Taking(image_size=32, per_class=40, device="cpu")
    pairs = measure(digits, [digits, bars], ["efficientnet_lite0"], taking, cache_dir=tmp_path / "cache")
    same, away = (pair.distance for pair in pairs)
    assert away.a_distance > 1.8
    assert (same.emd, same.a_distance) == (0, 0)
    for kind in MEASURES:
        if kind.name != "logme":
            better = getattr(same, kind.name) - getattr(away, kind.name)
            assert (better < 0) == (kind.closer == "smaller"), kind.name
