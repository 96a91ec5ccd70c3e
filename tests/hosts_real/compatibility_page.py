"""Write docs/compatibility.md from docs/compatibility.json, which the tests beside it write."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from compatibility import NO, NOT_OFFERED, WORKS, Seen, read

DOCS = Path(__file__).parents[2] / "docs"
DATA, PAGE = DOCS / "compatibility.json", DOCS / "compatibility.md"
HOSTS = "A1111", "Forge", "reForge", "Forge Classic", "Forge Neo"
MODELS = "SD 1.5", "SDXL", "SD 1.5 inpainting", "Flux", "SD 3"
"""Their order on the page; others come behind."""
IN_FULL = "SD 1.5", "SDXL"

BEFORE = """\
# Compatibility

What the host tests saw, on the CPU, with small models of random weights. The folder is the same
for all hosts; it looks at what a host offers, not at its name. ComfyUI has
[a page of its own](comfy.md). A month is that of the host's source; A1111 of July 2024 is 1.10.1.
*partly*: the tables below say which part. *not there*: the host has no such models, or no such
feature. Empty: not tried. This page is made from `compatibility.json`, which the tests write.
"""

AFTER = """\
With A1111's option "Enable quantization in K samplers" the images of A1111, Forge and reForge
agree to 1 of 255: plain, guided, in windows, refined, and with a feature upsampler (Euler,
DPM++ 2M, DDIM).

## Run the host tests

`tests/hosts_real` starts a real host: set `HIRES_WEBUI` to its folder, with ControlNet in its
`extensions` if you have it, and `HIRES_WEBUI_PYTHON` to its Python. Each file takes any of them; a
test that a host cannot run is skipped with the reason. With `HIRES_COMPATIBILITY` set to
`docs/compatibility.json` they write what they see there, and
`python tests/hosts_real/compatibility_page.py` makes this page of it. `test_hosts_agree.py`
compares several hosts: set `HIRES_WEBUIS` to their folders, each as `FOLDER` or `FOLDER=PYTHON`,
separated by `:` (on Windows `;`); `--log-cli-level=INFO` shows the differences.
"""

Place = tuple[str, str]
"""A host's name and the date of its source: a column."""


def page(rows: Iterable[Seen]) -> str:
    """The whole page, in Markdown."""
    rows = list(rows)
    places = sorted({(row.host, row.of) for row in rows}, key=lambda at: (_rank(HOSTS, at[0]), at))
    models = sorted({row.model for row in rows}, key=lambda model: (_rank(MODELS, model), model))
    parts = [BEFORE, _overview(rows, places, models)]
    for model in IN_FULL:
        these = [row for row in rows if row.model == model]
        parts += [f"## {model}\n", _table(these, places, naming=False)]
    others = [row for row in rows if row.model not in IN_FULL]
    parts += ["## Other models\n", _table(others, places, naming=True)]
    return "\n".join([*parts, AFTER])


def _rank(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def result_of(rows: Sequence[Seen]) -> str:
    """One word for what several tests saw; "" where none has run."""
    found = {row.result for row in rows}
    offered = {result for result in found if not result.startswith(NOT_OFFERED)}
    if not offered:
        return "not there" if found else ""
    if offered == {WORKS}:
        return WORKS
    return NO if offered == {NO} else "partly"


def _overview(rows: Sequence[Seen], places: Sequence[Place], models: Sequence[str]) -> str:
    """For each model what all tests together saw, and when."""
    here = [[row for row in rows if (row.host, row.of) == place] for place in places]
    lines = [_line(["model", *map(_head, places)]), _rule(len(places) + 1)]
    for model in models:
        found = [result_of([row for row in seen if row.model == model]) for seen in here]
        lines.append(_line([model, *found]))
    lines.append(_line(["*seen*", *(max(row.date for row in seen) for seen in here)]))
    return "\n".join([*lines, ""])


def _table(rows: Sequence[Seen], places: Sequence[Place], naming: bool) -> str:
    """What was tried, and notes of what does not work. naming: with the kind of model."""
    notes = dict[str, int]()
    lines = [_line(["tried", *map(_head, places)]), _rule(len(places) + 1)]
    for model, tried in sorted({(row.model, row.tried) for row in rows}, key=_order):
        cells = []
        for place in places:
            about = model, tried, *place
            here = [row for row in rows if (row.model, row.tried, row.host, row.of) == about]
            numbers = {notes.setdefault(note, len(notes) + 1) for note in _notes(here)}
            marks = " ".join(f"({number})" for number in sorted(numbers))
            cells.append(f"{result_of(here)} {marks}".strip())
        lines.append(_line([f"{model}: {tried}" if naming else tried, *cells]))
    told = [f"{number}. {note}." for note, number in notes.items()]
    return "\n".join([*lines, "", *told, *([""] if told else [])])


def _order(about: tuple[str, str]) -> tuple[int, tuple[str, str]]:
    return _rank(MODELS, about[0]), about


def _head(place: Place) -> str:
    name, of = place
    return f"{name} {_month(of)}".strip()


def _month(date: str) -> str:
    """2026-02-23: Feb 2026."""
    try:
        return datetime.date.fromisoformat(date).strftime("%b %Y")
    except ValueError:
        return ""


def _notes(rows: Sequence[Seen]) -> list[str]:
    """What does not work in full, where something works."""
    plain = {WORKS, NO}
    told = [row.result.removeprefix(NOT_OFFERED) for row in rows if row.result not in plain]
    failed = [row.test for row in rows if row.result == NO]
    told += [f"failed: `{test}`" for test in failed]
    return [note for note, _ in itertools.groupby(sorted(told))]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(count: int) -> str:
    return "|" + "---|" * count


if __name__ == "__main__":
    PAGE.write_text(page(read(DATA)), "utf8")
