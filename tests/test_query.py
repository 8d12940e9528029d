from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from images import write_idx
from journals import SPEC, Clock, config_of, metrics_of, spec_dict, started, study_events, trial_events
from stores import Server, empty_store, feed, free_port
from tiny import build_tiny_backbone, tiny_data, tiny_run

from raystudy import host, query, studies
from raystudy.errors import InputError, NotFoundError, StudyBusyError, UnreachableError
from raystudy.factors import Scalar
from raystudy.listing import list_studies
from raystudy.paths import StudyPaths
from raystudy.query import Study
from raystudy.records import (
    Config,
    Event,
    Reported,
    StudyEnded,
    StudyPlaced,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialStarted,
    TrialState,
)
from raystudy.spec import StudySpec
from raystudy.studies import open_study
from raystudy.tracking import names
from raystudy.tracking.journal import encode
from raystudy.tracking.models import KeptModel, load_kept, read_model, write_model
from raystudy.tracking.reader import StudyReader, connect
from raystudy.tracking.rows import TrialRow
from raystudy.tracking.store import Store
from raystudy.tracking.tables import reports_table, trials_table
from raystudy.tracking.where import parse_where

N_TRIALS = 12


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def uri(home: Path) -> str:
    return empty_store(home)


@pytest.fixture(scope="module")
def record(home: Path, uri: str) -> StudyRecord:
    running = spec_dict(name="running", objective={"metric": "val_loss"})
    clock = Clock()
    unfinished = trial_events(clock, 1, epochs=2, state=TrialState.RUNNING)
    feed(StudyPaths(home / "r"), uri, [started(clock, running), *trial_events(clock, 0), *unfinished])
    return feed(StudyPaths(home / "d"), uri, study_events(N_TRIALS))


@pytest.fixture
def study(record: StudyRecord, uri: str) -> Study:
    assert record.name == "digits"
    return open_study("digits", uri)


def reader_of(uri: str, name: str = "digits") -> StudyReader:
    return StudyReader(connect(uri), name)


def test_tables_read_back_from_mlflow_are_those_of_the_journal(record: StudyRecord, study: Study, uri: str) -> None:
    run_ids = {row.trial_id: row.run_id for row in reader_of(uri).rows()}
    assert study.trials().equals(trials_table(record, run_ids))
    assert study.reports().equals(reports_table(record))
    assert reader_of(uri).collected_reports().equals(reports_table(record))


