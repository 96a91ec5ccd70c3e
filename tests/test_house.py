"""House rules that a program can check: small rooms, short functions, few positional arguments."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [ROOT / "lib_hires", ROOT / "scripts"]
MODULES, LINES, POSITIONAL, TEST_LINES = 15, 60, 7, 400
"""At most: modules of a folder; lines and positional parameters of a function; lines of a test."""


def files(*folders: Path) -> list[Path]:
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [argument.arg for argument in [*function.args.posonlyargs, *function.args.args]]
    return len([name for name in names if name not in ("self", "cls")])


def test_no_folder_has_more_modules_than_one_can_survey():
    folders = {file.parent for file in files(*CODE)}
    crowded = {f: len(list(f.glob("*.py"))) for f in folders}
    assert not [f for f, count in crowded.items() if count > MODULES]


@pytest.mark.parametrize("file", files(*CODE), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_functions_are_short_and_take_few_positional_arguments(file: Path):
    found = list(functions(file))
    long = [f.name for f in found if f.end_lineno - f.lineno + 1 > LINES]
    many = [f.name for f in found if positional(f) > POSITIONAL]
    assert not long, f"more than {LINES} lines"
    assert not many, f"more than {POSITIONAL} positional parameters"


@pytest.mark.parametrize("file", files(CODE[0]), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_no_closure_changes_what_another_function_reads(file: Path):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Nonlocal)]


@pytest.mark.parametrize(
    "file", files(ROOT / "tests"), ids=lambda f: f.relative_to(ROOT).as_posix()
)
def test_test_files_are_split_by_technique(file: Path):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= TEST_LINES


def test_inside_a_host_nothing_is_installed():
    """The WebUIs run install.py. ComfyUI's installers run it too, and take requirements.txt, or
    pyproject.toml where that file is missing."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines and all(line.startswith("#") for line in lines)
    script = ast.parse((ROOT / "install.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(script) and len(script.body) == 1


def test_what_drives_a_browser_or_a_host_is_marked(request: pytest.FixtureRequest):
    def marked(item: pytest.Item, marker: str) -> bool:
        return item.get_closest_marker(marker) is not None

    items = request.session.items
    driving = [item for item in items if "browser" in getattr(item, "fixturenames", ())]
    hosted = [item for item in items if "hosts_real" in item.path.parts]
    assert not [item.nodeid for item in driving if not marked(item, "browser")]
    assert not [item.nodeid for item in hosted if not marked(item, "host")]
