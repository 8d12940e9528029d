"""A Ray of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray


@contextmanager
def local_ray(**resources: int) -> Iterator[None]:
    """Start a Ray with such resources (`num_cpus`, `num_gpus`), whose processes can import what tests share."""
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
        **resources,
    )
    yield
    ray.shutdown()
