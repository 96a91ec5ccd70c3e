"""The flat drawings of scenes that the bundled model and its judge have learned.

They stay until both are trained on the world of `drawing`; then this module goes. The scenes are
the same; only their surfaces are plain. Shapes are drawn supersampled with Pillow and reduced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from lib_hires.standalone.world.description import AIRBORNE, COLOURS, Scene, Subject

RGB = tuple[int, int, int]
Point = tuple[float, float]

SKIES: dict[str, tuple[RGB, RGB]] = {  # colour at the top, colour at the horizon
    "clear": ((112, 186, 240), (216, 238, 250)),
    "evening": ((96, 76, 140), (252, 184, 140)),
    "night": ((12, 18, 46), (54, 68, 116)),
    "cloudy": ((146, 156, 170), (214, 218, 222)),
}
GROUNDS: dict[str, tuple[RGB, RGB]] = {  # colour at the horizon, colour at the bottom
    "grass": ((166, 202, 118), (108, 154, 80)),
    "sand": ((238, 218, 172), (206, 176, 122)),
    "snow": ((234, 240, 248), (198, 210, 228)),
    "water": ((122, 186, 204), (62, 124, 160)),
}
_LIGHT: dict[str, tuple[float, float, float]] = {  # what each sky leaves of the ground's colour
    "clear": (1.0, 1.0, 1.0),
    "evening": (0.94, 0.80, 0.78),
    "night": (0.38, 0.44, 0.60),
    "cloudy": (0.88, 0.89, 0.91),
}
_INK: RGB = (38, 32, 44)
_WOOD: RGB = (134, 88, 54)
_GLASS: RGB = (196, 228, 244)
_CREAM: RGB = (250, 240, 214)


# --- drawing --------------------------------------------------------------------------------------


def draw(scene: Scene, width: int, height: int) -> Image.Image:
    """The scene as an RGB image of `width` x `height` pixels."""
    factor = 3 if max(width, height) <= 640 else 2
    canvas = _backdrop(scene, width * factor, height * factor)
    for subject in scene.subjects:
        if subject.kind not in AIRBORNE:
            _shadow(canvas, scene, subject)
        _PAINTERS[subject.kind](_Pen(canvas, subject), subject.variant)
    return canvas.reduce(factor)


def _mix(a: RGB, b: RGB, share: float) -> RGB:
    """`share` of `b` in `a`."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _lit(colour: RGB, sky: str) -> RGB:
    return tuple(round(c * k) for c, k in zip(colour, _LIGHT[sky], strict=True))  # type: ignore[return-value]


def _ground_colours(scene: Scene) -> tuple[RGB, RGB]:
    far, near = GROUNDS[scene.ground]
    return _lit(far, scene.sky), _lit(near, scene.sky)


def _gradient(top: RGB, bottom: RGB, rows: int) -> np.ndarray:
    """(rows, 3) float colours from `top` to `bottom`."""
    share = np.linspace(0.0, 1.0, max(rows, 1))[:, None]
    return np.asarray(top) * (1 - share) + np.asarray(bottom) * share


def _backdrop(scene: Scene, width: int, height: int) -> Image.Image:
    split = min(max(round(scene.horizon * height), 0), height)
    far, near = _ground_colours(scene)
    column = np.concatenate(
        [_gradient(*SKIES[scene.sky], split), _gradient(far, near, height - split)]
    )[:height]
    strip = Image.fromarray(np.rint(column).astype(np.uint8)[:, None, :])
    canvas = strip.resize((width, height), Image.Resampling.NEAREST)
    ink = ImageDraw.Draw(canvas)
    if scene.sky == "night":
        _stars(ink, scene, width, height)
    if scene.sky == "cloudy":
        _clouds(ink, scene, width, height)
    _hills(ink, scene, width, height)
    return canvas


