"""The Ray that a study starts for itself where nobody names one: of its processes, those that trials need.

`ray.init` starts four more, and nothing that it takes switches them off: a dashboard that serves no page
(`include_dashboard=False` leaves the process), whose start `ray.init` waits for; the dashboard's agent, which serves it
statistics; a monitor for an autoscaler with nothing to scale; and a log monitor, for a driver that wants what its workers
print, which ours does not. Without them a study starts two seconds sooner and ends one second sooner, its trials have 250 MB
more, and an idle Ray takes less than half the processor time.

Ray's functions that start them are private. A Ray that lacks one of them starts as it would.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any, NamedTuple

_UNNEEDED = ("start_api_server", "start_monitor", "start_log_monitor")
"""Functions of Ray's `Node` that start a process that nothing waits for."""

_IDLE_AGENT = ("/bin/sh", "-c", "while read -r _; do :; done")
"""Stands in for the dashboard's agent, without which the raylet ends: like it, it ends with the pipe that the raylet holds."""

_SETTINGS = {
    # Tune's trials have an environment of their own, so none would run in the processes that Ray starts in advance.
    "prestart_worker_first_driver": False,
    # How often objects that other nodes have are asked for again, by default every 100 ms: there are no other nodes.
    "object_manager_timer_freq_ms": 10_000,
}
"""Of the node, by Ray's names."""

_STARTING = threading.Lock()
_log = logging.getLogger(__name__)


class _Replacement(NamedTuple):
    """One of Ray's functions, where it is, what it is called, and what stands in for it."""

    owner: Any
    name: str
    function: Callable[..., Any]


def start(cpus: int, **options: Any) -> None:
    """Start a Ray on this machine, for this process alone, and connect to it.

    Args:
        cpus: how many processors it may give away.
        options: more of what `ray.init` takes.
    """
    import ray

    # A study keeps nothing in Ray's object store: the least that Ray accepts saves the memory for trials.
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100_000_000, "_system_config": _SETTINGS}
    with _STARTING, _only_needed_processes():
        ray.init(address="local", num_cpus=cpus, **own, **options)


@contextmanager
def _only_needed_processes() -> Iterator[None]:
    """Let Ray leave out what it starts beside GCS, raylet and the agent that prepares processes' environments."""
    try:
        replacements = _replacements()
        before = [getattr(owner, name) for owner, name, _ in replacements]
    except (ImportError, AttributeError) as error:
        _log.info("Ray starts all of its processes: %s", error)
        replacements, before = [], []
    try:
        for owner, name, function in replacements:
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name, _), function in zip(replacements, before, strict=True):
            setattr(owner, name, function)


def _replacements() -> list[_Replacement]:
    """Return what stands in for which of Ray's functions.

    Raises:
        ImportError, AttributeError: where this Ray lacks one of them.
    """
    from ray._private import services
    from ray._private.node import Node

    command_name = "_build_python_executable_command_memory_profileable"
    return [
        *(_Replacement(Node, name, _start_nothing) for name in _UNNEEDED),
        _Replacement(Node, "start_raylet", _told_that_no_agent_listens(Node.start_raylet)),
        _Replacement(services, command_name, _with_idle_agent(getattr(services, command_name))),
    ]


def _start_nothing(*_: Any, **__: Any) -> None:
    """Stand in for a function that starts a process."""


def _told_that_no_agent_listens(start_raylet: Callable[..., None]) -> Callable[..., None]:
    """Leave the ports of an agent that serves nothing, as Ray's own does where Ray is installed without its dashboard."""
    raylet: Any = import_module("ray._raylet")
    names = (raylet.METRICS_AGENT_PORT_NAME, raylet.METRICS_EXPORT_PORT_NAME, raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME)
    persist_port = raylet.persist_port

    @wraps(start_raylet)
    def start(node: Any, *arguments: Any, **options: Any) -> None:
        for name in names:
            persist_port(node.get_session_dir_path(), node.node_id, name, -1)
        start_raylet(node, *arguments, **options)

    return start


def _with_idle_agent(command_of: Callable[..., list[str]]) -> Callable[..., list[str]]:
    from ray._private.ray_constants import PROCESS_TYPE_DASHBOARD_AGENT

    @wraps(command_of)
    def command(component: str, *arguments: Any, **options: Any) -> list[str]:
        # What Ray appends, the agent's script and its arguments, are arguments of the shell that it makes no use of.
        return list(_IDLE_AGENT) if component == PROCESS_TYPE_DASHBOARD_AGENT else command_of(component, *arguments, **options)

    return command