def test_the_artifacts_hold_the_same_tables_and_the_same_study_file(study: Study, uri: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    reader = reader_of(uri)
    stored = pq.read_table(reader.store.download(reader.run_id, names.TRIALS_FILE, tmp_path))
    assert stored.equals(study.trials())
    assert study.spec == StudySpec.from_dict(SPEC)


@pytest.mark.usefixtures("record")
def test_a_running_study_can_be_read(uri: str) -> None:
    running = open_study("running", uri)
    assert running.state is StudyState.RUNNING
    assert running.trials()["state"].to_pylist() == ["completed", "running"]
    assert running.trials()["best_val_loss"].to_pylist()[1] == min(metrics_of(1, epoch)["val_loss"] for epoch in (1, 2))
    assert running.reports().num_rows == 9 + 2
    assert [trial.trial_id for trial in running.best(5)] == ["t0000"]
    status = running.status()
    assert (status.ended, status.epochs_trained, dict(status.trials)) == (None, 11, {"running": 1, "completed": 1})
    assert status.left_as(StudyState.RUNNING) == status
    left = status.left_as(StudyState.INTERRUPTED)
    assert (left.state, dict(left.trials)) == (StudyState.INTERRUPTED, {"interrupted": 1, "completed": 1})


def test_best_is_the_ranking_of_the_journal(record: StudyRecord, study: Study) -> None:
    ranking = record.ranking("val_accuracy", "max")
    found = study.best(k=100)
    assert [trial.trial_id for trial in found] == [trial.trial_id for trial in ranking]
    assert {trial.state for trial in found} == {TrialState.COMPLETED, TrialState.PRUNED}
    best = found[0]
    epoch = ranking[0].best_epoch("val_accuracy", "max")
    assert epoch is not None
    assert best.metrics == metrics_of(best.number, epoch)
    assert best.config == {name: ranking[0].config[name] for name in best.config}
    assert set(best.to_dict()) == {"trial_id", "number", "run_id", "state", "epochs", "config", "metrics"}
    assert len(study.best(2)) == 2


@pytest.mark.parametrize("k", [0, 1, 3, 99])
def test_best_is_the_same_however_few_are_fetched_at_a_time(study: Study, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    at_once = study.best(k)
    monkeypatch.setattr("raystudy.tracking.store.SMALL_PAGE", 2)
    assert study.best(k) == at_once
    assert len(at_once) == min(k, 8)


def test_of_equal_trials_the_earlier_one_is_better(uri: str, home: Path) -> None:
    clock = Clock()
    events = [with_equal_metrics(event) for number in range(3) for event in trial_events(clock, number, epochs=1)]
    feed(StudyPaths(home / "e"), uri, [started(clock, spec_dict(name="equal")), *events])
    assert [trial.number for trial in open_study("equal", uri).best(3)] == [0, 1, 2]


def with_equal_metrics(event: Event) -> Event:
    if isinstance(event, Reported):
        return Reported(event.time, event.trial_id, event.epoch, metrics_of(0, 1), event.node)
    return event


@pytest.mark.parametrize(
    ("where", "meets"),
    [
        ({"data_fraction": 0.25}, lambda config: config["data_fraction"] == 0.25),
        ({"data_fraction": 1, "optimizer": "sgd"}, lambda config: config["data_fraction"] == 1 and "momentum" in config),
        ({"pretrained": True}, lambda config: config["pretrained"]),
        ("data_fraction=0.25", lambda config: config["data_fraction"] == 0.25),
        ("learning_rate<0.01, optimizer = sgd", lambda c: c["learning_rate"] < 0.01 and c["optimizer"] == "sgd"),
        ("momentum > 0.8", lambda config: config.get("momentum", 0) > 0.8),
        ("frozen_depth>=5 and pretrained=true", lambda c: c["frozen_depth"] >= 5 and c["pretrained"]),
        ("optimizer!='sgd'", lambda config: config["optimizer"] != "sgd"),
        ("number<=3", lambda config: config in [config_of(number) for number in range(4)]),
    ],
)
def test_where_keeps_the_trials_that_meet_it(
    study: Study, record: StudyRecord, where: Mapping[str, Scalar] | str, meets: Callable[[Config], bool]
) -> None:
    expected = [trial.trial_id for trial in record.ranking("val_accuracy", "max") if meets(trial.config)]
    assert expected
    assert [trial.trial_id for trial in study.best(100, where=where)] == expected


def test_where_compares_metrics_at_the_best_epoch_and_states(study: Study) -> None:
    everything = study.best(100)
    good = study.best(100, where="val_accuracy > 0.6")
    assert good == [trial for trial in everything if trial.metrics["val_accuracy"] > 0.6]
    assert {trial.state for trial in study.best(100, where="state=pruned")} == {TrialState.PRUNED}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("learnin_rate<1", r"where: learnin_rate: is neither .*did you mean learning_rate\?"),
        ("lr<1", r"where: lr: .*did you mean learning_rate\?"),
        ("batch_size=64", "where: batch_size: does not vary in this study"),
        ("momentum=abc", "where: momentum: got 'abc'; expected a number"),
        ("optimizer<sgd", "where: optimizer: has no order, got <; expected = or !="),
        ("pretrained=maybe", "where: pretrained: got 'maybe'; expected true or false"),
        ("state=done", "where: state: got 'done'; expected one of running, completed"),
        ("learning_rate", "where: got 'learning_rate'; expected NAME=VALUE"),
        ("", "where: got ''; expected NAME=VALUE"),
        ({"depth": 3}, r"where: depth: .*did you mean frozen_depth\?"),
        ({"data_fraction": "half"}, "where: data_fraction: got 'half'; expected a number"),
    ],
)
def test_a_wrong_where_says_what_is_meant(study: Study, where: Mapping[str, Scalar] | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        study.best(where=where)


def test_every_problem_of_a_where_is_reported() -> None:
    with pytest.raises(InputError) as caught:
        parse_where("a=1, momentum=x, what", ["momentum"], [])
    assert len(caught.value.problems) == 3


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["=", "<=", ">="]))
def test_the_printed_value_of_a_factor_finds_its_trial(value: float, sign: str) -> None:
    trial = TrialRow("t0000", 0, "completed", "", 1, "", 0, None, "", {"learning_rate": value})
    assert parse_where(f"learning_rate{sign}{value}", ["learning_rate"], [])(trial)


