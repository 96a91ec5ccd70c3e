"""What surfaces are made of: one periodic texture each, made once a process from fixed seeds.

The weights of a material are those of (base, second, third): the part's own colour, what lies
between or under it (mortar, gaps, shade) and its lights.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import ImageDraw

from lib_hires.standalone.world.textures import (
    TEXELS,
    Array,
    Cells,
    Texture,
    chance,
    courses,
    grid,
    noise,
    scales,
    stamped,
    step,
)


@cache
def material(name: str) -> Texture:
    """The texture called `name`, one of MATERIALS."""
    return MATERIALS[name]()


def _edges(cells: Cells, wide: float, high: float) -> tuple[Array, Array]:
    """Distance to the cell's nearest edge in units of the joint (1 where the cell begins), and the
    light of its bevel: above 0 at the upper and left edge, below 0 at the lower and right."""
    du, dv = np.minimum(cells.u, 1 - cells.u) / wide, np.minimum(cells.v, 1 - cells.v) / high
    inside = np.minimum(du, dv)
    lit = step(2.4, 1.0, cells.u / wide) + step(2.4, 1.0, cells.v / high)
    dark = step(2.4, 1.0, (1 - cells.u) / wide) + step(2.4, 1.0, (1 - cells.v) / high)
    return inside, np.clip(lit, 0, 1) - np.clip(dark, 0, 1)


def bricks() -> Texture:
    cells = courses(14, 6, 11, wobble=0.0012)
    inside, bevel = _edges(cells, 0.045, 0.10)
    stone = step(0.8, 1.2, inside + 0.25 * noise(12, 20, 160))
    pits = step(1.5, 2.3, noise(13, 60, 260))
    scratch = step(1.4, 2.2, noise(14, 30, 200, (3, 0.6)))
    shade = 0.80 + 0.36 * cells.shade + 0.08 * noise(15, 6, 60) + 0.05 * noise(16, 100, 400, fall=0)
    shade = shade * (1 - 0.45 * pits) * (1 - 0.2 * scratch) + 0.16 * bevel * stone
    mortar = (
        0.92
        + 0.10 * noise(17, 60, 400, fall=0.3)
        - 0.25 * step(0.9, 0.3, cells.v) * (cells.v < 0.12)
    )
    return Texture.of(stone * shade, (1 - stone) * mortar, stone * 0.05 * (cells.other > 0.8))


def shingles() -> Texture:
    s = scales(14, 9, 21, length=2.2)
    fibre = noise(22, 24, 360, (0.5, 12), fall=0.4)
    crack = step(1.7, 2.3, noise(23, 20, 200, (0.4, 8), fall=0.3))
    shade = 0.72 + 0.36 * s.shade + 0.30 * (s.dy - 0.75) + 0.09 * fibre + 0.04 * noise(24, 90, 400)
    rim = step(0.0, 0.10, s.edge)
    light = step(0.22, 0.10, s.edge) * rim
    shadow = step(0.5, 0.75, s.dy)
    shade = shade * (0.45 + 0.55 * rim) * (0.62 + 0.38 * shadow) * (1 - 0.4 * crack) + 0.14 * light
    return Texture.of(shade, 0.0, 0.06 * light)


def fish_scales() -> Texture:
    s = scales(20, 14, 31, length=2.0)
    rim = step(0.0, 0.16, s.edge)
    rays = np.sin(np.arctan2(s.dx, s.dy + 0.15) * 34 + 6 * s.shade)
    rings = np.sin(s.edge * 46)
    body = 0.80 + 0.22 * s.shade + 0.09 * rays * step(0.1, 0.4, s.dy) + 0.05 * rings
    glint = step(0.34, 0.18, s.edge) * rim * step(0.5, -0.6, s.dx)
    return Texture.of(
        1.22 * body * (0.50 + 0.50 * rim) * (0.8 + 0.2 * step(0.4, 0.75, s.dy)),
        0.0,
        0.20 * glint + 0.04 * noise(33, 100, 400, fall=0) * rim,
    )


def plumage() -> Texture:
    s = scales(16, 12, 41, length=2.8)
    rim = step(0.0, 0.14, s.edge + 0.05 * np.sin(40 * s.dx + 30 * s.dy))
    barbs = np.sin(np.abs(s.dx) * 20 - s.dy * 90 + 5 * s.shade)
    quill = step(0.10, 0.03, np.abs(s.dx)) * step(0.98, 0.85, s.dy)
    body = 0.78 + 0.24 * s.shade + 0.12 * barbs + 0.2 * (s.dy - 0.7)
    return Texture.of(
        1.15 * body * (0.55 + 0.45 * rim), 0.0, 0.20 * quill + 0.10 * rim * step(0.3, 0.1, s.edge)
    )


def feather() -> Texture:
    """One long feather: the quill runs along y at x = 0.5, tip at y = 1."""
    x, y = grid()
    dx = (x - 0.5) * 2
    barbs = np.sin(np.abs(dx) * 60 - y * 230 + 2 * noise(51, 2, 8))
    fine = np.sin(np.abs(dx) * 150 - y * 700)
    splits = step(1.5, 1.9, noise(52, 4, 30, (3, 0.5)))
    body = 1.08 + 0.14 * barbs + 0.06 * fine - 0.3 * splits - 0.25 * step(0.3, 1.0, np.abs(dx))
    quill = step(0.10, 0.04, np.abs(dx))
    return Texture.of(body * (1 - 0.4 * quill), 0.0, 0.28 * quill + 0 * y)


def boards() -> Texture:
    """Boards along x with grain, gaps, and nails at their ends."""
    cells = courses(8, 1, 61, shift=0.43)
    _, y = grid()
    warp = y + 0.006 * noise(62, 1, 10, (4, 1)) + 0.3 * cells.shade
    rings = np.sin(2 * np.pi * (warp * 70 + 1.3 * noise(63, 1, 14, (5, 1))))
    fibre = noise(64, 40, 420, (14, 0.6), fall=0.3)
    shade = 0.80 + 0.30 * cells.shade + 0.10 * rings + 0.08 * fibre
    gap = np.minimum(
        step(0.02, 0.06, np.minimum(cells.v, 1 - cells.v)),
        step(0.002, 0.006, np.minimum(cells.u, 1 - cells.u)),
    )
    near = np.minimum(np.abs(cells.u - 0.02), np.abs(cells.u - 0.98))
    beside = np.minimum(np.abs(cells.u - 0.52), 9)
    du = np.minimum(near, beside) * 8
    dv = np.minimum(np.abs(cells.v - 0.25), np.abs(cells.v - 0.75))
    head = np.hypot(du, dv)
    nail = step(0.075, 0.055, head)
    glint = step(0.04, 0.02, np.hypot(du, dv + 0.02))
    lip = step(0.14, 0.07, cells.v) * gap
    shade = (shade + 0.15 * lip) * (0.30 + 0.70 * gap) * (1 - 0.75 * nail)
    return Texture.of(shade, 0.0, 0.45 * glint * nail)


def bark() -> Texture:
    ridges = noise(71, 8, 70, (0.8, 7), fall=0.6)
    fine = noise(72, 60, 420, (0.6, 4), fall=0.3)
    cracks = step(0.5, 1.1, noise(73, 6, 60, (0.7, 5), fall=0.5))
    return Texture.of(
        (0.95 + 0.22 * ridges + 0.12 * fine) * (1 - 0.55 * cracks),
        0.0,
        0.05 * step(0.8, 1.6, ridges),
    )


def _leaf(
    ink: ImageDraw.ImageDraw, x: float, y: float, rng: np.random.Generator, depth: float
) -> None:
    angle, size = rng.uniform(0, 2 * math.pi), TEXELS * rng.uniform(0.045, 0.075)
    cos, sin = math.cos(angle), math.sin(angle)
    tone = 60 + 70 * depth + rng.uniform(-26, 26)

    def at(u: float, v: float) -> tuple[float, float]:
        return x + size * (u * cos - v * sin), y + size * (u * sin + v * cos)

    side = [(t, 0.36 * math.sin(math.pi * (t * 0.5 + 0.5) ** 0.8)) for t in np.linspace(-1, 1, 9)]
    ink.polygon(
        [at(u * 1.06, v * 1.2) for u, v in side]
        + [at(u * 1.06, -v * 1.2) for u, v in reversed(side)],
        fill=int(tone * 0.45),
    )
    ink.polygon([at(u, v) for u, v in side] + [at(1, 0), at(-1, 0)], fill=int(tone))
    ink.polygon([at(u, -v) for u, v in side] + [at(1, 0), at(-1, 0)], fill=int(tone * 1.16))
    ink.line([at(-1.3, 0), at(0.9, 0)], fill=int(min(tone * 1.5, 255)), width=5)
    for t in (-0.6, -0.3, 0.0, 0.3, 0.55):
        for sign in (-1, 1):
            ink.line([at(t, 0), at(t + 0.26, sign * 0.25)], fill=int(tone * 1.34), width=3)


def leaves() -> Texture:
    return Texture.of(stamped(1500, 81, _leaf, 0.06, 40) * 2.5)


def _needles(
    ink: ImageDraw.ImageDraw, x: float, y: float, rng: np.random.Generator, depth: float
) -> None:
    angle, size = rng.uniform(0.1 * math.pi, 0.9 * math.pi), TEXELS * rng.uniform(0.09, 0.13)
    cos, sin = math.cos(angle), math.sin(angle)
    tone = 48 + 74 * depth + rng.uniform(-22, 22)
    ink.line([(x, y), (x + size * cos, y + size * sin)], fill=int(tone * 0.6), width=9)
    for t in np.linspace(0.05, 1.0, 15):
        for sign in (-1, 1):
            a = angle + sign * rng.uniform(0.5, 0.75)
            long = size * 0.42 * (1.15 - 0.5 * t)
            px, py = x + size * t * cos, y + size * t * sin
            end = (px + long * math.cos(a), py + long * math.sin(a))
            ink.line([(px, py), end], fill=int(tone * rng.uniform(0.85, 1.35)), width=6)


def needles() -> Texture:
    return Texture.of(stamped(900, 91, _needles, 0.12, 40) * 2.9)


def petal() -> Texture:
    """One petal: the root at (0.5, 1), the tip at (0.5, 0); veins fan out from the root."""
    x, y = grid()
    angle = np.arctan2(x - 0.5, 1.25 - y)
    radius = np.hypot(x - 0.5, 1.25 - y)
    bend = 0.004 * noise(101, 2, 14)
    vein = np.abs(np.sin((angle + bend) * 42))
    small = np.abs(np.sin((angle + 2 * bend) * 126 + 9 * radius))
    cross = np.abs(np.sin(radius * 90 + 3 * noise(102, 2, 20)))
    body = 1.10 + 0.04 * noise(103, 2, 12) - 0.05 * noise(104, 90, 400, fall=0)
    body = body - 0.34 * step(0.26, 0.0, vein) - 0.16 * step(0.30, 0.0, small)
    body = body - 0.07 * step(0.2, 0.0, cross) - 0.25 * step(0.55, 0.95, y)
    return Texture.of(body + 0 * x, 0.0, 0.10 * step(0.25, 0.5, vein) * step(0.5, 0.0, y))


def seeds() -> Texture:
    """The florets of a flower's heart, in two families of spirals about (0.5, 0.5)."""
    x, y = grid()
    angle, radius = np.arctan2(y - 0.5, x - 0.5), np.hypot(x - 0.5, y - 0.5) + 1e-3
    swirl = np.log(radius) * 8
    a, b = np.sin(angle * 21 + swirl * 1.6), np.sin(angle * 21 - swirl * 1.6)
    bump = a * b
    body = 0.75 + 0.35 * step(-0.5, 0.6, bump) + 0.08 * noise(111, 60, 400, fall=0.3)
    return Texture.of(body, 0.0, 0.30 * step(0.55, 0.9, bump) * step(-0.3, 0.5, a))


