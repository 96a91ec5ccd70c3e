"""Where a run's images go, what is said when it ends early, and what it really did."""

from __future__ import annotations

import html
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lib_hires.devices import is_out_of_memory
from lib_hires.run.record import RunRecord
from lib_hires.standalone.pipeline import png
from lib_hires.standalone.pipeline.generate import Painted, Run


def free_paths(run: Run, folder: Path, only: int | None = None) -> dict[int, Path]:
    """New files for a run's images by their place in the batch; only: the one to write.

    They are there from now on, empty, so that no other process writes its images into them.
    """
    number = png.next_number(folder)
    paths: dict[int, Path] = {}
    try:
        for image in range(run.request.batch) if only is None else [only]:
            while image not in paths:
                path = folder / f"{number:05d}-{run.request.seeds[image]}.png"
                with suppress(FileExistsError):
                    path.touch(exist_ok=False)
                    paths[image] = path
                number += 1
    except BaseException:
        _remove_empty(paths)
        raise
    return paths


def save_stage(run: Run, painted: Painted, paths: Mapping[int, Path]) -> None:
    """One PNG per image of the batch, each with what repeats it; over an earlier stage's.

    Where every stage is to be kept, those before the last get a file of their own beside it. No
    empty file stays behind an error.
    """
    try:
        _save_stage(run, painted, paths)
    finally:
        _remove_empty(paths)


def _remove_empty(paths: Mapping[int, Path]) -> None:
    for path in paths.values():
        if path.is_file() and not path.stat().st_size:
            path.unlink()


def _save_stage(run: Run, painted: Painted, paths: Mapping[int, Path]) -> None:
    kept = run.settings.refine.keep_stages and painted.stage < painted.stages
    for image, path in paths.items():
        about = run.about() | {"stage": painted.stage, "stages": painted.stages, "image": image}
        png.save(png.to_pil(painted.images[image]), path, about)
        if kept:
            own = path.with_name(f"{path.stem}-stage-{painted.stage}.png")
            png.save(png.to_pil(painted.images[image]), own, about)


def what_happened(error: BaseException, run: Run, stage: int) -> str:
    """A sentence for an error in `stage`; one that says nothing to a user is raised again."""
    height, width = run.stages[stage - 1].size if stage else run.first
    where = f"stage {stage} ({width}x{height})"
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted in {where}"
    if isinstance(error, OSError):
        return f"could not write the image of {where}: {error.strerror}"
    if isinstance(error, FloatingPointError):
        return f"{error}: try --dtype float32"
    if is_out_of_memory(error):
        lower = "lower --refine-factor or set --refine-tile" if stage else "lower --width, --height"
        return f"out of memory in {where}: {lower}, or lower --batch"
    raise error


def folded(record: RunRecord) -> str:
    """What happened, as HTML: a line that opens; nothing where no pass began."""
    if not record.passes:
        return ""
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in record.lines())
    summary = f"<summary>{html.escape(record.summary())}</summary>"
    return f'<details class="hires-guidance-record">{summary}<ul>{lines}</ul></details>'