def test_status_counts_trials_and_names_the_best(study: Study, record: StudyRecord) -> None:
    status = study.status()
    assert status.trials == record.counts()
    assert (status.state, status.budget_trials, status.mode) == (StudyState.COMPLETED, 6, "max")
    assert status.best == study.best()[0]
    assert status.ended is not None
    assert status.ended.timestamp() == pytest.approx(record.ended, abs=1e-3)
    assert status.to_dict()["trials"] == record.counts()


def test_all_studies_are_listed(record: StudyRecord, uri: str) -> None:
    rows = {row.name: row for row in list_studies(uri)}
    assert {"digits", "running"} <= set(rows)
    best = record.ranking("val_accuracy", "max")[0]
    assert rows["digits"].best == best.best_value("val_accuracy", "max")
    assert rows["digits"].to_dict()["state"] == "completed"


@pytest.mark.usefixtures("record")
def test_a_line_of_the_list_says_whose_study_it_is_and_what_it_has_used(uri: str, home: Path) -> None:
    clock = Clock()
    opening = started(clock, spec_dict(name="owned"))
    events = [
        replace(opening, owner="ada"),
        StudyPlaced(clock(), 1, 0.5, 2),
        *map(with_seconds, trial_events(clock, 0, epochs=4)),
        *trial_events(clock, 1, epochs=1, state=TrialState.RUNNING),
    ]
    record = feed(StudyPaths(home / "owned"), uri, events)
    (row,) = (row for row in list_studies(uri) if row.name == "owned")
    assert (row.owner, row.gpu_hours, row.state, row.ended) == ("ada", 0.5, StudyState.RUNNING, None)
    assert (row.trials, row.budget_trials, row.metric) == ({"running": 1, "completed": 1}, 6, "val_accuracy")
    assert row.best == record.trials["t0000"].best_value("val_accuracy", "max")
    data = row.to_dict()
    assert (data["owner"], data["gpu_hours"], data["started"]) == ("ada", 0.5, row.started.isoformat())


def with_seconds(event: Event) -> Event:
    return replace(event, seconds=900.0) if isinstance(event, Reported) else event


