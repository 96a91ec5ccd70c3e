"""Canvas and pen: textured, softly lit polygons in a subject's own frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lib_hires.standalone.world.description import COLOURS, RGB, Point, Subject, View
from lib_hires.standalone.world.materials import material
from lib_hires.standalone.world.textures import fill

INK: RGB = (38, 32, 44)
WOOD: RGB = (140, 92, 56)
GLASS: RGB = (176, 212, 234)
CREAM: RGB = (250, 240, 214)
WHITE: RGB = (255, 255, 255)
_LIGHT = (-0.55, -0.85)  # where the light comes from, in pixels' directions
_HALF = [v // 2 for v in range(256)]
_FINE_MASK = 640  # samples: the largest part whose edge is drawn finer than the samples
_PLAIN_SHADE = 0.92  # of a part's middle; its lit edge is 1


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """`share` of `b` in `a`."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


class Canvas:
    """An RGB image of `factor` samples a pixel and side, and the window that it shows."""

    def __init__(self, width: int, height: int, factor: int, view: View) -> None:
        self.width, self.height, self.factor = width * factor, height * factor, factor
        self.image = Image.new("RGB", (self.width, self.height))
        self.zoom = view.zoom
        self.left, self.top = view.x - 0.5 / view.zoom, view.y - 0.5 / view.zoom
        self.unit = min(self.width, self.height) * view.zoom  # samples of the scene's shorter side

    def place(self, x: float, y: float) -> Point:
        """Samples of a point in fractions of the scene's width and height."""
        return (x - self.left) * self.zoom * self.width, (y - self.top) * self.zoom * self.height

    def finished(self) -> Image.Image:
        return self.image.reduce(self.factor)


@dataclass(frozen=True)
class Look:
    """A material in its three colours; `soft`: how far its edges are rounded, in frame units;
    `dark`: what is left of the light on the side that is turned away."""

    material: str
    base: RGB
    second: RGB = INK
    third: RGB = WHITE
    soft: float = 0.10
    dark: float = 0.58


@dataclass(frozen=True)
class Frame:
    """Where a material's tile lies: centre, turn in degrees, width and height, in frame units."""

    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0
    width: float = 1.0
    height: float = 1.0


