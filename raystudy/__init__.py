"""raystudy: which fine-tuning configuration is best, and which factors matter, by how much, and how sure we are.

    import raystudy as rs

    spec = rs.StudySpec.from_yaml("search_spaces/finetune.yaml")   # checked, frozen
    study = rs.run(spec)                                           # blocks
    study = rs.open_study("flowers-resnet50")                      # needs MLflow only
    study.best(k=3, where={"data_fraction": 0.1})
    print(study.importance())                                      # which factors matter, in sentences

Importing this package imports neither torch nor ray nor mlflow: names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raystudy.api import resume, run, stop
    from raystudy.errors import (
        BackboneError,
        DataError,
        InputError,
        NotFoundError,
        RaystudyError,
        SpecError,
        StudyBusyError,
        UnreachableError,
    )
    from raystudy.findings.answer import Importance
    from raystudy.findings.importance import importance
    from raystudy.listing import list_studies
    from raystudy.query import Study
    from raystudy.records import StudyState, TrialState
    from raystudy.results import Trial
    from raystudy.spec import Factor, StudySpec
    from raystudy.studies import open_study, submit

__version__ = "0.1.0"

_WHERE = {
    "raystudy.api": ("resume", "run", "stop"),
    "raystudy.errors": (
        "BackboneError",
        "DataError",
        "InputError",
        "NotFoundError",
        "RaystudyError",
        "SpecError",
        "StudyBusyError",
        "UnreachableError",
    ),
    "raystudy.findings.answer": ("Importance",),
    "raystudy.findings.importance": ("importance",),
    "raystudy.listing": ("list_studies",),
    "raystudy.query": ("Study",),
    "raystudy.records": ("StudyState", "TrialState"),
    "raystudy.results": ("Trial",),
    "raystudy.spec": ("Factor", "StudySpec"),
    "raystudy.studies": ("open_study", "submit"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "BackboneError",
    "DataError",
    "Factor",
    "Importance",
    "InputError",
    "NotFoundError",
    "RaystudyError",
    "SpecError",
    "Study",
    "StudyBusyError",
    "StudySpec",
    "StudyState",
    "Trial",
    "TrialState",
    "UnreachableError",
    "importance",
    "list_studies",
    "open_study",
    "resume",
    "run",
    "stop",
    "submit",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'raystudy' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
