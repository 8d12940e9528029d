"""Benchmarks leave no process and no file behind, however they end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import MARK

from raystudy.cluster.processes import alive

HOLDER = """
import subprocess, sys
from processes import scratch
with scratch() as folder:
    (folder / "file").write_text("")
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(folder, orphan.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_killed_benchmark_leaves_nothing_behind() -> None:
    """What it started ends with it, also in a session of its own, as an MLflow writer is."""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        folder, pid = holder.stdout.readline().split()
        orphan = psutil.Process(int(pid))
        guard = next(child for child in psutil.Process(holder.pid).children() if folder in child.cmdline())
        assert orphan.environ()[MARK] == folder
        holder.kill()
    psutil.wait_procs([guard], timeout=30)
    assert not alive(guard)
    assert not alive(orphan)
    assert not Path(folder).exists()
