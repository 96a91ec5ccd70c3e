"""What the host tests write for docs/compatibility.md, and the page that is made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import compatibility
import pytest
from compatibility import NOT_OFFERED, Host, Seen, shown_by
from compatibility_page import DATA, PAGE, page, result_of

SEEN = Seen("Forge", "2025-06-26", "SD 1.5", "batches", "test_a", "works", "2026-11-28")


def test_the_page_is_made_of_what_the_host_tests_saw() -> None:
    assert PAGE.read_text("utf8") == page(compatibility.read(DATA))


def test_what_a_test_sees_again_takes_the_place_of_what_it_saw(tmp_path: Path) -> None:
    file = tmp_path / "seen.json"
    other = replace(SEEN, of="2026-01-01", result="no")
    for seen in (replace(SEEN, result="no"), other, SEEN):
        compatibility.add(file, seen)
    assert compatibility.read(file) == [SEEN, other]
    assert len(file.read_text().splitlines()) == 4  # a line each, for whoever reads a change


@pytest.mark.parametrize(
    ("results", "word"),
    [
        ([], ""),
        (["works", "works"], "works"),
        (["works", "no"], "partly"),
        (["works", "without DDIM"], "partly"),
        (["no", "no"], "no"),
        (["works", NOT_OFFERED + "no SD 3"], "works"),
        ([NOT_OFFERED + "no SD 3"], "not there"),
    ],
)
def test_several_results_are_one_word(results: list[str], word: str) -> None:
    assert result_of([replace(SEEN, result=result) for result in results]) == word


def test_the_page_has_a_row_for_each_host_and_thing_and_notes_what_does_not_work() -> None:
    neo = replace(SEEN, host="Forge Neo", of="2026-02-23", result="left out in 1 of 2: DDIM")
    flux = replace(neo, model="Flux", result=NOT_OFFERED + "the host has no Flux")
    text = page([SEEN, neo, flux])
    assert "| model | Forge Jun 2025 | Forge Neo Feb 2026 |" in text
    assert "| SD 1.5 | works | partly |" in text
    assert "| Flux |  | not there |" in text
    assert "| *seen* | 2026-11-28 | 2026-11-28 |" in text
    assert "| batches | works | partly (1) |" in text
    assert "| Flux: batches |  | not there (1) |" in text
    assert "1. left out in 1 of 2: DDIM." in text


def test_a_host_is_named_by_its_own_heading(tmp_path: Path) -> None:
    heading = '<h1 align="center">Stable Diffusion WebUI Forge - Neo</h1>'
    (tmp_path / "README.md").write_text(heading)
    assert Host.in_folder(tmp_path) == Host("Forge Neo", "unknown")


class Item:
    """Of a pytest item what the marks come from, the nearest first."""

    def __init__(self, *marks: pytest.MarkDecorator) -> None:
        self.marks = marks

    def iter_markers(self, _: str) -> list[pytest.Mark]:
        return [decorated.mark for decorated in self.marks]


def test_of_several_marks_the_nearest_word_counts() -> None:
    shows = compatibility.shows
    assert shown_by(Item()) is None
    assert shown_by(Item(shows("batches"))) == ("batches", "SD 1.5")
    assert shown_by(Item(shows(model="SDXL"), shows("batches", "SD 2"))) == ("batches", "SDXL")


def test_the_entry_for_the_webuis_index_has_what_the_index_asks_for() -> None:
    entry = json.loads((PAGE.parent / "webui-index.json").read_text())
    assert sorted(entry) == ["description", "name", "tags", "url"]
    assert entry["url"].startswith("https://") and entry["url"].endswith(".git")
    assert set(entry["tags"]) <= {"script", "manipulations"}
