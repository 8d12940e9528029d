"""Training without labels: the loss, the head that stands for it afterwards, and what a trial keeps of it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import build_tiny_backbone, tiny_data, tiny_hyper, tiny_model, tiny_plan, tiny_run
from torch import Tensor
from torch.nn import functional

from raystudy.data import PreparedData
from raystudy.finetune import checkpoint
from raystudy.finetune.batches import ImageStore, evaluation_batches
from raystudy.finetune.compute import Compute
from raystudy.finetune.metrics import evaluate
from raystudy.finetune.model import Classifier, build_classifier
from raystudy.finetune.nearest_mean import fit_nearest_mean
from raystudy.finetune.objectives import nt_xent
from raystudy.finetune.trial import load_classifier

CPU = Compute.choose("cpu")
SELF = {"training_objective": "self_supervised"}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(one: Tensor, two: Tensor) -> float:
    return float(functional.cosine_similarity(one, two, dim=0))


# The loss


def by_hand(views: Tensor, images: Tensor, temperature: float) -> float:
    """Return NT-Xent, view by view."""
    n, losses = len(images) // 2, []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        among = [partner, *(k for k in range(2 * n) if images[k] != images[i])]
        weights = [math.exp(cosine(views[i], views[k]) / temperature) for k in among]
        losses.append(-math.log(weights[0] / sum(weights)))
    return float(np.mean(losses))


@pytest.mark.parametrize("images", [[0, 1, 2, 3], [5, 2, 5, 3], [4, 4, 4, 1]], ids=str)
def test_nt_xent_agrees_with_a_loop_where_images_occur_more_than_once_too(images: list[int]) -> None:
    views, which = random(8, 6), torch.tensor(images).repeat(2)
    assert nt_xent(views, which, temperature=0.2).item() == pytest.approx(by_hand(views, which, 0.2), rel=1e-5)
    assert nt_xent(views * 7, which, temperature=0.2).item() == pytest.approx(by_hand(views, which, 0.2), rel=1e-5)


def test_views_that_agree_and_differ_from_others_cost_least() -> None:
    apart = torch.eye(4).repeat(2, 1)
    images = torch.arange(4).repeat(2)
    assert nt_xent(apart, images) < nt_xent(random(8, 4), images) < nt_xent(torch.cat([apart[:4], apart[:4].flip(0)]), images)
    assert nt_xent(apart, images).item() == pytest.approx(math.log(1 + 6 * math.exp(-2)))
    assert nt_xent(torch.ones(8, 4), images).item() == pytest.approx(math.log(7)), "all alike: a guess among seven"


# The head


def fitted(data: PreparedData) -> Classifier:
    classifier = build_classifier(tiny_model())
    store = ImageStore(data.images, data.labels, CPU)
    fit_nearest_mean(classifier, evaluation_batches(store, data.splits.train, batch_size=7), compute=CPU)
    return classifier


def outputs(classifier: Classifier, data: PreparedData, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return features and logits."""
    images = torch.from_numpy(data.images[indices]).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        return classifier.model.backbone(classifier.preprocess(images)), classifier(images)


def test_the_head_is_the_softmax_of_squared_distances_to_the_class_means() -> None:
    data = tiny_data()
    classifier = fitted(data)
    train, labels = data.splits.train, torch.from_numpy(data.labels[data.splits.train])
    features, _ = outputs(classifier, data, train)
    means = torch.stack([features[labels == label].mean(0) for label in range(3)])
    variance = (features - means[labels]).square().sum(1).mean()
    seen, logits = outputs(classifier, data, data.splits.validation)
    distances = torch.cdist(seen, means)
    assert logits.argmax(1).tolist() == distances.argmin(1).tolist()
    expected = (-distances.square() / (2 * variance)).log_softmax(1)
    assert torch.allclose(logits.log_softmax(1), expected, rtol=1e-4, atol=1e-4)


def test_a_class_without_images_is_never_the_answer() -> None:
    data = tiny_data()
    some = data.splits.train[data.labels[data.splits.train] != 1]
    less = dataclasses.replace(data, splits=dataclasses.replace(data.splits, train=some))
    _, logits = outputs(fitted(less), data, np.arange(len(data.labels)))
    assert set(logits.argmax(1).tolist()) == {0, 2}
    assert torch.isfinite(logits).all()
    assert (logits.softmax(1)[:, 1] == 0).all()


def test_features_that_are_all_the_same_give_a_guess_and_no_nan() -> None:
    data = dataclasses.replace(tiny_data(), images=np.zeros_like(tiny_data().images))
    _, logits = outputs(fitted(data), data, data.splits.validation)
    assert torch.isfinite(logits).all()
    assert torch.allclose(logits.softmax(1), torch.full((14, 3), 1 / 3), atol=1e-3)


# The trial


def test_no_label_reaches_the_backbone(tmp_path: Path) -> None:
    data = tiny_data()
    shuffled = dataclasses.replace(data, labels=np.roll(data.labels, 1), fingerprint="shuffled")
    runs = [tiny_run(tmp_path / one.fingerprint, SELF, data=one) for one in (data, shuffled)]
    rows = [list(run.epochs()) for run in runs]
    one, two = (run.model.state_dict() for run in runs)
    assert [name for name in one if not torch.equal(one[name], two[name])] == ["head.weight", "head.bias"]
    assert [row["train_loss"] for row in rows[0]] == [row["train_loss"] for row in rows[1]]


def test_what_is_reported_is_the_class_mean_accuracy_of_the_model_that_is_kept(tmp_path: Path) -> None:
    data = tiny_data(n_validation=60)
    plan = tiny_plan({**SELF, "pretrained": False, "learning_rate": 0.05})
    rows = list(tiny_run(tmp_path, plan.config, data=data).epochs())
    best = checkpoint.load_best(tmp_path)
    assert not [name for name in best.weights if not name.startswith(("backbone.", "head."))], "the projection is thrown away"
    assert {name for name in best.optimizer if name.startswith("projection/")}, "but kept for a resume"
    classifier = load_classifier(plan, tmp_path, n_classes=3, image_size=8, backbone=build_tiny_backbone)
    batches = evaluation_batches(ImageStore(data.images, data.labels, CPU), data.splits.validation)
    scores = evaluate(classifier, batches, n_classes=3, compute=CPU)
    assert scores.accuracy == best.row["val_accuracy"] == max(row["val_accuracy"] for row in rows)
    features, _ = outputs(classifier, data, data.splits.train)
    labels = torch.from_numpy(data.labels[data.splits.train])
    means = torch.stack([features[labels == label].mean(0) for label in range(3)])
    seen, _ = outputs(classifier, data, data.splits.validation)
    nearest = torch.cdist(seen, means).argmin(1).numpy()
    assert scores.accuracy == np.mean(nearest == data.labels[data.splits.validation])


def test_frozen_units_stay_and_the_rest_learns(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, {**SELF, "frozen_depth": 2}, epochs=6)
    losses = [row["train_loss"] for row in run.epochs()]
    start, now = tiny_model(tiny_hyper()).state_dict(), run.model.state_dict()
    moved = {name.split(".")[2] for name in now if name.startswith("backbone") and not torch.equal(now[name], start[name])}
    assert moved == {"2", "3"}
    assert losses[-1] < losses[0]
