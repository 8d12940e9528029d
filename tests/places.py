"""A machine's worth of raystudy for end-to-end tests: its own home and cache, a small real study, the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raystudy.studies import open_study

TIMES = {"started", "ended", "wall_seconds", "run_id", "node", "images_per_second", "epoch_seconds", "gpu_peak_gib"}
TIMES |= {"prefix_seconds", "stored_units"}  # what is stored follows from a measurement of time
"""Columns of the trials table that no seed decides."""

SMALL: Mapping[str, Any] = {"budget": {"trials": 6, "epochs": 4}, "keep_models": 0}
"""The changes that make the small study the one that several tests disturb and compare with an undisturbed one."""


@dataclass(frozen=True)
class Place:
    """A machine's worth of raystudy: its own home, cache and study file."""

    folder: Path
    environment: Mapping[str, str]

    def study_file(self, **changes: Any) -> Path:
        """Write the small study, with changes by section."""
        data: dict[str, Any] = {
            "name": "small",
            "data": {"source": f"idx:{self.folder / 'images'}", "image_size": 16, "validation": 0.3},
            "backbone": "efficientnet_lite0",
            "factors": {
                "learning_rate": {"log_uniform": [1e-4, 1e-2]},
                "frozen_depth": {"int": [8, "max"]},
                "data_fraction": {"choice": [0.5, 1.0]},
                "optimizer": {"choice": ["sgd", "adamw"]},
                "momentum": {"uniform": [0.5, 0.95], "when": {"optimizer": "sgd"}},
            },
            "fixed": {"batch_size": 32, "dropout": 0.1},
            "budget": {"trials": 9, "epochs": 4},
            "search": {"sampler": "tpe", "seed": 3, "startup_trials": 3},
            "early_stopping": {"grace": 1, "reduction": 2, "keep": 0.2},
            "resources": {"concurrent": 1, "gpu": 0},
            "keep_models": 1,
        }
        for section, value in changes.items():
            data[section] = {**data[section], **value} if isinstance(value, dict) and section in data else value
        file = self.folder / f"{data['name']}.yaml"
        file.write_text(yaml.safe_dump(data))
        return file

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "raystudy", *arguments],
            env=dict(self.environment),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, *arguments: str, expect: int = 0) -> str:
        """Run a command to its end and return its stdout; fail unless it exits with `expect`."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=500)
        assert process.returncode == expect, f"raystudy {' '.join(arguments)} exited {process.returncode}\n{out}\n{err}"
        return out

    def json(self, *arguments: str, expect: int = 0) -> Any:
        """Run a command with --json and return what it prints."""
        return json.loads(self.call(*arguments, "--json", expect=expect))

    @property
    def tracking_uri(self) -> str:
        """The local MLflow store."""
        return f"sqlite:///{self.folder / 'home' / 'mlflow.db'}"

    def journal(self, name: str = "small") -> Path:
        """Return the study's journal."""
        return self.folder / "home" / "studies" / name / "journal.jsonl"

    def table(self, name: str = "small") -> list[dict[str, Any]]:
        """Return the trials table without what no seed decides, as `trials --json` prints it."""
        rows = json.loads(json.dumps(open_study(name, self.tracking_uri).trials().to_pylist(), default=str))
        return [{key: value for key, value in row.items() if key.removeprefix("best_") not in TIMES} for row in rows]

    def findings(self, name: str = "small") -> dict[str, Any]:
        """Return what matters, as MLflow holds it; fail unless table and figure lie beside it."""
        (file,) = (self.folder / "home" / "artifacts" / name).rglob("importance.json")
        assert {"importance.parquet", "importance.png"} <= {path.name for path in file.parent.iterdir()}
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def events(self, name: str = "small") -> int:
        """Return how many events the study's journal holds."""
        journal = self.journal(name)
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    def decisions(self, name: str = "small") -> list[dict[str, Any]]:
        """Return the rung decisions in journal order, without times."""
        events = [json.loads(line.split(" ", 1)[1]) for line in self.journal(name).read_text().splitlines()]
        return [{key: value for key, value in event.items() if key != "time"} for event in events if event["kind"] == "decided"]


@dataclass(frozen=True)
class Undisturbed:
    """What came of a study that nobody disturbed.

    Attributes:
        place: where it ran.
        told: what its command printed.
        table: its trials without what no seed decides.
        decisions: its rung decisions without times.
        events: how many events its journal holds.
        findings: what matters in it.
    """

    place: Place
    told: str
    table: list[dict[str, Any]]
    decisions: list[dict[str, Any]]
    events: int
    findings: dict[str, Any]
