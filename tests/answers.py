"""Answers to what matters, made by hand: what people are shown is tested without computing anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from raystudy.factors import Scalar
from raystudy.findings.answer import (
    AtEpoch,
    Effect,
    Guideline,
    Importance,
    Interval,
    Level,
    Plan,
    Proposal,
    Recommended,
    SelfCheck,
    Settling,
    Share,
    Surface,
    Verdict,
)

CHECK = SelfCheck(
    passed=True,
    sentences=("Left-out completed trials are predicted.", "The built-in null factor has 0 to 1 %."),
    loo_r2=0.93,
    loo_error=0.0123,
    n_loo=14,
    holdout_error=0.021,
    n_holdout=5,
    coverage_50=0.51,
    coverage_90=0.92,
    null_factor=Interval(value=0.002, low=0, high=0.011),
)
FAILED_CHECK = CHECK.model_copy(
    update={"passed": False, "sentences": ("Left-out completed trials are predicted no better than by their mean.",)}
)
HARMLESS = ("warmup", "dropout", "label_smoothing", "head_lr_multiplier", "batch_norm_momentum", "layer_decay", "mixup")


def interval(value: float, width: float = 0.06) -> Interval:
    """Return an interval around `value` that does not go below 0."""
    return Interval(value=value, low=max(0.0, value - width / 2), high=value + width / 2)


def share(name: str, first: float, total: float | None = None, verdict: Verdict | None = None, **more: Any) -> Share:
    """Return the share of a factor; important from 5 % on."""
    total = first * 1.15 if total is None else total
    return Share(
        factors=(name,),
        first_order=interval(first),
        total=interval(total),
        probability_first=more.pop("probability_first", 0.01),
        verdict=verdict or ("important" if total > 0.05 else "minor"),
        **more,
    )


def unknown(name: str, reason: str = "its interval is wider than half of all variance") -> Share:
    """Return the share of a factor about which the trials say nothing."""
    return Share(factors=(name,), first_order=None, total=None, probability_first=None, verdict="not identified", reason=reason)


def vague(name: str) -> Share:
    """Return the share of a factor that may be anything."""
    wide = Interval(value=0.3, low=0.02, high=0.7)
    reason = "its share is anywhere from 2 % to 70 %"
    return Share(factors=(name,), first_order=wide, total=wide, probability_first=0.3, verdict="not identified", reason=reason)


def level(value: Scalar, mean: float, probability: float, *, gain: float = 0.02, width: float = 0.03) -> Level:
    """Return a level whose profile lies `gain` above its mean."""
    return Level(value=value, mean=interval(mean, width), profile=interval(mean + gain, width), probability_best=probability)


def log_effect(name: str = "learning_rate", low: float = 1e-5, high: float = 1e-1, role: str = "nuisance") -> Effect:
    """Return the effect of a factor on a log scale, with a peak."""
    places = np.linspace(0, 1, 17)
    weights = np.exp(-(((places - 0.6) / 0.08) ** 2))
    weights /= weights.sum()
    levels = (
        level(float(low * (high / low) ** u), 0.9 - 1.2 * (u - 0.6) ** 2, float(w), width=0.03 + 0.06 * abs(u - 0.6))
        for u, w in zip(places, weights, strict=True)
    )
    return Effect(factor=name, role=role, scale="log", levels=tuple(levels))


def choice_effect(name: str = "optimizer", values: tuple[Scalar, ...] = ("sgd", "adamw"), role: str = "nuisance") -> Effect:
    """Return the effect of a factor with levels; the last one is the best."""
    n = len(values)
    levels = (level(value, 0.8 + 0.03 * k, 0.85 if k == n - 1 else 0.15 / max(1, n - 1)) for k, value in enumerate(values))
    return Effect(factor=name, role=role, scale="categorical", levels=tuple(levels))


def depth_effect(name: str = "frozen_depth", deepest: int = 17) -> Effect:
    """Return the effect of a scientific factor of whole numbers; shallow is best."""
    levels = (
        level(depth, 0.9 - 0.2 * (depth / deepest) ** 2, 0.3 if depth < 3 else 0.1 / (deepest - 2), gain=0.03)
        for depth in range(deepest + 1)
    )
    return Effect(factor=name, role="scientific", scale="ordered", levels=tuple(levels))


def course(*names: str) -> tuple[AtEpoch, ...]:
    """Return first-order indices along training: the first name rises, the second fades, others stay."""
    finals = [0.48, 0.01, 0.22, 0.1, 0.4]
    starts = [0.2, 0.5, 0.15, 0.1, 0.05]
    epochs = (1, 2, 3, 5, 9, 15, 27)
    return tuple(
        AtEpoch(
            epoch=epoch,
            first_order={
                name: interval(
                    starts[k] + (finals[k] - starts[k]) * float(np.log(epoch) / np.log(27)),
                    0.6 if name == "batch_norm" else 0.06,
                )
                for k, name in enumerate(names)
            },
        )
        for epoch in epochs
    )


def surface_of(first: str = "learning_rate", second: str = "frozen_depth") -> Surface:
    """Return a surface with a ridge."""
    rows = tuple(float(f"{x:.3g}") for x in np.geomspace(1e-5, 1e-1, 12))
    columns = tuple(range(0, 18, 2))
    mean = tuple(
        tuple(float(0.9 - 0.05 * (i - 6 + j / 2) ** 2 / 6 - 0.01 * j) for j in range(len(columns))) for i in range(len(rows))
    )
    return Surface(factors=(first, second), rows=rows, columns=columns, mean=mean)


def guideline() -> Guideline:
    """Return what to do about a learning rate."""
    return Guideline(
        factor="learning_rate",
        condition={},
        level=0.004,
        reference=0.1,
        effect=interval(0.21, 0.13),
        probability=1.0,
        n_trials=51,
        sentence="learning_rate is best near 0.004 [0.002, 0.009]; at 0.1 val_accuracy is 21 points lower [15, 28], n = 51.",
    )


def recommended() -> Recommended:
    """Return a configuration to recommend."""
    return Recommended(config={"learning_rate": 0.00412, "optimizer": "adamw"}, predicted=interval(0.93, 0.02))


def usual(**changes: Any) -> Importance:
    """Return the answer of a study that went well, with `changes`."""
    pair = Share(
        factors=("learning_rate", "frozen_depth"),
        first_order=interval(0.07, 0.04),
        total=None,
        probability_first=None,
        verdict="important",
    )
    weak = pair.model_copy(
        update={"factors": ("learning_rate", "optimizer"), "first_order": interval(0.004, 0.01), "verdict": "minor"}
    )
    answer = Importance(
        metric="val_accuracy",
        mode="max",
        budget=27,
        at=27,
        shares=(
            share("learning_rate", 0.48, 0.55, probability_first=0.99),
            share("frozen_depth", 0.22, 0.29),
            share("optimizer", 0.1, 0.12),
            share("momentum", 0.03, 0.04, active=0.5, within_active=interval(0.14)),
            share("data_fraction", 0.01, 0.02),
            unknown("dropout"),
            vague("batch_norm"),
        ),
        pairs=(pair, weak),
        effects=(log_effect(), depth_effect(), choice_effect(), choice_effect("data_fraction", (0.1, 0.25, 1.0), "scientific")),
        surfaces=(surface_of(),),
        epochs=course("learning_rate", "data_fraction", "frozen_depth", "optimizer", "batch_norm"),
        check=CHECK,
        n_trials=120,
        n_completed=14,
        n_reports=812,
        noise_share=0.06,
        integration_error=0.003,
        scale="logit",
        guidelines=(guideline(),),
        recommended=recommended(),
    )
    return answer.model_copy(update=changes)


def crowded() -> Importance:
    """Return an answer about many factors with long names."""
    names = ("learning_rate", "frozen_depth", "source_images_per_category", "source_categories", "optimizer", *HARMLESS)
    firsts = (0.31, 0.22, 0.11, 0.07, 0.06, 0.03, 0.02, 0.012, 0.01, 0.005, 0.002, 0.0)
    shares = [share(name, first) for name, first in zip(names, firsts, strict=True)]
    return usual(
        shares=(*shares, unknown("weight_decay"), unknown("clip_grad_norm", "it was hardly varied")),
        effects=(
            log_effect(),
            depth_effect(),
            choice_effect("source_images_per_category", ("a hundred", "five hundred", "a thousand", "all there are")),
            log_effect("source_categories"),
            choice_effect(),
        ),
        epochs=course("learning_rate", "warmup", "frozen_depth", "source_images_per_category"),
        check=FAILED_CHECK,
    )


def single() -> Importance:
    """Return an answer about one factor, at the only epoch."""
    return usual(
        shares=(share("learning_rate", 0.94, 0.94, probability_first=1.0),),
        pairs=(),
        effects=(log_effect(),),
        surfaces=(),
        epochs=(),
        budget=1,
        at=1,
    )


def plain() -> Importance:
    """Return an answer with a share and little else: it is drawn in no time."""
    alone = (share("learning_rate", 0.94),)
    return usual(shares=alone, pairs=(), effects=(), surfaces=(), epochs=(), guidelines=(), recommended=None)


def hopeless() -> Importance:
    """Return the answer of a study that says nothing."""
    reason = "only 8 trials reported, and none after epoch 1"
    return Importance(
        metric="val_accuracy",
        mode="max",
        budget=27,
        at=27,
        notes=(f"Nothing can be said about epoch 27: {reason}.",),
        shares=tuple(unknown(name, reason) for name in ("learning_rate", "frozen_depth", "optimizer")),
        n_trials=8,
        n_completed=0,
        n_reports=8,
        n_diverged=2,
    )


def troubled() -> Importance:
    """Return an answer with trials that diverged, and with a plan."""
    trouble = Importance(
        metric="trouble",
        mode="min",
        budget=27,
        at=27,
        shares=(share("learning_rate", 0.7, 0.8), share("optimizer", 0.01, 0.02)),
        effects=(log_effect(),),
        n_trials=120,
    )
    plan = Plan(
        open=(
            Settling(question="whether frozen_depth or optimizer matters more", trials=40),
            Settling(question="what dropout does", trials=None),
        ),
        proposals=(Proposal(config={"learning_rate": 0.003, "frozen_depth": 4, "optimizer": "sgd"}, uncertainty=0.031),),
    )
    return usual(n_diverged=9, trouble=trouble, plan=plan, region="learning_rate<0.01")
