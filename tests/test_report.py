"""The page about a study: it tells what there is and nothing that is not, and nothing from a study becomes HTML or a secret."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import answers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from journals import Clock, spec_dict, started, study_events, trial_events, write_journal
from stores import closed_pipe, empty_store, feed

from raystudy.cli import _call
from raystudy.errors import InputError
from raystudy.findings.answer import Importance
from raystudy.paths import StudyPaths
from raystudy.records import Event, StudyEnded, StudyRecord, StudyResumed, StudyStarted, StudyState, TrialState
from raystudy.studies import open_study
from raystudy.tracking import findings, names
from raystudy.tracking.finder import Finder
from raystudy.tracking.findings import store_files, write_error, write_files
from raystudy.tracking.reader import StudyReader, connect
from raystudy.tracking.report import leave_page, page_of_record
from raystudy.tracking.store import Store
from raystudy.tracking.writer import Writer

DATA: Mapping[str, Any] = {
    "classes": ["rose", "<script>alert(1)</script>", "a & b"],
    "images": 1797,
    "training_images": 1437,
    "validation_images": 360,
    "fingerprint": "abcdef",
    "skipped": [{"name": f"broken/<i>{k}</i>.jpg", "reason": "no image & no text"} for k in range(23)],
    "warnings": ["class 'tulip' has 3 images"],
}
GUIDELINE = answers.guideline()


class Page(HTMLParser):
    """What a browser makes of a page: its text, and which elements and addresses it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.events: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.events += [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "img", "br", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def record_of(events: Iterator[Event] | list[Event], data: Mapping[str, Any] = DATA) -> StudyRecord:
    listed = [replace(event, data=data) if isinstance(event, StudyStarted) else event for event in events]
    return StudyRecord.fold(listed)


def told(record: StudyRecord, answer: Importance | None = None, no_answer: str = "Nobody has asked.") -> Page:
    return Page(page_of_record(record, answer, no_answer))


def guided() -> Importance:
    return answers.plain().model_copy(update={"guidelines": (GUIDELINE,), "recommended": answers.recommended()})


# What the page tells


@pytest.fixture(scope="module")
def page() -> Page:
    return told(record_of(study_events(12)), guided())


@pytest.mark.parametrize(
    "words",
    [
        "digits completed",
        "efficientnet_lite0 on sklearn:digits; val_accuracy, more is better; 12 of at most 6 trials of up to 9 epochs.",
        "The best trial is t0003 with val_accuracy 0.6560: learning_rate=0.0373",
        "learning_rate explains 94 %",
        "94 % (91 to 97 %)",
        GUIDELINE.sentence,
        "learning_rate optimizer 0.00412 adamw",
        "expected: val_accuracy 0.930 (0.920 to 0.940) at epoch 9",
        "The built-in null factor has 0 to 1 %.",
        "completed 6 trained to the last epoch",
        "failed 2 ended with an error 2 × RuntimeError: no «luck»",
        "1797 images, 1437 for training, 360 for validation; 3 classes.",
        "23 images could not be read and were left out",
        "and 3 more",
        "class 'tulip' has 3 images",
        "features: auto",
        "raystudy run digits.yaml",
        "study fingerprint " + record_of(study_events(1)).fingerprint,
        "images' fingerprint abcdef",
        "log_uniform: - 0.0001 - 0.1",
    ],
)
def test_the_page_tells_what_a_colleague_asks(page: Page, words: str) -> None:
    assert words in page.text


def test_the_page_needs_neither_network_nor_script(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "form"} & set(page.elements)
    assert page.events == []
    assert len(page.addresses) == 2
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)


def test_the_best_five_trials_stand_in_the_order_of_the_objective(page: Page) -> None:
    table = page.text.partition("Best trials")[2].partition("Metrics are those")[0]
    found = [(trial, float(value)) for trial, value in re.findall(r"(t\d{4}) (?:completed|pruned) \d+ ([\d.]+)", table)]
    assert len(found) == 5
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)


def test_names_of_classes_and_files_stay_text() -> None:
    html = page_of_record(record_of(study_events(2)), None)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<i>" not in html
    assert "a &amp; b" in html


@pytest.mark.slow
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30))
def test_whatever_a_study_is_called_by_its_data_is_only_shown(text: str) -> None:
    clock = Clock()
    data = {"classes": [text], "skipped": [{"name": text, "reason": text}], "warnings": [text], "images": 1}
    failed = trial_events(clock, 0, epochs=0, state=TrialState.FAILED, reason=text)
    events = [started(clock), *failed, StudyEnded(clock(), StudyState.FAILED, text)]
    plain, odd = told(record_of(events, {**data, "classes": ["x"]})), told(record_of(events, data))
    assert plain.elements == odd.elements
    assert not {"script", "i", "b"} & set(odd.elements)


