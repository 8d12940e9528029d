"""Registered models that a study begins with: found in MLflow, fetched onto the study's storage, pinned for a resume.

The weights of a version lie in HOME/sources under their SHA-256, which every node of a cluster sees, and are fetched once. An
alias may move while a study is interrupted: the journal keeps which version it meant, and a resume has that one.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raystudy import paths
from raystudy.errors import BackboneError, InputError, Problem, UnreachableError
from raystudy.factors import SUPERVISED
from raystudy.finetune.names import BACKBONE_KEY, check_backbone, near_misses
from raystudy.finetune.source_models import SourceModel, Sources, file_digest
from raystudy.finetune.weight_files import check_weight_file, read_metadata
from raystudy.spec import StudySpec
from raystudy.spec.sources import is_registered
from raystudy.tracking import names
from raystudy.tracking.address import check_reachable, redact
from raystudy.tracking.registry import Registry, Version

_MODEL_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN = 40
_OURS = "expected a model that `raystudy run` or `raystudy pretrain` has registered; or download it and write file:PATH"

Note = Mapping[str, str]
"""What the journal keeps of a source model; see `SourceModel.note`."""


def fetch_sources(
    spec: StudySpec, uri: str, noted: Mapping[str, Note] | None = None, *, say: Callable[[str], None] = lambda _: None
) -> Sources:
    """Return every registered model that trials of the study may begin with, its weights on this study's storage.

    Args:
        spec: the study.
        uri: the tracking store whose registry is asked; it is not asked where `noted` and the storage have everything.
        noted: what the study had when it began, by address: a resume gets the same.
        say: told what is going on.

    Raises:
        BackboneError: with every model that does not exist, or cannot be a backbone.
        UnreachableError: the store does not answer.
    """
    return fetch(spec.backbones, uri, noted, where="source" if spec.has_sources else "backbone", say=say)


def fetch(
    backbones: Iterable[str],
    uri: str,
    noted: Mapping[str, Note] | None = None,
    *,
    where: str = "backbone",
    say: Callable[[str], None] = lambda _: None,
) -> Sources:
    """Return the registered models among `backbones`; as `fetch_sources`, `where` is the place for problems."""
    noted = noted or {}
    addresses = [name for name in backbones if is_registered(name)]
    found = {address: kept for address in addresses if (kept := _kept(address, noted.get(address))) is not None}
    missing = [address for address in addresses if address not in found]
    if missing:
        check_reachable(uri)
        say(f"Fetching {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''} from {redact(uri)}")
        from raystudy.tracking.store import Store

        found |= _fetch(missing, noted, Registry(Store(uri)), where=where)
    return {address: found[address] for address in addresses}


def read_notes(data: Mapping[str, Any]) -> Sources:
    """Return the source models that a journal's first event notes, whether or not their files are there."""
    return {address: _from_note(address, note) for address, note in (data.get("sources") or {}).items()}


def _fetch(addresses: list[str], noted: Mapping[str, Note], registry: Registry, *, where: str) -> dict[str, SourceModel]:
    found: dict[str, SourceModel] = {}
    problems: list[Problem] = []
    for address in addresses:
        asked = _Asked.of(address, noted.get(address))
        try:
            version = registry.find(asked.name, alias=asked.alias, number=asked.number)
            if version is None:
                problems.append(Problem(where, *_absent(asked, registry)))
            else:
                found[address] = _fetched(asked, version, registry)
        except InputError as error:
            problems += [Problem(where, f"{address} {problem.what}", problem.accepted) for problem in error.problems]
    if problems:
        raise BackboneError(problems)
    return found


@dataclass(frozen=True, slots=True)
class _Asked:
    """What an address asks for; of one that is noted already, the version and the content that it had."""

    address: str
    name: str
    alias: str = ""
    number: str = ""
    digest: str = ""

    @classmethod
    def of(cls, address: str, note: Note | None) -> _Asked:
        if note is not None:
            return cls(address, note["name"], number=note["version"], digest=note["digest"])
        name, _, alias = address.removeprefix("models:/").partition("@")
        if alias:
            return cls(address, name, alias=alias)
        name, _, number = name.rpartition("/")
        return cls(address, name, number=number)


def _fetched(asked: _Asked, version: Version, registry: Registry) -> SourceModel:
    """Bring a version onto this storage, unless it is there.

    Raises:
        InputError: it cannot be a backbone, or is not what the study had when it began.
    """
    if not _MODEL_ID.fullmatch(version.model_id):
        what = f"(version {version.number}) was not made by raystudy: its version names no logged model"
        raise BackboneError(Problem("", what, _OURS))
    index = paths.sources() / f"{version.model_id}.json"  # a logged model never changes: its id stands for its content
    about = _read_index(index)
    if about is None:
        about = _download(version, registry)
        _write(index, json.dumps(about).encode())
    if asked.digest and about["digest"] != asked.digest:
        now = about["digest"][:12]
        what = f"was {asked.digest[:12]} (SHA-256) when the study began, and its version {version.number} is {now} now"
        raise BackboneError(Problem("", what, "begin another study"))
    note = {"name": version.name, "version": version.number, "run_id": version.run_id, "model_id": version.model_id}
    return _from_note(asked.address, {**note, **about})


