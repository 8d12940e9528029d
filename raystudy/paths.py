"""Every file and folder that raystudy writes, named in one place.

HOME/                         RAYSTUDY_HOME, else the user's data folder
├── mlflow.db, artifacts/     the local tracking store, where no server is named; SQLite's -wal and -shm, and a .lock, beside it
├── sources/                  registered models that studies begin with: SHA256.safetensors, and what is known of MODEL_ID.json
└── studies/NAME/
    ├── journal.jsonl         the truth: every event of the study
    ├── lock                  held by the driver at work
    ├── writer.lock           held by the process that feeds MLflow
    ├── driver.json           process id and host of the driver at work
    ├── writer.log            what the MLflow writer had to say
    ├── findings/             what matters, as it was last computed
    ├── checkpoints/TRIAL/    last and best epoch of a trial
    └── logs/TRIAL.log        what a trial had to say
~/.raystudy/head/             on a cluster's head: what supervises its MLflow server
CACHE/                        RAYSTUDY_CACHE, else the user's cache folder; safe to delete, see raystudy.cache
└── KIND/KEY.arrow            decoded images, activations of frozen layers
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from raystudy.errors import InputError, Problem
from raystudy.spec.study import NAME_PATTERN


def home() -> Path:
    """Return the folder that holds studies and the local tracking store."""
    given = os.environ.get("RAYSTUDY_HOME")
    return Path(given).expanduser().absolute() if given else Path(platformdirs.user_data_dir("raystudy", appauthor=False))


def cache() -> Path:
    """Return the folder for what can be computed again."""
    given = os.environ.get("RAYSTUDY_CACHE")
    return Path(given).expanduser().absolute() if given else Path(platformdirs.user_cache_dir("raystudy", appauthor=False))


def studies() -> Path:
    """Return the folder with one sub-folder a study."""
    return home() / "studies"


def sources() -> Path:
    """Return the folder with the weights of registered models that studies begin with; all nodes of a cluster see it."""
    return home() / "sources"


@dataclass(frozen=True, slots=True)
class StudyPaths:
    """The files of one study."""

    root: Path

    @classmethod
    def of(cls, name: str) -> StudyPaths:
        """Return the paths of the study called `name`; raise InputError for what cannot be a name."""
        if not re.fullmatch(NAME_PATTERN.rstrip("$"), name):
            raise InputError(
                Problem("name", f"got {name!r}", "expected letters, digits, '.', '_' and '-', beginning with a letter or digit")
            )
        return cls(studies() / name)

    @property
    def journal(self) -> Path:
        """The journal."""
        return self.root / "journal.jsonl"

    @property
    def lock(self) -> Path:
        """The lock of the driver."""
        return self.root / "lock"

    @property
    def writer_lock(self) -> Path:
        """The lock of the MLflow writer."""
        return self.root / "writer.lock"

    @property
    def driver(self) -> Path:
        """Who is driving the study."""
        return self.root / "driver.json"

    @property
    def writer_log(self) -> Path:
        """The log of the MLflow writer."""
        return self.root / "writer.log"

    @property
    def findings(self) -> Path:
        """The folder with what matters."""
        return self.root / "findings"

    @property
    def all_checkpoints(self) -> Path:
        """The folder with one sub-folder of checkpoints a trial."""
        return self.root / "checkpoints"

    @property
    def logs(self) -> Path:
        """The folder with one log a trial."""
        return self.root / "logs"

    def checkpoints(self, trial_id: str) -> Path:
        """The checkpoints of one trial."""
        return self.all_checkpoints / trial_id

    def log(self, trial_id: str) -> Path:
        """The log of one trial."""
        return self.logs / f"{trial_id}.log"


def local_tracking_uri() -> str:
    """Return the address of the local tracking store."""
    return f"sqlite:///{home() / 'mlflow.db'}"


def local_artifacts() -> Path:
    """Return the folder of the local tracking store's artifacts."""
    return home() / "artifacts"
