"""The study file: read, checked, frozen."""

from raystudy.spec.factor import Factor
from raystudy.spec.sections import METRICS
from raystudy.spec.study import StudySpec

__all__ = ["METRICS", "Factor", "StudySpec"]