def hair() -> Texture:
    """Strands along y."""
    strand = noise(121, 30, 420, (0.35, 26), fall=0.35)
    lock = noise(122, 4, 26, (0.8, 9), fall=0.6)
    dark = step(0.9, 1.9, noise(123, 20, 300, (0.3, 22), fall=0.2))
    shine = step(0.9, 2.0, strand + 0.6 * lock)
    return Texture.of((0.92 + 0.20 * strand + 0.16 * lock) * (1 - 0.5 * dark), 0.0, 0.26 * shine)


def skin() -> Texture:
    pores = step(1.0, 2.0, noise(131, 50, 130, fall=0))
    fine = noise(132, 60, 360, (1.6, 0.8), fall=0.2)
    creases = step(0.16, 0.0, np.abs(noise(133, 18, 60)))
    blots = noise(134, 3, 16)
    freckles = step(2.0, 2.5, noise(135, 20, 60, fall=0))
    body = 0.99 + 0.012 * blots + 0.035 * fine - 0.16 * pores - 0.07 * creases - 0.18 * freckles
    return Texture.of(body, 0.0, 0.05 * step(1.2, 2.2, noise(136, 50, 200, fall=0)))


def paint() -> Texture:
    """Lacquer with metal flakes and hair scratches."""
    flakes = noise(141, 120, 440, fall=0)
    coarse = step(1.9, 2.8, noise(142, 60, 240, fall=0))
    scratch = step(2.1, 2.7, noise(143, 40, 300, (16, 0.5), fall=0.2))
    body = 0.98 + 0.06 * flakes + 0.03 * noise(144, 3, 30) - 0.16 * step(1.6, 2.4, -flakes)
    return Texture.of(body, 0.0, 0.22 * coarse + 0.22 * scratch)


