"""What a folder with an exported model says about itself: model.json for programs, README.md for people."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePath
from typing import Any, Self

import numpy as np
import torch

import raystudy
from raystudy.errors import InputError, Problem
from raystudy.factors import SELF_SUPERVISED, SUPERVISED
from raystudy.finetune.model import Classifier

FILE_NAME = "model.json"

_FORMAT = 1
_PREPARATION = (
    "first frame, EXIF rotation applied, transparency composited on white, 16-bit samples scaled to 8 bits, RGB; the "
    "shorter side brought to {side} px (bilinear, antialiased) and the centre {side} x {side} px cut out, as Pillow's "
    "ImageOps.fit does; values 0 to 255 as float32"
)
_DESCRIPTIONS = {
    "model.safetensors": "the weights",
    "model.pt2": "network and preprocessing as a torch.export program",
    "model.onnx": "the same for ONNX runtimes; input `images`, output `logits`",
    "model.onnx.data": "the weights of model.onnx",
    FILE_NAME: "classes, preprocessing, backbone, and the study and trial that the model came from",
    "predict.py": "classifies image files",
}

_SECRET_KEY = re.compile(
    r"(?:^|[_\-.])(?:password|passwd|secret|token|api_?key|access_?key|secret_?key|credentials?)$", re.IGNORECASE
)
_URL_USER = re.compile(r"(?<=://)[^/\s]*@")
_URL_SECRET = re.compile(r"([?&][^=&\s]*(?:key|token|secret|passw|sig|credential)[^=&\s]*)=[^&\s]*", re.IGNORECASE)
_REMOVED = "(removed)"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is needed to build an exported model again, but for its weights.

    Attributes:
        architecture: of the backbone.
        n_classes: width of the head.
        image_size: side in pixels of the model's input.
        resolution: side in pixels to which the model itself resizes its input; 0: not at all.
        mean: per channel, subtracted from images in 0..1.
        std: per channel, divides what remains.
    """

    architecture: str
    n_classes: int
    image_size: int
    resolution: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it from the model.json in `folder`.

        Raises:
            InputError: there is none, or it is damaged.
        """
        path = folder / FILE_NAME
        accepted = "give a folder that `raystudy export` wrote"
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            if card["format"] != _FORMAT:
                what = f"has format {card['format']!r}, expected {_FORMAT}"
                raise InputError(Problem(str(path), what, "use the version of raystudy that wrote it, or a newer one"))
            return cls._from_card(card)
        except OSError as error:
            raise InputError(Problem(str(path), f"cannot be read ({error.strerror})", accepted)) from error
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(Problem(str(path), f"is damaged or of another program ({error!r})", accepted)) from error

    @classmethod
    def _from_card(cls, card: Mapping[str, Any]) -> Self:
        inside = card["inside_model"]
        return cls(
            architecture=str(card["backbone"]["architecture"]),
            n_classes=len(card["class_names"]),
            image_size=int(card["image_size"]),
            resolution=int(inside["resize_to"] or 0),
            mean=tuple(map(float, inside["mean"])),
            std=tuple(map(float, inside["std"])),
        )


def read_objective(folder: Path) -> str:
    """Return what the model in `folder` was trained for, by its model.json, which `Recipe.read` has found to be whole.

    Cards that say nothing are of models from before there was a choice: supervised.
    """
    card = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    provenance = card.get("provenance")
    objective = provenance.get("objective") if isinstance(provenance, Mapping) else None
    return SELF_SUPERVISED if objective == SELF_SUPERVISED else SUPERVISED


def describe(
    classifier: Classifier, *, class_names: Sequence[str], image_size: int, backbone: str, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of model.json; the arguments are those of `export_model`, `provenance` already plain."""
    info = classifier.model.backbone.info
    units = zip(info.unit_names, info.unit_parameters, strict=True)
    return {
        "format": _FORMAT,
        "class_names": list(class_names),
        "image_size": image_size,
        "preprocessing": {
            "in_words": _PREPARATION.format(side=image_size),
            "resize": {"policy": "shorter side, then centre crop", "filter": "bilinear", "antialias": True, "size": image_size},
            "channel_order": "RGB",
            "layout": ["batch", "channel", "height", "width"],
            "dtype": "float32",
            "value_range": [0, 255],
        },
        "inside_model": {
            "in_words": _inside(classifier),
            "resize_to": classifier.preprocess.resolution or None,
            "divide_by": 255,
            "mean": list(info.mean),
            "std": list(info.std),
        },
        "output": {"name": "logits", "layout": ["batch", "class"], "probabilities": "softmax over the classes"},
        "backbone": {
            "name": _without_secrets(backbone),
            "architecture": info.architecture,
            "weights": _without_secrets(info.weights),
            "n_features": info.n_features,
            "units": [{"name": name, "parameters": count} for name, count in units],
        },
        "provenance": provenance,
        "versions": {"raystudy": raystudy.__version__, "torch": torch.__version__},
    }


