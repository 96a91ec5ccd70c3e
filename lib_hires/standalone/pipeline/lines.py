"""A file of prompts: one a line, A1111's lines of options, or a table."""

from __future__ import annotations

import csv
import io
import logging
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lib_hires.settings import Settings, SettingsError, declarations
from lib_hires.sizes import Size
from lib_hires.standalone.pipeline.images import read_text
from lib_hires.standalone.pipeline.request import (
    SAMPLERS,
    SCHEDULES,
    WEBUI_NAMES,
    WEBUI_ONLY,
    Request,
    fitted,
    name_hint,
)

log = logging.getLogger("hires_guidance")

SEPARATORS = (",", ";", "\t")
OTHER_SEPARATORS = {"|": "bars", ":": "colons"}
"""Those of tables that are read, and those that are refused by name."""
OTHER_FORMATS = (".json", ".jsonl", ".ndjson", ".yaml", ".yml", ".xls", ".xlsx", ".ods")

Warn = Callable[[str], object]


@dataclass(frozen=True)
class Line:
    """One line of the file, counted from 1: what to generate and how."""

    number: int
    request: Request
    settings: Settings
    given: frozenset[str] = frozenset()  # the settings that the line itself names

    def fitted(self, purpose: str | None, native: Size, multiple: int, given: Set[str]) -> Line:
        """With what a preset leaves to the model; given: settings named for every line."""
        named = self.given | given
        made = fitted(purpose, native, multiple, self.request, self.settings, named)
        return Line(self.number, *made, self.given)


def read_lines(
    file: Path, request: Request, settings: Settings, warn: Warn
) -> tuple[list[Line], int]:
    """The file's lines, and how many of them are bad; each bad one is warned of.

    A text has a prompt a line, or options as A1111's script of prompts takes them
    (`--prompt "a house" --seed 3`). A table (.csv) has a column `prompt`, and others by the names
    of what `hires generate` takes (`seed`, `ug_theta`); an empty cell leaves `request` and
    `settings` as they are. Raises SettingsError for a file that cannot be read, has no line or has
    unknown columns.
    """
    lines, bad = [], 0
    for number, values in _rows(file):
        try:
            lines.append(_line(number, values, request, settings))
        except ValueError as error:
            warn(f"{file.name}, line {number}: {error}")
            bad += 1
    if not lines and not bad:
        raise SettingsError(f"--prompts: {file} has no prompt, only a header")
    return lines, bad


def _line(number: int, values: Any, request: Request, settings: Settings) -> Line:
    values = _options(values) if isinstance(values, str) else values
    given = _parted({name: text.strip() for name, text in values.items() if text.strip()})
    if "" in given:
        raise SettingsError("has more cells than there are columns; put quotes around commas")
    if "prompt" not in given:
        raise SettingsError("prompt: expected one")
    wanted = {name: given.pop(name) for name, *_ in Request.rows() if name in given}
    own = Request.from_values(request.values() | wanted)
    return Line(number, own, settings.updated(given), frozenset(given))


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, str] | str]]:
    """(line number, values by name or A1111's options) of the lines that are not empty."""
    try:
        text = read_text(file, "--prompts")
    except SettingsError as error:
        alone = "" if file.is_file() else "; one prompt is given without an option"
        raise SettingsError(f"{error}{alone}") from None
    if not text.strip():
        raise SettingsError(f"--prompts: {file} is empty")
    if file.suffix.lower() in OTHER_FORMATS:
        raise SettingsError(f"--prompts: expected a text or a .csv table, got {file.name}")
    if file.suffix.lower() in (".csv", ".tsv"):
        yield from ((n, row) for n, row in _table(text) if any(map(str.strip, row.values())))
    else:
        yield from _prompts(text)


# --- texts ----------------------------------------------------------------------------------------