@pytest.mark.usefixtures("record")
def test_the_list_asks_about_all_studies_at_once(uri: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    for number in range(5):
        feed(StudyPaths(home / f"m{number}"), uri, [started(Clock(), spec_dict(name=f"many{number}"))])
    asked: Counter[str] = Counter()

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            asked[name] += 1
            return method(*arguments, **options)

        return call

    for name, method in vars(MlflowClient).items():
        if callable(method) and not name.startswith("_"):
            monkeypatch.setattr(MlflowClient, name, counted(name, method))
    assert {f"many{number}" for number in range(5)} <= {row.name for row in list_studies(uri)}
    assert asked == {"search_experiments": 1, "search_runs": 1}


# Where a study is in its life, and what can be done about it


class Driver:
    """Stands for what a cluster knows of a study's driver."""

    def __init__(self, states: Iterator[StudyState | None]) -> None:
        self.states, self.calls = states, list[str]()

    def state(self, name: str, journal: str | None) -> StudyState | None:
        assert name
        assert journal is None or len(journal) == 16
        return next(self.states)

    def stop(self, name: str) -> None:
        self.calls.append(f"stop {name}")

    def resume(self, name: str) -> None:
        self.calls.append(f"resume {name}")


def study_with(uri: str, name: str, *states: StudyState | None) -> tuple[Study, Driver]:
    """Return a study whose driver is in these states, one after another, and in the last one from then on."""
    driver = Driver(chain(states, repeat(states[-1])))
    return Study(name, lambda: reader_of(uri, name), driver), driver


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize(
    ("recorded", "driver", "state"),
    [
        ("running", None, "running"),
        ("running", "queued", "queued"),
        ("running", "running", "running"),
        ("running", "interrupted", "interrupted"),  # it was killed, and could not say so
        ("completed", None, "completed"),
        ("completed", "queued", "queued"),  # it was resumed
        ("completed", "running", "running"),
        ("completed", "interrupted", "completed"),
        ("nowhere", "queued", "queued"),
        ("nowhere", "running", "running"),
        ("nowhere", "interrupted", "interrupted"),
    ],
)
def test_the_state_is_what_the_driver_is_doing_else_what_it_last_said(
    uri: str, recorded: str, driver: str | None, state: str
) -> None:
    name = {"running": "running", "completed": "digits", "nowhere": "nowhere"}[recorded]
    study, _ = study_with(uri, name, StudyState(driver) if driver else None)
    assert study.state is StudyState(state)
    assert study.is_recorded is (recorded != "nowhere")


ENDED = StudyEnded(2.0, StudyState.COMPLETED, "")


@pytest.mark.parametrize(
    ("added", "delay", "is_held", "state"),
    [
        ((), 0.0, False, StudyState.INTERRUPTED),
        ((), 0.0, True, StudyState.RUNNING),
        ((ENDED,), 0.0, False, StudyState.COMPLETED),  # MLflow could not be told any more
        ((), 7.0, False, StudyState.RUNNING),  # another study of the same name was run here
        (None, 0.0, False, StudyState.RUNNING),  # the journal is empty
    ],
)
@pytest.mark.usefixtures("record")
def test_a_driver_that_was_killed_on_this_machine_is_seen_to_be_gone(
    uri: str,
    added: tuple[Event, ...] | None,
    delay: float,
    is_held: bool,
    state: StudyState,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path))
    files = StudyPaths.of("running")
    files.root.mkdir(parents=True)
    first = started(Clock(), spec_dict(name="running", objective={"metric": "val_loss"}))
    first = replace(first, time=first.time + delay)
    files.journal.write_bytes(b"" if added is None else b"".join(map(encode, [first, *added])))
    with filelock.FileLock(files.lock) if is_held else nullcontext():
        study = open_study("running", uri)
        listed = next(row for row in list_studies(uri) if row.name == "running")
        assert (study.state, listed.state) == (state, state)
    with host.exclusive(files):  # asking left the study free
        pass


@pytest.mark.usefixtures("record")
def test_a_study_that_neither_mlflow_nor_the_cluster_knows_is_not_there(uri: str) -> None:
    study, _ = study_with(uri, "nowhere", None)
    with pytest.raises(NotFoundError, match="there is no study 'nowhere'"):
        _ = study.state
    with pytest.raises(NotFoundError, match="there is no study 'nowhere'"):
        study.wait()