def _spots(relief: float, count: int) -> list[Point]:
    """`count` points in the unit square, spread evenly and shifted by `relief` (R2 sequence)."""
    return [
        ((relief * 7.31 + 0.7549 * k) % 1.0, (relief * 3.17 + 0.5698 * k) % 1.0)
        for k in range(count)
    ]


def _stars(ink: ImageDraw.ImageDraw, scene: Scene, width: int, height: int) -> None:
    radius = 0.0075 * min(width, height)
    for x, y in _spots(scene.relief, 9):
        cx, cy = x * width, (0.03 + 0.9 * y * scene.horizon) * height
        ink.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=(236, 232, 200))


def _clouds(ink: ImageDraw.ImageDraw, scene: Scene, width: int, height: int) -> None:
    unit = min(width, height)
    for k, (x, y) in enumerate(_spots(scene.relief, 3)):
        cx, cy = x * width, (0.08 + 0.55 * y * scene.horizon) * height
        size = (0.10 + 0.03 * k) * unit
        for dx, dy, r in ((-1.0, 0.12, 0.45), (-0.2, -0.12, 0.62), (0.75, 0.08, 0.5)):
            box = (dx - r * 1.5, dy - r * 0.7, dx + r * 1.5, dy + r * 0.7)
            left, top, right, bottom = (v * size for v in box)
            ink.ellipse((cx + left, cy + top, cx + right, cy + bottom), fill=(226, 229, 233))


def _hills(ink: ImageDraw.ImageDraw, scene: Scene, width: int, height: int) -> None:
    sky, ground = SKIES[scene.sky][1], _ground_colours(scene)[0]
    phase = 2 * math.pi * scene.relief
    base = scene.horizon * height
    ridge = [
        (
            width * k / 48,
            base - height * (0.035 + 0.022 * math.sin(phase + 0.22 * k) * math.cos(0.13 * k)),
        )
        for k in range(49)
    ]
    ink.polygon([*ridge, (width, base), (0, base)], fill=_mix(_mix(sky, ground, 0.5), _INK, 0.12))


def _shadow(canvas: Image.Image, scene: Scene, subject: Subject) -> None:
    """A dark ellipse on the ground at the subject's foot."""
    width, height = canvas.size
    half = subject.size * min(width, height) / 2
    cx, cy = subject.x * width, subject.y * height + 0.96 * half
    if cy <= scene.horizon * height:
        return
    dark = _mix(_ground_colours(scene)[1], _INK, 0.3)
    box = (cx - 0.95 * half * subject.stretch, cy - 0.1 * half)
    ImageDraw.Draw(canvas).ellipse(
        (*box, cx + 0.95 * half * subject.stretch, cy + 0.1 * half), fill=dark
    )