def _prompts(text: str) -> Iterator[tuple[int, Mapping[str, str] | str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip().startswith("--"):
            yield number, line.strip()
        elif line.strip():
            _warn_of_options(number, line)
            yield number, {"prompt": line}


def _warn_of_options(number: int, line: str) -> None:
    known = {*_known(), *WEBUI_NAMES, *WEBUI_ONLY}
    names = re.findall(r"\s--([A-Za-z][\w-]*)", line)
    left = [name for name in names if name.lower().replace("-", "_") in known]
    if left:
        log.warning(
            "line %d: --%s stays in the prompt; a line of options begins with one, "
            'as in --prompt "..." --%s',
            number, left[0], left[0],
        )  # fmt: skip


def _options(line: str) -> dict[str, str]:
    """Values by name of `--prompt "a house" --cfg_scale 7`, with A1111's names or ours.

    Quotes are needed around what begins with two dashes alone. Raises SettingsError.
    """
    words = shlex.shlex(line, posix=True)
    words.whitespace_split, words.quotes, words.commenters = True, '"', ""
    values: dict[str, list[str]] = {}
    name = ""
    try:
        for word in words:
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                name = name.replace("-", "_").lower()
                if name in values:
                    raise SettingsError(f"{word}: expected once")
                values[name] = [value] if equals else []
            else:
                values[name].append(word)
    except ValueError as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError("a quote is not closed") from None
    return dict(_named(name, " ".join(words)) for name, words in values.items())


def _parted(values: dict[str, str]) -> dict[str, str]:
    """With the schedule apart that older WebUIs write behind the sampler's name."""
    name, _, schedule = values.get("sampler", "").rpartition(" ")
    if schedule in SCHEDULES and name in SAMPLERS and "schedule" not in values:
        return values | {"sampler": name, "schedule": schedule}
    return values


def _named(name: str, value: str) -> tuple[str, str]:
    """Our name and the value of an option; a switch has none, and `no_` before its name is off."""
    name = WEBUI_NAMES.get(name, name)
    switches = {row.name for row in declarations(clips=True) if row.kind is bool}
    if name.removeprefix("no_") in switches and not value:
        return name.removeprefix("no_"), "off" if name.startswith("no_") else "on"
    if name == "lora":
        raise SettingsError("lora: give --lora to the command; it acts on all lines")
    known = _known()
    if name not in known:
        raise SettingsError(f"{name}: there is no such setting{name_hint(name, known)}")
    return name, value


def _known() -> list[str]:
    known = [name for name, *_ in Request.rows()]
    rows = declarations(clips=True)
    return known + [row.name for row in rows if not row.control.webui_only]


# --- tables ---------------------------------------------------------------------------------------


def _table(text: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Rows by column; what stands behind the last column is under "". Raises SettingsError."""
    marked, skipped = None, 0
    while text:
        first, _, rest = text.partition("\n")
        found = re.fullmatch(r'"?sep=(.)"?\s*', first)  # as spreadsheets write it
        if not found and first.strip(" \t,;"):
            break
        marked, text, skipped = found or marked, rest, skipped + 1
    separator = marked[1] if marked and marked[1] in SEPARATORS else _separator(text)
    table = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    try:
        columns = _columns(next(table, []))
        _check_columns(columns)
        for cells in table:
            row = dict(zip_longest(columns, cells[: len(columns)], fillvalue=""))
            yield table.line_num + skipped, {**row, "": "".join(cells[len(columns) :])}
    except csv.Error as error:
        raise SettingsError(f"--prompts: line {table.line_num + skipped}: {error}") from None


def _columns(cells: Sequence[str]) -> list[str]:
    """Our names of the columns; empty ones at the end, as spreadsheets leave them, do not count."""
    columns = [_column(name.strip()) for name in cells]
    while columns and not columns[-1]:
        columns.pop()
    return columns


def _column(name: str) -> str:
    """Our name, also for "CFG scale" and what else the WebUI calls it; an unknown one stays."""
    plain = re.sub(r"[\s-]+", "_", name.lower())
    plain = WEBUI_NAMES.get(plain, plain)
    return plain if plain in _known() else name


def _separator(text: str) -> str:
    """Of the header; SettingsError names one that is not read."""
    header = text.partition("\n")[0]
    for separator in SEPARATORS:
        if "prompt" in _columns(next(csv.reader([header], delimiter=separator), [])):
            return separator
    for separator, name in OTHER_SEPARATORS.items():
        if separator in header and "prompt" in _columns(header.split(separator)):
            raise SettingsError(
                f"--prompts: the columns are separated by {name}; expected commas, semicolons or "
                "tabs"
            )
    return ","


def _check_columns(columns: Sequence[str]) -> None:
    """Raises SettingsError where one is unknown or there twice, or there is no prompt."""
    known = _known()
    for name in columns:
        if name not in known or columns.count(name) > 1:
            hint = "" if name in known else name_hint(name, known)
            expected = "expected columns named as the options are, each once"
            raise SettingsError(f"--prompts: {expected}, got {name!r}{hint}")
    if "prompt" not in columns:
        raise SettingsError("--prompts: there is no column prompt")
