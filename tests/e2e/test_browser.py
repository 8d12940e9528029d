"""The MLflow page shows a study as its user expects, in a real browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from places import Undisturbed
from stores import free_port

from raystudy.tracking.reader import StudyReader, connect

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium"),
]


def _page(url: str, profile: Path) -> str:
    """Return the page's document after its scripts have run."""
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--disable-quic",
    ]
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={profile}"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=30000", "--dump-dom", url], capture_output=True, text=True, timeout=400, check=True
    )
    return done.stdout


def test_the_page_shows_the_study_its_trials_and_their_state(undisturbed: Undisturbed, tmp_path: Path) -> None:
    reader = StudyReader(connect(undisturbed.place.tracking_uri), "small")
    port = free_port()
    ui = undisturbed.place.start("ui", "--port", str(port))
    try:
        while (
            ui.poll() is None
            and subprocess.run(["curl", "-sf", "-o", "/dev/null", f"http://127.0.0.1:{port}/health"], check=False).returncode
        ):
            time.sleep(0.1)
        assert ui.poll() is None, "the UI ended"
        page = _page(f"http://127.0.0.1:{port}/#/experiments/{reader.experiment_id}/runs/{reader.run_id}", tmp_path / "profile")
    finally:
        os.killpg(ui.pid, signal.SIGKILL)
        ui.wait()
    assert "small" in page
    assert "raystudy.state" in page
    for trial in ("t0000", "t0001", "t0002"):
        assert trial in page
