"""Skies, hills, grounds and the shadows on them."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lib_hires.standalone.world.description import RGB, Scene, Subject
from lib_hires.standalone.world.pen import INK, Canvas, mix
from lib_hires.standalone.world.terrain import terrain
from lib_hires.standalone.world.textures import TEXELS, Array, as_image, fill

SKY_COLOURS: dict[str, tuple[RGB, RGB]] = {  # at the top, at the horizon
    "clear": ((92, 168, 232), (206, 232, 248)),
    "evening": ((88, 72, 138), (252, 188, 142)),
    "night": ((12, 18, 46), (54, 68, 116)),
    "cloudy": ((134, 144, 160), (206, 211, 217)),
}
_CLOUDS: dict[str, tuple[str, RGB]] = {
    "clear": ("cloud", (252, 252, 254)),
    "evening": ("cloud", (255, 206, 178)),
    "night": ("stars", (255, 250, 226)),
    "cloudy": ("overcast", (226, 229, 234)),
}
GROUND_COLOURS: dict[str, tuple[RGB, RGB]] = {  # at the horizon, near
    "grass": ((166, 202, 118), (96, 150, 66)),
    "sand": ((238, 218, 172), (214, 184, 130)),
    "snow": ((232, 239, 248), (204, 216, 234)),
    "water": ((122, 186, 204), (58, 120, 160)),
}
_LIGHT: dict[str, tuple[float, float, float]] = {  # what each sky leaves of the ground's colour
    "clear": (1.0, 1.0, 1.0),
    "evening": (0.94, 0.80, 0.78),
    "night": (0.38, 0.44, 0.60),
    "cloudy": (0.88, 0.89, 0.91),
}
_WOODED: RGB = (70, 116, 92)  # the hills' trees
_SKY_TILE = 1.0  # sides of the scene
_DEPTH = 0.06  # how fast the ground runs away: the distance below the horizon that halves it
_ACROSS, _ALONG = 0.70, 0.20  # tiles of the ground times depth, and times its square


def lit(colour: RGB, sky: str) -> RGB:
    return tuple(round(c * k) for c, k in zip(colour, _LIGHT[sky], strict=True))  # type: ignore[return-value]


def tint(scene: Scene) -> RGB:
    """What the sky leaves of the objects' colours: less than of the ground's."""
    return tuple(round(255 * (0.78 + 0.22 * k)) for k in _LIGHT[scene.sky])  # type: ignore[return-value]


def ground_colours(scene: Scene) -> tuple[RGB, RGB]:
    far, near = GROUND_COLOURS[scene.ground]
    return lit(far, scene.sky), lit(near, scene.sky)


def draw_backdrop(canvas: Canvas, scene: Scene) -> None:
    split = min(max(round(canvas.place(0, scene.horizon)[1]), 0), canvas.height)
    if split > 0:
        canvas.image.paste(_sky(canvas, scene, split), (0, 0))
        _hills(canvas, scene)
    if split < canvas.height:
        canvas.image.paste(_ground(canvas, scene, split), (0, split))


def _rows(canvas: Canvas, first: int, last: int) -> Array:
    """The scene's y of the canvas' rows."""
    return (np.arange(first, last) + 0.5) / (canvas.zoom * canvas.height) + canvas.top


def _between(top: RGB, bottom: RGB, share: Array) -> Array:
    share = np.clip(share, 0, 1)[:, None]
    return np.asarray(top) * (1 - share) + np.asarray(bottom) * share


def _sky(canvas: Canvas, scene: Scene, rows: int) -> Image.Image:
    """The sky's gradient under clouds or stars; clouds thin out towards the horizon."""
    name, white = _CLOUDS[scene.sky]
    box = (canvas.width, rows)
    y = _rows(canvas, 0, rows)
    sky = _column(_between(*SKY_COLOURS[scene.sky], y / scene.horizon), box)
    tile = _SKY_TILE / min(canvas.zoom, 1.0)  # the sky is too far away to shrink with distance
    a, e = (1 / (canvas.zoom * side * tile) for side in (canvas.width, canvas.height))
    drift = 0.0 if name == "stars" else scene.drift
    c = (canvas.left - drift) / tile + scene.relief * 7.31
    f = canvas.top / tile + scene.relief * 3.17
    planes = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    under, over, glow = fill(terrain(name), planes, box, (a, 0, c, 0, e, f)).split()
    if name != "stars":
        thin = np.clip((scene.horizon - y) / (0.30 * tile), 0.12, 1.0)
        fade = _column(np.repeat(thin[:, None] * 255, 3, 1), box).getchannel(0)
        under = ImageChops.invert(ImageChops.multiply(ImageChops.invert(under), fade))
        over = ImageChops.multiply(over, fade)
    sky = ImageChops.multiply(sky, Image.merge("RGB", (under, under, under)))
    sky = ImageChops.add(sky, _scaled(over, white))
    return ImageChops.add(sky, _scaled(glow, (120, 130, 190))) if name == "stars" else sky