@pytest.mark.usefixtures("record")
def test_waiting_ends_when_no_driver_waits_or_runs_any_more(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_POLL_S", 0.0)
    queued, running, gone = StudyState.QUEUED, StudyState.RUNNING, StudyState.INTERRUPTED
    study, driver = study_with(uri, "digits", queued, queued, running, running, gone)
    assert study.wait(timeout=600) is StudyState.COMPLETED
    assert next(driver.states) is gone
    assert study_with(uri, "nowhere", queued, running, gone)[0].wait() is StudyState.INTERRUPTED


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize("state", [StudyState.QUEUED, StudyState.RUNNING])
def test_waiting_ends_after_its_timeout(uri: str, monkeypatch: pytest.MonkeyPatch, state: StudyState) -> None:
    monkeypatch.setattr(query, "_POLL_S", 0.0)
    study, driver = study_with(uri, "digits", state)
    with pytest.raises(TimeoutError, match=f"the study 'digits' is still {state.value} after 0.01 s"):
        study.wait(timeout=0.01)
    assert driver.calls == []


@pytest.mark.usefixtures("record")
def test_a_study_is_stopped_and_resumed_where_it_runs(uri: str) -> None:
    study, driver = study_with(uri, "digits", None)
    study.stop()
    study.resume()
    assert driver.calls == ["stop digits", "resume digits"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    return tmp_path / "elsewhere"


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("call", [Study.stop, Study.resume])
def test_a_study_of_another_machine_cannot_be_stopped_or_resumed_without_its_cluster(
    study: Study, call: Callable[[Study], None]
) -> None:
    with pytest.raises(NotFoundError, match="'digits' was not run on this machine: open it with address=, its cluster's"):
        call(study)


@pytest.mark.usefixtures("record")
def test_a_study_of_this_machine_is_stopped_and_resumed_here(elsewhere: Path, uri: str) -> None:
    assert elsewhere == StudyPaths.of("digits").root.parents[1]
    StudyPaths.of("digits").root.mkdir(parents=True)
    StudyPaths.of("digits").journal.touch()
    study = open_study("digits", uri)
    assert study.state is StudyState.COMPLETED
    with pytest.raises(NotFoundError, match="nobody is running the study 'digits'"):
        study.stop()
    with host.exclusive(StudyPaths.of("digits")), pytest.raises(StudyBusyError, match="another process is running"):
        study.resume()


@pytest.mark.usefixtures("record", "elsewhere")
def test_a_cluster_is_asked_only_about_what_it_alone_knows(uri: str) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    study = open_study("digits", uri, address=nobody)
    assert len(study.best(3)) == 3
    assert study.status().state is StudyState.COMPLETED
    for call in (lambda: study.state, study.wait, study.stop, study.resume):
        with pytest.raises(UnreachableError, match=f"no Ray dashboard answers at {nobody}"):
            call()


@pytest.mark.usefixtures("elsewhere")
def test_a_wrong_address_of_a_cluster_is_found_before_mlflow_is_asked() -> None:
    with pytest.raises(InputError, match="--address: got 'head'"):
        studies.open_study("digits", f"http://127.0.0.1:{free_port()}", address="head")


@pytest.mark.usefixtures("record")
def test_an_unknown_study_names_the_near_miss(uri: str) -> None:
    with pytest.raises(NotFoundError, match=r"there is no study 'digit' at .*did you mean digits\?"):
        open_study("digit", uri)


def test_a_local_store_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "nothing"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert list_studies() == []
    with pytest.raises(NotFoundError, match="there are no studies yet"):
        open_study("digits")
    assert not (tmp_path / "nothing").exists()


def test_a_server_that_is_down_is_one_clear_line() -> None:
    with pytest.raises(UnreachableError, match=r"^the tracking server at http://127.0.0.1:\d+ does not answer .*running\?$"):
        open_study("digits", f"http://127.0.0.1:{free_port()}")


def test_a_trial_whose_model_was_not_kept_says_so(study: Study) -> None:
    with pytest.raises(NotFoundError, match="only the best keep_models trials"):
        study.best()[0].load_model()


def test_an_unknown_trial_names_those_there_are(study: Study) -> None:
    with pytest.raises(NotFoundError, match="no trial 't9'; they are called t0000 to t0011"):
        study.trial("t9")
    assert study.trial("t0004").state is TrialState.FAILED


# Models, without MLflow


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> KeptModel:
    folder = tmp_path_factory.mktemp("checkpoints")
    config: dict[str, Scalar] = {"learning_rate": 0.01, "batch_size": 8}
    for _ in tiny_run(folder, config, epochs=2).epochs():
        pass
    spec = StudySpec.from_dict(
        spec_dict(data={"source": "sklearn:digits", "image_size": 8}, factors={"learning_rate": {"uniform": [0.001, 0.1]}})
    )
    trial = TrialRecord("t0", 0, config, started=0.0)
    return load_kept(spec, trial, list(tiny_data().class_names), folder, backbone=build_tiny_backbone)


def test_a_kept_model_is_rebuilt_exactly_from_its_files(kept: KeptModel, tmp_path: Path) -> None:
    write_model(kept, tmp_path)
    again = read_model(tmp_path, backbone=build_tiny_backbone)
    images = torch.rand(5, 3, 8, 8) * 255
    torch.testing.assert_close(again.classifier(images), kept.classifier(images))
    assert again.card == kept.card
    assert kept.class_names == list(tiny_data().class_names)
    assert not again.classifier.training


def test_weights_of_another_model_are_refused(kept: KeptModel, tmp_path: Path) -> None:
    write_model(kept, tmp_path)
    card = tmp_path / names.MODEL_CARD
    card.write_text(card.read_text().replace('"class 2"', '"class 2", "class 3"'))
    with pytest.raises(InputError, match=r"head\.weight"):
        read_model(tmp_path, backbone=build_tiny_backbone)


# Models in MLflow, and a real server


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event], list[str]]:
    """Give a study's folder with the checkpoints of two trials, its events, and its classes."""
    from raystudy.data import open_data
    from raystudy.finetune.trainer import FineTuneTrainer
    from raystudy.records import StudyEnded, StudyStarted, TrialEnded
    from raystudy.work import Ticket

    folder = tmp_path_factory.mktemp("trained")
    write_idx(folder / "images", n_classes=3, per_class=10, side=8)
    data_section = {"source": f"idx:{folder / 'images'}", "image_size": 32}
    spec = StudySpec.from_dict(spec_dict(name="models", data=data_section, budget={"trials": 2, "epochs": 1}, keep_models=2))
    files, clock = StudyPaths(folder / "study"), Clock()
    classes = list(open_data(spec, folder / "cache").class_names)
    events: list[Event] = [StudyStarted(clock(), "models", spec.to_dict(), spec.fingerprint, "0.1.0", {"classes": classes})]
    for number in range(2):
        config = {**config_of(number), "frozen_depth": 17, "learning_rate": 0.01}
        events.append(TrialStarted(clock(), f"t{number:04d}", number, config))
        trainer = FineTuneTrainer(spec, files.all_checkpoints, folder / "cache", device="cpu")
        trial = trainer.open(Ticket(f"t{number:04d}", number, spec.full_config(config)))
        (row,) = trial.epochs()
        events.append(Reported(clock(), f"t{number:04d}", 1, {k: v for k, v in row.items() if k != "epoch"}, "n"))
        events.append(TrialEnded(clock(), f"t{number:04d}", TrialState.COMPLETED, ""))
        trial.close()
    return files.root, [*events, StudyEnded(clock(), StudyState.COMPLETED, "")], classes


