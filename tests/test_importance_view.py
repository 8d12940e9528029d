"""What people are shown of what matters, and how the answer comes from a study and into MLflow; nothing is computed here."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import answers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from journals import SPEC, Clock, spec_dict, started, study_events, trial_events, write_journal
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from stores import closed_pipe, empty_store, feed

from raystudy.cli import _call
from raystudy.cli.importance_table import shown
from raystudy.errors import InputError
from raystudy.factors import Scalar
from raystudy.findings.answer import Importance
from raystudy.findings.figures import notice, overview, save, surface
from raystudy.findings.sentences import cautions, headline, sentences
from raystudy.paths import StudyPaths
from raystudy.query import Study
from raystudy.records import Event, StudyEnded, StudyRecord, StudyResumed, StudyStarted, StudyState, TrialRecord, TrialState
from raystudy.spec import Factor, StudySpec
from raystudy.spec.depths import asks_for_units, resolved_factors
from raystudy.studies import open_study
from raystudy.tracking import findings, names
from raystudy.tracking.feeder import Feeder
from raystudy.tracking.finder import Finder
from raystudy.tracking.findings import conclusion, given_of, latest, write_error, write_files
from raystudy.tracking.journal import read_journal
from raystudy.tracking.mirror import Mirror
from raystudy.tracking.reader import StudyReader, connect
from raystudy.tracking.verify import compare
from raystudy.tracking.writer import DriverPipe, Writer

ANSWERS: dict[str, Callable[[], Importance]] = {
    "usual": answers.usual,
    "crowded": answers.crowded,
    "single": answers.single,
    "hopeless": answers.hopeless,
    "troubled": answers.troubled,
    "nothing": lambda: Importance(metric="val_loss", mode="min", budget=9, at=9),
}
MAX_SPEC = spec_dict(
    factors={
        **SPEC["factors"],
        "frozen_depth": {"int": [0, "max"]},
        "lp_share": {"uniform": [0, 1], "when": {"frozen_depth": ["max", 3], "strategy": "lp_ft"}},
    },
    fixed={"strategy": "lp_ft"},
)
"""A study file in which `max` and a fixed value have to be filled in."""


@pytest.fixture(params=sorted(ANSWERS))
def answer(request: pytest.FixtureRequest) -> Importance:
    return ANSWERS[request.param]()


# In words


def text(answer: Importance) -> str:
    return "\n".join(sentences(answer))


def test_sentences_are_sentences_and_never_say_what_is_not_known(answer: Importance) -> None:
    said = list(sentences(answer))
    assert said
    for sentence in said:
        assert re.fullmatch(r"\S.*[.]|Guidelines, .*:", sentence), sentence
        assert not re.search(r"\b(None|nan|True|False)\b", sentence), sentence
    assert str(answer) == "\n".join(said)


def test_what_must_be_known_first_comes_first() -> None:
    failed = answers.usual(notes=("Only 40 of 812 reports were used.",), check=answers.FAILED_CHECK)
    said = list(sentences(failed))
    assert said[0] == "Only 40 of 812 reports were used."
    assert said[1].startswith("The self-check failed: doubt what follows. Left-out completed trials")
    assert said[2].startswith("learning_rate explains")
    assert not any("passed" in sentence for sentence in said)


def test_a_failed_check_that_the_notes_tell_is_not_told_twice() -> None:
    failed = answers.usual(notes=("The self-check failed: " + answers.FAILED_CHECK.sentences[0],), check=answers.FAILED_CHECK)
    assert len(list(cautions(failed))) == 1


def test_what_matters_is_said_with_its_interval_and_its_interactions() -> None:
    said = text(answers.usual())
    assert (
        "learning_rate explains 48 % (45 to 51 %) of the variance of val_accuracy at epoch 27; with its interactions 55 % "
        "(52 to 58 %); it is the most important factor with probability 99 %." in said
    )
    assert "The interaction of learning_rate and frozen_depth explains 7 % (5 to 9 %)." in said
    assert "momentum and data_fraction hardly matter: each explains at most 7 %, interactions included." in said
    assert "momentum has an effect in 50 % of the configurations; among those it explains 14 % (11 to 17 %)." in said
    assert "Not identified: dropout: its interval is wider than half of all variance." in said
    assert "data_fraction makes training faster rather than better: 50 % at epoch 1, 1 % at epoch 27." in said
    assert "6 % of the variance is noise" in said
    assert "812 reports of 120 trials, 14 of which reached epoch 27" in said
    assert "The self-check passed: 14 left-out trials predicted to within 0.012 (R² 0.93), 5 hold-outs to within 0.021" in said


def test_guidelines_come_last_below_a_line_that_says_how_to_read_them() -> None:
    said = list(sentences(answers.usual()))[-3:]
    assert said[0] == "Guidelines, with 90 % intervals and the number n of trials near the values compared:"
    assert said[1] == answers.guideline().sentence
    assert said[2] == "Recommended: learning_rate=0.00412, optimizer=adamw: val_accuracy 0.930 (0.920 to 0.940) expected."
    assert "Guidelines" not in text(answers.hopeless())


def test_the_best_level_is_one_of_few_or_a_range_of_many() -> None:
    said = text(answers.usual())
    assert "The best optimizer is adamw with probability 85 %: val_accuracy 0.850 (0.835 to 0.865)" in said
    assert "The best frozen_depth lies between 0 and 2 with probability 90 %; at 0: val_accuracy 0.930" in said
    assert "The best data_fraction" not in said, "what hardly matters has no best level"


def test_a_single_factor_has_no_rank_and_no_interactions() -> None:
    first = next(sentences(answers.single()))
    assert first == "learning_rate explains 94 % (91 to 97 %) of the variance of val_accuracy at epoch 1."


def test_an_answer_without_numbers_says_so_once() -> None:
    said = list(sentences(answers.hopeless()))
    assert said[:2] == [
        "Nothing can be said about epoch 27: only 8 trials reported, and none after epoch 1.",
        "Which factors explain the variance of val_accuracy at epoch 27 is not identified.",
    ]
    assert not any("%" in sentence for sentence in said)
    assert "none of which reached epoch 27" in said[-1]


def test_where_no_factor_is_important_it_is_said_what_is_known() -> None:
    minor = answers.share("learning_rate", 0.01)
    said = headline(answers.usual(shares=(minor, answers.vague("dropout"))))
    assert said == [
        "No factor is known to be important for the variance of val_accuracy at epoch 27.",
        "Not identified: dropout: its share is anywhere from 2 % to 70 %.",
    ]


def test_trouble_plan_and_region_are_told() -> None:
    said = text(answers.troubled())
    assert "at epoch 27 where learning_rate<0.01" in said
    assert "9 trials diverged or failed; learning_rate explains 70 % (67 to 73 %) of whether a trial does" in said
    assert "Open: whether frozen_depth or optimizer matters more; about 40 more trials would settle it." in said
    assert "Open: what dropout does; more trials of this kind would not settle it." in said
    assert "learning_rate=0.003, frozen_depth=4, optimizer=sgd (the prediction there is uncertain by 0.031)" in said


def test_the_headline_is_short_and_keeps_a_warning() -> None:
    assert [line.split()[0] for line in headline(answers.usual())] == ["learning_rate", "frozen_depth", "optimizer"]
    failed = headline(answers.usual(notes=("One.", "Two."), check=answers.FAILED_CHECK))
    assert failed[0] == "One."
    assert len(failed) == 3
    assert len(headline(answers.hopeless())) == 2


@pytest.mark.parametrize(
    ("first", "words"), [(0.0, "explains 0 % (0 to 3 %)"), (0.004, "explains under 1 % (0 to 3 %)"), (1.0, "explains 100 % (")]
)
def test_a_small_share_is_not_said_to_be_none(first: float, words: str) -> None:
    alone = answers.share("learning_rate", first, first, "important")
    assert words in text(answers.usual(shares=(alone,)))


def test_an_answer_is_read_back_from_its_json(answer: Importance) -> None:
    again = Importance.from_dict(json.loads(json.dumps(answer.to_dict())))
    assert again == answer
    assert text(again) == text(answer)


# As a figure


def texts_of(figure: Figure) -> list[str]:
    from matplotlib.text import Text

    return [found.get_text() for found in figure.findobj(Text) if isinstance(found, Text) and found.get_text()]


@pytest.mark.slow
def test_every_answer_can_be_drawn(answer: Importance, tmp_path: Path) -> None:
    save(answer.figure(), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_identified_has_words_and_no_bar() -> None:
    hopeless = answers.hopeless()
    (axes,) = overview(hopeless).get_axes()
    assert all(bar.get_hatch() for bar in axes.patches)
    assert not axes.xaxis.get_visible()
    said = texts_of(overview(hopeless))
    assert sum(one.startswith("not identified: only 8 trials") for one in said) == 3
    assert any("Nothing can be said" in one for one in said)


def test_a_share_that_may_be_anything_has_no_bar_either() -> None:
    vague = answers.usual(shares=(answers.share("learning_rate", 0.2), answers.vague("dropout")), pairs=(), effects=())
    axes = overview(vague).get_axes()[0]
    (unknown,) = [bar for bar in axes.patches if bar.get_hatch()]
    assert isinstance(unknown, Rectangle)
    assert unknown.get_y() > 0.5
    assert len(axes.patches) == 3
    row = next(line for line in printed(vague).splitlines() if line.startswith("dropout"))
    assert re.fullmatch(r"dropout +\(2 to 70\) +\(2 to 70\) +30 %  not identified *", row)


def test_a_failed_check_stands_above_the_figure() -> None:
    assert any("The self-check failed" in one for one in texts_of(overview(answers.crowded())))
    assert not any("self-check" in one for one in texts_of(overview(answers.usual())))


def test_epochs_and_effects_have_panels_only_where_there_are_some() -> None:
    assert [axes.get_xscale() for axes in overview(answers.usual()).get_axes()] == ["linear", "log", "log", *["linear"] * 3]
    visible = [axes for axes in overview(answers.single()).get_axes() if axes.get_visible()]
    assert len(visible) == 2
    without = answers.usual(effects=(), epochs=answers.usual().epochs[:1])
    assert len(overview(without).get_axes()) == 1


def test_a_surface_shows_both_factors(tmp_path: Path) -> None:
    figure = surface(answers.surface_of(), "val_accuracy")
    assert {"learning_rate", "frozen_depth", "val_accuracy, averaged over all other factors"} <= set(texts_of(figure))
    save(figure, tmp_path / "surface.png")


@pytest.mark.slow
def test_effects_of_every_kind_are_drawn(tmp_path: Path) -> None:
    level = answers.level(True, 0.5, 1.0, gain=0.0)
    one = answers.choice_effect("pretrained", (True,)).model_copy(update={"levels": (level,)})
    words = answers.choice_effect("schedule", ("constant",)).model_copy(update={"scale": "ordered"})
    effects = (one, words, answers.depth_effect("frozen_depth", 3), answers.log_effect(low=0.8, high=0.99))
    shares = tuple(answers.share(effect.factor, 0.2) for effect in effects)
    save(overview(answers.usual(shares=shares, effects=effects)), tmp_path / "figure.png")


# As a table


def printed(answer: Importance, *, interactions: bool = False) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(shown(answer, interactions=interactions), highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_a_row_and_a_bar_for_each_factor() -> None:
    rows = {line.split("  ")[0]: line for line in printed(answers.usual()).splitlines() if "  " in line}
    assert re.search(r"━{14}──  48 % \(45 to 51\)  55 % \(52 to 58\)  +99 %  important", rows["learning_rate"])
    assert re.fullmatch(r"dropout\s+not identified\s*", rows["dropout"])
    assert "learning_rate × frozen_depth" not in rows
    assert "7 % (5 to 9)" in printed(answers.usual(), interactions=True)


def test_cautions_stand_above_the_table_and_the_rest_below() -> None:
    lines = printed(answers.crowded()).splitlines()
    where = [
        next(k for k, line in enumerate(lines) if line.startswith(start)) for start in ("The self-", "factor ", "warmup, ")
    ]
    assert where == sorted(where)


# From a study


class Estimator:
    """Stands for the estimator: keeps what it is asked, and answers what it is told to."""

    def __init__(self) -> None:
        self.answer = answers.plain()
        self.error: Exception | None = None
        self.reports = pa.table({})
        self.factors: dict[str, Factor] = {}
        self.options: dict[str, Any] = {}

    def __call__(self, reports: pa.Table, factors: dict[str, Factor], **options: Any) -> Importance:
        self.reports, self.factors, self.options = reports, factors, options
        if self.error is not None:
            raise self.error
        return self.answer


@pytest.fixture
def estimator(monkeypatch: pytest.MonkeyPatch) -> Estimator:
    fake = Estimator()
    monkeypatch.setitem(sys.modules, "raystudy.findings.importance", SimpleNamespace(importance=fake))
    return fake


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def uri(home: Path) -> str:
    uri = empty_store(home)
    with_units = [
        replace(event, data={**event.data, "units": 17}) if isinstance(event, StudyStarted) else event
        for event in study_events(6, spec={**MAX_SPEC, "name": "resolved"})
    ]
    feed(StudyPaths(home / "r"), uri, with_units)
    clock = Clock()
    feed(
        StudyPaths(home / "live"),
        uri,
        [started(clock, spec_dict(name="live")), *trial_events(clock, 0, epochs=2, state=TrialState.RUNNING)],
    )
    feed(StudyPaths(home / "new"), uri, [started(Clock(), spec_dict(name="new"))])
    feed(StudyPaths(home / "d"), uri, study_events(6))
    return uri


@pytest.fixture
def study(uri: str) -> Study:
    return open_study("digits", uri)


@pytest.mark.slow
def test_the_estimator_gets_every_report_and_how_each_trial_ended(study: Study, estimator: Estimator) -> None:
    assert study.importance() is estimator.answer
    table = estimator.reports
    assert table.column_names == ["trial_id", "epoch", "val_accuracy", *SPEC["factors"], "state", "kept"]
    rows = {row["trial_id"]: row for row in table.to_pylist()}
    assert table.num_rows == study.reports().num_rows + 1, "a trial that failed before its first report has a row too"
    assert (rows["t0004"]["epoch"], rows["t0004"]["val_accuracy"], rows["t0004"]["state"]) == (None, None, "failed")
    assert rows["t0004"]["learning_rate"] == pytest.approx(10 ** -(1 + 4 / 7))
    assert [rows[f"t000{k}"]["state"] for k in range(4)] == ["completed", "pruned", "diverged", "completed"]
    assert [trial_id for trial_id, row in rows.items() if row["kept"]] == ["t0002"]
    assert rows["t0000"]["momentum"] is None


def test_the_estimator_gets_the_question_of_the_study(study: Study, estimator: Estimator) -> None:
    study.importance(3, given={"data_fraction": 0.25}, within="learning_rate<0.01", plan=True, seed=5)
    roles = {name: study.spec.role(name) for name in SPEC["factors"]}
    assert estimator.options == {
        "metric": "val_accuracy",
        "mode": "max",
        "budget": 9,
        "at": 3,
        "given": {"data_fraction": 0.25},
        "within": "learning_rate<0.01",
        "roles": roles,
        "plan": True,
        "seed": 5,
    }
    assert {roles["frozen_depth"], roles["learning_rate"]} == {"scientific", "nuisance"}


def test_max_is_the_number_of_units_that_was_recorded(uri: str, home: Path, estimator: Estimator) -> None:
    open_study("resolved", uri).importance(given={"frozen_depth": "max"})
    assert estimator.factors["frozen_depth"].bounds == (0, 17)
    assert estimator.factors["lp_share"].when == {"frozen_depth": (17, 3)}
    assert estimator.options["given"] == {"frozen_depth": 17}
    reader = StudyReader(connect(uri), "resolved")
    assert reader.parent().tags[names.UNITS] == "17"
    assert compare(reader.store, StudyRecord.fold(read_journal(StudyPaths(home / "r").journal))).ok


def test_max_is_looked_up_where_it_was_not_recorded() -> None:
    spec = StudySpec.from_dict(MAX_SPEC)
    record = StudyRecord.fold(study_events(2, spec=MAX_SPEC))
    assert record.n_units is None
    assert asks_for_units(spec.all_factors)
    assert not asks_for_units(StudySpec.from_dict(SPEC).all_factors)


def test_an_older_journal_asks_the_catalogue_of_backbones(estimator: Estimator, tmp_path: Path) -> None:
    files = StudyPaths(tmp_path)
    write_journal(files.journal, study_events(2, spec=MAX_SPEC))
    assert findings.main(["--root", str(tmp_path)]) == 0
    assert estimator.factors["frozen_depth"].bounds == (0, 18)


def test_factors_that_need_nothing_filled_in_stay_as_they_are() -> None:
    factors = StudySpec.from_dict(SPEC).all_factors
    found = resolved_factors(factors, None)
    assert {name: found[name] for name in found if name != "momentum"} == {
        name: factors[name] for name in factors if name != "momentum"
    }
    assert found["momentum"].when == {"optimizer": ("sgd",)}


@pytest.mark.parametrize(("name", "states"), [("live", ["running"] * 2), ("new", [])])
def test_a_running_study_may_be_asked_too(uri: str, estimator: Estimator, name: str, states: list[str]) -> None:
    open_study(name, uri).importance()
    assert estimator.reports["state"].to_pylist() == states
    assert estimator.reports.schema.field("val_accuracy").type == pa.float64()


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["data_fraction=1", "optimizer = sgd"], {"data_fraction": 1.0, "optimizer": "sgd"}),
        (["frozen_depth=3", "pretrained=false"], {"frozen_depth": 3, "pretrained": False}),
        (["frozen_depth=max"], {"frozen_depth": "max"}),
    ],
)
def test_given_values_have_the_types_of_their_factors(texts: list[str], values: dict[str, Scalar]) -> None:
    found = given_of(texts, SPEC["factors"])
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


def test_every_wrong_given_value_is_named() -> None:
    with pytest.raises(InputError) as caught:
        given_of(["learnin_rate=1", "frozen_depth=2.5", "pretrained=perhaps", "=3", "optimizer"], SPEC["factors"])
    assert [str(problem).split(";")[0] for problem in caught.value.problems] == [
        "--given learnin_rate: does not vary in this study",
        "--given frozen_depth: got '2.5'",
        "--given pretrained: got 'perhaps'",
        "--given: got '=3'",
        "--given: got 'optimizer'",
    ]


# The command


@pytest.fixture
def call(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: _call(["importance", "digits", "--tracking-uri", uri, *arguments], debug=False)


def test_the_command_shows_table_and_sentences(
    call: Callable[..., int], estimator: Estimator, capsys: pytest.CaptureFixture[str]
) -> None:
    estimator.answer = answers.usual()
    assert call() == 0
    out, err = capsys.readouterr()
    assert out.startswith("val_accuracy at epoch 27\n")
    assert "48 % (45 to 51)" in out
    assert "The self-check passed" in out
    assert err == ""


def test_the_command_asks_what_it_is_asked(
    call: Callable[..., int], estimator: Estimator, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ("--at", "3", "--given", "data_fraction=1", "--given", "optimizer=sgd", "--within", "learning_rate<0.01")
    assert call(*parts, "--plan", "--seed", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out) == estimator.answer.to_dict()
    asked = {name: estimator.options[name] for name in ("at", "given", "within", "plan", "seed")}
    given = {"data_fraction": 1.0, "optimizer": "sgd"}
    assert asked == {"at": 3, "given": given, "within": "learning_rate<0.01", "plan": True, "seed": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("json", b"{"), ("csv", b'"factor"'), ("parquet", b"PAR1")]
)
def test_the_command_writes_files(
    call: Callable[..., int],
    estimator: Estimator,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ending: str,
    start: bytes,
) -> None:
    answer = estimator.answer = answers.plain() if ending == "png" else answers.usual()
    assert call("--out", f"answer.{ending}") == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"wrote what matters in digits to answer.{ending}\n")
    file = tmp_path / f"answer.{ending}"
    if ending == "json":
        assert Importance.from_dict(json.loads(file.read_text())) == answer
    if ending == "parquet":
        assert pq.read_table(file).equals(answer.table())
    assert file.read_bytes().startswith(start)
    assert file.stat().st_size > 500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "answer.pdf"], "--out: got answer.pdf; expected a file that ends in .png, .svg, .json, .csv, .parquet"),
        (["--out", "nowhere/answer.png"], "--out: nowhere/answer.png cannot be written: No such file or directory"),
        (["--given", "batch_size=3"], "--given batch_size: does not vary in this study"),
        (["--record", "--at", "3", "--within", "momentum<0.9"], "leave out --at and --within, or keep this answer with --out"),
    ],
)
@pytest.mark.usefixtures("estimator")
def test_a_wrong_call_is_told_in_words(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


def test_an_answer_is_recorded_on_request(
    call: Callable[..., int], estimator: Estimator, capsys: pytest.CaptureFixture[str], uri: str, tmp_path: Path
) -> None:
    assert call("--record") == 0
    assert capsys.readouterr().err == "recorded in MLflow, with the study digits\n"
    reader = StudyReader(connect(uri), "digits")
    stored = reader.store.download(reader.run_id, names.IMPORTANCE_FILE, tmp_path)
    assert Importance.from_dict(json.loads(stored.read_text())) == estimator.answer
    assert reader.store.download(reader.run_id, names.IMPORTANCE_FIGURE, tmp_path).read_bytes().startswith(b"\x89PNG")
    assert pq.read_table(reader.store.download(reader.run_id, names.IMPORTANCE_TABLE, tmp_path)).equals(
        estimator.answer.table()
    )


# At the end of a study


WRITE = """
from pathlib import Path
folder = Path({!r})
folder.mkdir(parents=True)
(folder / "importance.json").write_text('{{"error": "as told"}}')
"""


@pytest.fixture
def files(tmp_path: Path) -> StudyPaths:
    return StudyPaths(tmp_path / "studies" / "digits")


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def finished(files: StudyPaths, uri: str, events: list[Event], finder: Finder) -> bool:
    """Let a writer bring MLflow up to the journal with `events`, and then store the findings."""
    write_journal(files.journal, events)
    writer = Writer(files, uri, closed_pipe(), patience=0, finder=finder)
    writer.connect()
    complete = writer.run()
    writer.add_findings()
    return complete


def stored_artifacts(uri: str, tmp_path: Path, name: str = "digits") -> dict[str, Any]:
    """Return the importance.json of a study in MLflow."""
    reader = StudyReader(connect(uri), name)
    found = json.loads(reader.store.download(reader.run_id, names.IMPORTANCE_FILE, tmp_path).read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture
def own_uri(tmp_path: Path) -> str:
    return empty_store(tmp_path / "store")


def test_the_process_writes_json_table_and_figure(files: StudyPaths, estimator: Estimator) -> None:
    write_journal(files.journal, study_events(6))
    assert findings.main(["--root", str(files.root)]) == 0
    written = {"importance.json", "importance.parquet", "importance.png", "report.html"}
    assert {path.name for path in files.findings.iterdir()} == written
    assert latest(files) == estimator.answer
    assert conclusion(files) == headline(estimator.answer) != []


def test_the_process_notes_what_went_wrong(files: StudyPaths, estimator: Estimator, caplog: pytest.LogCaptureFixture) -> None:
    write_journal(files.journal, study_events(6))
    write_files(estimator.answer, files.findings)
    estimator.error = ValueError("the matrix\nis not positive definite")
    assert findings.main(["--root", str(files.root)]) == 0
    error = "ValueError: the matrix is not positive definite"
    assert json.loads((files.findings / names.IMPORTANCE_FILE).read_text()) == {"error": error}
    assert pq.read_table(files.findings / names.IMPORTANCE_TABLE).num_rows == 0, "no older answer is left beside the error"
    assert [record.getMessage() for record in caplog.records] == [f"the findings could not be computed: {error}"]
    assert latest(files) is None
    assert conclusion(files) == [f"could not be computed: {error}"]


def test_an_answer_is_old_when_the_study_goes_on(files: StudyPaths) -> None:
    write_journal(files.journal, study_events(2))
    assert latest(files) is None
    assert conclusion(files) == []
    write_files(answers.plain(), files.findings)
    assert latest(files) == answers.plain()
    write_journal(files.journal, [StudyResumed(Clock()(), SPEC, "0.1.0")])
    found = (files.findings / names.IMPORTANCE_FILE).stat()
    os.utime(files.journal, (found.st_atime, found.st_mtime + 0.01))
    assert latest(files) is None
    assert conclusion(files) == []


def test_the_writer_stores_what_was_found_after_everything_else(files: StudyPaths, own_uri: str, tmp_path: Path) -> None:
    finder = Finder(files, python(WRITE.format(str(files.findings))))
    assert finished(files, own_uri, list(study_events(6)), finder)
    assert stored_artifacts(own_uri, tmp_path) == {"error": "as told"}
    assert compare(connect(own_uri), StudyRecord.fold(read_journal(files.journal))).ok


def test_findings_begin_beside_what_is_left_to_write_but_not_while_the_driver_is_there(
    files: StudyPaths, own_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver takes up an interrupted study, ends it and goes away, all while the writer is at the first trial."""
    events = list(study_events(6))
    after = next(number for number, event in enumerate(events) if isinstance(event, StudyEnded)) + 1
    write_journal(files.journal, events[:after])
    reading, writing = os.pipe()
    order = []

    class Noted(Finder):
        def start(self, record: StudyRecord) -> None:
            order.append(f"findings of a study that is {record.state}")

    def write_trial(mirror: Mirror, trial: TrialRecord, *which: str) -> None:
        if not order:
            write_journal(files.journal, events[after:])
            os.close(writing)
        order.append(trial.trial_id)
        written(mirror, trial, *which)

    written = Mirror.write_trial
    monkeypatch.setattr(Mirror, "write_trial", write_trial)
    writer = Writer(files, own_uri, DriverPipe(reading), patience=0, finder=Noted(files))
    writer.connect()
    assert writer.run()
    assert order[:2] == ["t0000", "findings of a study that is completed"]
    assert set(order[2:]) == {"t0001", "t0002", "t0003", "t0004", "t0005"}
    assert compare(connect(own_uri), StudyRecord.fold(read_journal(files.journal))).ok