def write_texts(card: Mapping[str, Any], skipped: Mapping[str, str], folder: Path) -> None:
    """Write model.json, predict.py and README.md beside the model files that `folder` already holds."""
    _write(folder / FILE_NAME, json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False))
    _write(folder / "predict.py", _template("predict.py.txt"))
    files = [f"| `{name}` | {text} |" for name, text in _DESCRIPTIONS.items() if (folder / name).exists()]
    readme = string.Template(_template("export_readme.md.txt")).substitute(
        title=_title(card["provenance"]),
        n_classes=len(card["class_names"]),
        architecture=card["backbone"]["architecture"],
        raystudy=card["versions"]["raystudy"],
        torch=".".join(card["versions"]["torch"].split(".")[:2]),
        files="\n".join(files),
        side=card["image_size"],
        preparation=card["preprocessing"]["in_words"],
        inside=card["inside_model"]["in_words"],
        skipped="\n".join(f"Not written: `{name}` ({reason})." for name, reason in skipped.items()),
    )
    _write(folder / "README.md", readme)


def plain(value: object, where: str, problems: list[Problem]) -> Any:
    """Return `value` as JSON can hold it, without secrets.

    Passwords in addresses are cut out, values of keys such as `token` replaced, numbers that are not finite become null.

    Args:
        value: mappings, sequences, numbers (numpy's too), texts and paths, nested.
        where: its key path, for the message.
        problems: gets one for every value of another type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str | PurePath):
        return _without_secrets(str(value))
    if isinstance(value, Mapping):
        return {str(key): _plain_item(str(key), item, where, problems) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]", problems) for index, item in enumerate(value)]
    problems.append(Problem(where, f"is of type {type(value).__name__}", "expected text, numbers, lists or mappings"))
    return None


def _plain_item(key: str, value: object, where: str, problems: list[Problem]) -> Any:
    if _SECRET_KEY.search(key):
        return _REMOVED
    return plain(value, f"{where}.{key}", problems)


def _without_secrets(text: str) -> str:
    return _URL_SECRET.sub(rf"\1={_REMOVED}", _URL_USER.sub("", text))


def _inside(classifier: Classifier) -> str:
    info, resolution = classifier.model.backbone.info, classifier.preprocess.resolution
    resized = f"resized to {resolution} px (bilinear, antialiased), " if resolution else ""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (info.mean, info.std))
    return f"{resized}divided by 255, minus mean ({mean}), divided by standard deviation ({std})"


def _title(provenance: Mapping[str, Any]) -> str:
    named = [str(provenance[key]) for key in ("study", "trial_id") if isinstance(provenance.get(key), str)]
    return ", trial ".join(named) or "Image classifier"


def _template(name: str) -> str:
    return (resources.files("raystudy.finetune") / "templates" / name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    path.write_text(text.rstrip() + "\n", encoding="utf-8", newline="\n")
