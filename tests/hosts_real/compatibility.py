"""What the tests of this folder see of each WebUI, kept in one file for docs/compatibility.md.

A test says what it shows by `shows("what was tried", model="...")`; of several such marks on a
test and its parameters, each word counts that stands nearest to the test. With

    HIRES_COMPATIBILITY=docs/compatibility.json

each test that has run puts what it saw there: "works", "no", or what it has noted by the fixture
`partly` or by a reason to skip it ("not offered: ..."). What earlier runs saw stays until the same
test has run again with the same WebUI. `python tests/hosts_real/compatibility_page.py` makes the
page of that file.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

FILE = "HIRES_COMPATIBILITY"
WORKS, NO, NOT_OFFERED = "works", "no", "not offered: "
NAMES = {  # the WebUIs' own headings
    "Stable Diffusion web UI": "A1111",
    "Stable Diffusion WebUI Forge": "Forge",
    "Stable Diffusion WebUI Forge/reForge": "reForge",
    "Stable Diffusion WebUI Forge - Classic": "Forge Classic",
    "Stable Diffusion WebUI Forge - Neo": "Forge Neo",
}

shows = pytest.mark.shows
partly_key = pytest.StashKey[list[str]]()


@dataclass(frozen=True)
class Host:
    """A WebUI as the page calls it. of: when its source was last changed, YYYY-MM-DD."""

    name: str
    of: str

    @classmethod
    def in_folder(cls, folder: Path) -> Host:
        first = (folder / "README.md").read_text("utf8").splitlines()[0]
        heading = first.removeprefix("#").removeprefix('<h1 align="center">').removesuffix("</h1>")
        changed = ["git", "-C", str(folder), "log", "-1", "--format=%cs"]
        found = subprocess.run(changed, capture_output=True, text=True)
        return cls(NAMES.get(heading.strip(), folder.name), found.stdout.strip() or "unknown")


@dataclass(frozen=True)
class Seen:
    """What one test saw of one WebUI with one kind of model."""

    host: str
    of: str
    model: str
    tried: str
    test: str
    result: str  # WORKS, NO, NOT_OFFERED and a reason, or what works in part
    date: str

    @property
    def subject(self) -> tuple[str, ...]:
        return self.host, self.of, self.model, self.tried, self.test


@pytest.fixture
def partly(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """To be called with what does not work, in a test that passes all the same."""
    return request.node.stash.setdefault(partly_key, []).append


def shown_by(item: pytest.Item) -> tuple[str, str] | None:
    """(what the test tries, the kind of model); None where it has no mark."""
    said: dict[str, str] = {}
    for mark in item.iter_markers("shows"):
        words = dict(zip(("tried", "model"), mark.args, strict=False)) | mark.kwargs
        said = words | said
    return (said["tried"], said.get("model", "SD 1.5")) if "tried" in said else None


def result_of(item: pytest.Item, report: pytest.TestReport) -> str | None:
    """What the phase of a test tells of the WebUI, None for nothing."""
    if report.failed:
        return NO
    if report.skipped and isinstance(report.longrepr, tuple):
        return NOT_OFFERED + report.longrepr[2].removeprefix("Skipped: ")
    if report.when != "call" or not report.passed:
        return None
    return "; ".join(item.stash.get(partly_key, [])) or WORKS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """A hook of pytest's: puts what the test saw into the file."""
    report = yield
    result, shown = result_of(item, report), shown_by(item)
    if os.environ.get(FILE) and os.environ.get("HIRES_WEBUI") and result and shown:
        host, (tried, model) = Host.in_folder(Path(os.environ["HIRES_WEBUI"])), shown
        today = datetime.date.today().isoformat()
        seen = Seen(host.name, host.of, model, tried, item.name, result, today)
        add(Path(os.environ[FILE]), seen)
    return report


def add(file: Path, new: Seen) -> None:
    """Put it in the place of what the same test saw before."""
    known = read(file) if file.exists() else []
    kept = [seen for seen in known if seen.subject != new.subject]
    rows = sorted([*kept, new], key=lambda seen: seen.subject)
    lines = ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    file.write_text(f"[\n{lines}\n]\n", "utf8")


def read(file: Path) -> list[Seen]:
    """All that the file has."""
    return [Seen(**row) for row in json.loads(file.read_text("utf8"))]
