"""The pools of threads in the process that computes findings."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from raystudy.findings import importance
from raystudy.findings.threads import one_pool
from raystudy.findings.transfer import levels


def sizes() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))  # numpy's pool is loaded
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_numpys_pool_has_one_thread_while_it_runs_and_then_as_many_as_before() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        assert sizes() == {2}
        assert one_pool(sizes)() == {1}
        assert sizes() == {2}

        def fails() -> None:
            raise ValueError

        with pytest.raises(ValueError):
            one_pool(fails)()
        assert sizes() == {2}


@pytest.mark.parametrize("module", [importance, levels], ids=["importance", "levels"])
def test_findings_are_computed_like_that(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def observe(*_: object, **__: object) -> None:
        seen.append(sizes())
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "observe", observe)
    compute = module.importance if module is importance else module.results_by_level
    with threadpool_limits(limits=2, user_api="blas"), pytest.raises(KeyboardInterrupt):
        compute(pa.table({}), {"lr": {"uniform": [0, 1]}}, metric="m", budget=1)
    assert seen == [{1}]
