"""What a trial's process has to say to the driver between two reports, such as that it waits for storage.

A report needs the end of an epoch, and whoever waits does not get there. Ray's own key-value store is at hand on every node.
"""

from __future__ import annotations

import logging
import os
import time

from ray.experimental import internal_kv

_NAMESPACE = "raystudy"
_log = logging.getLogger(__name__)


def send(box: str, text: str) -> None:
    """Put a message into a driver's box; one that cannot be sent is lost, as the trial has other cares."""
    try:
        internal_kv._internal_kv_put(f"{box}/{time.time_ns():020d}-{os.getpid()}", text, namespace=_NAMESPACE)
    except Exception as error:
        _log.info("the driver could not be told: %s", error)


def receive(box: str) -> list[str]:
    """Take all messages out of a box, oldest first."""
    texts = []
    for key in sorted(internal_kv._internal_kv_list(f"{box}/", namespace=_NAMESPACE)):
        text = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
        internal_kv._internal_kv_del(key, namespace=_NAMESPACE)
        texts.append((text or b"").decode(errors="replace"))
    return texts
