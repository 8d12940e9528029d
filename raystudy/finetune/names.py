"""Which backbones there are and how they are written in a study file; imports neither torch nor timm."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from rapidfuzz import fuzz, process

from raystudy.errors import BackboneError, Problem
from raystudy.finetune.weight_files import WEIGHT_SUFFIXES, check_weight_file, quoted, read_metadata

BACKBONE_KEY = "raystudy.backbone"
"""The key in a safetensors file's metadata that names the architecture of its weights."""

# A table, so that a study file is checked in milliseconds; a test keeps it in step with torchvision and timm.
UNIT_COUNTS: dict[str, int] = {
    "alexnet": 7,
    "convnext_base": 38,
    "convnext_large": 38,
    "convnext_small": 38,
    "convnext_tiny": 20,
    "densenet121": 63,
    "densenet161": 83,
    "densenet169": 87,
    "densenet201": 103,
    "efficientnet_b0": 18,
    "efficientnet_b1": 25,
    "efficientnet_b2": 25,
    "efficientnet_b3": 28,
    "efficientnet_b4": 34,
    "efficientnet_b5": 41,
    "efficientnet_b6": 47,
    "efficientnet_b7": 57,
    "efficientnet_lite0": 18,
    "efficientnet_lite1": 23,
    "efficientnet_lite2": 23,
    "efficientnet_v2_l": 81,
    "efficientnet_v2_m": 59,
    "efficientnet_v2_s": 42,
    "mobilenet_v2": 19,
    "mobilenet_v3_large": 18,
    "mobilenet_v3_small": 14,
    "regnet_x_16gf": 23,
    "regnet_x_1_6gf": 19,
    "regnet_x_32gf": 24,
    "regnet_x_3_2gf": 26,
    "regnet_x_400mf": 23,
    "regnet_x_800mf": 17,
    "regnet_x_8gf": 24,
    "regnet_y_128gf": 28,
    "regnet_y_16gf": 19,
    "regnet_y_1_6gf": 28,
    "regnet_y_32gf": 21,
    "regnet_y_3_2gf": 22,
    "regnet_y_400mf": 17,
    "regnet_y_800mf": 15,
    "regnet_y_8gf": 18,
    "resnet101": 34,
    "resnet152": 51,
    "resnet18": 9,
    "resnet34": 17,
    "resnet50": 17,
    "resnext101_32x8d": 34,
    "resnext101_64x4d": 34,
    "resnext50_32x4d": 17,
    "swin_b": 26,
    "swin_s": 26,
    "swin_t": 14,
    "swin_v2_b": 26,
    "swin_v2_s": 26,
    "swin_v2_t": 14,
    "vgg11": 10,
    "vgg11_bn": 10,
    "vgg13": 12,
    "vgg13_bn": 12,
    "vgg16": 15,
    "vgg16_bn": 15,
    "vgg19": 18,
    "vgg19_bn": 18,
    "vit_b_16": 14,
    "vit_b_32": 14,
    "vit_h_14": 34,
    "vit_l_16": 26,
    "vit_l_32": 26,
    "wide_resnet101_2": 34,
    "wide_resnet50_2": 17,
}

_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)

_FORMS = "a torchvision name (resnet50), efficientnet_lite0/1/2, timm:NAME, file:PATH, NAME@file:PATH or models:/NAME@ALIAS"


class Source(Enum):
    """Where an architecture is defined."""

    TORCHVISION = "torchvision"
    LITE = "efficientnet_lite"
    TIMM = "timm"
    REGISTRY = "models"


@dataclass(frozen=True, slots=True)
class BackboneName:
    """A backbone as a study file writes it, taken apart.

    Attributes:
        source: where the architecture is defined.
        architecture: `resnet18`, `efficientnet_lite0`, `timm:resnet10t`; for a registered model its whole address.
        file: the weights, where they come from a file.
    """

    source: Source
    architecture: str
    file: Path | None = None


def known_backbones() -> tuple[str, ...]:
    """Return the names that need no scheme, sorted."""
    return tuple(sorted(UNIT_COUNTS))


def check_backbone(name: str) -> None:
    """Check that `name` can mean a backbone and that the file it names exists and is what it says.

    Raises:
        BackboneError: otherwise, with near misses.
    """
    parse_backbone(name)


