"""Ends the head's server when the head's Ray ends: `python -m raystudy.cluster.head_guard RAY_PID FOLDER`, beside the server.

`ray stop` and `ray down` know only Ray's own processes. This one watches Ray's control process and tells its own supervisor
to stop; where that was killed, it ends what is left of the server itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil

from raystudy.cluster.processes import alive, end, marked

HEAD = "RAYSTUDY_HEAD"
"""Marks every process of a head with its folder."""

_LOOK_EVERY_S = 1.0
_SUPERVISORS_TIME_S = 20.0


def main(ray_pid: int, folder: str) -> None:
    """Wait for the end of the process `ray_pid`, then end the head's processes."""
    supervisor = psutil.Process(os.getppid())
    print(f"the server ends with process {ray_pid}", flush=True)
    wait_for_end(ray_pid)
    print(f"process {ray_pid} has ended", flush=True)
    if os.getppid() == supervisor.pid:
        supervisor.send_signal(signal.SIGTERM)  # it stops the server first, and then this process
        deadline = time.monotonic() + _SUPERVISORS_TIME_S
        while alive(supervisor) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)
    end(marked(HEAD, folder))


def wait_for_end(pid: int) -> None:
    """Return when the process `pid` has ended."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    while alive(process):
        time.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
