"""The command line: help, exit codes, what goes to stdout and what to stderr, and the commands about study files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, example, given, settings
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from strategies import NAMES

from raystudy import __version__, templates
from raystudy.cli import _call, cli, main
from raystudy.errors import InputError
from raystudy.spec import StudySpec
from raystudy.spec.text import dump_yaml, parse_yaml

COMMANDS = [
    "demo", "init", "validate", "schema", "run", "submit", "list", "status", "watch", "logs", "stop", "resume", "best",
    "trials", "importance", "report", "export", "verify", "ui",
]  # fmt: skip
STUDY = {
    "name": "digits",
    "data": {"source": "sklearn:digits", "image_size": 32},
    "backbone": "efficientnet_lite0",
    "factors": {"learning_rate": {"log_uniform": [1e-4, 1e-1]}},
    "budget": {"trials": 4, "epochs": 9},
}
HEAVY = "{'torch', 'ray', 'mlflow', 'optuna', 'sklearn', 'pyarrow', 'numpy', 'rich', 'gpytorch', 'matplotlib', 'scipy'}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def call(*arguments: str) -> int:
    return _call(arguments, debug=False)


def exit_code(arguments: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


# Help


def test_help_lists_every_command_in_the_order_of_a_users_day(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    names = [line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "]
    assert names[: len(COMMANDS)] == COMMANDS
    assert set(names) == set(cli.commands)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_and_option_says_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.commands[name]
    assert command.help
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help or parameter.show_default, parameter.name
    assert call(name, "--help") == 0
    assert command.help.partition("\n")[0][:60] in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_goes_to_stdout(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", flag) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: raystudy run")
    assert err == ""


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("code", ["import raystudy", "from raystudy.cli import _call; _call(['--help'], debug=False)"])
def test_neither_the_package_nor_its_help_imports_anything_heavy(code: str) -> None:
    done = python(f"import sys; {code}; print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)")
    assert done.stderr == "[]\n"


def test_the_public_names_are_found_and_a_wrong_one_is_an_error_that_lists_them() -> None:
    code = "import raystudy as rs; assert all(hasattr(rs, name) for name in ('StudySpec', 'Importance')); rs.StudySpce"
    done = python(code)
    assert "AttributeError: module 'raystudy' has no attribute 'StudySpce'; it has " in done.stderr


# Exit codes and streams


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rn", "x.yaml"], "No such command 'rn'"),
        (["run"], "Missing argument 'STUDY.yaml'"),
        (["run", "x.yaml", "--sett", "a=b"], "No such option"),
        (["run", "x.yaml", "y.yaml"], "unexpected extra argument"),
        (["best", "x", "-k", "0"], "-k"),
        (["ui", "--port", "99999"], "--port"),
        (["init", ".."], "got '..'"),
    ],
)
def test_a_wrong_call_exits_with_2_and_says_why_on_stderr(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


@pytest.mark.parametrize(
    "arguments", [["resume", "nope"], ["stop", "nope"], ["logs", "nope"], ["logs", "nope", "t0"], ["watch", "nope"]]
)
def test_a_study_that_is_not_here_exits_with_3(arguments: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(arguments) == 3
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: there is no study 'nope' in {home / 'studies'}; there are no studies yet\n")
    assert not home.exists()


def test_a_study_of_a_similar_name_is_suggested(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = home / "studies" / "flowers" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    journal.touch()
    assert exit_code(["logs", "flower"]) == 3
    assert "did you mean flowers?" in capsys.readouterr().err


def test_a_name_that_is_taken_exits_with_2_and_leaves_the_study_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = home / "studies" / "digits" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text("what was written before\n")
    Path("study.yaml").write_text(dump_yaml(STUDY))
    assert exit_code(["run", "study.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "there is a study 'digits' already" in err
    assert "raystudy resume digits" in err
    assert journal.read_text() == "what was written before\n"
    assert not (home / "mlflow.db").exists()


def test_debug_anywhere_shows_the_traceback_and_keeps_exit_code_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "run", "nope.yaml"], ["run", "nope.yaml", "--debug"]):
        assert exit_code(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("Traceback (most recent call last):")
        assert err.splitlines()[-1] == "error: nope.yaml: no such file; `raystudy init NAME` writes a study file"


def test_without_debug_there_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["run", "nope.yaml"]) == 2
    assert capsys.readouterr().err == "error: nope.yaml: no such file; `raystudy init NAME` writes a study file\n"


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (RuntimeError("the roof is on fire"), 1, "unexpected RuntimeError: the roof is on fire (--debug shows where)\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_whatever_happens_ends_in_a_sentence_and_an_exit_code(
    raised: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def fail() -> None:
        raise raised

    monkeypatch.setitem(cli.commands, "fail", fail)
    assert call("fail") == code
    assert capsys.readouterr() == ("", words)


def test_a_command_decides_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def one() -> int:
        return 1

    monkeypatch.setitem(cli.commands, "one", one)
    assert exit_code(["one"]) == 1


# init


@pytest.mark.parametrize("name", sorted(templates.names()))
def test_init_writes_a_file_that_is_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("init", "my-study", "--template", name) == 0
    assert "raystudy validate my-study.yaml" in capsys.readouterr().out
    text = Path("my-study.yaml").read_text()
    assert StudySpec.from_yaml("my-study.yaml").name == "my-study"
    with templates.template(name) as original:
        expected = original.read_text()
    assert [line for line in text.splitlines() if not line.startswith("name:")] == [
        line for line in expected.splitlines() if not line.startswith("name:")
    ]


def test_init_begins_with_the_general_template_and_takes_another_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("init", "my-study", "--out", "elsewhere.yaml") == 0
    assert "wrote elsewhere.yaml" in capsys.readouterr().out
    assert [path.name for path in Path().iterdir()] == ["elsewhere.yaml"]


def test_init_never_overwrites(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my-study.yaml").write_text("mine")
    assert call("init", "my-study") == 2
    assert capsys.readouterr() == ("", "error: my-study.yaml: exists already; choose another place with --out\n")
    assert Path("my-study.yaml").read_text() == "mine"


def test_init_says_where_it_cannot_write(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("init", "x", "--out", "no/such/folder/x.yaml") == 2
    assert capsys.readouterr().err == "error: no/such/folder/x.yaml: cannot be written: No such file or directory\n"


@pytest.mark.parametrize("arguments", [["init", "x", "-t", "list"], ["init", "list"]])
def test_init_lists_the_templates_with_their_questions(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(templates.names())
    assert all(line.endswith("?") for line in lines)
    assert list(Path().iterdir()) == []


def test_init_suggests_a_template_of_a_similar_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("init", "x", "-t", "finetun") == 3
    assert "did you mean finetune?" in capsys.readouterr().err


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES)
@example(name="2024")
@example(name="1e5")
@example(name="08")
@example(name="null")
@example(name="true")
def test_a_copy_has_the_name_that_was_given_even_one_that_looks_like_a_number(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    file = tmp_path_factory.mktemp("copy") / "study.yaml"
    templates.named_copy("quickstart", name, file)
    assert parse_yaml(file.read_text(), where="copy")["name"] == name


def test_a_copy_cannot_have_a_name_that_a_study_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected letters, digits"):
        templates.named_copy("quickstart", "a/b", tmp_path / "study.yaml")
    assert not (tmp_path / "study.yaml").exists()


# schema, validate


def test_schema_prints_the_schema_of_study_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("schema") == 0
    out, err = capsys.readouterr()
    Draft202012Validator(json.loads(out)).validate(STUDY)
    assert err == ""


def validated(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    Path("study.yaml").write_text(dump_yaml(STUDY))
    assert call("validate", "study.yaml", "--no-probe", *arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_validate_as_json_prints_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    plan = json.loads(validated(capsys, "--json", "--set", "budget.trials=7"))
    assert (plan["name"], plan["trials"], plan["epochs"]) == ("digits", 7, 9)
    assert plan["backbones"][0]["n_units"] == 18
    assert not home.exists()


def test_validate_says_how_to_start_the_study_and_starts_nothing(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert validated(capsys).endswith("study.yaml is right; start it with: raystudy run study.yaml\n")
    assert not home.exists()
