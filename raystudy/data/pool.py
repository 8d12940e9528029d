"""Decoding many images at once, in order, with bounded memory. Pillow and hashlib let go of the GIL: threads suffice."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from raystudy.data.decode import DecodedImage, Payload, UnreadableImage, decode

# Large enough that handing over a chunk costs little beside decoding it, small enough that few images wait in memory.
_CHUNK = 16
_CHUNKS_IN_FLIGHT_PER_WORKER = 2

Read = Callable[[], Payload]
"""Reads one image, in whichever thread; raises OSError or UnreadableImage."""


def decode_in_order(
    reads: Iterable[Read], *, image_size: int, workers: int | None = None
) -> Iterator[DecodedImage | UnreadableImage]:
    """Yield each image decoded, or why it cannot be, in the order of `reads`."""
    workers = workers or _cores()
    pending: deque[Future[list[DecodedImage | UnreadableImage]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for chunk in _chunks(reads):
            pending.append(pool.submit(_decode_chunk, chunk, image_size))
            if len(pending) >= workers * _CHUNKS_IN_FLIGHT_PER_WORKER:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(reads: Iterable[Read]) -> Iterator[list[Read]]:
    iterator = iter(reads)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _decode_chunk(chunk: list[Read], image_size: int) -> list[DecodedImage | UnreadableImage]:
    return [_decode_one(read, image_size) for read in chunk]


def _decode_one(read: Read, image_size: int) -> DecodedImage | UnreadableImage:
    try:
        return decode(read(), image_size)
    except UnreadableImage as unreadable:
        return unreadable
    except OSError as error:
        return UnreadableImage(f"cannot be read: {error.strerror or error}")


def _cores() -> int:
    """Return the number of cores that this process may use; macOS does not tell, so all of the machine's there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