class _Pen:
    """Draws in a subject's own frame: x to the right and y down, both from -1 to 1.

    Closed shapes get an outline of the subject's dark shade unless `line=False`.
    """

    def __init__(self, canvas: Image.Image, subject: Subject) -> None:
        self._ink = ImageDraw.Draw(canvas)
        width, height = canvas.size
        self._half = subject.size * min(width, height) / 2
        self._centre = (subject.x * width, subject.y * height)
        angle = math.radians(subject.tilt)
        self._cos, self._sin = math.cos(angle), math.sin(angle)
        self._x_scale = -subject.stretch if subject.mirrored else subject.stretch
        self.base = COLOURS[subject.colour]
        self.dark = _mix(self.base, (20, 14, 34), 0.28)
        self.light = _mix(self.base, (255, 255, 255), 0.38)
        self.line = _mix(self.base, _INK, 0.82)
        self.weight = 0.045  # of half the frame

    def _place(self, points: Sequence[Point]) -> list[Point]:
        (cx, cy), h = self._centre, self._half
        placed = []
        for x, y in points:
            x *= self._x_scale
            placed.append(
                (cx + h * (x * self._cos - y * self._sin), cy + h * (x * self._sin + y * self._cos))
            )
        return placed

    def polygon(self, points: Sequence[Point], fill: RGB, *, line: bool = True) -> None:
        placed = self._place(points)
        if line:
            self._ink.polygon(_grown(placed, self.weight * self._half), fill=self.line)
        self._ink.polygon(placed, fill=fill)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, fill: RGB, *, line: bool = True
    ) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, line=line)

    def oval(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float | None = None,
        *,
        fill: RGB,
        turn: float = 0.0,
        arc: tuple[float, float] = (0.0, 360.0),
        line: bool = True,
    ) -> None:
        """An ellipse turned by `turn` degrees, or the chord segment of it between two angles."""
        points = _oval_points(x, y, rx, rx if ry is None else ry, turn, arc)
        self.polygon(points, fill, line=line)

    def ball(self, x: float, y: float, rx: float, ry: float | None = None) -> None:
        """A shaded ellipse in the subject's colour, lit from the upper left of its frame."""
        ry = rx if ry is None else ry
        self.oval(x, y, rx, ry, fill=self.dark)
        self.oval(x - 0.09 * rx, y - 0.09 * ry, 0.89 * rx, 0.89 * ry, fill=self.base, line=False)
        self.oval(x - 0.4 * rx, y - 0.46 * ry, 0.26 * rx, 0.17 * ry, fill=self.light, line=False)

    def stroke(self, points: Sequence[Point], fill: RGB, weight: float) -> None:
        width = max(1, round(weight * self._half))
        self._ink.line(self._place(points), fill=fill, width=width, joint="curve")


def _oval_points(
    x: float, y: float, rx: float, ry: float, turn: float, arc: tuple[float, float]
) -> list[Point]:
    start, end = map(math.radians, arc)
    count = 44 if arc[1] - arc[0] >= 360 else 25
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points = []
    for k in range(count):
        angle = start + (end - start) * k / (count if count == 44 else count - 1)
        u, v = rx * math.cos(angle), ry * math.sin(angle)
        points.append((x + u * cos - v * sin, y + u * sin + v * cos))
    return points


def _grown(points: Sequence[Point], distance: float) -> list[Point]:
    """The polygon moved outward by `distance`, with mitred corners of at most 1.8 times that."""
    area = sum(
        a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], points[0]], strict=True)
    )
    side = distance if area > 0 else -distance
    grown = []
    for k, (x, y) in enumerate(points):
        (px, py), (nx, ny) = points[k - 1], points[(k + 1) % len(points)]
        l0 = math.hypot(x - px, y - py) or 1.0
        l1 = math.hypot(nx - x, ny - y) or 1.0
        n0 = ((y - py) / l0, -(x - px) / l0)
        n1 = ((ny - y) / l1, -(nx - x) / l1)
        mx, my = n0[0] + n1[0], n0[1] + n1[1]
        scale = 2.0 / max(mx * mx + my * my, 0.62)
        grown.append((x + side * mx * scale, y + side * my * scale))
    return grown


# --- the objects ----------------------------------------------------------------------------------


def _house(pen: _Pen, variant: float) -> None:
    roof = pen.dark
    wall = -0.12
    pen.box(0.38, -0.88, 0.6, -0.3, _mix(_WOOD, _INK, 0.2))  # chimney
    pen.box(-0.78, wall, 0.78, 0.96, pen.base)
    pen.box(0.5, wall, 0.78, 0.96, _mix(pen.base, pen.dark, 0.55), line=False)
    peak = -0.94 + 0.12 * variant
    pen.polygon([(-0.98, wall + 0.06), (0.0, peak), (0.98, wall + 0.06)], roof)
    pen.polygon([(-0.66, -0.16), (-0.02, peak + 0.16), (-0.02, -0.16)], pen.base, line=False)
    pen.box(-0.16, 0.4, 0.2, 0.96, _WOOD)
    pen.oval(0.11, 0.7, 0.035, fill=_CREAM, line=False)
    for x in (-0.5, 0.53):
        pen.box(x - 0.17, 0.14, x + 0.17, 0.48, _GLASS)
        pen.stroke([(x, 0.14), (x, 0.48)], pen.line, 0.035)
        pen.stroke([(x - 0.17, 0.31), (x + 0.17, 0.31)], pen.line, 0.035)


