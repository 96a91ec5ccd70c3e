"""`hires demo`: every technique side by side, on the bundled model."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from lib_hires.settings import NOTHING
from lib_hires.standalone.benchmarks.reports import write_report
from lib_hires.standalone.benchmarks.techniques import (
    FIT_FOR_UPSAMPLERS,
    LANCZOS,
    NAIVE,
    NATIVE,
    NATIVE_PFSA,
    PIVOT,
    REFINE,
    UG,
    UG_REFINE,
    Technique,
    make,
    with_upsampler,
)
from lib_hires.standalone.models import LatentModel, load_model
from lib_hires.standalone.pipeline.outputs import save
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.pipeline.upsamplers import find_upsampler
from lib_hires.standalone.world.judge import Judge, inspect, load_judge

WISHES = (
    ("a red house under a clear sky", 1),
    ("a yellow fish under an evening sky", 2),
    ("a purple car under a cloudy sky", 3),
    ("a pink flower under a night sky", 4),
)
SHOWN_AT = {1: 4, 2: 4, 4: 1}  # how many of the wishes at each scale; 4x costs most
FAILURE = replace(NAIVE, label="plain sampling (failure)")
OF_ITS_OWN = replace(UG, label="Upsample Guidance: an image of its own, with small ghosts")
REPEATING = replace(PIVOT, label="pivot (Self-Cascade): repeats parts")
SHOWN: Mapping[int, tuple[Technique, ...]] = {  # from top to bottom, the recommended way first
    2: (UG_REFINE, REFINE, OF_ITS_OWN, REPEATING, LANCZOS, FAILURE),
    4: (UG_REFINE, LANCZOS, FAILURE),
    1: (NATIVE, NATIVE_PFSA),
}

CELL = 176
LABEL = 190
LABEL_LETTERS = 24  # of a technique, to a line of that width
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 34), (110, 110, 118)


@dataclass(frozen=True)
class Row:
    """A technique's images at one scale and their entries in the report."""

    technique: Technique
    scale: int
    images: Sequence[Image.Image]
    entries: Sequence[dict[str, Any]]


def demo(
    out: Path,
    shown_at: Mapping[int, int] = SHOWN_AT,
    upsampler: str = NOTHING,
    sampling: Request | None = None,
    model: LatentModel | None = None,
) -> str:
    """Make the images, the contact sheet `demo.png` and `report.json` in `out`.

    shown_at: how many of the wishes are made at each scale. upsampler: a feature upsampler, as the
    control names it; adds rows with it. sampling: how, but for prompt, size and seed.
    model: another than the bundled one.
    Returns the sheet's path and a short table for the terminal.
    """
    find_upsampler(upsampler)  # raises before the work starts
    model, judge = model or load_model(None), load_judge()
    plan = [
        (scale, technique)
        for scale in SHOWN
        for technique in _techniques(scale, upsampler)
        if shown_at[scale]
    ]
    base = sampling or Request()
    bases = [replace(base, prompt=prompt, seed=seed) for prompt, seed in WISHES]
    total = sum(shown_at[scale] for scale, _ in plan)
    with tqdm(total=total, unit="image", desc="demo") as bar:
        rows = [
            _row(model, judge, technique, scale, bases[: shown_at[scale]], out, bar)
            for scale, technique in plan
        ]
    report = [entry for row in rows for entry in row.entries]
    write_report(out / "report.json", report, dtype=model.dtype)
    sheet = out / "demo.png"
    captions = [" ".join(prompt.split()[1:3]) for prompt, _ in WISHES]
    contact_sheet(rows, captions).save(sheet)
    return "\n".join([*_table(rows), f"sheet: {sheet}"])


def _techniques(scale: int, upsampler: str) -> tuple[Technique, ...]:
    shown, fit = SHOWN[scale], FIT_FOR_UPSAMPLERS.get(scale, ())
    if upsampler == NOTHING:
        return shown
    names = {each.name for each in shown}
    return shown + tuple(with_upsampler(each, upsampler) for each in fit if each.name in names)


