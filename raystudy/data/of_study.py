"""The images of a study."""

from __future__ import annotations

from pathlib import Path

from raystudy.data.pipeline import prepare
from raystudy.data.prepared import PreparedData
from raystudy.spec import StudySpec


def open_data(spec: StudySpec, cache: Path) -> PreparedData:
    """Return the study's images; decoded by the first who asks on this machine, mapped into memory by all others."""
    data = spec.data
    return prepare(
        data.source,
        image_size=data.image_size,
        validation=data.validation,
        test=data.test,
        on_bad_image=data.on_bad_image,
        seed=spec.search.seed,
        cache_dir=cache,
    )
