"""How far a source of images is from a target, from the features that one backbone gives to both; numbers in, numbers out.

Every measure says something else, and none is the truth: which estimator ranks transfers best changes with small changes of
the set-up (Agostinelli et al. 2022). They serve as covariates of a (source, target) pair, beside a baseline such as the
size of the model. Values are comparable under one backbone and one way of taking features only.
"""

from raystudy.findings.transfer.class_means import class_means, emd_similarity, movers_distance
from raystudy.findings.transfer.discrepancy import frechet_distance, squared_mmd
from raystudy.findings.transfer.domain import ADistance, proxy_a_distance
from raystudy.findings.transfer.leep import head_probabilities, leep
from raystudy.findings.transfer.logme import logme
from raystudy.findings.transfer.pair import MEASURES, Distance, Kind, distance
from raystudy.findings.transfer.sample import Sample

__all__ = [
    "MEASURES",
    "ADistance",
    "Distance",
    "Kind",
    "Sample",
    "class_means",
    "distance",
    "emd_similarity",
    "frechet_distance",
    "head_probabilities",
    "leep",
    "logme",
    "movers_distance",
    "proxy_a_distance",
    "squared_mmd",
]