def _rivets(cells: Cells, columns: int, rows: int, each: int) -> tuple[Array, Array]:
    """Rivets along the edges of rows x columns cells: how much of a head and of its glint shows."""
    x, y = grid()
    size = 0.0062
    heads = np.zeros((TEXELS, TEXELS), np.float32)
    glints = np.zeros((TEXELS, TEXELS), np.float32)
    inset = 0.016
    px, py = cells.u / columns, cells.v / rows
    wide, high = 1 / columns, 1 / rows
    along_x = (px * columns * each) % 1 / (columns * each) - 0.5 / (columns * each)
    along_y = (py * rows * each) % 1 / (rows * each) - 0.5 / (rows * each)
    for dx, dy in (
        (along_x, py - inset),
        (along_x, py - high + inset),
        (px - inset, along_y),
        (px - wide + inset, along_y),
    ):
        heads = np.maximum(heads, step(size * 1.15, size * 0.85, np.hypot(dx, dy)))
        off = np.hypot(dx + 0.3 * size, dy + 0.3 * size)
        glints = np.maximum(glints, step(size * 0.55, size * 0.2, off))
    return heads + 0 * x * y, glints


def panels() -> Texture:
    """Sheets of metal with seams, rivets and brushed lines."""
    cells = courses(4, 3, 151)
    inside, bevel = _edges(cells, 0.016, 0.020)
    sheet = step(0.55, 1.1, inside)
    head, glint = _rivets(cells, 3, 4, 7)
    brushed = noise(152, 60, 440, (20, 0.6), fall=0.2)
    body = 0.88 + 0.16 * cells.shade + 0.06 * brushed + 0.03 * noise(153, 2, 20) + 0.14 * bevel
    body = body * (0.40 + 0.60 * sheet) * (1 - 0.35 * head * (1 - glint))
    return Texture.of(body, 0.0, 0.45 * glint + 0.03 * step(1.5, 2.5, brushed))