@pytest.mark.slow
@pytest.mark.parametrize("remote", [False, True])
def test_the_best_model_can_be_loaded_from_the_store(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    trained: tuple[Path, list[Event], list[str]],
    remote: bool,
) -> None:
    import mlflow

    root, events, classes = trained
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    files = StudyPaths.of("models")
    shutil.copytree(root, files.root)
    server = Server(tmp_path)
    if remote:
        server.start()
        uri = server.uri
    try:
        feed(files, uri, events)
        feed(files, uri)  # a second writer logs nothing twice
        study = open_study("models", uri)
        reader = reader_of(uri, "models")
        client = Store(uri).client
        assert len(client.search_logged_models([reader.experiment_id])) == 2
        assert len(client.search_model_versions("name = 'models'")) == 1
        images = torch.rand(5, 3, 32, 32) * 255
        best, second = study.best(2)
        logits = best.load_model()(images)
        assert second.load_model()(images).shape == logits.shape == (5, 3)
        mlflow.set_tracking_uri(uri)
        exported = mlflow.pytorch.load_model("models:/models@best")
        torch.testing.assert_close(exported(images), logits)
        served = mlflow.pyfunc.load_model("models:/models@best")
        assert served.metadata.metadata["classes"] == classes
        assert served.predict(images.numpy()).shape == (5, 3)
        written = study.export(tmp_path / "exported", trial_id=second.trial_id)
        assert {"model.safetensors", "model.pt2", "model.json", "predict.py"} <= set(written.files)
        assert reader.store.download(best.run_id, names.PER_CLASS_FILE, tmp_path).exists()
    finally:
        server.kill()
        mlflow.set_tracking_uri("")


def test_asking_imports_nothing_heavy_before_a_study_is_opened() -> None:
    import subprocess

    code = "import sys, raystudy.query; sys.exit(bool({'mlflow', 'torch', 'ray', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
