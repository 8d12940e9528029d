"""The catalogue of fine-tuning factors: what may be varied or fixed in a study, and what each value may be.

One entry per factor. The study file is checked against it, a trial's hyperparameters are filled up from its defaults, and
the table in the documentation is generated from it. Sources: Li, Herranz and Jiang 2020 (the question), Quick-Tune
(ICLR 2024, search space v1) and the papers named in each entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from raystudy.factor_info import PROBE_DEPTH, FactorInfo, Kind, Role, Scalar

__all__ = [
    "FACTORS",
    "PROBE_DEPTH",
    "SELF_SUPERVISED",
    "SOURCE_FACTORS",
    "SUPERVISED",
    "TARGET_FACTORS",
    "FactorInfo",
    "Kind",
    "Role",
    "Scalar",
    "defaults",
]

SUPERVISED: Final = "supervised"
SELF_SUPERVISED: Final = "self_supervised"
"""What a network may be trained for."""

_WITH_LABELS: Mapping[str, Scalar] = {"training_objective": SUPERVISED}


def _catalogue(*entries: FactorInfo) -> Mapping[str, FactorInfo]:
    return {entry.name: entry for entry in entries}


FACTORS: Mapping[str, FactorInfo] = _catalogue(
    FactorInfo(
        "learning_rate",
        "float",
        "Initial learning rate of the backbone's trained units (and of the head, times its multiplier).",
        default=1e-3,
        low=0,
        high=10,
        positive=True,
        source="Li, Herranz, Jiang 2020; Kornblith 2019; Li 2020",
    ),
    FactorInfo(
        "optimizer",
        "categorical",
        "Update rule: SGD with Nesterov momentum, or AdamW.",
        default="adamw",
        choices=("sgd", "adamw"),
        source="Quick-Tune 2024",
    ),
    FactorInfo(
        "momentum",
        "float",
        "Momentum of SGD; acts through the effective learning rate lr / (1 - momentum).",
        default=0.9,
        low=0,
        high=0.999,
        applies={"optimizer": "sgd"},
        source="Li 2020",
    ),
    FactorInfo(
        "weight_decay",
        "float",
        "Decay of the weights (not of biases and norms) towards zero.",
        default=1e-4,
        low=0,
        high=1,
        source="Kornblith 2019; Li 2020",
    ),
    FactorInfo("batch_size", "int", "Images per optimiser step.", default=64, low=1, high=65536, source="Shallue 2018"),
    FactorInfo(
        "schedule",
        "categorical",
        "Course of the learning rate over the budget after the warm-up.",
        default="cosine",
        choices=("constant", "cosine", "step"),
        source="Quick-Tune 2024; BiT 2020",
    ),
    FactorInfo(
        "warmup",
        "float",
        "Share of the budget's steps over which the learning rate rises linearly.",
        default=0.0,
        low=0,
        high=0.5,
        source="Quick-Tune 2024",
    ),
    FactorInfo(
        "frozen_depth",
        "int",
        "Number of leading units that are frozen: 0 is full fine-tuning, max a linear probe.",
        default=0,
        low=0,
        role="scientific",
        source="Yosinski 2014; Chu 2016; Quick-Tune 2024",
    ),
    FactorInfo(
        "tuned_unit",
        "int",
        "Surgical fine-tuning: only this unit (0 = first) and the head are trained; -1 switches it off.",
        default=-1,
        low=-1,
        role="scientific",
        source="Lee 2023",
    ),
    FactorInfo(
        "reinit_units",
        "int",
        "Number of last units that start from random weights instead of the pretrained ones.",
        default=0,
        low=0,
        role="scientific",
        source="Chu 2016; Plested 2021",
    ),
    FactorInfo(
        "strategy",
        "categorical",
        "ft: everything not frozen at once; lp_ft: the head alone first; gradual: unfreeze from the last unit backwards.",
        default="ft",
        choices=("ft", "lp_ft", "gradual"),
        role="scientific",
        source="Kumar 2022; Quick-Tune 2024",
    ),
    FactorInfo(
        "lp_share",
        "float",
        "Share of the budget in which lp_ft trains the head alone, and over which gradual unfreezes.",
        default=0.5,
        low=0,
        high=1,
        source="Kumar 2022",
    ),
    FactorInfo(
        "head_lr_multiplier",
        "float",
        "Learning rate of the head over that of the backbone.",
        default=1.0,
        low=0,
        high=1000,
        positive=True,
        source="Dube 2018",
    ),
    FactorInfo(
        "layer_decay",
        "float",
        "Factor on the learning rate from each unit to the one before it.",
        default=1.0,
        low=0,
        high=1,
        positive=True,
        source="Quick-Tune 2024",
    ),
    FactorInfo(
        "batch_norm",
        "categorical",
        "train: trained units update batch-norm statistics; eval: all statistics stay the pretrained ones.",
        default="train",
        choices=("train", "eval"),
        source="Kornblith 2019; Li 2020",
    ),
    FactorInfo(
        "batch_norm_momentum",
        "float",
        "Weight of a new batch in the running batch-norm statistics.",
        default=0.1,
        low=0,
        high=1,
        positive=True,
        applies={"batch_norm": "train"},
        source="Kornblith 2019",
    ),
    FactorInfo(
        "l2_sp",
        "float",
        "Strength of the pull of trained backbone weights towards their pretrained values.",
        default=0.0,
        low=0,
        high=10,
        source="Li 2018; Li 2020",
    ),
    FactorInfo(
        "label_smoothing",
        "float",
        "Share of the target probability spread over all classes.",
        default=0.0,
        low=0,
        high=0.9,
        applies=_WITH_LABELS,
        source="Quick-Tune 2024",
    ),
    FactorInfo(
        "dropout",
        "float",
        "Probability of dropping a feature before the head.",
        default=0.0,
        low=0,
        high=0.95,
        source="Quick-Tune 2024",
    ),
    FactorInfo(
        "mixup",
        "float",
        "Beta parameter of MixUp; 0 is off.",
        default=0.0,
        low=0,
        high=8,
        applies=_WITH_LABELS,
        source="BiT 2020",
    ),
    FactorInfo(
        "cutmix",
        "float",
        "Beta parameter of CutMix; 0 is off. With mixup on too, each batch has one of the two, with probability 0.5.",
        default=0.0,
        low=0,
        high=8,
        applies=_WITH_LABELS,
        source="Yun 2019; Quick-Tune 2024",
    ),
    FactorInfo(
        "clip_grad_norm",
        "float",
        "Largest norm of a step's gradient; 0 is off.",
        default=0.0,
        low=0,
        high=1e6,
        source="Quick-Tune 2024",
    ),
    FactorInfo(
        "augmentation",
        "categorical",
        "none; flip: horizontal flips; standard: random resized crops and flips.",
        default="none",
        choices=("none", "flip", "standard"),
        applies=_WITH_LABELS,
        source="Quick-Tune 2024; Kornblith 2019",
    ),
    FactorInfo(
        "resolution",
        "int",
        "Side in pixels at which images enter the network; 0 is data.image_size.",
        default=0,
        low=0,
        high=2048,
        source="BiT 2020; Cui 2018",
    ),
    FactorInfo(
        "data_fraction",
        "float",
        "Share of the training split that is used: nested, stratified by class.",
        default=1.0,
        low=0,
        high=1,
        positive=True,
        role="scientific",
        source="Chu 2016; BiT 2020",
    ),
    FactorInfo(
        "images_per_class",
        "int",
        "Shots: at most so many training images of each class, of data_fraction's the first; 0 sets no limit.",
        default=0,
        low=1,
        high=1_000_000,
        off=0,
        role="scientific",
        source="BiT 2020; VTAB 2019",
    ),
    FactorInfo(
        "class_imbalance",
        "float",
        "Training images of the most frequent class over those of the least frequent one: an exponential long tail.",
        default=1.0,
        low=1,
        high=1000,
        role="scientific",
        source="Cui 2019; Cao 2019",
    ),
    FactorInfo(
        "label_noise",
        "float",
        "Share of the training images whose label is replaced by another class, drawn uniformly; validation is never touched.",
        default=0.0,
        low=0,
        high=0.9,
        role="scientific",
        source="Zhang 2017; Patrini 2017",
    ),
    FactorInfo(
        "categories",
        "int",
        "Trains and validates on so many classes only, nested; the head keeps an output for each class of the data; 0 is all.",
        default=0,
        low=2,
        high=1_000_000,
        off=0,
        role="scientific",
        source="Huh 2016; Li, Herranz, Jiang 2020",
    ),
    FactorInfo(
        "training_objective",
        "categorical",
        "supervised: the labels; self_supervised: to tell two views of an image from other images' (NT-Xent), the head then "
        "being the nearest class mean.",
        default=SUPERVISED,
        choices=(SUPERVISED, SELF_SUPERVISED),
        role="scientific",
        source="Chen 2020; He 2022",
    ),
    FactorInfo(
        "pretrained",
        "bool",
        "Pretrained weights, or random initialisation.",
        default=True,
        role="scientific",
        source="Kornblith 2019; He 2019",
    ),
    FactorInfo(
        "source", "categorical", "Name of the source models to start from.", default="", role="scientific", source="Cui 2018"
    ),
    FactorInfo(
        "source_categories", "int", "How many classes it was trained on.", 0, low=2, off=0, role="scientific", source="Huh 2016"
    ),
    FactorInfo(
        "source_images_per_category", "int", "Images of each; 0: all.", 0, low=1, off=0, role="scientific", source="Huh 2016"
    ),
    FactorInfo(
        "source_objective",
        "categorical",
        "What it was trained for: its labels, or without them.",
        default=SUPERVISED,
        choices=(SUPERVISED, SELF_SUPERVISED),
        role="scientific",
        source="Chen 2020; He 2022",
    ),
    FactorInfo("source_seed", "int", "Replicate of it; -1: it has none.", -1, low=0, off=-1, source="Bouthillier 2021"),
    FactorInfo("backbone", "categorical", "The pretrained network.", default="", role="scientific", source="Kornblith 2019"),
    FactorInfo(
        "seed",
        "int",
        "Replicate: changes initialisation, order, augmentation and dropout, nothing else.",
        default=0,
        low=0,
        high=2**31 - 1,
        source="Bouthillier 2021",
    ),
)

SOURCE_FACTORS = frozenset(
    {"backbone", "pretrained", "source", "source_categories", "source_images_per_category", "source_objective"}
)
"""Factors about the source model; ASHA compares within their levels by default (rule 4)."""

TARGET_FACTORS = frozenset(
    {"data_fraction", "images_per_class", "class_imbalance", "label_noise", "categories", "training_objective"}
)
"""Factors about what there is to train on and whether labels are seen, which lower or raise what can be reached at all: ASHA
compares within them too."""


def defaults() -> dict[str, Scalar]:
    """Return the default value of every factor."""
    return {name: info.default for name, info in FACTORS.items()}
