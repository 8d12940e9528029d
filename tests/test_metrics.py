from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, recall_score
from torch import Tensor, nn

from raystudy.finetune.compute import Compute
from raystudy.finetune.metrics import Evaluation, evaluate

CPU = Compute.choose("cpu")
N_CLASSES = 5


def score(logits: Tensor, labels: Tensor, batch_size: int) -> Evaluation:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(labels), batch_size):
            yield logits[start : start + batch_size], labels[start : start + batch_size]

    return evaluate(lambda x: x, batches(), n_classes=N_CLASSES, compute=CPU)


@given(
    labels=st.lists(st.integers(0, N_CLASSES - 1), min_size=1, max_size=40),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_all_metrics_are_scikit_learns_whatever_the_batches(labels: list[int], batch_size: int, seed: int) -> None:
    logits = torch.randn(len(labels), N_CLASSES, generator=torch.Generator().manual_seed(seed))
    scores = score(logits, torch.tensor(labels), batch_size)
    predicted = logits.argmax(1).numpy()
    probabilities = logits.double().softmax(1).numpy()
    assert scores.n_images == len(labels)
    assert scores.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes that are predicted and do not occur
        assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert scores.loss == pytest.approx(log_loss(labels, probabilities, labels=range(N_CLASSES)), rel=1e-4)
    present = sorted(set(labels))
    recalls = recall_score(labels, predicted, labels=present, average=None, zero_division=0)
    assert scores.per_class_accuracy[present] == pytest.approx(recalls)


def test_a_class_without_images_has_no_accuracy_of_its_own() -> None:
    scores = score(torch.eye(N_CLASSES)[:2], torch.tensor([0, 1]), 2)
    assert scores.per_class_accuracy[:2].tolist() == [1, 1]
    assert np.isnan(scores.per_class_accuracy[2:]).all()
    assert scores.macro_f1 == scores.balanced_accuracy == 1


def test_balanced_accuracy_gives_a_rare_class_the_weight_of_a_frequent_one() -> None:
    labels = torch.tensor([0] * 9 + [1])
    scores = score(torch.eye(N_CLASSES)[torch.zeros(10, dtype=torch.int64)], labels, 4)
    assert (scores.accuracy, scores.balanced_accuracy) == (0.9, 0.5)


def test_a_module_is_evaluated_in_eval_mode_without_gradients() -> None:
    module = nn.Sequential(nn.Dropout(0.9), nn.Identity())
    logits = torch.eye(N_CLASSES).repeat(10, 1).requires_grad_()
    scores = evaluate(module, [(logits, torch.arange(N_CLASSES).repeat(10))], n_classes=N_CLASSES, compute=CPU)
    assert scores.accuracy == 1
    assert not module.training