def _tree(pen: _Pen, variant: float) -> None:
    pen.polygon([(-0.13, 0.1), (0.13, 0.1), (0.22, 0.98), (-0.22, 0.98)], _WOOD)
    pen.polygon([(0.03, 0.2), (0.13, 0.2), (0.22, 0.98), (0.06, 0.98)], _mix(_WOOD, _INK, 0.3),
                line=False)  # fmt: skip
    wide = 0.8 + 0.14 * variant
    tiers = ((0.5, 1.0, 0.72), (0.08, 0.82, 0.68), (-0.34, 0.6, 0.62))
    for foot, share, tall in tiers:
        w = wide * share
        pen.polygon([(-w, foot), (0.0, foot - tall), (w, foot)], pen.base)
        pen.polygon([(0.3 * w, foot), (0.0, foot - tall), (w, foot)], pen.dark, line=False)
        pen.polygon([(-0.66 * w, foot - 0.08), (-0.06, foot - 0.8 * tall), (-0.4 * w, foot - 0.08)],
                    pen.light, line=False)  # fmt: skip


def _fish(pen: _Pen, variant: float) -> None:
    pen.polygon([(0.45, 0.0), (0.98, -0.5), (0.84, 0.0), (0.98, 0.5)], pen.dark)  # tail
    pen.polygon([(-0.3, -0.42), (0.05, -0.84), (0.42, -0.34)], pen.dark)  # fin on top
    pen.polygon([(-0.15, 0.42), (0.1, 0.78), (0.32, 0.36)], pen.dark)
    pen.oval(-0.15, 0.0, 0.82, 0.52, fill=pen.dark)
    pen.oval(-0.17, -0.05, 0.77, 0.45, fill=pen.base, line=False)
    for x in (0.0, 0.24, 0.46) if variant < 0.5 else (0.05, 0.36):
        bend = [(x + 0.1 * math.cos(a), 0.3 * math.sin(a)) for a in (-1.2, -0.6, 0.0, 0.6, 1.2)]
        pen.stroke(bend, pen.light, 0.07)
    pen.oval(-0.55, -0.12, 0.14, fill=(255, 255, 255))
    pen.oval(-0.58, -0.12, 0.065, fill=_INK, line=False)
    pen.stroke([(-0.9, 0.14), (-0.76, 0.18), (-0.66, 0.14)], pen.line, 0.05)
    pen.polygon([(-0.22, 0.06), (0.06, 0.3), (-0.2, 0.26)], pen.light)


def _face(pen: _Pen, variant: float) -> None:
    for x in (-0.86, 0.86):
        pen.oval(x, 0.1, 0.13, 0.2, fill=pen.dark)  # ears
    pen.ball(0.0, 0.08, 0.86, 0.88)
    pen.oval(0.0, 0.0, 0.88, 0.94, fill=_mix(_WOOD, _INK, 0.45), arc=(205, 335))  # hair
    for x in (-0.32, 0.32):
        pen.oval(x, -0.02, 0.17, 0.2, fill=(255, 255, 255))
        pen.oval(x + 0.12 * (variant - 0.5), 0.02, 0.09, 0.11, fill=_INK, line=False)
    pen.polygon([(0.0, 0.12), (-0.1, 0.34), (0.1, 0.34)], pen.dark)
    pen.oval(0.0, 0.46, 0.42, 0.32, fill=(150, 30, 44), arc=(0, 180))
    pen.box(-0.3, 0.46, 0.3, 0.56, (255, 255, 255), line=False)


