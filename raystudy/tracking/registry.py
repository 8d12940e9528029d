"""MLflow's registry of models as raystudy uses it: versions by alias, each with where it came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from raystudy.tracking import names
from raystudy.tracking.address import database
from raystudy.tracking.store import Store, StoreRefused

_ABSENT = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
"""What MLflow says of a model, a version or an alias that is not there."""
_MODEL_ID = re.compile(r"(?:^models:/|/)(m-[0-9a-f]+)(?=/|$)")


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        number: as MLflow writes it: a whole number from 1, as text.
        run_id: of the run that made it; empty where it is not known.
        model_id: of the logged model; empty for what older clients of MLflow registered.
        tags: by name.
    """

    name: str
    number: str
    run_id: str
    model_id: str
    tags: Mapping[str, str] = field(default_factory=dict)


class Registry:
    """The registered models of one tracking store."""

    def __init__(self, store: Store) -> None:
        """Work in `store`."""
        self._store, self._client = store, store.client

    def names(self) -> list[str]:
        """Return the names of all registered models, sorted."""
        search = self._client.search_registered_models
        return sorted(str(model.name) for model in self._store.pages("list the registered models", search))

    def aliases(self, name: str) -> dict[str, str] | None:
        """Return the versions of a registered model by alias; None where there is no such model."""
        try:
            with self._store.translated("look for a registered model"):
                return {str(alias): str(number) for alias, number in self._client.get_registered_model(name).aliases.items()}
        except StoreRefused as error:
            if error.code in _ABSENT:
                return None
            raise

    def find(self, name: str, *, alias: str = "", number: str = "") -> Version | None:
        """Return the version with an alias, or of a number; None where there is none.

        Raises:
            StoreDown: the store does not answer.
        """
        try:
            with self._store.translated("look for a version of a registered model"):
                if alias:
                    return _version(self._client.get_model_version_by_alias(name, alias))
                return _version(self._client.get_model_version(name, number))
        except StoreRefused as error:
            if error.code in _ABSENT:
                return None
            raise

    def register(self, name: str, model_id: str, run_id: str, alias: str, tags: Mapping[str, str] | None = None) -> None:
        """Let `alias` of the registered model `name` point at a logged model; nothing is registered twice."""
        with self._store.translated("register a model"):
            if not self._client.search_registered_models(f"name = '{name}'"):
                self._client.create_registered_model(name)
        search = partial(self._client.search_model_versions, f"name = '{name}'")
        versions = [item for item in self._store.pages("look for versions of a model", search) if item.run_id == run_id]
        with self._store.translated("register a model"):
            version = versions[0] if versions else self._new_version(name, model_id, run_id)
            for key, value in (tags or {}).items():
                if version.tags.get(key) != value:
                    self._client.set_model_version_tag(name, version.version, key, value)
            self._client.set_registered_model_alias(name, alias, version.version)

    def files(self, version: Version, part: str) -> set[str]:
        """Return the names of the files in the sub-folder `part` of a version's model."""
        with self._store.translated("look into a model"):
            if part not in {item.path for item in self._client.list_logged_model_artifacts(version.model_id)}:
                return set()
            return {Path(item.path).name for item in self._client.list_logged_model_artifacts(version.model_id, part)}

    def download(self, version: Version, part: str, folder: Path) -> Path:
        """Fetch the sub-folder `part` of a version's model into `folder`; return where it lies."""
        return self._store.download_model(version.model_id, part, folder)

    def _new_version(self, name: str, model_id: str, run_id: str) -> Any:
        # MLflow resolves models:/ by a setting of the process: a server has it right, for a local store we name the place.
        local = database(self._store.uri) is not None
        source = self._client.get_logged_model(model_id).artifact_location if local else f"models:/{model_id}"
        tags = {names.MODEL_ID: model_id}
        return self._client.create_model_version(name, source, run_id, tags=tags, model_id=model_id)


def _version(found: Any) -> Version:
    tags = {str(key): str(value) for key, value in found.tags.items()}
    model_id = found.model_id or tags.get(names.MODEL_ID) or _model_in(str(found.source or ""))
    return Version(str(found.name), str(found.version), found.run_id or "", str(model_id), tags)


def _model_in(source: str) -> str:
    """Return the logged model that the source of a version speaks of: MLflow's SQL store keeps its id nowhere else."""
    found = _MODEL_ID.search(source)
    return found[1] if found else ""