def unit_count(name: str) -> int | None:
    """Return the number of units of `name`, or None where only building it tells (timm, a registered model).

    Raises:
        BackboneError: `name` is no backbone.
    """
    return UNIT_COUNTS.get(parse_backbone(name).architecture)


def parse_backbone(name: str) -> BackboneName:
    """Take a backbone's name apart.

    Raises:
        BackboneError: the name or its scheme is unknown, or its file is missing or says no architecture.
    """
    architecture, has_file, path = name.partition("file:")
    if has_file and (not architecture or architecture.endswith("@")):
        return _parse_file(name, architecture.removesuffix("@"), Path(path).expanduser())
    return _parse_architecture(name)


def _parse_architecture(name: str) -> BackboneName:
    if name in UNIT_COUNTS:
        return BackboneName(Source.LITE if name.startswith("efficientnet_lite") else Source.TORCHVISION, name)
    if name.startswith("timm:"):
        _require(name, r"timm:[\w.\-]+", "a timm name is letters, digits, '_', '-' and '.', such as timm:resnet10t")
        _check_timm(name.removeprefix("timm:"))
        return BackboneName(Source.TIMM, name)
    if name.startswith("models:"):
        _require(name, r"models:/[^/@]+(@[^/@]+|/\d+)", "write models:/NAME@ALIAS or models:/NAME/VERSION")
        return BackboneName(Source.REGISTRY, name)
    raise BackboneError(Problem("backbone", f"unknown backbone {name!r}", _suggest(name)))


def _parse_file(name: str, architecture: str, path: Path) -> BackboneName:
    check_weight_file(path)
    parsed = _parse_architecture(architecture or _architecture_in(path))
    if parsed.source is Source.REGISTRY:
        raise BackboneError(Problem("backbone", f"{name!r} names both a registered model and a file", "choose one"))
    return BackboneName(parsed.source, parsed.architecture, path)


def _architecture_in(path: Path) -> str:
    """Return the architecture that a weights file names in its metadata."""
    accepted = f"write ARCHITECTURE@file:{path}, such as resnet18@file:{path}"
    if path.suffix != ".safetensors":
        raise BackboneError(Problem(f"backbone file {path}", "does not say which architecture it is for", accepted))
    architecture = read_metadata(path).get(BACKBONE_KEY)
    if architecture is None:
        what = f"has no {BACKBONE_KEY!r} in its metadata, so its architecture is not known"
        raise BackboneError(Problem(f"backbone file {path}", what, accepted))
    return architecture


def unknown_timm(name: str) -> BackboneError:
    """Return the refusal of a name that timm does not have, with near misses."""
    near = near_misses(name, tuple(sorted(timm_names())))
    accepted = f"did you mean {' or '.join(f'timm:{match}' for match in near)}?" if near else "see timm.list_models()"
    return BackboneError(Problem("backbone", f"timm has no model {name!r}", accepted))


@lru_cache(maxsize=1)
def timm_names() -> frozenset[str]:
    """Return the names that the installed timm registers, without tags, read from its source: importing it takes seconds."""
    return frozenset(_REGISTERED.findall(_timm_source()))


def _timm_source() -> str:
    found = find_spec("timm")
    if found is None or found.origin is None:
        return ""
    files = sorted((Path(found.origin).parent / "models").glob("*.py"))
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def _check_timm(name: str) -> None:
    """Refuse what timm cannot know; a name that stands in quotes in its source is an older one, which timm translates."""
    bare, known = name.partition(".")[0], timm_names()
    if known and bare not in known and f"'{bare}'" not in _timm_source():
        raise unknown_timm(name)


def _require(name: str, pattern: str, accepted: str) -> None:
    if not re.fullmatch(pattern, name):
        raise BackboneError(Problem("backbone", f"{name!r} is not well formed", accepted))


def _suggest(name: str) -> str:
    if name.endswith(WEIGHT_SUFFIXES):
        return f"did you mean 'file:{name}'?"
    near = near_misses(name, known_backbones())
    return f"did you mean {quoted(near)}?" if near else f"accepted are {_FORMS}"


def near_misses(name: str, known: tuple[str, ...]) -> list[str]:
    """Return at most three of `known` that were probably meant by `name`, the nearest first."""
    found = process.extract(name, known, processor=_squeeze, scorer=fuzz.ratio, score_cutoff=75, limit=3)
    exact = [match for match, score, _ in found if score == 100]
    return exact or [match for match, *_ in found]


def _squeeze(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