def _download(version: Version, registry: Registry) -> dict[str, str]:
    """Fetch the weights of a version; return their digest, their architecture and what they were trained for."""
    from raystudy.finetune.model_card import read_objective

    if missing := {names.MODEL_WEIGHTS, names.MODEL_CARD} - registry.files(version, names.MODEL_EXTRAS):
        files = " and no ".join(sorted(missing))
        what = f"(version {version.number}) was not made by raystudy: it has no {files} in {names.MODEL_EXTRAS}"
        raise BackboneError(Problem("", what, _OURS))
    with tempfile.TemporaryDirectory() as scratch:
        folder = registry.download(version, names.MODEL_EXTRAS, Path(scratch))
        weights = folder / names.MODEL_WEIGHTS
        architecture = _architecture(folder)
        check_weight_file(weights)
        if (said := read_metadata(weights).get(BACKBONE_KEY)) != architecture:
            what = f"is damaged: its card says {architecture}, its weights say {said}"
            raise BackboneError(Problem("", what, "train it again"))
        digest = file_digest(weights)
        _keep(weights, _weights(digest))
        objective = read_objective(folder)
    return {"digest": digest, "architecture": architecture, "objective": objective}


def _architecture(folder: Path) -> str:
    """Return the architecture that a model's card names.

    Raises:
        InputError: the card is damaged, or names none that this version can build.
    """
    from raystudy.finetune.model_card import Recipe

    architecture = Recipe.read(folder).architecture
    if is_registered(architecture) or "file:" in architecture:
        what = f"says that its architecture is {architecture!r}"
        raise BackboneError(Problem("", what, "expected the name of an architecture"))
    check_backbone(architecture)
    return architecture


def _absent(asked: _Asked, registry: Registry) -> tuple[str, str]:
    """Say what is not there, and what is."""
    aliases = registry.aliases(asked.name)
    if aliases is None:
        known = registry.names()
        near = near_misses(asked.name, tuple(known))
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        exist = f"there are {_listed(known)}" if known else "there are none yet: `raystudy pretrain` makes source models"
        return f"{asked.address}: there is no registered model {asked.name!r}", hint + exist
    if asked.digest:
        what = f"{asked.address} was version {asked.number} of {asked.name} when the study began, which is gone"
        return what, f"and {_weights(asked.digest)} is not there any more; begin another study"
    has = f"its aliases are {_listed(sorted(aliases, key=_natural))}" if aliases else "it has no alias; name a version"
    what = f"no alias {asked.alias!r}" if asked.alias else f"no version {asked.number}"
    return f"{asked.address}: {asked.name} has {what}", has


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more


def _natural(text: str) -> list[tuple[int, str]]:
    """Return the sort key by which c4 comes before c10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text) if part]


def _kept(address: str, note: Note | None) -> SourceModel | None:
    """Return a noted model whose file is there as it was."""
    if note is None:
        return None
    model = _from_note(address, note)
    return model if _is_whole(model.file, model.digest) else None


def _from_note(address: str, note: Note) -> SourceModel:
    return SourceModel(
        address=address,
        name=note["name"],
        version=note["version"],
        run_id=note["run_id"],
        model_id=note["model_id"],
        architecture=note["architecture"],
        digest=note["digest"],
        file=_weights(note["digest"]),
        objective=note.get("objective", SUPERVISED),  # journals from before there was another
    )


def _weights(digest: str) -> Path:
    if not _DIGEST.fullmatch(digest):  # it becomes a file's name
        raise BackboneError(Problem("sources", f"got {digest!r}, expected a SHA-256 in hex"))
    return paths.sources() / f"{digest}.safetensors"


def _read_index(path: Path) -> dict[str, str] | None:
    """Return what is known of a model that was fetched before; None unless its weights are there as they were."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        digest, architecture = str(about["digest"]), str(about["architecture"])
        objective = str(about.get("objective", SUPERVISED))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not _DIGEST.fullmatch(digest) or not _is_whole(_weights(digest), digest):
        return None
    return {"digest": digest, "architecture": architecture, "objective": objective}


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return file_digest(path) == digest
    except OSError:
        return False


def _keep(source: Path, target: Path) -> None:
    """Copy a file to `target`, which is there completely or not at all."""
    _place(target, partial(shutil.copyfile, source))


def _write(target: Path, content: bytes) -> None:
    _place(target, lambda path: path.write_bytes(content))


def _place(target: Path, write: Callable[[Path], Any]) -> None:
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        draft.replace(target)
    except OSError as error:
        raise UnreachableError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