def weave() -> Texture:
    """Sailcloth: threads across and along, and seams."""
    x, y = grid()
    i, j = np.floor(x * 96), np.floor(y * 96)
    over = (i + j) % 2
    across = np.sin(np.pi * (y * 96 - j)) ** 0.7
    along = np.sin(np.pi * (x * 96 - i)) ** 0.7
    thread = over * across + (1 - over) * along
    seam = step(0.012, 0.006, np.abs((x * 3) % 1 - 0.5) / 3)
    stitch = seam * (((y * 40) % 1) > 0.4) * step(0.004, 0.002, np.abs((x * 3) % 1 - 0.5) / 3)
    tone = (
        0.74
        + 0.26 * thread
        + 0.06 * chance(i + 0 * j, 0 * i + j * 0, 161)
        + 0.04 * noise(162, 2, 30)
    )
    return Texture.of(tone * (1 - 0.14 * seam) * (1 - 0.4 * stitch))


def cap() -> Texture:
    """A mushroom's skin: fibres from the middle of the tile outward, and small warts."""
    x, y = grid()
    fibre = noise(171, 24, 420, (0.7, 5), fall=0.3)
    cells = noise(172, 20, 70, fall=0)
    warts = step(1.7, 2.1, cells)
    rim = step(1.4, 1.7, cells) - warts
    body = (0.95 + 0.10 * fibre + 0.05 * noise(173, 2, 16)) * (1 - 0.45 * rim)
    return Texture.of(
        body * (1 - warts) + 0 * (x + y), warts * (0.9 + 0.1 * fibre), 0.05 * step(1.4, 2.4, fibre)
    )


