"""A Ray of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from raystudy import own_ray


@contextmanager
def local_ray(cpus: int, **resources: int) -> Iterator[None]:
    """Start a Ray as a study does, with such further resources (`num_gpus`), whose processes can import what tests share."""
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    own_ray.start(cpus, log_to_driver=False, runtime_env={"env_vars": path}, **resources)
    yield
    ray.shutdown()