def _row(
    model: LatentModel,
    judge: Judge,
    technique: Technique,
    scale: int,
    bases: Sequence[Request],
    out: Path,
    bar: Any,
) -> Row:
    images, entries = [], []
    for base in bases:
        bar.set_postfix_str(f"{technique.label} at {scale}x")
        made = make(technique, model, base, scale)
        (image,) = made.images
        entry = {
            "file": f"{scale}x-{technique.name}-{base.seed}.png",
            "technique": technique.name,
            "scale": scale,
            "prompt": base.prompt,
            "settings": technique.settings_at(scale).changed(),
            "width": image.width,
            "height": image.height,
            "seed": base.seed,
            "seconds": round(made.seconds, 3),
            "model_evaluations": made.model_evaluations,
            "objects": inspect([image], judge)[0].objects,
        }
        save(image, out / entry["file"], made.about | {"demo": entry})
        images.append(image)
        entries.append(entry)
        bar.update()
    return Row(technique, scale, images, entries)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield f"{'':24}{'scale':>6}{'seconds':>9}{'evaluations':>13}  objects"
    for row in rows:
        objects = ", ".join(str(entry["objects"]) for entry in row.entries)
        evaluations = row.entries[0]["model_evaluations"]
        name = f"{row.technique.label:24}{row.scale:>5}x"
        yield f"{name}{_seconds(row):>9.1f}{evaluations:>13}  {objects}"


def _seconds(row: Row) -> float:
    return math.fsum(entry["seconds"] for entry in row.entries) / len(row.entries)


def contact_sheet(rows: Sequence[Row], captions: Sequence[str]) -> Image.Image:
    """One row per technique and scale: its images, reduced; then, at full size, the most detailed
    part of its first image and the same part of the native one enlarged by Lanczos.

    rows: one of them of the native size; all begin with the same wish.
    """
    columns = max(len(row.images) for row in rows)
    sheet = Image.new("RGB", (LABEL + (columns + 2) * CELL, 24 + len(rows) * CELL), PAPER)
    ink = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(12), ImageFont.load_default(15)
    heads = dict(enumerate(captions)) | {columns: "at full size", columns + 1: "Lanczos, there"}
    for column, caption in heads.items():
        ink.text((LABEL + column * CELL + 4, 5), caption, INK, small)
    native = next(row.images[0] for row in rows if row.scale == 1)
    for number, row in enumerate(rows):
        top = 24 + number * CELL
        ink.text((8, top + 8), f"{row.scale}x  {row.images[0].width} pixels", FAINT, small)
        label = textwrap.wrap(row.technique.label, LABEL_LETTERS)
        ink.multiline_text((8, top + 28), "\n".join(label), INK, large)
        top_of_facts = top + 36 + 18 * len(label)
        ink.text((8, top_of_facts), f"{_seconds(row):.1f} s an image", FAINT, small)
        if "objects" in row.entries[0]:
            objects = ", ".join(f"{entry['objects']:.0f}" for entry in row.entries)
            ink.text((8, top_of_facts + 18), f"objects: {objects}", FAINT, small)
        cells = {column: reduced(image) for column, image in enumerate(row.images)}
        if row.scale > 1:
            enlarged = native.resize(row.images[0].size, Image.Resampling.LANCZOS)
            box = _most_detailed(enlarged)
            cells |= {columns: row.images[0].crop(box), columns + 1: enlarged.crop(box)}
        for column, cell in cells.items():
            sheet.paste(cell, (LABEL + column * CELL, top))
    return sheet


def reduced(image: Image.Image) -> Image.Image:
    """As the sheet shows it."""
    return image.resize((CELL - 4, CELL - 4), Image.Resampling.LANCZOS)


def _most_detailed(image: Image.Image) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) in which neighbours differ most: of a cell's size, or of
    nearly the image's where that is smaller."""
    grey = np.asarray(image.convert("L"), dtype=float)
    steps = np.abs(np.diff(grey, axis=0))[:, 1:] + np.abs(np.diff(grey, axis=1))[1:]
    side = min(CELL - 4, *steps.shape)
    sums = np.pad(steps.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    found = sums[side:, side:] - sums[side:, :-side] - sums[:-side, side:] + sums[:-side, :-side]
    top, left = map(int, np.unravel_index(found.argmax(), found.shape))
    return left, top, left + side, top + side
