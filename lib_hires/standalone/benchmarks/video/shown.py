"""What of a report on clips is there to be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageSequence
from torch import Tensor

from lib_hires.standalone.pipeline.outputs import to_pil

PICKS = 8  # frames of a clip on the sheet
SIDE = 160  # pixels, of a frame there
CELL, LINE = 256, 18  # of a frame of the four clips, and of the words above it


def strip(clip: Tensor) -> Image.Image:
    """Some frames of a clip (3, f, H, W) side by side."""
    picks = np.linspace(0, clip.shape[1] - 1, PICKS).round().astype(int)
    made = Image.new("RGB", (SIDE * PICKS, SIDE))
    for place, pick in enumerate(picks):
        made.paste(to_pil(clip[:, int(pick)]).resize((SIDE, SIDE)), (SIDE * place, 0))
    return made


def sheet(paths: Sequence[Path]) -> Image.Image:
    """Strips below each other."""
    made = Image.new("RGB", (SIDE * PICKS, (SIDE + 4) * len(paths)), "white")
    for row, path in enumerate(paths):
        with Image.open(path) as one:
            made.paste(one, (0, (SIDE + 4) * row))
    return made


def side_by_side(clips: Mapping[str, Path]) -> list[Image.Image]:
    """The frames of a clip that shows clips beside each other, two a row, with their names.

    One of fewer frames than the longest shows each of them longer.
    """
    shown = {name: _frames(path) for name, path in clips.items()}
    count = max(map(len, shown.values()))
    size = 2 * CELL, (CELL + LINE) * -(-len(shown) // 2)
    font = ImageFont.load_default(13)
    made = []
    for number in range(count):
        frame = Image.new("RGB", size, "white")
        for place, (name, frames) in enumerate(shown.items()):
            left, top = place % 2 * CELL, place // 2 * (CELL + LINE)
            frame.paste(frames[number * len(frames) // count], (left, top + LINE))
            ImageDraw.Draw(frame).text((left + 4, top + 1), name, fill="black", font=font)
        made.append(frame)
    return made


def _frames(path: Path) -> list[Image.Image]:
    with Image.open(path) as clip:
        return [
            frame.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
            for frame in ImageSequence.Iterator(clip)
        ]
