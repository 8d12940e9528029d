"""Source models as factors: how their versions are called, and which of them a study asks for.

`raystudy pretrain` registers each model under an alias made of its configuration (`c4-i200-s1`, and `-self` at the end of one
that was trained without labels); a study names them by the factors `source`, `source_categories`, `source_images_per_category`,
`source_seed` and `source_objective`, which come to the same alias.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raystudy.errors import Problem
from raystudy.factors import SELF_SUPERVISED, SUPERVISED, Scalar
from raystudy.spec.factor import Factor

SOURCE, CATEGORIES, IMAGES, SEED = "source", "source_categories", "source_images_per_category", "source_seed"
OBJECTIVE = "source_objective"
PARTS = (SOURCE, CATEGORIES, IMAGES, SEED, OBJECTIVE)
"""The factors that name a source model together, in the order in which its address has them."""

ALIAS_PARTS = ("categories", "images_per_class", "seed", "training_objective")
"""The factors of a pretraining study of which aliases are made."""

NO_SEED = -1
MOST_SOURCES = 200
_OBJECTIVES = {SUPERVISED: "", SELF_SUPERVISED: "-self"}
_SCHEME = "models:/"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def alias(categories: int, images: int = 0, seed: int = NO_SEED, *, objective: str = SUPERVISED) -> str:
    """Return what a source model is called among those of its name.

    Args:
        categories: how many classes it was trained on; always a part of the alias.
        images: of each; 0: all there were, which is no part of it.
        seed: no part of it where it is -1.
        objective: what it was trained for; no part of it where that is its labels.
    """
    parts = (f"-i{images}" if images else "", f"-s{seed}" if seed != NO_SEED else "", _OBJECTIVES[objective])
    return f"c{categories}{''.join(parts)}"


def alias_of(config: Mapping[str, Scalar]) -> str:
    """Return the alias of what a trial of a pretraining study makes.

    Args:
        config: the trial's active factors: what does not vary is no part of the alias, but for the categories.
    """
    images, seed = int(config.get("images_per_class", 0)), int(config.get("seed", NO_SEED))
    return alias(int(config["categories"]), images, seed, objective=str(config.get("training_objective", SUPERVISED)))


def is_registered(backbone: str) -> bool:
    """Whether a backbone is the address of a registered model: models:/NAME@ALIAS or models:/NAME/VERSION."""
    return backbone.startswith(_SCHEME)


def address(
    source: Scalar, categories: Scalar, images: Scalar = 0, seed: Scalar = NO_SEED, objective: Scalar = SUPERVISED
) -> str:
    """Return the address that the values of the source factors stand for."""
    return f"{_SCHEME}{source}@{alias(int(categories), int(images), int(seed), objective=str(objective))}"


def addresses(factors: Mapping[str, Factor], fixed: Mapping[str, Scalar]) -> tuple[str, ...]:
    """Return every address that the source factors of a study can stand for, in the order of their levels."""
    return tuple(dict.fromkeys(address(*values) for values in itertools.product(*_levels(factors, fixed))))


def address_in(config: Mapping[str, Scalar]) -> str | None:
    """Return the address that a full configuration names; None where the source factors have no effect in it."""
    if not config["pretrained"] or not config[CATEGORIES]:
        return None
    return address(*(config[name] for name in PARTS))


def check_sources(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with how a study names its pretrained networks: a backbone, or source factors."""
    factors, fixed = sections.get("factors", {}), sections.get("fixed", {})
    broken = sections.get("_broken_factors", ())
    used = {name: f"{place}.{name}" for place, names in (("fixed", fixed), ("factors", factors)) for name in names}
    used |= {name: f"factors.{name}" for name in broken}
    places = {name: used[name] for name in PARTS if name in used}
    if not places:
        if sections.get("backbone") == "":
            yield Problem("backbone", "is an empty text", "expected the name of a pretrained network, e.g. resnet50")
        return
    if sections.get("backbone"):
        yield Problem("backbone", f"is given, and so is {places[next(iter(places))]}", "a study has the one or the other")
    if SOURCE not in places:
        place = next(iter(places.values()))
        yield Problem(place, "says nothing without `source`, the name of the registered source models", "fixed: {source: NAME}")
    elif CATEGORIES not in places:
        accepted = "give source_categories too, or name the one model: backbone: models:/NAME@ALIAS"
        yield Problem(places[SOURCE], "does not say which of its models", accepted)
    for name in places.keys() & factors.keys():
        yield from _check_condition(name, factors[name])
    if not places.keys() & set(broken):
        yield from _check_levels(factors, fixed, places)


