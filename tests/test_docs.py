"""The documentation says what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import click

from raystudy.cli import cli
from raystudy.spec.factor_table import factor_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_has_a_line_in_the_readme() -> None:
    for name, command in cli.commands.items():
        assert isinstance(command, click.Command)
        assert command.help, name
        assert re.search(rf"raystudy {name}\b", README), f"README.md does not mention `raystudy {name}`"


def test_the_readme_names_the_two_commands() -> None:
    assert "make demo" in README
    assert "make test" in README


def test_the_table_of_factors_is_up_to_date() -> None:
    assert (ROOT / "docs" / "factors.md").read_text(encoding="utf-8") == factor_table()


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_the_readme_names_exist() -> None:
    for target in re.findall(r"search_spaces/\w+\.yaml", README):
        assert (ROOT / target).exists()