def _car(pen: _Pen, variant: float) -> None:
    roof = -0.56 + 0.08 * variant
    pen.polygon([(-0.62, 0.02), (-0.42, roof), (0.34, roof), (0.64, 0.02)], pen.base)
    pen.polygon([(-0.46, 0.0), (-0.32, roof + 0.12), (-0.06, roof + 0.12), (-0.06, 0.0)], _GLASS)
    pen.polygon([(0.06, 0.0), (0.06, roof + 0.12), (0.28, roof + 0.12), (0.48, 0.0)], _GLASS)
    body = [(-0.98, 0.12), (-0.9, 0.02), (0.84, 0.02), (0.98, 0.18), (0.98, 0.58), (-0.98, 0.58)]
    pen.polygon(body, pen.base)
    pen.box(-0.98, 0.4, 0.98, 0.58, pen.dark, line=False)
    pen.stroke([(-0.84, 0.12), (0.8, 0.12)], pen.light, 0.06)
    pen.box(-0.02, 0.2, 0.14, 0.26, pen.line, line=False)
    pen.oval(-0.9, 0.24, 0.07, 0.09, fill=(255, 244, 170))
    for x in (-0.54, 0.54):
        pen.oval(x, 0.62, 0.3, fill=_INK, line=False)
        pen.oval(x, 0.62, 0.15, fill=(206, 206, 212), line=False)
        pen.oval(x, 0.62, 0.05, fill=_INK, line=False)


def _flower(pen: _Pen, variant: float) -> None:
    stem = (70, 130, 60)
    pen.polygon([(-0.05, 0.0), (0.05, 0.0), (0.06, 0.98), (-0.06, 0.98)], stem)
    pen.oval(-0.3, 0.66, 0.3, 0.12, fill=stem, turn=30)
    pen.oval(0.3, 0.76, 0.3, 0.12, fill=stem, turn=-30)
    petals = 6 if variant < 0.5 else 8
    for k in range(petals):
        angle = 360 * k / petals - 90
        x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        width = 0.24 if petals == 6 else 0.19
        pen.oval(0.42 * x, -0.3 + 0.42 * y, 0.28, width, fill=pen.base, turn=angle)
        pen.oval(0.34 * x, -0.3 + 0.34 * y, 0.14, 0.06, fill=pen.dark, turn=angle, line=False)
    pen.oval(0.0, -0.3, 0.21, fill=(124, 78, 40))
    pen.oval(-0.05, -0.35, 0.08, fill=(176, 120, 62), line=False)


def _boat(pen: _Pen, variant: float) -> None:
    pen.box(-0.04, -0.96, 0.04, 0.42, _WOOD)
    pen.polygon([(0.1, -0.9), (0.1, 0.32), (0.84, 0.32)], _CREAM)
    pen.polygon([(-0.1, -0.7 - 0.1 * variant), (-0.1, 0.32), (-0.7, 0.32)], pen.light)
    pen.polygon([(0.1, 0.0), (0.1, 0.14), (0.73, 0.14), (0.645, 0.0)], pen.base, line=False)
    pen.polygon([(-0.98, 0.42), (0.98, 0.42), (0.62, 0.96), (-0.66, 0.96)], pen.base)
    pen.polygon([(-0.78, 0.74), (0.78, 0.74), (0.62, 0.96), (-0.66, 0.96)], pen.dark, line=False)
    pen.stroke([(-0.88, 0.5), (0.9, 0.5)], pen.light, 0.07)
    for x in (-0.4, 0.0, 0.4):
        pen.oval(x, 0.64, 0.08, fill=_GLASS)


