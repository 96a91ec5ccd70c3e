"""Many images from a file of prompts, over the processes that accelerate's launcher starts.

An image's file is named by the hash of all that its PNG text says of it (the model by name, not by
its weights), so a second call, with any number of processes, paints what is missing and no more.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from lib_hires.settings import Settings, SettingsError, declarations, meant_hint
from lib_hires.sizes import Size
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.png import read_about
from lib_hires.standalone.pipeline.request import Request, fitted
from lib_hires.standalone.pipeline.results import save_stage, what_happened

HASH = 16  # digits in an image's name

Say = Callable[[str], None]


@dataclass(frozen=True)
class Line:
    """One line of the file, counted from 1: what to paint and how."""

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
    file: Path, request: Request, settings: Settings, complain: Say
) -> tuple[list[Line], int]:
    """The file's lines, and how many of them are bad; each bad one is complained of.

    A text has a prompt a line. A table (.csv) has a column `prompt`, and others by the names of
    what `hires generate` takes (`seed`, `ug_theta`); an empty cell leaves `request` and `settings`
    as they are. Raises SettingsError for a file that cannot be read or has unknown columns.
    """
    lines, bad = [], 0
    for number, values in _rows(file):
        try:
            lines.append(_line(number, values, request, settings))
        except ValueError as error:
            complain(f"{file.name}, line {number}: {error}")
            bad += 1
    return lines, bad


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(line number, values by name) of the lines that are not empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"--prompts: {file} cannot be read ({reason}); one prompt is given without an option"
        ) from None
    if not text.strip():
        raise SettingsError(f"--prompts: {file} is empty")
    rows = _table(text) if file.suffix.lower() == ".csv" else _prompts(text)
    for number, values in rows:
        if any(map(str.strip, values.values())):
            yield number, values


def _prompts(text: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    for number, prompt in enumerate(text.split("\n"), start=1):
        yield number, {"prompt": prompt}


def _table(text: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Rows by column; what stands behind the last column is under "". Raises SettingsError."""
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [name.strip().lower().replace("-", "_") for name in next(table)]
        _check_columns(columns)
        for cells in table:
            row = dict(zip_longest(columns, cells[: len(columns)], fillvalue=""))
            yield table.line_num, {**row, "": "".join(cells[len(columns) :])}
    except csv.Error as error:
        raise SettingsError(f"--prompts: line {table.line_num}: {error}") from None


def _check_columns(columns: Sequence[str]) -> None:
    """Raises SettingsError where one is unknown or there twice, or there is no prompt."""
    known = [name for name, *_ in Request.rows()]
    known += [row.name for row in declarations() if not row.control.webui_only]
    for name in columns:
        if name not in known or columns.count(name) > 1:
            hint = "" if name in known else meant_hint(name, known)
            expected = "expected columns named as the options are, each once"
            raise SettingsError(f"--prompts: {expected}, got {name!r}{hint}")
    if "prompt" not in columns:
        raise SettingsError("--prompts: there is no column prompt")


def _line(number: int, values: Mapping[str, Any], request: Request, settings: Settings) -> Line:
    given = {name: text.strip() for name, text in values.items() if text.strip()}
    if "" in given:
        raise SettingsError("has more cells than there are columns; put quotes around commas")
    if "prompt" not in given:
        raise SettingsError("prompt: expected one")
    asked = {name: given.pop(name) for name, *_ in Request.rows() if name in given}
    wanted = Request.from_values(request.values() | asked)
    return Line(number, wanted, settings.updated(given), frozenset(given))


def processes(device: str) -> PartialState:
    """Those that accelerate's launcher has started, this one among them; else it alone."""
    return PartialState(cpu=device == "cpu")


def paint_lines(
    lines: list[Line],
    state: PartialState,
    model: LatentModel,
    folder: Path,
    say: Say,
    complain: Say,
) -> int:
    """Paint this process's share of what is missing; returns how many of its lines failed.

    say: gets the path of every image of the share, also of one that was there. A line that
    cannot be painted is complained of, and the rest go on.
    """
    failed = 0
    share = lines[state.process_index :: state.num_processes]
    for line in tqdm(share, unit="line", disable=not state.is_main_process, leave=False):
        try:
            paths = _painted(Run(model, line.request, line.settings), folder)
        except (ValueError, RuntimeError, OSError) as error:
            complain(f"line {line.number}: {error}")
            failed += 1
            continue
        for path in paths:
            say(str(path))
    state.wait_for_everyone()
    return failed


def _painted(run: Run, folder: Path) -> list[Path]:
    """The files of a run, painted where one of them is missing or not finished.

    Raises RuntimeError with a sentence where painting fails.
    """
    text = json.dumps(run.about(), sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:HASH]
    paths = {image: folder / f"{name}-{seed}.png" for image, seed in enumerate(run.request.seeds)}
    if all(map(_is_finished, paths.values())):
        return list(paths.values())
    stage = 0
    try:
        for painted in run.paint():
            save_stage(run, painted, paths)
            stage = painted.stage + 1
    except (RuntimeError, FloatingPointError, OSError) as error:
        raise RuntimeError(what_happened(error, run, stage)) from error
    return list(paths.values())


def _is_finished(path: Path) -> bool:
    """False also for an earlier stage's image, which a process that was ended has left."""
    try:
        about = read_about(path)
    except SettingsError:
        return False
    return bool(about.get("stage") == about.get("stages"))