def fibres() -> Texture:
    """A pale stem: fibres along y."""
    strand = noise(181, 20, 400, (0.5, 14), fall=0.4)
    dark = step(1.2, 2.2, noise(182, 10, 160, (0.5, 12), fall=0.3))
    return Texture.of((0.95 + 0.12 * strand) * (1 - 0.4 * dark), 0.0, 0.08 * step(1.2, 2.2, strand))


def gills() -> Texture:
    x, y = grid()
    fold = np.abs(np.sin(np.pi * (x * 44 + 0.2 * noise(191, 2, 12))))
    return Texture.of(0.55 + 0.5 * fold + 0.06 * noise(192, 60, 400, (0.5, 4)) + 0 * y)


def rubber() -> Texture:
    x, y = grid()
    block = np.sin(2 * np.pi * 24 * x) * np.sin(2 * np.pi * 24 * y)
    return Texture.of(0.9 + 0.35 * step(-0.2, 0.3, block) + 0.08 * noise(201, 60, 400, fall=0.2))


def glass() -> Texture:
    """A pane: slanting reflections, dust and hair scratches."""
    x, y = grid()
    band = step(0.3, 1.0, np.sin(2 * np.pi * (2 * x + y) + 0.12 * noise(211, 1, 4)))
    dust = step(2.0, 2.8, noise(212, 80, 420, fall=0))
    scratch = step(2.3, 2.8, noise(213, 20, 200, (10, 0.4), fall=0.2))
    return Texture.of(
        0.84 + 0.05 * noise(214, 2, 30) + 0 * x, 0.0, 0.3 * band + 0.25 * dust + 0.3 * scratch
    )


def plain() -> Texture:
    return Texture.of(1 + 0.03 * noise(221, 4, 300, fall=0.5))


MATERIALS = {
    f.__name__: f
    for f in (
        bricks,
        shingles,
        fish_scales,
        plumage,
        feather,
        boards,
        bark,
        leaves,
        needles,
        petal,
        seeds,
        hair,
        skin,
        paint,
        panels,
        weave,
        cap,
        fibres,
        gills,
        rubber,
        glass,
        plain,
    )
}
