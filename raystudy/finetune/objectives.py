"""What training minimises: the cross entropy of the labels or, self-supervised, NT-Xent of two views of each image.

NT-Xent (SimCLR: Chen et al. 2020, arXiv 2002.05709, equation 1): a batch of n images is 2 n views; of each view, the other view
of its image is to be told from the views of all other images, by the cosine of their projections over a temperature. The
projections are made of the features by two layers that train with the backbone and that the model of the trial never has:
a checkpoint keeps them, beside the optimiser's tensors, for its own resumption only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from raystudy.finetune.batches import Batch
from raystudy.finetune.hyperparameters import Hyperparameters
from raystudy.finetune.model import FineTuneModel, Network, new_linear
from raystudy.finetune.seeds import Purpose, TrialSeeds

TEMPERATURE = 0.5
"""SimCLR's for small images."""
_PROJECTION_WIDTH = 128
_PREFIX = "projection/"


class Objective(Protocol):
    """A loss, and the network that trains under it: the trial's model, or its backbone with another head."""

    @property
    def network(self) -> Network:
        """What trains."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of a batch from the network's outputs in float32."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that train and that the trial's model does not have."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned; other names in it are passed over."""


def objective_of(model: FineTuneModel, hyper: Hyperparameters, seeds: TrialSeeds) -> Objective:
    """Return what `hyper` says that `model` is trained for; the new layers of a self-supervised one come from `seeds`."""
    if hyper.is_self_supervised:
        return SelfSupervised(model, hyper, seeds)
    return Supervised(model, hyper.label_smoothing)


@dataclass(frozen=True)
class Supervised:
    """The cross entropy of the labels.

    Attributes:
        network: the trial's model.
        label_smoothing: share of the target probability that is spread over all classes.
    """

    network: FineTuneModel
    label_smoothing: float

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross entropy of logits `(batch, n_classes)`."""
        return criterion(outputs, batch, label_smoothing=self.label_smoothing)

    def state(self) -> dict[str, Tensor]:
        """Return nothing: the model has it all."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take nothing."""


class SelfSupervised:
    """NT-Xent over the backbone of a trial's model, whose own head has no part in it."""

    def __init__(self, model: FineTuneModel, hyper: Hyperparameters, seeds: TrialSeeds) -> None:
        width = model.backbone.info.n_features
        first, second = (seeds.derive(Purpose.PROJECTION, index) for index in range(2))
        head = nn.Sequential(new_linear(width, width, seed=first), nn.ReLU(), new_linear(width, _PROJECTION_WIDTH, seed=second))
        self.network = Network(model.backbone, head.to(model.head.weight.device), dropout=hyper.dropout)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of projections `(2 n, width)`, the labels being the images' numbers."""
        return nt_xent(outputs, batch.labels)

    def state(self) -> dict[str, Tensor]:
        """Return the projection's weights."""
        return {_PREFIX + name: tensor for name, tensor in self.network.head.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the projection's weights."""
        own = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
        self.network.head.load_state_dict(own)


def criterion(logits: Tensor, batch: Batch, *, label_smoothing: float) -> Tensor:
    """Return the mean cross entropy, the pair of labels of MixUp and CutMix weighted by their shares."""
    loss = functional.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    if batch.weight == 1:
        return loss
    partner = functional.cross_entropy(logits, batch.partner_labels, label_smoothing=label_smoothing)
    return batch.weight * loss + (1 - batch.weight) * partner


def nt_xent(projections: Tensor, images: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """Return the mean over all views of -log softmax of its image's other view among that and the views of other images.

    Args:
        projections: `(2 n, width)`, of a view of each image and then, in the same order, of another one.
        images: which image each is a view of, `(2 n,)`. An image may occur more than once (batches larger than the data): it
            is then no negative of itself.
        temperature: divides the cosines.
    """
    directions = functional.normalize(projections, dim=1)
    similarities = directions @ directions.T / temperature
    n_views = len(images)
    views = torch.arange(n_views, device=images.device)
    positives = similarities[views, views.roll(n_views // 2)]
    negatives = similarities.masked_fill(images[:, None] == images[None, :], -torch.inf)
    return (torch.cat([positives[:, None], negatives], dim=1).logsumexp(dim=1) - positives).mean()
