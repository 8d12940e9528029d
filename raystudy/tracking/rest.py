"""The reading half of a tracking server, over MLflow's documented REST interface.

Importing MLflow takes longer than any question to its server, and asking is what people do all day. Whoever writes, or needs
a model, uses `raystudy.tracking.store`; what both can do gives the same answers, which a contract test checks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from raystudy.tracking.address import CREDENTIALS, authorization, check_reachable, is_authorized_elsewhere, redact
from raystudy.tracking.content import Point
from raystudy.tracking.questions import PAGE, RUNS_PER_REQUEST, SMALL_PAGE, order_by_metric, trials_only, where
from raystudy.tracking.store import PERMANENT, UNAUTHORISED, StoreDown, StoredRun, StoreRefused, deleted

_TIMEOUT_S = (5.0, 60.0)
_API = "/api/2.0/mlflow/"
_PROXIED = "mlflow-artifacts"
_OWN_SETTINGS = ("MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH")


def is_plain_server(uri: str) -> bool:
    """Whether `uri` is a server that can be asked without what only MLflow's client knows: certificates, ways to log in."""
    return (
        uri.startswith(("http://", "https://"))
        and not is_authorized_elsewhere()
        and not any(map(os.environ.get, _OWN_SETTINGS))
    )


class RestStore:
    """One tracking server, for reading. Thread-safe as far as `requests` is."""

    def __init__(self, uri: str) -> None:
        """Prepare; nothing is asked yet."""
        self.uri = uri
        self._address = redact(uri).rstrip("/")
        self._session = requests.Session()
        self._session.headers.update(authorization(uri))

    # Experiments

    def experiment(self, name: str) -> str | None:
        """Return the id of the experiment `name`, None where there is none.

        Raises:
            StoreRefused: it was deleted.
        """
        try:
            found = self._get("look for the experiment", "experiments/get-by-name", experiment_name=name)["experiment"]
        except StoreRefused as error:
            if error.code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if found.get("lifecycle_stage") != "active":
            raise deleted(name, self.uri, found["experiment_id"])
        return str(found["experiment_id"])

    def experiments(self) -> dict[str, str]:
        """Return the ids of all experiments that are not deleted, with their names."""
        pages = self._pages("list experiments", "experiments/search", "experiments", {"max_results": PAGE})
        return {str(row["experiment_id"]): str(row["name"]) for row in pages}

    # Runs

    def runs(self, experiments: Sequence[str], kind: str | None = None, **tags: str) -> list[StoredRun]:
        """Return the runs of `kind` that have the given `raystudy.` tags (without that prefix), oldest first."""
        found: list[StoredRun] = []
        for start in range(0, len(experiments), RUNS_PER_REQUEST):
            body = {
                "experiment_ids": list(experiments[start : start + RUNS_PER_REQUEST]),
                "filter": where(kind, tags),
                "max_results": PAGE,
                "order_by": ["attributes.start_time ASC"],
            }
            found += map(_stored, self._pages("search the runs", "runs/search", "runs", body))
        return found

    def runs_by(self, experiment: str, metric: str, *, ascending: bool) -> Iterator[StoredRun]:
        """Yield the trials' runs in the order of a metric's latest value, those without it last; few are fetched at a time."""
        body = {
            "experiment_ids": [experiment],
            "filter": trials_only(),
            "max_results": SMALL_PAGE,
            "order_by": [order_by_metric(metric, ascending=ascending)],
        }
        return map(_stored, self._pages("search the runs", "runs/search", "runs", body))

    def run(self, run_id: str) -> StoredRun:
        """Return a run."""
        return _stored(self._get("read a run", "runs/get", run_id=run_id)["run"])

    def history(self, run_id: str, metric: str) -> list[Point]:
        """Return every value of a metric as it was written, repetitions included."""
        rows = self._get("read a metric", "metrics/get-history", run_id=run_id, metric_key=metric).get("metrics", [])
        return [Point(row["key"], int(row.get("step", 0)), float(row["value"]), int(row["timestamp"])) for row in rows]

    # Artifacts

    def download(self, run_id: str, name: str, folder: Path) -> Path:
        """Fetch an artifact of a run into `folder`.

        Raises:
            StoreRefused: the run has no such artifact.
        """
        root = urlsplit(str(self._get("read a run", "runs/get", run_id=run_id)["run"]["info"]["artifact_uri"]))
        if root.scheme != _PROXIED:  # a store that clients reach by themselves
            from raystudy.tracking.store import Store

            return Store(self.uri).download(run_id, name, folder)
        path = quote(f"{root.path.lstrip('/')}/{name}")
        answer = self._send("GET", f"fetch {name}", f"/api/2.0/mlflow-artifacts/artifacts/{path}")
        if answer.status_code == 404:
            raise StoreRefused(f"run {run_id} at {self._address} has no artifact {name!r}", "NO_ARTIFACT")
        self._check(f"fetch {name}", answer)
        target = folder / name
        target.write_bytes(answer.content)
        return target

    # Requests

    def _get(self, doing: str, path: str, **parameters: str) -> Any:
        return self._checked(doing, self._send("GET", doing, _API + path, params=parameters))

    def _pages(self, doing: str, path: str, rows: str, body: Mapping[str, Any]) -> Iterator[Any]:
        token = ""
        while True:
            page = self._checked(doing, self._send("POST", doing, _API + path, json={**body, "page_token": token}))
            yield from page.get(rows, [])
            token = page.get("next_page_token", "")
            if not token:
                return

    def _send(self, method: str, doing: str, path: str, **content: Any) -> requests.Response:
        try:
            return self._session.request(method, self._address + path, timeout=_TIMEOUT_S, **content)
        except requests.RequestException as error:
            check_reachable(self.uri)  # says why, if it is not
            raise StoreDown(f"cannot {doing} at {self._address}: {type(error).__name__}") from error

    def _checked(self, doing: str, answer: requests.Response) -> Any:
        self._check(doing, answer)
        try:
            return answer.json()
        except ValueError as error:
            raise StoreDown(f"cannot {doing} at {self._address}: it answers with something that is not JSON") from error

    def _check(self, doing: str, answer: requests.Response) -> None:
        """Turn an error into `StoreDown` or `StoreRefused`, as `Store` does."""
        if answer.ok:
            return
        try:
            body = answer.json()
            code, reason = str(body.get("error_code", "")), str(body.get("message", ""))
        except (ValueError, AttributeError):
            code, reason = "", answer.reason
        message = f"cannot {doing} at {self._address}: {redact((reason.splitlines() or [answer.reason])[0])[:500]}"
        if answer.status_code == 401 or code in UNAUTHORISED:
            raise StoreDown(f"{message}; {CREDENTIALS}")
        if code in PERMANENT:
            raise StoreRefused(message, code)
        raise StoreDown(message)


def _stored(run: Mapping[str, Any]) -> StoredRun:
    info, data = run["info"], run.get("data", {})
    return StoredRun(
        run_id=info["run_id"],
        experiment_id=str(info["experiment_id"]),
        name=info.get("run_name", ""),
        params={row["key"]: row.get("value", "") for row in data.get("params", [])},
        tags={row["key"]: row.get("value", "") for row in data.get("tags", [])},
        latest={row["key"]: float(row["value"]) for row in data.get("metrics", [])},
        status=info.get("status", "RUNNING"),
        started=int(info.get("start_time", 0)),
        ended=None if info.get("end_time") is None else int(info["end_time"]),
    )