def _mushroom(pen: _Pen, variant: float) -> None:
    pen.polygon([(-0.2, 0.0), (0.2, 0.0), (0.34, 0.96), (-0.34, 0.96)], _CREAM)
    pen.polygon([(0.06, 0.0), (0.2, 0.0), (0.34, 0.96), (0.12, 0.96)], _mix(_CREAM, _WOOD, 0.3),
                line=False)  # fmt: skip
    pen.oval(0.0, 0.14, 0.96, 1.06, fill=pen.dark, arc=(180, 360))
    pen.oval(-0.04, 0.06, 0.87, 0.93, fill=pen.base, arc=(180, 360), line=False)
    pen.polygon([(-0.2, 0.14), (0.2, 0.14), (0.23, 0.3), (-0.23, 0.3)], _mix(_CREAM, _WOOD, 0.3))
    spot = _CREAM if min(pen.base) < 200 else (190, 176, 196)
    for x, y, r in ((-0.52, -0.2, 0.14), (0.0, -0.52, 0.17), (0.48, -0.24, 0.13)):
        pen.oval(x + 0.06 * (variant - 0.5), y, r, 0.85 * r, fill=spot, line=False)
    pen.oval(-0.1, -0.1, 0.1, 0.08, fill=spot, line=False)


def _rocket(pen: _Pen, variant: float) -> None:
    flame = 0.86 + 0.12 * variant
    pen.polygon([(-0.2, 0.56), (0.2, 0.56), (0.0, flame)], (255, 190, 60))
    for side in (-1, 1):
        fin = [(0.26, 0.1), (0.64, 0.5), (0.62, 0.8), (0.24, 0.54)]
        pen.polygon([(x * side, y) for x, y in fin], pen.dark)
    pen.polygon(
        [(0.0, -0.98), (0.2, -0.7), (0.31, -0.36), (0.34, 0.1), (0.26, 0.58), (-0.26, 0.58),
         (-0.34, 0.1), (-0.31, -0.36), (-0.2, -0.7)],
        pen.base,
    )  # fmt: skip
    pen.polygon(
        [(0.06, -0.9), (0.2, -0.7), (0.31, -0.36), (0.34, 0.1), (0.26, 0.58), (0.1, 0.58),
         (0.17, 0.1), (0.16, -0.4)],
        pen.dark,
        line=False,
    )  # fmt: skip
    pen.polygon([(0.0, -0.98), (0.2, -0.7), (0.26, -0.55), (-0.26, -0.55), (-0.2, -0.7)], pen.light)
    pen.oval(0.0, -0.18, 0.17, fill=_GLASS)
    pen.box(-0.3, 0.36, 0.3, 0.48, pen.light, line=False)


def _bird(pen: _Pen, variant: float) -> None:
    for x in (-0.12, 0.14):
        pen.stroke([(x, 0.5), (x - 0.02, 0.9), (x - 0.16, 0.94)], _INK, 0.07)  # legs
    pen.polygon([(0.45, 0.1), (0.98, -0.22), (0.94, 0.14), (0.5, 0.42)], pen.dark)  # tail
    pen.polygon([(-0.86, -0.42), (-0.99, -0.26), (-0.72, -0.2)], (250, 176, 40))  # beak
    pen.oval(0.02, 0.16, 0.66, 0.46, fill=pen.dark, turn=-8)
    pen.oval(-0.02, 0.11, 0.6, 0.39, fill=pen.base, turn=-8, line=False)
    pen.oval(-0.5, -0.36, 0.36, 0.36, fill=pen.base)
    pen.oval(-0.34, -0.02, 0.32, 0.2, fill=pen.base, turn=48, line=False)
    pen.oval(-0.24, 0.36, 0.3, 0.16, fill=pen.light, turn=14, line=False)
    lift = -0.1 - 0.3 * variant
    pen.polygon([(-0.16, 0.02), (0.3, lift), (0.62, 0.12), (0.2, 0.36)], pen.dark)
    pen.stroke([(0.0, 0.1), (0.42, 0.1)], pen.light, 0.05)
    pen.oval(-0.58, -0.42, 0.1, fill=(255, 255, 255))
    pen.oval(-0.6, -0.42, 0.05, fill=_INK, line=False)


_PAINTERS: dict[str, Callable[[_Pen, float], None]] = {
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "face": _face,
    "car": _car,
    "flower": _flower,
    "boat": _boat,
    "mushroom": _mushroom,
    "rocket": _rocket,
    "bird": _bird,
}
