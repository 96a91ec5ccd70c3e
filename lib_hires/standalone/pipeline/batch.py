"""Many images from a file of prompts, over the processes that accelerate's launcher starts.

An image's file is named by the hash of all that its PNG text states of it (the model by name, not
by its weights), so a second call, with any number of processes, makes what is missing and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from accelerate import PartialState
from tqdm import tqdm

from lib_hires.settings import SettingsError
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.lines import Line, Warn, read_lines
from lib_hires.standalone.pipeline.outputs import read_about, save_stage, suffix, what_happened

__all__ = ["Line", "generate_lines", "processes", "read_lines"]

HASH = 16  # digits in an image's name
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def processes(device: str) -> PartialState:
    """Those that accelerate's launcher has started, this one among them; else it alone."""
    return PartialState(cpu=device == "cpu")


def generate_lines(
    lines: list[Line],
    state: PartialState,
    model: LatentModel,
    folder: Path,
    say: Warn,
    warn: Warn,
) -> int:
    """Generate this process's share of what is missing; returns how many of its lines failed.

    say: gets the path of every image of the share, also of one that was there. A line that
    fails is warned of, and the rest go on. Neither may raise.
    """
    failed = 0
    share = lines[state.process_index :: state.num_processes]
    for line in tqdm(share, unit="line", disable=not state.is_main_process, leave=False):
        try:
            paths = _generated(Run(model, line.request, line.settings), folder)
        except (ValueError, RuntimeError, OSError) as error:
            warn(f"line {line.number}: {error}")
            failed += 1
            continue
        for path in paths:
            say(str(path))
    state.wait_for_everyone()
    return failed


def _generated(run: Run, folder: Path) -> list[Path]:
    """The files of a run, generated where one of them is missing or not finished.

    Raises RuntimeError with a message where it fails.
    """
    text = json.dumps(run.about(), sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:HASH]
    paths = {
        image: folder / f"{name}-{seed}{suffix(run)}"
        for image, seed in enumerate(run.request.seeds)
    }
    if all(map(_is_finished, paths.values())):
        return list(paths.values())
    stage = 0
    try:
        for finished in run.generate():
            save_stage(run, finished, paths)
            stage = finished.stage + 1
    except (RuntimeError, FloatingPointError, OSError) as error:
        raise RuntimeError(what_happened(error, run, stage)) from error
    return list(paths.values())


def _is_finished(path: Path) -> bool:
    """False also for an earlier stage's image, which a process that was ended has left, and for a
    PNG without its end, as a full disk or a copy leaves it."""
    try:
        about = read_about(path)
    except SettingsError:
        return False
    return _has_its_end(path) and bool(about.get("stage") == about.get("stages"))


def _has_its_end(path: Path) -> bool:
    if path.suffix != ".png":
        return True
    with path.open("rb") as file:
        file.seek(-len(PNG_END), os.SEEK_END)
        return file.read() == PNG_END
