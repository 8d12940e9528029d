"""The study files that come with raystudy: runnable records of one question each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raystudy import preflight, templates
from raystudy.cli import cli
from raystudy.finetune.source_models import SourceModel
from raystudy.spec import StudySpec
from raystudy.spec.pretrain import is_pretraining
from raystudy.spec.sources import is_registered
from raystudy.spec.text import read_study_file, with_values

FOLDER = Path(__file__).parents[1] / "search_spaces"
FILES = sorted(FOLDER.glob("*.yaml"))
ENTRIES = ("Question", "Command", "Hardware", "Expect")


def registered(address: str) -> SourceModel:
    """Stand for a model that a command of the header has made."""
    return SourceModel(address, "", "1", "", "", "efficientnet_lite0", "", Path())


every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def header(file: Path) -> dict[str, str]:
    """Return the entries of the comment that a file begins with; lines of an entry are joined."""
    entries: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        name, colon, rest = text.partition(":")
        if colon and name in ENTRIES:
            entries[name] = rest.strip()
        else:
            last = next(reversed(entries))
            entries[last] += f" {text}"
    return entries


def test_there_are_study_files() -> None:
    assert {"quickstart", "finetune", "linear_probe", "paper_factors"} <= {file.stem for file in FILES}


@every_file
def test_the_header_says_question_command_hardware_and_what_to_expect(file: Path) -> None:
    entries = header(file)
    assert tuple(entries) == ENTRIES
    assert entries["Question"].partition("?")[1], "the question is a question"
    assert re.search(r"\d", entries["Expect"]), "what to expect is a number"
    assert not any(text.isupper() for text in entries.values()), "no place holder is left"


@every_file
def test_the_header_names_commands_that_exist_and_the_file_itself(file: Path) -> None:
    text = header(file)["Command"]
    commands = re.findall(r"raystudy (\w+)", text)
    assert commands
    assert set(commands) <= set(cli.commands)
    assert f"search_spaces/{file.name}" in text or f"-t {file.stem}" in text


@every_file
def test_the_file_is_right_once_its_images_are_there(file: Path) -> None:
    data = read_study_file(file)
    if not data["data"]["source"].startswith("sklearn:"):  # others may not be on this machine
        data = with_values(data, {"data.source": "sklearn:digits"})
    spec = (preflight.check_pretraining if is_pretraining(data) else preflight.check)(data, title=file.name)
    space = preflight.space_of(spec, {name: registered(name) for name in spec.backbones if is_registered(name)})
    assert spec.full_config(space.at([0.5] * len(space.dimensions)))["backbone"] in spec.backbones
    assert StudySpec.from_yaml(file).name == file.stem.replace("_", "-")


CLUSTER_FILES = sorted((FOLDER / "cluster").glob("*.yaml"))


@pytest.mark.parametrize("file", CLUSTER_FILES, ids=lambda file: file.stem)
def test_the_form_for_a_cluster_is_right(file: Path) -> None:
    """What only the cluster can see (folders, weight files, source models) is checked there."""
    entries = header(file)
    assert tuple(entries) == ENTRIES
    assert f"search_spaces/cluster/{file.name}" in entries["Command"]
    spec = preflight.read_study(file, is_here=False)
    assert spec.factors


def test_every_question_of_the_paper_has_a_form_for_this_machine_and_for_a_cluster() -> None:
    questions = {"learning_rate", "frozen_depth", "source_categories", "source_distance", "imbalance", "paper_factors"}
    for files in (FILES, CLUSTER_FILES):
        assert questions <= {file.stem for file in files}


def test_the_templates_are_these_files_by_name_with_their_questions() -> None:
    assert templates.names() == {file.stem: header(file)["Question"].partition("?")[0] + "?" for file in FILES}


def test_a_template_is_given_as_a_file() -> None:
    with templates.template("quickstart") as path:
        assert path.read_text() == (FOLDER / "quickstart.yaml").read_text()