def test_secrets_in_addresses_are_left_out() -> None:
    spec = spec_dict(data={"source": "folder:s3://key:hunter2@bucket/x"}, backbone="resnet50@file:/models/mine.safetensors")
    events = [*study_events(1, spec=spec)][:-1]
    ended = StudyEnded(events[-1].time, StudyState.FAILED, "https://maria:hunter2@mlflow.example.org does not answer")
    page = told(record_of([*events, ended]))
    assert "hunter2" not in page.text
    assert "https://mlflow.example.org does not answer" in page.text
    assert "source: folder:s3://bucket/x backbone: resnet50@file:/models/mine.safetensors" in page.text


# Where there is little to tell


def test_a_study_without_trials_has_a_page() -> None:
    page = told(record_of([started(Clock())]))
    assert "There are no trials yet." in page.text
    assert "No trial has reported anything yet: there is nothing to find." in page.text
    assert "No trial has a result." in page.text
    assert page.addresses == []


def test_a_study_in_which_all_failed_has_a_page() -> None:
    clock = Clock()
    events = [*trial_events(clock, 0, epochs=0, state=TrialState.FAILED, reason="out of memory")]
    page = told(record_of([started(clock), *events, StudyEnded(clock(), StudyState.FAILED, "no trial got anywhere")], {}))
    assert "digits failed" in page.text
    assert "no trial got anywhere" in page.text
    assert "1 × out of memory" in page.text


def test_why_nothing_was_found_stands_where_it_would_stand() -> None:
    page = told(record_of(study_events(2)), None, "What matters could not be computed: no luck.")
    assert page.text.count("could not be computed: no luck.") == 2
    assert len(page.addresses) == 1, "the learning curves are there"
    hopeless = told(record_of(study_events(2)), answers.hopeless())
    assert "Nothing can be said about epoch 27" in hopeless.text
    assert hopeless.text.count("Nothing can be said about epoch 27") == 2, (
        "in the summary and above the table, not in every row"
    )
    assert "No guideline: nothing is known well enough to act on it." in hopeless.text


def test_a_failed_check_is_a_warning() -> None:
    page = told(record_of(study_events(2)), answers.usual(check=answers.FAILED_CHECK, pairs=(), effects=(), epochs=()))
    assert "The self-check failed: doubt what follows." in page.text
    assert "Failed: what is said above" in page.text


