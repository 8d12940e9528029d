"""How far a source of images is from a target, from the features that one backbone gives to both; numbers in, numbers out.

Every measure says something else, and none is the truth: which estimator ranks transfers best changes with small changes of
the set-up (Agostinelli et al. 2022). They serve as covariates of a (source, target) pair, beside a baseline such as the
size of the model. Values are comparable under one backbone and one way of taking features only.

`relate` asks what they have to do with what studies found: `results_of` reads that off a recorded study, `results_by_level` off
any reports.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from raystudy.findings.transfer.class_means import class_means, emd_similarity, movers_distance
from raystudy.findings.transfer.discrepancy import frechet_distance, squared_mmd
from raystudy.findings.transfer.domain import ADistance, proxy_a_distance
from raystudy.findings.transfer.leep import head_probabilities, leep
from raystudy.findings.transfer.logme import logme
from raystudy.findings.transfer.pair import MEASURES, Distance, Kind, distance
from raystudy.findings.transfer.relation import COVARIATES, Relation, cautions, relate
from raystudy.findings.transfer.sample import Sample

if TYPE_CHECKING:
    from raystudy.findings.transfer.levels import LevelResults, joined, results_by_level, results_of

__all__ = [
    "COVARIATES",
    "MEASURES",
    "ADistance",
    "Distance",
    "Kind",
    "LevelResults",
    "Relation",
    "Sample",
    "cautions",
    "class_means",
    "distance",
    "emd_similarity",
    "frechet_distance",
    "head_probabilities",
    "joined",
    "leep",
    "logme",
    "movers_distance",
    "proxy_a_distance",
    "relate",
    "results_by_level",
    "results_of",
    "squared_mmd",
]


def __getattr__(name: str) -> Any:
    """Import what needs the surrogate, so gpytorch, on first use: distances need neither."""
    if name not in ("LevelResults", "joined", "results_by_level", "results_of"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # gpytorch's own, about torch.jit
        return getattr(import_module(f"{__name__}.levels"), name)
