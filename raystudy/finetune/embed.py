"""The features that a backbone gives to some images of a data set, as numbers to be measured."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from raystudy.data import PreparedData, class_orders
from raystudy.findings.transfer import Sample
from raystudy.finetune.backbone import Backbone
from raystudy.finetune.batches import ImageStore, evaluation_batch_size, evaluation_batches
from raystudy.finetune.compute import Compute, out_of_memory_as_error
from raystudy.finetune.model import Preprocess

Indices = NDArray[np.int64]


def embed(
    data: PreparedData,
    split: Indices,
    backbone: Backbone,
    *,
    name: str,
    per_class: int = 200,
    seed: int = 0,
    resolution: int = 0,
    compute: Compute,
) -> Sample:
    """Return the features of at most `per_class` images of each class of a split, with the sizes of all its classes.

    The backbone is in eval mode and sees what trials validate with: resized, normalised, not augmented.

    Args:
        data: the images.
        split: the indices among which to draw, `(n,)`.
        backbone: moved to the device; its mode is as before afterwards.
        name: of the data set, for messages.
        per_class: the most images of one class.
        seed: of the draw.
        resolution: side in pixels to which images are resized; 0 keeps that of `data`.
        compute: the device and precision.

    Raises:
        DataError: features that are not finite, or fewer than two images or classes.
        OutOfMemory: on the device or the host.
    """
    indices = draw(split, data.labels, per_class=per_class, seed=seed)
    sizes = np.bincount(data.labels[split], minlength=len(data.class_names))
    with out_of_memory_as_error():
        features = _features(data, indices, backbone, resolution, compute)
    return Sample.of(name, features, data.labels[indices], sizes)


def draw(split: Indices, labels: Indices, *, per_class: int, seed: int) -> Indices:
    """Return at most `per_class` images of each class of `split`, sorted.

    What is drawn of a class depends on the seed and the class only, and a smaller draw lies inside a larger one.
    """
    parts = [order[:per_class] for order in class_orders(split, labels, seed=seed)]
    return np.sort(np.concatenate(parts)) if parts else split


def _features(
    data: PreparedData, indices: Indices, backbone: Backbone, resolution: int, compute: Compute
) -> NDArray[np.float32]:
    info, was_training = backbone.info, backbone.training
    # Only the images that are needed may move to a GPU: the data set may be much larger than the draw.
    store = ImageStore(data.images[indices], data.labels[indices], compute)
    preprocess = Preprocess(info.mean, info.std, resolution=resolution).to(compute.device)
    forward = backbone.to(compute.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    batch_size = evaluation_batch_size(resolution or data.images.shape[1])
    batches = evaluation_batches(store, np.arange(len(indices)), batch_size=batch_size)
    try:
        # no_grad, not inference_mode: some backbones keep tensors that they computed once, and these may be trained with.
        with torch.no_grad(), compute.autocast():
            parts = [forward(preprocess(images)).float().cpu().numpy() for images, _ in batches]
    finally:
        backbone.train(was_training)
    return np.concatenate(parts) if parts else np.empty((0, info.n_features), np.float32)