def check_registering(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield why the models of a study cannot all be registered, where that is asked for."""
    if sections.get("register") != "all" or "factors" not in sections:
        return
    factors, stopping = sections["factors"], sections.get("early_stopping")
    if "categories" not in factors:
        yield Problem("register", "got all, but `categories` does not vary", "aliases are made of it: c2, c4; or write best")
    others = [name for name in factors if name not in ALIAS_PARTS]
    if others or isinstance(sections.get("backbone"), tuple):
        what = f"got all, but {', '.join(others or ['backbone'])} varies, which is no part of an alias"
        yield Problem("register", what, f"vary {', '.join(ALIAS_PARTS)} only, or write best")
    if stopping and stopping.scheduler != "none":
        yield Problem("register", "got all, but early stopping leaves models half trained", "write early_stopping: none")


def _check_condition(name: str, factor: Factor) -> Iterator[Problem]:
    """Allow the one condition that says when there is a source; with any other it would not be known which one."""
    for parent, wanted in (factor.when or {}).items():
        if parent != "pretrained" or wanted not in (True, (True,)):
            place = f"factors.{name}.when.{parent}"
            yield Problem(place, "a factor about the source depends on no other factor", "expected when: {pretrained: true}")


def _check_levels(factors: Mapping[str, Factor], fixed: Mapping[str, Scalar], places: Mapping[str, str]) -> Iterator[Problem]:
    for name in places.keys() & factors.keys():
        if factors[name].form in ("uniform", "log_uniform"):
            return  # said elsewhere: these take whole numbers
    names = [*(factors[SOURCE].choice or () if SOURCE in factors else ()), *([fixed[SOURCE]] if SOURCE in fixed else ())]
    for name in names:
        if isinstance(name, str) and name and not _NAME.fullmatch(name):
            accepted = "expected the name of a registered model: letters, digits, '.', '_' and '-'"
            yield Problem(places[SOURCE], f"got {name!r}", accepted)
    levels = _levels(factors, fixed)
    if CATEGORIES in places and 0 in levels[PARTS.index(CATEGORIES)]:
        yield Problem(places[CATEGORIES], "got 0", "expected how many classes the source model was trained on, at least 2")
    number = math.prod(map(len, levels))
    if number > MOST_SOURCES:
        what = f"together the source factors ask for {number:,} source models"
        yield Problem(next(iter(places.values())), what, f"at most {MOST_SOURCES:,}; list the values with choice: [...]")


def _levels(factors: Mapping[str, Factor], fixed: Mapping[str, Scalar]) -> list[Sequence[Scalar]]:
    """Return the values of each of `PARTS`."""
    absent: Mapping[str, Scalar] = {SOURCE: "", CATEGORIES: 0, IMAGES: 0, SEED: NO_SEED, OBJECTIVE: SUPERVISED}
    return [_values(factors[name]) if name in factors else (fixed.get(name, absent[name]),) for name in PARTS]


def _values(factor: Factor) -> Sequence[Scalar]:
    if factor.choice is not None:
        return factor.choice
    low, high = factor.bounds
    # A bound that is no number is said elsewhere.
    return range(low, high + 1, int(factor.step or 1)) if isinstance(low, int) and isinstance(high, int) else (0,)
