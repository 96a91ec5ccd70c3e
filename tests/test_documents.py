"""What the documents say is so: commands parse, links lead somewhere, generated parts are equal."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_hires.settings import declarations, markdown_table
from lib_hires.standalone.benchmarks.techniques import chosen, varied
from lib_hires.standalone.cli import _parser
from lib_hires.standalone.cli.options import names_in
from lib_hires.standalone.pipeline.request import Request

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = [
    (document, line)
    for document in DOCUMENTS
    for line in re.findall(
        r"^(?:\.venv/bin/)?hires (.*)$", document.read_text().replace("\\\n", ""), re.MULTILINE
    )
]


def test_the_table_of_settings_is_the_declaration() -> None:
    assert markdown_table() in (ROOT / "docs" / "settings.md").read_text()


def test_ci_runs_the_readme_s_own_test_command() -> None:
    command = next(line for line in README.read_text().splitlines() if line.endswith("-m tests"))
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_readme_is_short() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200


@pytest.mark.parametrize(
    ("document", "line"), COMMANDS, ids=[f"{d.stem}: {line[:40]}" for d, line in COMMANDS]
)
def test_every_command_shown_is_understood(document: Path, line: str) -> None:
    options = _parser().parse_args(shlex.split(line, comments=True))
    for words in getattr(options, "variant", ()):
        varied(words, options.scale)
    if names := names_in(getattr(options, "techniques", "") or ""):
        chosen(names, options.scale, Request())


def test_every_control_but_the_webuis_own_is_an_option() -> None:
    options = _parser().parse_args(["generate"])
    assert options.out == Path("pictures")
    for row in declarations(clips=True):
        flag = "--" + row.name.replace("_", "-")
        given = [flag] if row.kind is bool else [flag, str(row.default)]
        if row.control.webui_only:
            with pytest.raises(SystemExit):
                _parser().parse_args(["generate", *given])
        else:
            assert hasattr(_parser().parse_args(["generate", *given]), row.name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.relative_to(ROOT).as_posix())
def test_links_and_images_are_there(document: Path) -> None:
    for link, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", document.read_text()):
        if "://" not in link:
            target = document.parent / link if link else document
            assert target.exists(), link
            assert not heading or heading in headings(target), f"{link}#{heading}"


def headings(document: Path) -> set[str]:
    """A document's headings as links name them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_engine_s_example_runs() -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(block, "python.md", "exec"), names)
    assert names["x"].shape == (1, 4, 128, 128)
    assert names["x"].isfinite().all()
    x, sigma = torch.randn(1, 4, 128, 128), torch.tensor([2.0])
    assert not torch.allclose(names["guided"](x, sigma), names["denoise"](x, sigma), atol=1e-3)


@pytest.mark.slow
def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    briefly = block.replace("seed=3)", "seed=3, steps=3)")
    assert briefly != block
    monkeypatch.chdir(tmp_path)
    exec(compile(briefly, "README.md", "exec"), {})
    assert (tmp_path / "fish.png").stat().st_size > 10_000
