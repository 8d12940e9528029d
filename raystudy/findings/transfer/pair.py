"""All measures of one (source, target) pair, and in which direction each of them means closer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raystudy.findings.transfer.class_means import class_means, emd_similarity, movers_distance
from raystudy.findings.transfer.discrepancy import frechet_distance, squared_mmd
from raystudy.findings.transfer.domain import proxy_a_distance
from raystudy.findings.transfer.leep import head_probabilities, leep
from raystudy.findings.transfer.logme import logme
from raystudy.findings.transfer.sample import Floats, Sample, same_width

MOST_COMPARED = 2000
"""Images of each set from which MMD and A-distance are computed at most: their cost grows with the square, or with rounds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A measure as it is explained to people.

    Attributes:
        name: the attribute of `Distance`.
        title: of its column.
        closer: which direction means that source and target are closer, or that transfer is expected to work better.
        what: what it is.
        source: who proposed it.
    """

    name: str
    title: str
    closer: Literal["smaller", "larger"]
    what: str
    source: str


MEASURES = (
    Kind("emd", "EMD", "smaller", "earth mover's distance between class means, by class sizes", "Cui et al. 2018"),
    Kind("emd_similarity", "similarity", "larger", "exp(-0.01 EMD)", "Cui et al. 2018"),
    Kind("a_distance", "A-distance", "smaller", "2 (1 - 2 error) of a linear classifier of the sets", "Ben-David et al. 2007"),
    Kind("squared_mmd", "MMD²", "smaller", "squared maximum mean discrepancy, Gaussian kernel", "Gretton et al. 2012"),
    Kind("frechet", "Fréchet", "smaller", "Fréchet distance of Gaussians, squared", "Heusel et al. 2017"),
    Kind("leep", "LEEP", "larger", "likelihood of the labels, by a linear head fitted to the source", "Nguyen et al. 2020"),
    Kind("logme", "LogME", "larger", "evidence of the labels, by the target's features alone", "You et al. 2021"),
)


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a source is from a target under one backbone.

    Attributes:
        emd: earth mover's distance of class means, in units of the features.
        emd_similarity: exp(-0.01 emd).
        a_distance: proxy A-distance, 0 to 2.
        a_distance_error: its standard error.
        squared_mmd: unbiased, around 0 for equal distributions.
        frechet: squared, in squared units of the features.
        leep: of the target's labels by a linear head fitted to the source, in nats per image; None where there is no head.
        logme: of the target's labels, in nats per image; does not depend on the source.
        source_images: in the source's sample; likewise `target_images`.
        source_classes: in the source's sample; likewise `target_classes`.
        compared_images: of each set, in `a_distance`.
    """

    emd: float
    emd_similarity: float
    a_distance: float
    a_distance_error: float
    squared_mmd: float
    frechet: float
    leep: float | None
    logme: float
    source_images: int
    target_images: int
    source_classes: int
    target_classes: int
    compared_images: int


def distance(source: Sample, target: Sample, *, seed: int = 0, has_head: bool = True) -> Distance:
    """Measure a pair.

    Args:
        source: features and labels of the source.
        target: of the target, from the same backbone.
        seed: of the images that are drawn where a measure takes at most `MOST_COMPARED`, and of A-distance's halves.
        has_head: whether the backbone was trained to classify. One that was trained without labels has no classifier for which
            a head fitted to the source could stand in, so that there is no LEEP.

    Raises:
        DataError: the features have different widths.
    """
    same_width(source.features, target.features)
    source_means, source_sizes = class_means(source)
    target_means, target_sizes = class_means(target)
    emd = movers_distance(source_means, target_means, source_sizes, target_sizes)
    few = [_at_most(sample.features, MOST_COMPARED, seed) for sample in (source, target)]
    apart = proxy_a_distance(*few, seed=seed)
    return Distance(
        emd=emd,
        emd_similarity=emd_similarity(emd),
        a_distance=apart.value,
        a_distance_error=apart.standard_error,
        squared_mmd=squared_mmd(*few),
        frechet=frechet_distance(source.features, target.features),
        leep=leep(head_probabilities(source, target.features), target.labels) if has_head else None,
        logme=logme(target.features, target.labels),
        source_images=len(source.labels),
        target_images=len(target.labels),
        source_classes=source.n_classes,
        target_classes=target.n_classes,
        compared_images=apart.n_images,
    )


def _at_most(features: Floats, n: int, seed: int) -> Floats:
    """Return all features, or `n` of them in their order, drawn by the seed."""
    if len(features) <= n:
        return features
    return features[np.sort(np.random.default_rng(seed).permutation(len(features))[:n])]
