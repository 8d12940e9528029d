"""The two secrets of a cluster, and the values of its file that are still to be set."""

from __future__ import annotations

import configparser
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raystudy.cli import _call
from raystudy.cluster.cluster_file import check_filled_in
from raystudy.cluster.keys import Credentials, credentials_file, make_keys, make_secret, read_credentials, token_file
from raystudy.errors import InputError

ROOT = Path(__file__).parents[1]
CLUSTER = """\
# Set every SET-ME below.
cluster_name: mine
provider: {type: aws, region: &region SET-ME-region}   # not SET-ME in a comment
auth: {ssh_user: ubuntu}
same: *region
hosts: [SET-ME-first, SET-ME-second]
plain: SET-ME
setup_commands:
  - |
    cat > ~/settings <<'END'
    A=SET-ME-a
    B=2
    C=SET-ME
    END
  - "! grep SET-ME ~/settings"
last: done
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_missing_secrets_are_made_for_this_user_only() -> None:
    assert [(key.path, key.made) for key in make_keys()] == [(token_file(), True), (credentials_file(), True)]
    assert re.fullmatch("[0-9a-f]{64}", token_file().read_text())  # the form of Ray's own tokens
    parser = configparser.ConfigParser()
    parser.read(credentials_file())
    assert parser["mlflow"]["mlflow_tracking_username"] == "raystudy"
    assert len(parser["mlflow"]["mlflow_tracking_password"]) >= 12
    assert [mode(path) for path in (token_file(), credentials_file())] == [0o600, 0o600]
    assert [mode(path.parent) for path in (token_file(), credentials_file())] == [0o700, 0o700]
    assert {path.name for path in (*token_file().parent.iterdir(), *credentials_file().parent.iterdir())} == {
        "auth_token",
        "credentials",
    }


def test_secrets_that_are_there_stay_and_are_closed_to_others() -> None:
    make_keys()
    before = [path.read_bytes() for path in (token_file(), credentials_file())]
    token_file().chmod(0o644)  # as Ray leaves it
    assert [key.made for key in make_keys()] == [False, False]
    assert [path.read_bytes() for path in (token_file(), credentials_file())] == before
    assert mode(token_file()) == 0o600


def test_two_homes_have_two_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_keys()
    first = (token_file().read_text(), read_credentials().password)
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    make_keys()
    assert not {*first} & {token_file().read_text(), read_credentials().password}


def test_of_many_that_make_a_secret_at_once_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "one"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: make_secret(path, lambda: f"secret {number}"), range(32)))
    assert sum(key.made for key in made) == 1
    assert path.read_text() == f"secret {[key.made for key in made].index(True)}"
    assert [found.name for found in path.parent.iterdir()] == ["one"]


def test_values_are_never_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(["keys"], debug=False) == 0
    said = "".join(capsys.readouterr())
    assert str(token_file()) in said
    assert str(credentials_file()) in said
    assert token_file().read_text() not in said
    assert read_credentials().password not in said
    assert "hunter2" not in repr(Credentials("me", "hunter2"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no credentials"),
        ("mlflow_tracking_password = x", "holds no credentials"),
        ("[mlflow]\nmlflow_tracking_password = a-long-password\n", "lacks the user"),
        ("[mlflow]\nmlflow_tracking_username = me\n", "lacks the password"),
        ("[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = short\n", "has 5 characters"),
        ("[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = 100%-a-long-one\n", "holds no credentials"),
    ],
)
def test_credentials_that_mlflow_cannot_use_are_an_error_and_stay(text: str, reason: str) -> None:
    credentials_file().parent.mkdir(parents=True)
    credentials_file().write_text(text)
    with pytest.raises(InputError, match=reason):
        make_keys()
    with pytest.raises(InputError, match=str(credentials_file())):
        read_credentials()
    assert credentials_file().read_text() == text


def test_an_empty_token_is_an_error() -> None:
    token_file().parent.mkdir(parents=True)
    token_file().touch()
    with pytest.raises(InputError, match="auth_token: is empty"):
        make_keys()


def test_values_to_be_set_are_named_with_their_lines_before_anything_is_made(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER)
    assert _call(["keys", str(file)], debug=False) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("6 problems")
    assert [line.strip() for line in said[1:]] == [
        "line 3: provider.region is still SET-ME-region",
        "line 6: hosts[0] is still SET-ME-first",
        "line 6: hosts[1] is still SET-ME-second",
        "line 7: plain is still SET-ME",
        "line 11: setup_commands[0] is still SET-ME-a",
        "line 13: setup_commands[0] is still SET-ME",
    ]
    assert not home.exists()


def test_a_file_in_which_all_is_set_passes(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(re.sub(r"(?<!every )(?<!not )(?<!grep )SET-ME[\w-]*", "value", CLUSTER))
    assert _call(["keys", str(file)], debug=False) == 0
    assert token_file().exists()


@pytest.mark.parametrize("text", [None, "a: [", "\xff"])
def test_a_file_that_cannot_be_read_is_an_error(text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.yaml"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    assert _call(["keys", str(file)], debug=False) == 2
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize(
    "file", sorted([*ROOT.glob("cluster.yaml"), *ROOT.glob("clusters/*.yaml")]), ids=lambda file: file.name
)
def test_the_shipped_files_name_what_is_to_be_set_and_pass_once_it_is(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        check_filled_in(file)
    lines = file.read_text().splitlines()
    assert all("SET-ME-" in lines[int(problem.where.removeprefix("line ")) - 1] for problem in error.value.problems)
    filled = tmp_path / file.name
    filled.write_text(re.sub(r"SET-ME-[\w-]+", "value", file.read_text()))
    check_filled_in(filled)
