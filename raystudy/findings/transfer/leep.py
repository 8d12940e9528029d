"""LEEP: how well the answers of a source's head predict a target's labels (Nguyen et al. 2020)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystudy.errors import DataError, Problem
from raystudy.findings.transfer.sample import Floats, Sample, class_labels, matrix, same_width

_ITERATIONS = 1000
_ROUNDING = 1e-4
"""Sums of probabilities may be off by this: networks compute them in half precision too."""


def leep(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the mean log likelihood of the labels y under sum_z P(y | z) p(z | x), with P(y | z) from the same images.

    Args:
        probabilities: (n, n_source_classes), of the source's classes z for each target image x; rows add up to 1.
        labels: (n,), of the target, at least two classes.

    Returns:
        In nats per image, at most 0; larger is better.

    Raises:
        DataError: fewer than 2 images or classes, rows that are no probabilities.
    """
    values = matrix(probabilities, "source head")
    if (values < 0).any() or (np.abs(values.sum(axis=1) - 1) > _ROUNDING).any():
        raise DataError(Problem("source head", "its outputs are no probabilities", "expected rows from 0 that add up to 1"))
    values = values / values.sum(axis=1, keepdims=True)
    classes, places = np.unique(class_labels(labels, len(values), "target"), return_inverse=True)
    joint = np.zeros((len(classes), values.shape[1]))
    np.add.at(joint, places, values)
    sums = joint.sum(axis=0)
    # A source class that no image is given any probability of has no say.
    conditional = np.divide(joint, sums, out=np.zeros_like(joint), where=sums > 0)
    likelihoods = (conditional[places] * values).sum(axis=1)
    return min(0.0, float(np.log(likelihoods).mean()))


def head_probabilities(source: Sample, features: NDArray[Any]) -> Floats:
    """Return what a linear head that was fitted to the source says of `features`, (n, n_source_classes).

    The head is a logistic regression with an L2 penalty on standardised features; it stands in for the classifier of a
    network that was trained on the source.

    Raises:
        DataError: numbers that are not finite, or features of another width.
    """
    from sklearn.linear_model import LogisticRegression

    values = matrix(features, "target", at_least=1)
    same_width(source.features, values)
    mean, spread = source.features.mean(axis=0), source.features.std(axis=0)
    spread[spread == 0] = 1
    head = LogisticRegression(max_iter=_ITERATIONS).fit((source.features - mean) / spread, source.labels)
    probabilities: Floats = head.predict_proba((values - mean) / spread)
    return probabilities
