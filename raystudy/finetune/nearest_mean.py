"""The head of a self-supervised trial: the nearest class mean (Mensink et al. 2013), as a linear layer.

Notation: f features (d,); m_c the mean of the features of class c's training images; m the mean of the m_c; v the mean squared
distance of a training image's features to its own class mean. The probabilities are the softmax of -|f - m_c|^2 / (2 v), that
is, but for what all classes share, of

    (a_c . f - a_c . m - |a_c|^2 / 2) / v    with a_c = m_c - m,

which is linear in f and largest for the nearest m_c. v has no say in which that is. It makes the cross entropy independent of
the scale of the features; as the variance of a Gaussian it would have to be divided by d, and with features that are far from
independent that is so sure of itself that losses are in the hundreds (measured: 333 after an epoch of EfficientNet-lite0).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from raystudy.finetune.compute import Compute
from raystudy.finetune.model import Classifier

_ABSENT = -1e30
"""The logit of a class without images: its probability is 0, and nothing becomes infinite."""
_LEAST_VARIANCE = 1e-12


def fit_nearest_mean(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], *, compute: Compute) -> None:
    """Let the head of `classifier` say which class mean an image's features are nearest to.

    Args:
        classifier: put into eval mode and left there; only its head is changed.
        batches: float images `(batch, 3, side, side)` of 0 to 255 with labels, which cover the training images once.
        compute: where, and in which precision, the network runs.
    """
    classifier.eval()
    head, n_features = classifier.model.head, classifier.model.backbone.info.n_features
    # float64: the variance is a difference of sums.
    counts = torch.zeros(head.out_features, dtype=torch.float64, device=compute.device)
    sums = torch.zeros(head.out_features, n_features, dtype=torch.float64, device=compute.device)
    squares = torch.zeros((), dtype=torch.float64, device=compute.device)
    with torch.no_grad():
        for images, labels in batches:
            with compute.autocast():
                features = classifier.model.backbone(classifier.preprocess(images)).double()
            # A matrix product, not index_add_, whose order of summation on a GPU is another one every time.
            members = torch.nn.functional.one_hot(labels, head.out_features).double()
            counts += members.sum(0)
            sums += members.T @ features
            squares += features.square().sum()
        weight, bias = _as_linear(counts, sums, squares)
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def _as_linear(counts: Tensor, sums: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight `(classes, d)` and bias `(classes,)` from each class's number of images and sum of features."""
    there = counts > 0
    means = sums / counts.clamp(min=1)[:, None]
    within = squares - (counts[:, None] * means.square()).sum()
    variance = (within / counts.sum()).clamp(min=_LEAST_VARIANCE)
    centre = means[there].mean(0)
    offsets = torch.where(there[:, None], means - centre, 0.0)
    bias = -(offsets @ centre + offsets.square().sum(1) / 2) / variance
    return offsets / variance, torch.where(there, bias, _ABSENT)
