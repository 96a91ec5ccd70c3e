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

BEFORE = """\
# Compatibility

What the host tests saw, on the CPU, with models of random weights; this page is made from
`compatibility.json`, which they write. The folder is the same for all hosts; it looks at what a
host offers, not at its name. ComfyUI has [a page of its own](comfy.md).
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
    parts += [
        _section(model, [row for row in rows if row.model == model], places) for model in models
    ]
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
    lines = [_line(["host", "its source", *models, "seen"]), _rule(len(models) + 3)]
    for place in places:
        here = [row for row in rows if (row.host, row.of) == place]
        cells = [result_of([row for row in here if row.model == model]) for model in models]
        name, of = place
        lines.append(_line([f"**{name}**", of, *cells, max(row.date for row in here)]))
    return "\n".join([*lines, "", "*partly*: see below for which part. Empty: not tried.", ""])


def _section(model: str, rows: Sequence[Seen], places: Sequence[Place]) -> str:
    """What was tried with one kind of model, and notes of what does not work."""
    heads = [f"{name} {_month(of)}" for name, of in places]
    lines, notes = [_line([model, *heads]), _rule(len(heads) + 1)], dict[str, int]()
    for tried in sorted({row.tried for row in rows}):
        cells = []
        for place in places:
            here = [row for row in rows if row.tried == tried and (row.host, row.of) == place]
            numbers = {notes.setdefault(note, len(notes) + 1) for note in _notes(here)}
            marks = " ".join(f"({number})" for number in sorted(numbers))
            cells.append(f"{result_of(here)} {marks}".strip())
        lines.append(_line([tried, *cells]))
    told = [f"{number}. {note}." for note, number in notes.items()]
    return "\n".join([f"## {model}", "", *lines, "", *told, *([""] if told else [])])


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
