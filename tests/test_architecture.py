"""Imports point one way, and each outside system has its owner."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "raystudy"

LAYERS = [
    {"environment", "errors", "factor_info", "garbage"},
    {"factors", "storage"},
    {"records", "work", "event_lines"},
    {"spec"},
    {"paths", "space", "templates"},
    {"cache"},
    {"findings"},
    {"data"},
    {"finetune"},
    {"preflight"},
    {"search"},
    {"tracking"},
    {"plan"},
    {"query", "results", "watcher"},
    {"host", "own_ray", "shares", "keeping", "listing"},
    {"cluster"},
    {"preparation"},
    {"driver"},
    {"studies"},
    {"progress", "api"},
    {"watch"},
    {"cli"},
    {"__main__", "__init__"},
]
"""From what knows nothing to what knows everything; a module imports from its own layer and those above only."""

OWNERS = {
    "ray": {
        "search/tune.py",
        "search/actor.py",
        "search/capacity.py",
        "search/notices.py",
        "search/deaths.py",
        "search/remote_probe.py",
        "search/messages.py",
        "cluster/tail.py",
        "host.py",
        "own_ray.py",
    },
    "optuna": {"space.py", "search/"},
    "mlflow": {"tracking/"},
    "click": {"cli/"},
    "torch": {"finetune/", "tracking/models.py", "results.py", "data/torchvision_sets.py", "findings/surrogate.py"},
    "gpytorch": {"findings/"},
    "matplotlib": {"findings/figures.py", "findings/readout_figures.py", "findings/answer.py", "tracking/findings.py"},
    "timm": {"finetune/"},
    "filelock": {"host.py", "finetune/trainer.py", "tracking/", "cluster/head.py"},
    "fcntl": {"cache/locks.py"},
    "psutil": {"cluster/", "tracking/local_database.py"},
    "psycopg": {"cluster/head.py"},
}

FILES = sorted(path for path in ROOT.rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "raystudy":
                yield from (f"raystudy.{alias.name}" for alias in node.names)
            else:
                yield node.module


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _layer(part: str) -> int:
    found = [number for number, layer in enumerate(LAYERS) if part in layer]
    assert found, f"raystudy.{part} has no layer: give it one in {__file__}"
    return found[0]


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_up_the_list_of_layers_only(path: Path) -> None:
    own = _layer(path.relative_to(ROOT).parts[0].removesuffix(".py"))
    for name in _imports(path):
        package, _, rest = name.partition(".")
        if package == "raystudy" and rest and rest != "__version__":
            part = rest.split(".")[0]
            assert _layer(part) <= own, f"{_name(path)} imports {name}, which stands below it"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_each_outside_system_is_imported_by_its_owners_only(path: Path) -> None:
    for name in _imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or _name(path).startswith(tuple(owners)), f"{_name(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_no_module_is_longer_than_can_be_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not {path.stem for path in FILES} & {"utils", "util", "common", "helpers", "misc"}