def test_what_was_found_already_is_stored_and_not_computed_again(files: StudyPaths, own_uri: str, tmp_path: Path) -> None:
    write_journal(files.journal, study_events(6))
    write_files(answers.plain(), files.findings)
    assert finished(files, own_uri, [], Finder(files, python("raise SystemExit(1)")))
    assert Importance.from_dict(stored_artifacts(own_uri, tmp_path)) == answers.plain()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "limit", "error"),
    [
        ("raise SystemExit(3)", 60.0, "the process ended with 3"),
        ("import os; os.kill(os.getpid(), 9)", 60.0, "the process ended with -9, perhaps out of memory"),
        ("import time; time.sleep(600)", 0.3, "they took longer than 0.3 s"),
    ],
)
def test_a_process_that_dies_or_hangs_harms_nothing_and_is_noted(
    files: StudyPaths, own_uri: str, tmp_path: Path, code: str, limit: float, error: str
) -> None:
    assert finished(files, own_uri, list(study_events(1)), Finder(files, python(code), limit=limit))
    assert stored_artifacts(own_uri, tmp_path) == {"error": error}
    reader = StudyReader(connect(own_uri), "digits")
    assert reader.parent().status == "FINISHED"


def test_a_process_that_cannot_be_started_is_noted(files: StudyPaths) -> None:
    finder = Finder(files, ("/no/such/program",))
    record = StudyRecord.fold(write_journal(files.journal, study_events(2)))
    finder.start(record)
    assert finder.wait(lambda: False)
    assert conclusion(files)[0].startswith("could not be computed: the process could not be started: ")


