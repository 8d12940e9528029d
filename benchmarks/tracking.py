"""Does a study slow down when its MLflow server is away? A real `mlflow server` is killed for 30 s in mid-study.

Both studies train the same trials of equal, known length (an epoch sleeps), in this process, and are recorded by a real
server. In the second one the server is killed with SIGKILL a quarter through and started again 30 s later. Printed: the
seconds between the first and the last event of the trials, their ratio, and whether MLflow ended up complete.

    python benchmarks/tracking.py [--epochs 900] [--epoch-ms 60] [--away 30]

Exit code 1 if the disturbed study took over 5 % longer, or if MLflow is not complete.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import scratch

EPOCHS_PER_TRIAL = 9


@dataclass(frozen=True)
class Sleeper:
    """Trains by sleeping."""

    seconds: float

    def open(self, ticket: Any) -> Sleeper:
        """Return the trial."""
        del ticket
        return self

    def epochs(self) -> Iterator[dict[str, float]]:
        """Report after each sleep."""
        for epoch in range(1, EPOCHS_PER_TRIAL + 1):
            time.sleep(self.seconds)
            yield {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1 / epoch, "val_accuracy": 1 - 1 / (epoch + 1)}

    def close(self) -> None:
        """Hold nothing."""


class Server:
    """A real tracking server."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start it; wait until it answers."""
        where = ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--workers", "1", *where],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while wait and not self._answers():
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill it and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.uri + "/health", timeout=1).close()  # noqa: S310  our own server
        except (OSError, urllib.error.URLError):
            return False
        return True


def run_study(name: str, server: Server, epochs: int, seconds: float) -> tuple[float, bool]:
    """Run a study; return the seconds of its trials, and whether MLflow holds all of it, each value once."""
    from raystudy.driver import Setting, run
    from raystudy.paths import StudyPaths
    from raystudy.spec import StudySpec
    from raystudy.tracking.journal import read_journal
    from raystudy.tracking.verify import verify

    spec = StudySpec.from_dict(
        {
            "name": name,
            "data": {"source": "sklearn:digits"},
            "backbone": "efficientnet_lite0",
            "factors": {"learning_rate": {"log_uniform": [1e-4, 1e-1]}},
            "budget": {"trials": epochs // EPOCHS_PER_TRIAL, "epochs": EPOCHS_PER_TRIAL},
            "search": {"sampler": "random"},
            "early_stopping": "none",
            "keep_models": 0,
        }
    )
    run(spec, Setting(inline=True, trainer=Sleeper(seconds), tracking_uri=server.uri))
    events = [event for event in read_journal(StudyPaths.of(name).journal) if event.kind != "study_started"]
    return events[-1].time - events[0].time, verify(name, tracking_uri=server.uri).ok


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=900)
    parser.add_argument("--epoch-ms", type=float, default=60)
    parser.add_argument("--away", type=float, default=30)
    options = parser.parse_args()
    seconds = options.epoch_ms / 1000
    with scratch() as folder:
        os.environ["RAYSTUDY_HOME"] = f"{folder}/home"
        server = Server(folder)
        server.start()
        try:
            calm, _ = run_study("calm", server, options.epochs, seconds)
            quarter = options.epochs * seconds / 4
            timers = [threading.Timer(quarter, server.kill), threading.Timer(quarter + options.away, server.start)]
            for timer in timers:
                timer.start()
            disturbed, complete = run_study("disturbed", server, options.epochs, seconds)
            for timer in timers:
                timer.join()
        finally:
            server.kill()
    print(f"{options.epochs} epochs of {options.epoch_ms:g} ms, load {os.getloadavg()[0]:.1f}")
    print(f"server there        {calm:7.2f} s")
    print(f"away for {options.away:3.0f} s      {disturbed:7.2f} s   ratio {disturbed / calm:.3f}")
    print(f"MLflow complete afterwards, each value once: {'yes' if complete else 'NO'}")
    if disturbed > 1.05 * calm or not complete:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
