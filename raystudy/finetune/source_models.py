"""Registered models as backbones, once their weights lie on the study's storage: which file, of which architecture.

`raystudy.tracking.sources` fetches them; nothing here speaks to MLflow. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from raystudy.errors import BackboneError, Problem
from raystudy.factors import SELF_SUPERVISED, SUPERVISED

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A version of a registered model whose weights are at hand.

    Attributes:
        address: as the study names it, models:/NAME@ALIAS or models:/NAME/VERSION.
        name: of the registered model.
        version: the version that the address meant when the study began.
        run_id: of the trial that made it.
        model_id: MLflow's id of the logged model.
        architecture: of its backbone.
        digest: SHA-256 of its weights, in hex.
        file: the weights, on storage that every node of the study sees.
        objective: what it was trained for, `supervised` or `self_supervised`.
    """

    address: str
    name: str
    version: str
    run_id: str
    model_id: str
    architecture: str
    digest: str
    file: Path
    objective: str = SUPERVISED

    @property
    def has_head(self) -> bool:
        """Whether it was trained to classify."""
        return self.objective != SELF_SUPERVISED

    @property
    def backbone(self) -> str:
        """The backbone as one that begins with the file would be written."""
        return f"{self.architecture}@file:{self.file}"

    @property
    def words(self) -> str:
        """What the weights are, for people."""
        return f"{self.address} (version {self.version} of {self.name}, sha256 {self.digest[:12]})"

    def check(self) -> None:
        """Check that the file is the one that was fetched; once a process.

        Raises:
            BackboneError: it is missing, or has other content.
        """
        _check_digest(self.file, self.digest, self.address)

    def note(self) -> dict[str, str]:
        """Return what the journal keeps, so that a resume has the same version."""
        names = ("name", "version", "run_id", "model_id", "architecture", "digest", "objective")
        return {name: str(getattr(self, name)) for name in names}


Sources = Mapping[str, SourceModel]
"""The registered models of a study by their addresses."""


def architecture_of(backbone: str, sources: Sources) -> str:
    """Return the backbone by whose name its units are counted: a registered model's architecture, any other's own name."""
    return sources[backbone].architecture if backbone in sources else backbone


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex; raise OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _check_digest(file: Path, digest: str, address: str) -> None:
    accepted = "`raystudy resume` fetches it again"
    try:
        found = file_digest(file)
    except OSError as error:
        what = f"the weights of {address} cannot be read ({error.strerror or error})"
        raise BackboneError(Problem(f"backbone file {file}", what, accepted)) from error
    if found != digest:
        what = f"holds something else than the weights of {address}: its SHA-256 is {found[:12]}, expected {digest[:12]}"
        raise BackboneError(Problem(f"backbone file {file}", what, f"delete the file; {accepted}"))