def test_a_study_without_reports_has_no_findings(files: StudyPaths) -> None:
    finder = Finder(files, ("/no/such/program",))
    clock = Clock()
    silent = trial_events(clock, 0, epochs=0, state=TrialState.FAILED)
    finder.start(StudyRecord.fold([started(clock), *silent, StudyEnded(clock(), StudyState.FAILED, "no result")]))
    assert not finder.wait(lambda: False)
    assert not files.findings.exists()


def test_a_study_that_goes_on_meanwhile_keeps_no_findings_of_its_past(
    files: StudyPaths, own_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    finder = Finder(files, python("import time; time.sleep(600)"))
    write_journal(files.journal, study_events(6))
    writer = Writer(files, own_uri, closed_pipe(), patience=0, finder=finder)
    writer.connect()
    assert writer.run()
    write_journal(files.journal, [StudyResumed(Clock()(), SPEC, "0.1.0")])
    with caplog.at_level(logging.WARNING):
        writer.add_findings()
    assert not files.findings.exists()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_running_study_has_no_findings(files: StudyPaths, own_uri: str) -> None:
    clock = Clock()
    events = [started(clock), *trial_events(clock, 0, epochs=2, state=TrialState.RUNNING)]
    finished(files, own_uri, events, Finder(files, ("/no/such/program",)))
    assert not files.findings.exists()


def test_a_store_that_refuses_findings_leaves_the_study_complete(
    files: StudyPaths, own_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("raystudy.tracking.findings.store_files", refuse)
    assert finished(files, own_uri, list(study_events(2)), Finder(files, python(WRITE.format(str(files.findings)))))
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "the findings are not in MLflow: PermissionError: read-only"


@pytest.mark.parametrize(("line", "recorded"), [('{"recorded": true}', True), ('{"recorded": false}', False), ("", False)])
def test_whoever_does_not_wait_for_the_findings_knows_whether_all_else_is_recorded(line: str, recorded: bool) -> None:
    feeder = Feeder.__new__(Feeder)  # without the store that a real writer would need
    feeder._uri = "sqlite:///nowhere"
    feeder._process = subprocess.Popen(["echo", line] if line else ["true"], stdout=subprocess.PIPE)
    feeder._process.wait()
    assert feeder.has_recorded() is recorded


def test_an_error_is_noted_even_where_nothing_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> Figure:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("raystudy.findings.figures.notice", broken)
    write_error("out of luck", tmp_path)
    assert json.loads((tmp_path / names.IMPORTANCE_FILE).read_text()) == {"error": "out of luck"}
    assert not list(tmp_path.glob(".*"))


def test_a_notice_is_drawn(tmp_path: Path) -> None:
    save(notice("There are no findings: " + "the reason is long " * 12), tmp_path / "notice.png")


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """Take back what the process's `main` sets up in this one."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    signal.alarm(0)
    root.handlers[:] = handlers
    root.setLevel(level)
