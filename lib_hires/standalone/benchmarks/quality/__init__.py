"""`hires benchmark quality`: the images of each technique, measured beside true images.

Every image is first generated into a file of its own, by several processes side by side; then all
are measured. Called again with the same folder it generates only what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from lib_hires.settings import SettingsError
from lib_hires.sizes import Size
from lib_hires.standalone.benchmarks.demo import Row, contact_sheet, reduced
from lib_hires.standalone.benchmarks.quality.generation import (
    Sample,
    Subject,
    check,
    claim,
    costs,
    generate_missing,
    measure_memory,
    memory_of,
)
from lib_hires.standalone.benchmarks.quality.measures import (
    Look,
    Measurer,
    only_of_the_size,
    row,
)
from lib_hires.standalone.benchmarks.quality.report import markdown, page, plot, table
from lib_hires.standalone.benchmarks.quality.resolution import (
    Eye,
    Resolution,
    calibration_looks,
    native_looks,
    upsampled_natives,
)
from lib_hires.standalone.benchmarks.reports import write_report
from lib_hires.standalone.benchmarks.techniques import NATIVE, STANDARD, Technique
from lib_hires.standalone.pipeline.request import Request

FINAL_SEEDS = 10_000  # images are reported on seeds from here; settings were chosen on others
SHOWN = 8  # images of each technique on the sheet


def quality(
    out: Path,
    subject: Subject,
    measurer: Measurer,
    *,
    images: int,
    scale: int,
    techniques: Sequence[Technique] = STANDARD,
    first_seed: int = FINAL_SEEDS,
    workers: int = 0,
) -> str:
    """Measure every technique on `images` images at `scale` times the native size.

    workers: processes that generate, 0 for one a core. Writes the images, report.json (one row per
    technique), the same as report.md, samples.png, quality.png and index.html into `out`; returns
    the table. Raises SettingsError for fewer than 2 images, from which no distance can be
    computed, for a technique that the model cannot run, and for a folder with images of another
    model or other settings.
    """
    if images < 2:
        raise SettingsError(f"--pictures: expected at least 2, got {images}")
    plan = [Sample(NATIVE, 1, first_seed)]
    plan += [Sample(technique, scale, first_seed) for technique in techniques]
    subject, native = check(subject, plan)
    claim(out, subject, plan)
    seeds = range(first_seed, first_seed + images)
    samples = [replace(each, seed=seed) for seed in seeds for each in plan]
    generate_missing(out, subject, samples, workers or os.cpu_count() or 1)
    measure_memory(out, subject, plan)

    files = [[replace(each, seed=seed).path(out) for seed in seeds] for each in plan]
    report, shown, notes = _measured(out, plan, files, measurer, native, subject)
    write_report(out / "report.json", report, dtype=subject.dtype, device=subject.device)
    (out / "report.md").write_text(markdown(report, notes))
    contact_sheet(shown, captions=()).save(out / "samples.png")
    plot(report, out / "quality.png")
    page(report, files, out / "index.html", notes)
    sampling = subject.sampling
    head = (
        f"{images} images a technique, seeds from {first_seed}, {sampling.steps} steps, "
        f"{sampling.schedule}, CFG {sampling.cfg:g}, {subject.dtype}"
    )
    return "\n".join([head, *notes, *table(report)])


def _measured(
    out: Path,
    plan: Sequence[Sample],
    files: Sequence[Sequence[Path]],
    measurer: Measurer,
    native: Size,
    subject: Subject,
) -> tuple[list[dict[str, Any]], list[Row], list[str]]:
    """The report's rows, those of the calibration first, the sheet's, and what is to be said."""
    scale, names = plan[-1].scale, measurer.names
    size = native[0] * scale, native[1] * scale
    eye = Eye(measurer, native, size, subject.device)
    true = eye.at((None, image) for image in measurer.true_images(size[1], size[0]))
    known = calibration_looks(eye, measurer, subject, len(files[0]), (native, size))
    originals = native_looks(eye, measurer, len(files[0]), native) if known else []
    upsampled = upsampled_natives(eye, files[0], size)
    resolution = Resolution(true, known, upsampled, measurer.apart)
    natives: list[Look] = []
    report, shown = [], []
    for name, seen in known.items():
        measures = row(seen, true[measurer.apart], names, originals)
        measures |= resolution.calibration_row(name)
        report.append({"technique": name, "scale": scale} | measures)
    for each, paths in tqdm(list(zip(plan, files, strict=True)), desc="measuring", leave=False):
        whole = each.scale == scale
        seen, taken = eye.at(_opened(paths), native=not whole), list(costs(paths))
        natives = natives or seen  # the plan begins with them
        measures = row(seen, true, names, natives) | resolution.row(each.technique.name, seen)
        if not whole:
            measures |= dict.fromkeys(only_of_the_size(names))
        sampled = each.technique.sampled(subject.sampling)
        report.append(_line(each, sampled, measures, taken, memory_of(out, each)))
        shown.append(Row(each.technique, each.scale, *_shown(paths[:SHOWN], seen, taken)))
    empty = dict.fromkeys(report[-1])
    notes = [*measurer.notes, *eye.notes, *resolution.sentences()]
    return [empty | line for line in report], shown, notes


def _opened(paths: Sequence[Path]) -> Iterator[tuple[int, Image.Image]]:
    """Images and their seeds."""
    for path in paths:
        with Image.open(path) as image:
            yield int(path.stem), image


def _shown(
    paths: Sequence[Path], seen: Sequence[Look], taken: Sequence[Mapping[str, Any]]
) -> tuple[list[Image.Image], list[dict[str, Any]]]:
    """The images of a row of the sheet, the first at full size, and its text about them."""
    images = [Image.open(path).convert("RGB") for path in paths[:1]]
    for path in paths[1:]:
        with Image.open(path) as image:
            images.append(reduced(image.convert("RGB")))
    entries = [look.marks | cost for look, cost in zip(seen, taken, strict=True)]
    return images, entries[: len(paths)]


def _line(
    sample: Sample,
    sampled: Request,
    measures: dict[str, Any],
    taken: Sequence[dict[str, Any]],
    memory: int | None,
) -> dict[str, Any]:
    """A technique's row of the report."""
    return {
        "technique": sample.technique.name,
        "scale": sample.scale,
        **measures,
        "seconds_per_picture": _middle(taken, "seconds", 2),
        "model_evaluations": _middle(taken, "model_evaluations", 1),
        "memory_mib": None if memory is None else round(memory / 2**20),
        "sampler": sampled.sampler,
        "schedule": sampled.schedule,
        "steps": sampled.steps,
        "cfg": sampled.cfg,
        "settings": sample.technique.settings_at(sample.scale).changed(),
    }


def _middle(taken: Sequence[dict[str, Any]], name: str, digits: int) -> float | None:
    """The median, which little other work does not move; None where an image has no such number."""
    values = [cost[name] for cost in taken]
    return None if None in values else round(float(np.median(values)), digits)
