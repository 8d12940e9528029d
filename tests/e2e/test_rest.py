"""One real server asked in two ways, by MLflow's client and over REST: every answer is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from journals import Clock, spec_dict, started, study_events, trial_events
from stores import Server, feed

from raystudy.errors import UnreachableError
from raystudy.paths import StudyPaths
from raystudy.records import TrialState
from raystudy.tracking import names
from raystudy.tracking.reader import StudyReader, connect
from raystudy.tracking.rest import RestStore
from raystudy.tracking.store import Store, StoreRefused

pytestmark = pytest.mark.slow

Both = tuple[Store, RestStore]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder)
    server.start()
    try:
        clock = Clock()
        running = trial_events(clock, 1, epochs=2, state=TrialState.RUNNING)
        feed(StudyPaths(folder / "running"), server.uri, [started(clock, spec_dict(name="running")), *running])
        feed(StudyPaths(folder / "digits"), server.uri, study_events(12))
        yield server.uri
    finally:
        server.kill()


@pytest.fixture
def both(uri: str, monkeypatch: pytest.MonkeyPatch) -> Both:
    for module in ("store", "rest"):
        monkeypatch.setattr(f"raystudy.tracking.{module}.SMALL_PAGE", 5)
    return Store(uri), RestStore(uri)


def test_a_server_is_read_over_rest(uri: str) -> None:
    assert isinstance(connect(uri), RestStore)


def test_experiments_are_the_same(both: Both) -> None:
    store, rest = both
    assert store.experiments() == rest.experiments()
    assert store.experiment("digits") == rest.experiment("digits") is not None
    assert store.experiment("none") is rest.experiment("none") is None


def test_runs_are_the_same_in_every_order(both: Both) -> None:
    store, rest = both
    experiment = str(store.experiment("digits"))
    for kind, tags in (
        (None, {}),
        (names.TRIAL_KIND, {}),
        (names.STUDY_KIND, {}),
        (names.TRIAL_KIND, {"trial_id": "t0003"}),
        (names.TRIAL_KIND, {"trial_id": "none"}),
    ):
        expected = store.runs([experiment], kind, **tags)
        assert expected == rest.runs([experiment], kind, **tags)
    for ascending in (False, True):
        metric = "best_val_accuracy"
        expected = list(store.runs_by(experiment, metric, ascending=ascending))
        assert expected == list(rest.runs_by(experiment, metric, ascending=ascending))
        assert len(expected) > 5  # more than a page
    for run in store.runs([experiment], names.TRIAL_KIND)[:5]:
        assert run == rest.run(run.run_id)
        for metric in run.latest:
            assert store.history(run.run_id, metric) == rest.history(run.run_id, metric)


def test_many_experiments_are_asked_for_in_parts(both: Both) -> None:
    store, rest = both
    ids = list(store.experiments()) + [str(number) for number in range(10_000, 10_250)]
    assert store.runs(ids, names.STUDY_KIND) == rest.runs(ids, names.STUDY_KIND) != []


def test_artifacts_are_the_same_and_a_missing_one_is_refused(both: Both, tmp_path: Path) -> None:
    (parent,) = both[0].runs([str(both[0].experiment("digits"))], names.STUDY_KIND)
    stores: list[Store | RestStore] = [*both]
    for number, one in enumerate(stores):
        folder = tmp_path / str(number)
        folder.mkdir()
        one.download(parent.run_id, names.STUDY_FILE, folder)
        one.download(parent.run_id, names.REPORTS_FILE, folder)
        with pytest.raises(StoreRefused, match=r"has no artifact 'none\.txt'"):
            one.download(parent.run_id, "none.txt", folder)
    for name in (names.STUDY_FILE, names.REPORTS_FILE):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_tables_are_the_same(both: Both) -> None:
    store, rest = both
    assert StudyReader(store, "digits").trials().equals(StudyReader(rest, "digits").trials())
    assert StudyReader(store, "running").reports().equals(StudyReader(rest, "running").reports())


def test_errors_are_of_the_same_kind(both: Both) -> None:
    for store in both:
        with pytest.raises(StoreRefused) as caught:
            store.run("0" * 32)
        assert caught.value.code == "RESOURCE_DOES_NOT_EXIST"
    with pytest.raises(UnreachableError, match=r"^the tracking server at http://127\.0\.0\.1:9 does not answer"):
        RestStore("http://user:secret@127.0.0.1:9").experiments()
