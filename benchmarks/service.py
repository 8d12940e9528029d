"""One head with many studies: how long asking takes, and whether anything is left behind.

Starts a real Ray head with its job server and the real MLflow server of a cluster (supervised, with authentication), submits
so many small real studies through the command line's own code, and asks while they run and when all have ended: `raystudy
list`, `raystudy best`, each as a whole process. At the end nothing of any study may run any more.

    python benchmarks/service.py [--studies 200] [--at-once 4] [--list-at-most 2.0] [--best-at-most 1.0]

Exit code 1 if a median is above its limit, a study did not complete, or a process was left. Needs ports of its own; beside
another Ray on the machine, the jobs of both may mix.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from raystudy import __version__
from raystudy.cluster.service import Cluster
from raystudy.spec import StudySpec

_BIN = Path(sys.executable).parent
_ASKED = 7
"""Times that a question is asked, of which the median counts."""


_MARKS = ("raystudy run", "raystudy.tracking.writer", "ray::TrialActor", "ray::ImplicitFunc")
"""In the command lines of drivers, MLflow writers and trials."""


def study(name: str, images: Path) -> StudySpec:
    """Return a study of one trial of one epoch: what is measured is everything around it."""
    return StudySpec.from_dict(
        {
            "name": name,
            "data": {"source": f"idx:{images}", "image_size": 16, "validation": 0.3},
            "backbone": "efficientnet_lite0",
            "factors": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}},
            "fixed": {"frozen_depth": "max"},
            "budget": {"trials": 1, "epochs": 1},
            "keep_models": 0,
        }
    )


def write_images(folder: Path) -> Path:
    """Write a few noisy images of four classes as IDX files."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4, dtype=np.uint8), 20)
    images = rng.integers(0, 90, size=(len(labels), 8, 8), dtype=np.uint8) + 40 * labels[:, None, None]
    folder.mkdir()
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"\x00\x00\x08\x03" + np.array(images.shape, ">u4").tobytes() + images.astype(np.uint8).tobytes())
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(b"\x00\x00\x08\x01" + np.array([len(labels)], ">u4").tobytes() + labels.tobytes())
    return folder


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def cluster(folder: Path, at_once: int) -> Iterator[str]:
    """Run a head with an MLflow server, both of this process's own; give the dashboard's address."""
    dashboard, mlflow = free_port(), free_port()
    os.environ |= {
        "HOME": str(folder),
        "PATH": f"{_BIN}:{os.environ['PATH']}",
        "RAYSTUDY_HOME": str(folder / "storage"),
        "RAYSTUDY_CACHE": str(folder / "cache"),
        "RAYSTUDY_MLFLOW_STORE": "sqlite",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
        "RAY_AUTH_MODE": "token",
        "RAY_JOB_START_TIMEOUT_SECONDS": "31536000",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    (folder / "storage").mkdir()
    subprocess.run([_BIN / "raystudy", "keys"], check=True, stdout=subprocess.DEVNULL)
    server = ["raystudy", "head", "--host", "127.0.0.1", "--port", str(mlflow), "--without-ray"]
    subprocess.run(server, check=True)
    ray = [
        *(
            "ray",
            "start",
            "--head",
            "--block",
            f"--port={free_port()}",
            f"--dashboard-port={dashboard}",
            "--dashboard-host=127.0.0.1",
        ),
        *(
            "--num-cpus=2",
            "--object-store-memory=100000000",
            f"--temp-dir={folder / 'r'}",
            f"--labels=raystudy.version={__version__}",
        ),
        f"--resources={json.dumps({'study_driver': at_once})}",
    ]
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(ray, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(address)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait()
        subprocess.run(["raystudy", "head", "--stop"], check=True)


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            Cluster(address).jobs.all()
        except Exception:  # whatever a dashboard that is starting answers
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def ask(*command: str, environment: Mapping[str, str]) -> tuple[float, Any]:
    """Return the median wall time of a whole `raystudy` process, in seconds, and what it printed."""
    seconds = []
    for _ in range(_ASKED):
        started = time.perf_counter()
        done = subprocess.run(
            ["raystudy", *command, "--json"], env=dict(environment), capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), json.loads(done.stdout)


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that work for a study under `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line = " ".join(process.info["cmdline"] or [])
        is_ours = (process.info["environ"] or {}).get("RAYSTUDY_HOME") == str(folder / "storage")
        if is_ours and any(
            mark in line for mark in ("raystudy run", "tracking.writer", "ray::TrialActor", "ray::ImplicitFunc")
        ):
            found.append(line)
    return found


def measure(studies: int, at_once: int, folder: Path) -> dict[str, float]:
    """Submit, ask, wait, ask again; print every figure and return what has a limit."""
    images = write_images(folder / "images")
    with cluster(folder, at_once) as address:
        environment = {**os.environ, "RAY_API_SERVER_ADDRESS": address}
        client = Cluster(address)
        began = time.perf_counter()
        for number in range(studies):
            client.submit(study(f"study-{number:04d}", images), wait=False)
        took = time.perf_counter() - began
        print(f"{studies} studies submitted in {took:.1f} s, {1000 * took / studies:.0f} ms each", flush=True)
        early, rows = ask("list", environment=environment)
        print(f"list with all of them, most queued: {early:.2f} s; {dict(Counter(row['state'] for row in rows))}", flush=True)
        assert len(rows) == studies
        while any(job.is_active for job in client.jobs.all()):
            time.sleep(5)
        print(f"all ended after {time.perf_counter() - began:.0f} s, {at_once} at a time", flush=True)
        late, rows = ask("list", environment=environment)
        states = Counter(row["state"] for row in rows)
        best, found = ask("best", f"study-{studies // 2:04d}", environment=environment)
        left = processes_of(folder)
        print(f"list: {late:.2f} s; best: {best:.2f} s; {dict(states)}; processes left: {len(left)}", flush=True)
        assert states == {"completed": studies}, states
        assert len(found) == 1
        assert not left, left
    return {"list": max(early, late), "best": best}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--list-at-most", type=float, default=2.0)
    parser.add_argument("--best-at-most", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as folder:  # short: Ray's sockets have long names
        found = measure(options.studies, options.at_once, Path(folder))
    if found["list"] > options.list_at_most or found["best"] > options.best_at_most:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