# At the end of a study, and on request


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for the estimator; note what it was asked."""
    noted: list[str] = []

    def ask(*_: Any, **__: Any) -> Importance:
        noted.append("importance")
        return guided()

    monkeypatch.setattr(findings, "ask", ask)
    return noted


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.alarm", lambda _: 0)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)


@pytest.mark.usefixtures("asked")
def test_the_process_that_finds_what_matters_writes_the_page(tmp_path: Path) -> None:
    files = StudyPaths(tmp_path)
    write_journal(files.journal, study_events(6))
    assert findings.main(["--root", str(tmp_path)]) == 0
    assert GUIDELINE.sentence in Page((files.findings / names.REPORT_FILE).read_text()).text
    assert not list(files.findings.glob(".*"))


def test_a_page_is_there_also_where_nothing_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = StudyPaths(tmp_path)
    write_journal(files.journal, study_events(6))

    def fail(*_: Any, **__: Any) -> Importance:
        before = (files.findings / names.REPORT_FILE).read_text()
        assert "What matters was not computed" in before, "it is there should this process be killed now"
        raise ValueError("no luck")

    monkeypatch.setattr(findings, "ask", fail)
    assert findings.main(["--root", str(tmp_path)]) == 0
    assert "What matters could not be computed: ValueError: no luck." in (files.findings / names.REPORT_FILE).read_text()
    assert json.loads((files.findings / names.IMPORTANCE_FILE).read_text()) == {"error": "ValueError: no luck"}


def test_a_page_that_cannot_be_written_harms_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "findings").write_text("a file where a folder has to be")
    leave_page(record_of(study_events(1)), tmp_path / "findings", None)
    assert [record.getMessage()[:35] for record in caplog.records] == ["the report could not be written: Fi"]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    home = tmp_path_factory.mktemp("home")
    uri = empty_store(home)
    events = [replace(event, data=DATA) if isinstance(event, StudyStarted) else event for event in study_events(6)]
    feed(StudyPaths(home / "d"), uri, events)
    clock = Clock()
    running = trial_events(clock, 0, epochs=2, state=TrialState.RUNNING)
    feed(StudyPaths(home / "l"), uri, [started(clock, spec_dict(name="live")), *running])
    feed(StudyPaths(home / "n"), uri, [started(Clock(), spec_dict(name="new"))])
    return uri


@pytest.fixture
def call(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: _call(["report", *arguments, "--tracking-uri", uri], debug=False)


def test_the_command_writes_a_page_from_mlflow_alone(
    call: Callable[..., int], asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("digits") == 0
    assert capsys.readouterr() == ("", "wrote digits-report.html\n")
    page = Page((tmp_path / "digits-report.html").read_text())
    assert asked == ["importance"], "nothing was stored with this study"
    assert GUIDELINE.sentence in page.text
    assert "23 images could not be read" in page.text
    assert "recorded in sqlite:///" in page.text


@pytest.mark.parametrize(("name", "words"), [("live", "running 1 still training"), ("new", "There are no trials yet.")])
@pytest.mark.usefixtures("asked")
def test_a_running_study_has_a_page_too(call: Callable[..., int], tmp_path: Path, name: str, words: str) -> None:
    assert call(name, "--out", "page.html") == 0
    assert words in Page((tmp_path / "page.html").read_text()).text


def test_what_is_stored_is_not_computed_again(uri: str, call: Callable[..., int], asked: list[str], tmp_path: Path) -> None:
    reader, store = StudyReader(connect(uri), "digits"), Store(uri)
    write_files(answers.plain(), tmp_path / "files")
    store_files(store, reader.run_id, tmp_path / "files")
    assert call("digits") == 0
    assert asked == []
    assert "learning_rate explains 94 %" in Page((tmp_path / "digits-report.html").read_text()).text
    write_error("no luck", tmp_path / "files")
    store_files(store, reader.run_id, tmp_path / "files")
    assert call("digits") == 0
    assert "What matters could not be computed: no luck." in (tmp_path / "digits-report.html").read_text()
    open_study("digits", uri).record(guided())
    stored = reader.store.download(reader.run_id, names.REPORT_FILE, tmp_path)
    assert GUIDELINE.sentence in Page(stored.read_text()).text, "a recorded answer comes with a page that tells of it"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nope"], 3, "there is no study 'nope'"),
        (["digits", "--out", "page.pdf"], 2, "--out: got page.pdf; expected a file that ends in .html, .htm"),
        (["new", "--out", "nowhere/page.html"], 2, "nowhere/page.html: cannot be written: No such file or directory"),
    ],
)
def test_a_wrong_call_is_told_in_words(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert call(*arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


@pytest.mark.usefixtures("asked")
def test_python_writes_the_same_page(uri: str, tmp_path: Path) -> None:
    study = open_study("new", uri)
    assert study.report(tmp_path / "page.html") == tmp_path / "page.html"
    assert "There are no trials yet." in (tmp_path / "page.html").read_text()
    with pytest.raises(InputError, match="cannot be written"):
        study.report(tmp_path)


@pytest.mark.slow
def test_mlflow_holds_the_page_of_a_study_that_has_ended_and_the_one_of_its_continuation(tmp_path: Path) -> None:
    files, uri = StudyPaths(tmp_path / "studies" / "digits"), empty_store(tmp_path / "store")
    spec = spec_dict(budget={"trials": 18, "epochs": 9})
    events = list(study_events(18, spec=spec))

    def stored() -> str:
        writer = Writer(files, uri, closed_pipe(), patience=0, finder=Finder(files))
        writer.connect()
        assert writer.run()
        writer.add_findings()
        reader = StudyReader(connect(uri), "digits")
        return Page(reader.store.download(reader.run_id, names.REPORT_FILE, tmp_path).read_text()).text

    write_journal(files.journal, events)
    first = stored()
    assert "18 of at most 18 trials" in first
    assert "val_accuracy at epoch 9" in first
    clock = Clock()
    more = [*trial_events(clock, 18), StudyEnded(clock(), StudyState.COMPLETED, "")]
    write_journal(files.journal, [StudyResumed(clock(), {**spec, "budget": {"trials": 19, "epochs": 9}}, "0.1.0"), *more])
    assert "19 of at most 19 trials" in stored()


def test_the_template_is_part_of_the_package() -> None:
    folder = resources.files("raystudy.findings") / "templates"
    assert (folder / "report.html").is_file()
    declared = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert '"findings/templates/*"' in declared
    assert '"jinja2' in declared