@dataclass(frozen=True)
class _Box:
    """The samples that a part covers."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        return self.right - self.left, self.bottom - self.top


class Pen:
    """Draws in a subject's own frame: x to the right and y down, both from -1 to 1."""

    def __init__(self, canvas: Canvas, subject: Subject, tint: RGB = WHITE) -> None:
        self.canvas = canvas
        self.half = subject.size * canvas.unit / 2
        self._centre = canvas.place(subject.x, subject.y)
        angle = math.radians(subject.tilt)
        self._cos, self._sin = math.cos(angle), math.sin(angle)
        self._x_scale = -subject.stretch if subject.mirrored else subject.stretch
        self._tint = tint
        self._ink = ImageDraw.Draw(canvas.image, "RGBA")
        self._body = Image.new("L", canvas.image.size)  # what the subject covers so far
        self._body_ink = ImageDraw.Draw(self._body)
        self.variant = subject.variant
        self.base = COLOURS[subject.colour]
        self.dark = mix(self.base, (20, 14, 34), 0.30)
        self.light = mix(self.base, WHITE, 0.40)
        self.line = mix(self.base, INK, 0.80)
        self.rng = np.random.default_rng(int(subject.variant * 1e6))

    # --- shapes ---

    def part(
        self,
        points: Sequence[Point],
        look: Look,
        frame: Frame | None = None,
        *,
        line: float = 0.018,
        cast: float = 0.0,
    ) -> None:
        """A polygon of a material. `line`: its outline's weight, `cast`: the distance of the
        shadow that it throws upon the subject's earlier parts, both in frame units."""
        placed = self._place(points)
        box = self._clip(placed)
        if box is None:
            return
        if cast:
            self._cast(placed, cast)
        if line:
            self._outline(placed, look.base, line)
        image = self._surface(box, look, frame)
        image = ImageChops.multiply(image, self._shade(placed, box, look))
        self.canvas.image.paste(image, (box.left, box.top), _mask(placed, box))
        self._body_ink.polygon(placed, fill=255)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        look: Look,
        frame: Frame | None = None,
        *,
        line: float = 0.018,
        cast: float = 0.0,
    ) -> None:
        self.part([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], look, frame, line=line, cast=cast)

    def oval(
        self,
        at: Point,
        radii: tuple[float, float],
        look: Look,
        frame: Frame | None = None,
        *,
        turn: float = 0.0,
        arc: tuple[float, float] = (0.0, 360.0),
        line: float = 0.018,
        cast: float = 0.0,
    ) -> None:
        """An ellipse turned by `turn` degrees, or the segment of it between two angles."""
        self.part(oval_points(at, radii, turn, arc), look, frame, line=line, cast=cast)

    def stroke(self, points: Sequence[Point], fill: RGB, weight: float) -> None:
        """A line of `weight` frame units; thinner than a sample, it grows fainter instead."""
        width = weight * self.half
        if width < 0.12:
            return
        alpha = round(255 * min(1.0, width))
        placed = self._place(points)
        if self._clip(placed) is None:
            return
        colour = self._tinted(fill)
        self._ink.line(placed, fill=(*colour, alpha), width=max(1, round(width)), joint="curve")

    def dot(self, at: Point, radius: float, fill: RGB) -> None:
        """A small plain disc."""
        size = radius * self.half
        if size < 0.25:
            return
        ((x, y),) = self._place([at])
        alpha = round(255 * min(1.0, size * 1.4))
        self._ink.ellipse(
            (x - size, y - size, x + size, y + size), fill=(*self._tinted(fill), alpha)
        )

    def rivet(self, at: Point, radius: float, fill: RGB) -> None:
        """A round head with its shadow and its glint."""
        x, y = at
        self.dot((x + 0.25 * radius, y + 0.35 * radius), radius * 1.15, mix(fill, INK, 0.75))
        self.dot(at, radius, fill)
        self.dot((x - 0.3 * radius, y - 0.3 * radius), radius * 0.4, mix(fill, WHITE, 0.75))

    # --- how ---

    def _place(self, points: Sequence[Point]) -> list[Point]:
        (cx, cy), h = self._centre, self.half
        placed = []
        for x, y in points:
            x *= self._x_scale
            placed.append(
                (cx + h * (x * self._cos - y * self._sin), cy + h * (x * self._sin + y * self._cos))
            )
        return placed

    def _clip(self, placed: Sequence[Point], margin: float = 0.0) -> _Box | None:
        xs, ys = [p[0] for p in placed], [p[1] for p in placed]
        left, top = max(math.floor(min(xs) - margin), 0), max(math.floor(min(ys) - margin), 0)
        right = min(math.ceil(max(xs) + margin) + 1, self.canvas.width)
        bottom = min(math.ceil(max(ys) + margin) + 1, self.canvas.height)
        return _Box(left, top, right, bottom) if right > left and bottom > top else None

    def _tinted(self, colour: RGB) -> RGB:
        return tuple(c * t // 255 for c, t in zip(colour, self._tint, strict=True))  # type: ignore[return-value]

    def _surface(self, box: _Box, look: Look, frame: Frame | None) -> Image.Image:
        """The material, unshaded, over the whole box."""
        colours = tuple(
            tuple(round(c / _PLAIN_SHADE) for c in self._tinted(colour))
            for colour in (look.base, look.second, look.third)
        )
        f = frame or Frame(self.variant * 0.7, self.variant * 0.3)
        (cx, cy), h, s = self._centre, self.half, self._x_scale
        to_frame = np.array(
            [
                [self._cos / (h * s), self._sin / (h * s), 0.0],
                [-self._sin / h, self._cos / h, 0.0],
            ]
        )
        to_frame[:, 2] = -to_frame[:, :2] @ (cx - box.left, cy - box.top) - (f.x, f.y)
        cos, sin = (
            (1.0, 0.0)
            if not f.turn
            else (math.cos(math.radians(f.turn)), math.sin(math.radians(f.turn)))
        )
        turn = np.array([[cos / f.width, sin / f.width], [-sin / f.height, cos / f.height]])
        tiles = turn @ to_frame
        tiles[:, 2] += 0.5
        place = tuple(float(v) for v in tiles.reshape(-1))
        return fill(material(look.material), colours, box.size, place)  # type: ignore[arg-type]

    def _shade(self, placed: Sequence[Point], box: _Box, look: Look) -> Image.Image:
        """Light and shade of the rounded part, as an RGB image to multiply with."""
        radius = max(look.soft * self.half, 1.0)
        k = max(1.0, radius / 4)
        blurred, pad = _blurred(placed, box, radius, k)
        width, height = (math.ceil(side / k) for side in box.size)
        dx, dy = (round(-c * radius * 0.75 / k) for c in _LIGHT)

        def moved(x: int, y: int) -> Image.Image:
            return blurred.crop((pad + x, pad + y, pad + x + width, pad + y + height))

        away, near = _shade_tables(look.dark)
        shade = ImageChops.multiply(moved(dx, dy).point(away), moved(-dx, -dy).point(near))
        if k > 1:
            part = (0.0, 0.0, box.size[0] / k, box.size[1] / k)
            shade = shade.resize(box.size, Image.Resampling.BILINEAR, box=part)
        return Image.merge("RGB", (shade, shade, shade))

    def _outline(self, placed: Sequence[Point], base: RGB, line: float) -> None:
        width = line * self.half * 2
        alpha = round(235 * min(1.0, width))
        ink = self._tinted(mix(base, INK, 0.72))
        ring = [*placed, placed[0], placed[1]]
        self._ink.line(ring, fill=(*ink, alpha), width=max(1, round(width)), joint="curve")
        self._body_ink.line(ring, fill=255, width=max(1, round(width)))

    def _cast(self, placed: Sequence[Point], distance: float) -> None:
        reach = distance * self.half
        moved = [(x - _LIGHT[0] * reach, y - _LIGHT[1] * reach) for x, y in placed]
        box = self._clip(moved, reach)
        if box is None:
            return
        radius = max(reach * 0.5, 1.0)
        k = max(1.0, radius / 4)
        blurred, pad = _blurred(moved, box, radius, k)
        width, height = (math.ceil(side / k) for side in box.size)
        shadow = blurred.crop((pad, pad, pad + width, pad + height))
        if k > 1:
            part = (0.0, 0.0, box.size[0] / k, box.size[1] / k)
            shadow = shadow.resize(box.size, Image.Resampling.BILINEAR, box=part)
        body = self._body.crop((box.left, box.top, box.right, box.bottom))
        shadow = ImageChops.multiply(shadow, body).point(_HALF)
        self.canvas.image.paste((16, 12, 30), (box.left, box.top), shadow)


@lru_cache(maxsize=64)
def _shade_tables(dark: float) -> tuple[list[int], list[int]]:
    """What is left of the light by how much of the surroundings towards, and away from, the
    light's far side the part covers."""
    t = np.linspace(0, 1, 256)
    away = dark + (1 - dark) * np.minimum(t * 1.25, 1.0) ** 0.8
    near = _PLAIN_SHADE + (1 - _PLAIN_SHADE) * np.clip((1 - t) * 1.6, 0, 1)
    return np.rint(255 * away).astype(int).tolist(), np.rint(255 * near).astype(int).tolist()


def _mask(placed: Sequence[Point], box: _Box) -> Image.Image:
    """How much of each sample the polygon covers."""
    k = 2 if max(box.size) <= _FINE_MASK else 1
    mask = Image.new("L", (box.size[0] * k, box.size[1] * k))
    points = [((x - box.left) * k, (y - box.top) * k) for x, y in placed]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask.reduce(k) if k > 1 else mask


def _blurred(
    placed: Sequence[Point], box: _Box, radius: float, k: float
) -> tuple[Image.Image, int]:
    """The polygon, blurred, at 1 / `k` of the samples, with a margin of the given width."""
    pad = math.ceil(2.5 * radius / k) + 1
    width, height = (math.ceil(side / k) + 2 * pad for side in box.size)
    small = Image.new("L", (width, height))
    points = [((x - box.left) / k + pad, (y - box.top) / k + pad) for x, y in placed]
    ImageDraw.Draw(small).polygon(points, fill=255)
    blur = ImageFilter.BoxBlur(radius / k * 0.7)
    return small.filter(blur).filter(blur), pad


def oval_points(
    at: Point,
    radii: tuple[float, float],
    turn: float = 0.0,
    arc: tuple[float, float] = (0.0, 360.0),
) -> list[Point]:
    """The corners of an ellipse, or of the segment between two angles in degrees."""
    start, end = map(math.radians, arc)
    whole = arc[1] - arc[0] >= 360
    count = 72 if whole else 48
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points = []
    for k in range(count):
        angle = start + (end - start) * k / (count if whole else count - 1)
        u, v = radii[0] * math.cos(angle), radii[1] * math.sin(angle)
        points.append((at[0] + u * cos - v * sin, at[1] + u * sin + v * cos))
    return points


def path(points: str) -> list[Point]:
    """Points written as in SVG: "x,y x,y"."""
    return [(float(x), float(y)) for x, y in (p.split(",") for p in points.split())]


def curve(points: Sequence[Point], steps: int = 8, closed: bool = True) -> list[Point]:
    """A smooth line through `points` (Catmull-Rom)."""
    p = np.asarray(points, float)
    n = len(p)
    out: list[Point] = []
    for k in range(n if closed else n - 1):
        around = [k - 1, k, k + 1, k + 2]
        picked = [p[i % n] if closed else p[min(max(i, 0), n - 1)] for i in around]
        a, b, c, d = picked
        for t in np.arange(steps) / steps:
            q = 0.5 * (
                2 * b
                + (c - a) * t
                + (2 * a - 5 * b + 4 * c - d) * t**2
                + (3 * b - a - 3 * c + d) * t**3
            )
            out.append((float(q[0]), float(q[1])))
    return out


def fringed(
    points: Sequence[Point], rng: np.random.Generator, pitch: float, depth: float
) -> list[Point]:
    """The outline with small tips, about `pitch` apart and up to `depth` long."""
    out: list[Point] = []
    n = len(points)
    area = sum(points[k - 1][0] * points[k][1] - points[k][0] * points[k - 1][1] for k in range(n))
    side = 1.0 if area > 0 else -1.0
    for k in range(n):
        (ax, ay), (bx, by) = points[k], points[(k + 1) % n]
        long = math.hypot(bx - ax, by - ay)
        count = max(1, round(long / pitch))
        nx, ny = side * (by - ay) / (long or 1), -side * (bx - ax) / (long or 1)
        for j in range(count):
            t, mid = j / count, (j + 0.5 + rng.uniform(-0.25, 0.25)) / count
            high = depth * rng.uniform(0.25, 1.0)
            out.append((ax + (bx - ax) * t, ay + (by - ay) * t))
            out.append((ax + (bx - ax) * mid + nx * high, ay + (by - ay) * mid + ny * high))
    return out