def _scaled(plane: Image.Image, colour: RGB) -> Image.Image:
    return Image.merge("RGB", [plane.point([v * k // 255 for v in range(256)]) for k in colour])


def _column(colours: Array, size: tuple[int, int]) -> Image.Image:
    """An image whose rows have the given colours (rows, 3)."""
    column = np.rint(np.clip(colours, 0, 255)).astype(np.uint8)
    return Image.fromarray(column[:, None, :]).resize(size, Image.Resampling.NEAREST)


def _hills(canvas: Canvas, scene: Scene) -> None:
    """Two ridges, the nearer one wooded."""
    sky, wood = SKY_COLOURS[scene.sky][1], lit(_WOODED, scene.sky)
    phase = 2 * math.pi * scene.relief
    for layer, (rise, share) in enumerate(((0.062, 0.38), (0.030, 0.72))):
        xs = np.linspace(canvas.left, canvas.left + 1 / canvas.zoom, 97)
        waves = np.sin(phase * (layer + 1) + 9 * xs) * np.cos(5.3 * xs + layer)
        fine = 0.0035 * np.sin(61 * xs + phase) + 0.002 * np.sin(149 * xs + 2 * phase)
        ridge = [
            canvas.place(x, scene.horizon - rise - 0.55 * rise * w - f)
            for x, w, f in zip(xs, waves, fine, strict=True)
        ]
        top = max(math.floor(min(p[1] for p in ridge)), 0)
        foot = min(round(canvas.place(0, scene.horizon)[1]), canvas.height)
        if foot <= top:
            continue
        mask = Image.new("L", (canvas.width * 2, (foot - top) * 2))
        base = canvas.place(0, scene.horizon)[1] + 2
        outline = [*ridge, (canvas.width, base), (0, base)]
        ImageDraw.Draw(mask).polygon([(x * 2, (y - top) * 2) for x, y in outline], fill=255)
        tone = mix(sky, wood, share)
        tile = 0.30 + 0.10 * layer
        a, e = (1 / (canvas.zoom * side * tile) for side in (canvas.width, canvas.height))
        start = (canvas.top + top / (canvas.zoom * canvas.height)) / tile
        surface = fill(
            terrain("forest"),
            (tone, INK, tone),
            (canvas.width, foot - top),
            (a, 0, canvas.left / tile + scene.relief, 0, e, start),
        )
        canvas.image.paste(surface, (0, top), mask.reduce(2))


def _ground(canvas: Canvas, scene: Scene, first: int) -> Image.Image:
    """The ground below the horizon, running away in perspective."""
    texture = terrain(scene.ground)
    far, near = ground_colours(scene)
    y = _rows(canvas, first, canvas.height)
    below = np.maximum(y - scene.horizon, 0.0)
    depth = below + _DEPTH
    across = _ACROSS / depth  # tiles a unit of x
    along = _ALONG / depth**2
    texels = np.sqrt(across * along) * TEXELS / (canvas.zoom * min(canvas.width, canvas.height))
    levels = np.array([texture.level_of(float(t)) for t in texels])
    v = -_ALONG / depth + scene.relief * 5.3
    if scene.ground == "water":
        v = v - scene.flow
    x = (np.arange(canvas.width) + 0.5) / (canvas.zoom * canvas.width) + canvas.left - 0.5
    packed = np.empty((len(y), canvas.width), np.uint32)
    for level in np.unique(levels):
        source = texture.coloured(int(level), ((200, 200, 200), INK, (255, 255, 255)))
        n = source.shape[0]
        rows = np.flatnonzero(levels == level)
        line = np.floor(v[rows] * n).astype(np.int32) % n
        column = (
            (across[rows, None] * n).astype(np.float32) * x[None, :].astype(np.float32)
            + np.float32(n * 64.37)
        ).astype(np.int32) % n
        packed[rows] = source.reshape(-1).take(line[:, None] * n + column)
    image = as_image(packed)
    colours = _between(far, near, below / max(1 - scene.horizon, 0.2)) * (128 / 200)
    return _multiplied(image, colours)


def _multiplied(image: Image.Image, rows: Array) -> Image.Image:
    """The image times a column of factors (rows, 3), below 256; 128 stands for 1."""
    values = np.asarray(image).astype(np.uint16)
    factors = np.rint(rows).astype(np.uint16)[:, None, :]
    return Image.fromarray(np.minimum((values * factors) >> 7, 255).astype(np.uint8))


def draw_shadow(canvas: Canvas, scene: Scene, subject: Subject) -> None:
    """A soft dark ellipse on the ground at the subject's foot."""
    half = subject.size * canvas.unit / 2
    cx, cy = canvas.place(subject.x, subject.y)
    cx, cy = cx + 0.10 * half, cy + 0.95 * half
    if cy <= canvas.place(0, scene.horizon)[1]:
        return
    rx, ry = 1.15 * half * subject.stretch, 0.17 * half
    box = (round(cx - rx), round(cy - ry), round(cx + rx), round(cy + ry))
    if box[2] <= max(box[0], 0) or box[3] <= max(box[1], 0) or box[0] >= canvas.width:
        return
    spot = Image.new("L", (128, 32))
    ImageDraw.Draw(spot).ellipse((16, 4, 112, 28), fill=165)
    spot = spot.filter(ImageFilter.GaussianBlur((7, 2.4)))
    shown = (max(box[0], 0), max(box[1], 0), min(box[2], canvas.width), min(box[3], canvas.height))
    if shown[2] <= shown[0] or shown[3] <= shown[1]:
        return
    sx, sy = 128 / (box[2] - box[0]), 32 / (box[3] - box[1])
    part = (
        (shown[0] - box[0]) * sx,
        (shown[1] - box[1]) * sy,
        (shown[2] - box[0]) * sx,
        (shown[3] - box[1]) * sy,
    )
    size = (shown[2] - shown[0], shown[3] - shown[1])
    mask = spot.resize(size, Image.Resampling.BILINEAR, box=part)
    canvas.image.paste(mix(ground_colours(scene)[1], INK, 0.75), shown[:2], mask)


def draw_tufts(canvas: Canvas, scene: Scene, front: Subject | None = None) -> None:
    """Single blades of grass: over the meadow, or before a subject's foot."""
    if scene.ground != "grass":
        return
    number = int(scene.relief * 1e6) + (1 if front else 0)
    rng = np.random.default_rng(number)
    ink = ImageDraw.Draw(canvas.image, "RGBA")
    near = ground_colours(scene)[1]
    for _ in range(34 if front else 260):
        numbers = rng.random(6)
        if front:
            x = front.x + (numbers[0] - 0.5) * 1.05 * front.size * front.stretch
            y = front.y + front.size * (0.485 + 0.03 * numbers[1])
            high = 0.030 * front.size / 0.5
        else:
            x, y = -0.8 + 2.6 * numbers[0], scene.horizon + 0.02 + 1.1 * numbers[1] ** 2
            high = 0.11 * (y - scene.horizon + 0.04)
        _tuft(canvas, ink, (x, y), high * (0.6 + 0.8 * numbers[2]), near, numbers[3:])


def _tuft(
    canvas: Canvas,
    ink: ImageDraw.ImageDraw,
    at: tuple[float, float],
    high: float,
    near: RGB,
    numbers: Array,
) -> None:
    px, py = canvas.place(*at)
    long = high * canvas.unit
    if not (-long < px < canvas.width + long and 0 < py < canvas.height + long) or long < 1.5:
        return
    for k in range(7):
        turn = (k - 3) * 0.22 + (numbers[0] - 0.5) * 0.5
        size = long * (0.6 + 0.4 * ((numbers[1] * 7.3 + k * 0.37) % 1))
        wide = max(0.045 * size, 0.5)
        root = px + (k - 3) * 0.07 * long
        tip = (root + size * math.sin(turn), py - size * math.cos(turn))
        middle = (root + 0.42 * size * math.sin(turn * 0.6), py - 0.5 * size)
        tone = mix(near, INK if (k + int(numbers[2] * 9)) % 2 else (236, 240, 160), 0.25)
        ink.polygon(
            [
                (root - wide, py),
                (middle[0] - wide * 0.8, middle[1]),
                tip,
                (middle[0] + wide * 0.8, middle[1]),
                (root + wide, py),
            ],
            fill=tone,
        )
        if wide > 2:
            ink.line(
                [(root, py), middle, tip],
                fill=(*mix(tone, INK, 0.3), 200),
                width=max(1, round(wide * 0.25)),
            )
