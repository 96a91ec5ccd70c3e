"""The README says what is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lib_hires.settings import declarations, markdown_table
from lib_hires.standalone.cli import _parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_of_settings_is_the_declaration() -> None:
    assert markdown_table() in README


def test_ci_runs_the_readme_s_own_test_command() -> None:
    command = next(line for line in README.splitlines() if line.endswith("-m tests"))
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("line", re.findall(r"^\.venv/bin/hires (.*)$", README, re.MULTILINE))
def test_every_command_shown_is_understood(line: str) -> None:
    _parser().parse_args(shlex.split(line))


def test_every_control_but_the_webuis_own_is_an_option() -> None:
    options = _parser().parse_args(["generate"])
    assert options.out == Path("pictures")
    for row in declarations():
        flag = "--" + row.name.replace("_", "-")
        given = [flag] if row.kind is bool else [flag, str(row.default)]
        if row.control.webui_only:
            with pytest.raises(SystemExit):
                _parser().parse_args(["generate", *given])
        else:
            assert hasattr(_parser().parse_args(["generate", *given]), row.name)


def test_images_shown_are_there() -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()
