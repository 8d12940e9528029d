"""Follows the log of a Ray job with Ray's own client, which holds a web socket open for it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator

from raystudy.cluster.dashboard import read_token
from raystudy.errors import UnreachableError


def tail(address: str, job_id: str) -> Iterator[str]:
    """Yield what a job has printed and what it prints until it ends, in pieces as they come.

    Raises:
        UnreachableError: the connection breaks before the job has ended.
    """
    # Ray's client prefers these to the address that it is given.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray.job_submission import JobSubmissionClient

    token = read_token()
    client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)  # it announces the end of every connection
    pieces = client.tail_job_logs(job_id)

    async def next_piece() -> str:
        return await anext(pieces)

    with asyncio.Runner() as runner:
        while True:
            try:
                yield runner.run(next_piece())
            except StopAsyncIteration:
                return
            except (RuntimeError, OSError) as error:
                raise UnreachableError(f"the connection to {address} broke ({error}); the study goes on there") from error
