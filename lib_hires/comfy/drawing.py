"""A plan's drawing as an image, for a host whose nodes show images: the page's drawing in pixels.

Each pass has, from above: the weight of guidance over its steps, a mark for each native evaluation,
a rectangle whose sides stand to each other as the images' do, and its name, size and steps. The
mixing of Attentive Guidance is a sampler's here, of which a plan does not know.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lib_hires.sizes import count, shown

WIDTH, SCALE = 440, 2  # in units of SCALE pixels: about as wide as a node
LEFT, TOP, FLOOR, BASE, WORDS = 22, 14, 90, 154, 158  # the axis and the rows
LINE, LETTERS = 16, 70  # the height of a line, and its letters
NARROWEST = 0.2  # share of the width that a pass has at least
INK, PALE, GUIDED, GROUND = "#e6e6e6", "#8a8f98", "#5aa9e6", "#202328"


def plan_image(drawing: Mapping[str, Any], words: str) -> Tensor:
    """(1, height, width, 3) in [0, 1]. drawing: of `lib_hires.run.drawing`; words: below it."""
    lines = textwrap.wrap(words, LETTERS)
    height = WORDS + 4 * LINE + (len(lines) + 2) * LINE
    image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), GROUND)
    pen = Pen(ImageDraw.Draw(image))
    passes = drawing["passes"]
    top = max(1.0, drawing["theta"])
    pen.line([(LEFT, TOP), (LEFT, FLOOR), (WIDTH - 2, FLOOR)], PALE)
    pen.text(4, TOP - 7, f"{top:g}", PALE)
    pen.text(4, FLOOR - 10, "0", PALE)
    largest = max(height * width for height, width in (part["size"] for part in passes))
    x = float(LEFT)
    for part, width in zip(passes, _widths(passes), strict=True):
        _draw_pass(pen, part, x, width, top, largest)
        x += width
    below = WORDS + 4 * LINE
    _draw_legend(pen, drawing, below)
    for row, line in enumerate(lines, 1):
        pen.text(4, below + row * LINE + 4, line, INK)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(1, image.height, image.width, 3).float() / 255


class Pen:
    """Draws in units of SCALE pixels."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw
        self._font = ImageFont.load_default(12 * SCALE)

    def line(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=SCALE + 1)

    def box(self, x: float, y: float, right: float, bottom: float, colour: str) -> None:
        corners = [x * SCALE, y * SCALE, right * SCALE, bottom * SCALE]
        self._draw.rectangle(corners, outline=colour, width=SCALE)

    def text(self, x: float, y: float, words: str, colour: str) -> None:
        self._draw.text((x * SCALE, y * SCALE), words, fill=colour, font=self._font)


def _widths(passes: Sequence[Mapping[str, Any]]) -> list[float]:
    """By their steps, but wide enough to be read."""
    steps = sum(len(part["weights"]) for part in passes)
    least = min(NARROWEST, 1 / len(passes))
    left = 1 - least * len(passes)
    shares = [least + left * len(part["weights"]) / steps for part in passes]
    return [share * (WIDTH - LEFT - 2) for share in shares]


def _draw_pass(
    pen: Pen, part: Mapping[str, Any], x: float, width: float, top: float, largest: int
) -> None:
    """top: the largest weight; largest: the pixels of the largest image."""
    steps = len(part["weights"])
    step = (width - 4) / max(1, steps)
    if part["native"]:
        _draw_steps(pen, x, step, [weight / top for weight in part["weights"]])
    for i, evaluated in enumerate(part["evaluated"]):
        if evaluated:
            middle = x + (i + 0.5) * step
            pen.line([(middle, FLOOR + 3), (middle, FLOOR + 9)], GUIDED)
    height, wide = part["size"]
    high = (height * wide / largest) ** 0.5 * (BASE - FLOOR - 14)
    pen.box(x + 2, BASE - high, x + min(width - 4, max(high * wide / height, 4)), BASE, PALE)
    strength = f"strength {part['strength']:.2g}" if part["strength"] < 1 else ""
    labels = part["name"], shown(part["size"]), count(steps, "step"), strength
    for row, words in enumerate(labels):
        pen.text(x + 2, WORDS + row * LINE, words, INK)


def _draw_steps(pen: Pen, x: float, step: float, shares: Sequence[float]) -> None:
    """A line that is level within each step; shares of the height."""
    points = [(x, float(FLOOR))]
    for i, share in enumerate(shares):
        y = FLOOR - share * (FLOOR - TOP)
        points += [(x + i * step, y), (x + (i + 1) * step, y)]
    pen.line(points, GUIDED)


def _draw_legend(pen: Pen, drawing: Mapping[str, Any], y: float) -> None:
    if any(part["native"] for part in drawing["passes"]):
        native = count(drawing["native_evaluations"], "evaluation")
        words = f"blue: weight of guidance; marks: {native} at the native size"
        pen.text(4, y + 2, words, GUIDED)
