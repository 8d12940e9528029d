"""How well a model classifies: computed over a whole split at once, never averaged over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from raystudy.finetune.compute import Compute


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of a model over a split.

    Attributes:
        loss: mean cross entropy per image, without label smoothing.
        accuracy: share of images whose highest logit is their label's.
        macro_f1: F1 averaged over the classes that occur among labels or predictions, as scikit-learn does.
        balanced_accuracy: mean of `per_class_accuracy` over the classes that occur among labels.
        per_class_accuracy: share of right answers among each class's images, `(n_classes,)`; NaN for a class without any.
        n_images: size of the split.
    """

    loss: float
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    per_class_accuracy: NDArray[np.float64]
    n_images: int


def evaluate(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    n_classes: int,
    compute: Compute,
) -> Evaluation:
    """Run a model over a split.

    Args:
        forward: maps a batch's input to logits `(batch, n_classes)`; a module is put into eval mode and left there.
        batches: pairs of input and labels `(batch,)` that cover the split once.
        n_classes: number of classes.
        compute: where, and in which precision, the model runs.
    """
    if isinstance(forward, nn.Module):
        forward.eval()
    # Sums stay on the device, one transfer per split: a transfer per batch would stall a GPU.
    loss = torch.zeros((), dtype=torch.float64, device=compute.device)
    confusion = torch.zeros(n_classes * n_classes, dtype=torch.int64, device=compute.device)
    # no_grad, not inference_mode: some backbones keep tensors that they computed once (position tables, masks), and one
    # made under inference_mode would break the next training step.
    with torch.no_grad():
        for inputs, labels in batches:
            with compute.autocast():
                logits = forward(inputs).float()
            loss += functional.cross_entropy(logits, labels, reduction="sum").double()
            confusion.scatter_add_(0, labels * n_classes + logits.argmax(1), torch.ones_like(labels))
    return _summarize(float(loss), confusion.view(n_classes, n_classes).cpu().numpy())


def _summarize(loss_sum: float, confusion: NDArray[np.int64]) -> Evaluation:
    n_images = int(confusion.sum())
    hits, support = np.diag(confusion), confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        per_class = hits / support
    return Evaluation(
        loss=loss_sum / n_images,
        accuracy=float(hits.sum() / n_images),
        macro_f1=macro_f1(confusion),
        balanced_accuracy=float(np.mean(per_class[support > 0])),
        per_class_accuracy=per_class,
        n_images=n_images,
    )


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Return the mean F1 over the classes that occur, from counts `(label, prediction)`."""
    hits = np.diag(confusion)
    # F1 = 2 TP / (2 TP + FP + FN), and the two margins of a class add up to just that denominator.
    occurrences = confusion.sum(axis=0) + confusion.sum(axis=1)
    occurs = occurrences > 0
    return float(np.mean(2 * hits[occurs] / occurrences[occurs]))
