"""Periodic textures: weights of three colours per texel, with a pyramid of reductions.

A texture does not hold colours but how much of a part's base, second and third colour each texel
shows, so that one texture serves every colour, and its reductions are those of the final image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import fft

from lib_hires.standalone.world.description import RGB

TEXELS = 1024  # the side of the finest level
_UNIT = 128  # the texel value of weight 1

Array = np.ndarray
Affine = tuple[float, float, float, float, float, float]  # of a pixel: tiles = (ax+by+c, dx+ey+f)


@dataclass(frozen=True, eq=False)
class Texture:
    """`levels`: (n, n, 3) uint8 weights with n = TEXELS, TEXELS / 2, ..., 4."""

    levels: tuple[Array, ...]

    @classmethod
    def of(cls, base: Array, second: Array | float = 0.0, third: Array | float = 0.0) -> Texture:
        """The texture of float weights (n, n); 1 is the plain colour."""
        planes = [np.broadcast_to(np.asarray(w, np.float32), base.shape) for w in (base, second)]
        planes.append(np.broadcast_to(np.asarray(third, np.float32), base.shape))
        level = np.clip(np.stack(planes, -1) * _UNIT, 0, 255).astype(np.float32)
        levels = [level]
        while levels[-1].shape[0] > 4:
            n = levels[-1].shape[0] // 2
            levels.append(levels[-1].reshape(n, 2, n, 2, 3).mean((1, 3)))
        return cls(tuple(np.rint(level).astype(np.uint8) for level in levels))

    def level_of(self, texels_per_pixel: float) -> int:
        """The level that shows about one texel a pixel."""
        level = round(math.log2(max(texels_per_pixel, 1e-6)))
        return min(max(level, 0), len(self.levels) - 1)

    def coloured(self, level: int, colours: tuple[RGB, RGB, RGB]) -> Array:
        """A level in colours, as (n, n) uint32 of the bytes R, G, B, 255."""
        return (_coloured_fine if level == 0 else _coloured)(self, level, colours)


def _colour(texture: Texture, level: int, colours: tuple[RGB, RGB, RGB]) -> Array:
    weights = texture.levels[level]
    n = weights.shape[0]
    matrix = np.zeros((3, 4), np.float32)
    matrix[:, :3] = np.asarray(colours, np.float32) / _UNIT
    values = weights.reshape(-1, 3).astype(np.float32) @ matrix
    values += np.float32((0.5, 0.5, 0.5, 255))
    packed = np.minimum(values, 255, out=values).astype(np.uint8)
    return packed.view(np.uint32).reshape(n, n)


_coloured = lru_cache(maxsize=256)(_colour)  # at most 1 MiB each
_coloured_fine = lru_cache(maxsize=24)(_colour)  # 4 MiB each


def fill(
    texture: Texture, colours: tuple[RGB, RGB, RGB], size: tuple[int, int], place: Affine
) -> Image.Image:
    """A (width, height) image of the repeated texture. `place` gives the tiles of a pixel."""
    a, b, c, d, e, f = place
    scale = math.sqrt(abs(a * e - b * d)) * TEXELS
    level = texture.level_of(scale)
    source = texture.coloured(level, colours)
    n = source.shape[0]
    fine = scale < 0.7
    if b == 0 and d == 0 and not fine:
        columns = np.floor((a * (np.arange(size[0]) + 0.5) + c) * n).astype(np.int64) % n
        rows = np.floor((e * (np.arange(size[1]) + 0.5) + f) * n).astype(np.int64) % n
        return as_image(source.take(rows, 0).take(columns, 1))
    corners_x = [a * x + b * y + c for x in (0, size[0]) for y in (0, size[1])]
    corners_y = [d * x + e * y + f for x in (0, size[0]) for y in (0, size[1])]
    left, top = math.floor(min(corners_x) * n) - 2, math.floor(min(corners_y) * n) - 2
    right, bottom = math.ceil(max(corners_x) * n) + 2, math.ceil(max(corners_y) * n) + 2
    patch = source.take(np.arange(top, bottom) % n, 0).take(np.arange(left, right) % n, 1)
    if b == 0 and d == 0:
        return _magnified(patch, size, (a * n, c * n - left), (e * n, f * n - top))
    affine = (a * n, b * n, c * n - left, d * n, e * n, f * n - top)
    how = Image.Resampling.BILINEAR if fine else Image.Resampling.NEAREST
    return as_image(patch).transform(size, Image.Transform.AFFINE, affine, how)


def _magnified(
    patch: Array, size: tuple[int, int], x: tuple[float, float], y: tuple[float, float]
) -> Image.Image:
    """The patch between its texels x[1] + x[0] * (0 ... width) and likewise in y."""
    (a, c), (e, f) = x, y
    if a < 0:
        patch, a, c = patch[:, ::-1], -a, patch.shape[1] - c
    if e < 0:
        patch, e, f = patch[::-1], -e, patch.shape[0] - f
    box = (c, f, c + a * size[0], f + e * size[1])
    return as_image(np.ascontiguousarray(patch)).resize(size, Image.Resampling.BICUBIC, box=box)


def as_image(packed: Array) -> Image.Image:
    """The RGB image of (h, w) uint32 values of the bytes R, G, B, 255."""
    height, width = packed.shape
    return Image.frombytes("RGB", (width, height), packed.tobytes(), "raw", "RGBX")


# --- what textures are made of --------------------------------------------------------------------


def grid() -> tuple[Array, Array]:
    """x and y of each texel in [0, 1), (1, n) and (n, 1)."""
    line = ((np.arange(TEXELS) + 0.5) / TEXELS).astype(np.float32)
    return line[None, :], line[:, None]


def noise(
    seed: int, low: float, high: float, stretch: tuple[float, float] = (1.0, 1.0), fall: float = 1.0
) -> Array:
    """Periodic noise of mean 0 and deviation 1, of `low` to `high` cycles a tile.

    `stretch`: how far the structures run along x and y; `fall`: amplitude ~ frequency^-fall.
    """
    spectrum = _white_spectrum(seed % 3)
    fy = fft.fftfreq(TEXELS, 1 / TEXELS).astype(np.float32)[:, None] * stretch[1]
    fx = fft.rfftfreq(TEXELS, 1 / TEXELS).astype(np.float32)[None, :] * stretch[0]
    f = np.hypot(fx, fy)
    band = 1 / (1 + (low / np.maximum(f, 1e-3)) ** 6) / (1 + (f / high) ** 6)
    field = fft.irfft2(spectrum * band * np.maximum(f, 1.0) ** (-fall), s=(TEXELS, TEXELS))
    field -= field.mean()
    field = np.roll(field, (seed * 389 % TEXELS, seed * 613 % TEXELS), (0, 1))
    return (field / field.std()).astype(np.float32)


@lru_cache(maxsize=3)
def _white_spectrum(seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return fft.rfft2(rng.standard_normal((TEXELS, TEXELS), dtype=np.float32))


def step(low: float, high: float, x: Array) -> Array:
    """Smoothstep: 0 below `low`, 1 above `high` (or the other way round)."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def chance(i: Array, j: Array, seed: int) -> Array:
    """One number in [0, 1) for each pair of integers."""
    mixed = (i.astype(np.int64) * 73856093) ^ (j.astype(np.int64) * 19349663) ^ (seed * 83492791)
    mixed = (mixed * 2654435761) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 2246822519) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 13)) / 2.0**32 % 1.0).astype(np.float32)


@dataclass(frozen=True)
class Cells:
    """Courses of cells, each second one shifted by a half. `u`, `v` in [0, 1) within the cell."""

    u: Array
    v: Array
    shade: Array  # one number a cell
    other: Array  # a second one


def courses(rows: int, columns: int, seed: int, shift: float = 0.5, wobble: float = 0.0) -> Cells:
    x, y = grid()
    if wobble:
        y = y + wobble * noise(seed + 90, 1, 12)
        x = x + wobble * noise(seed + 91, 1, 12)
    v = np.broadcast_to(y * rows, (TEXELS, TEXELS))
    row = np.floor(v)
    u = x * columns + (row % 2) * shift
    column = np.floor(u)
    i, j = column % columns, row % rows
    return Cells(u - column, v - row, chance(i, j, seed), chance(i, j, seed + 1))


@dataclass(frozen=True)
class Scales:
    """Overlapping rounded plates, each course over the one below. `dx` in [-1, 1] across the
    plate, `dy` from 0 at its root to 1 at its tip, `edge` from 0 at the rim to 1 inside."""

    dx: Array
    dy: Array
    edge: Array
    shade: Array


def scales(rows: int, columns: int, seed: int, length: float = 2.0) -> Scales:
    """`rows` (even) courses of plates that hang down, `length` courses long."""
    x, y = grid()
    shape = (TEXELS, TEXELS)
    dx, dy, edge, shade = (np.zeros(shape, np.float32) for _ in range(4))
    free = np.ones(shape, bool)
    base = np.floor(y * rows)
    for back in range(math.ceil(length), -1, -1):  # the course above lies over the one below
        row = base - back
        centre = (np.floor(x * columns - 0.5 * (row % 2)) + 0.5 + 0.5 * (row % 2)) / columns
        du = (x - centre) * columns * 2 / 1.06
        dv = (y * rows - row) / length
        bend = np.clip(dv, 0.45, 1.2) - 0.45
        inside = 1 - np.sqrt(du * du + (bend / 0.55) ** 2)
        i = np.floor(x * columns - 0.5 * (row % 2)) % columns
        use = free & (inside > 0)
        for target, value in (
            (dx, du),
            (dy, dv),
            (edge, inside),
            (shade, chance(i, row % rows, seed)),
        ):
            np.copyto(target, np.broadcast_to(value, shape), where=use)
        free &= ~use
    return Scales(dx, dy, edge, shade)


def stamped(
    count: int,
    seed: int,
    stamp: Callable[[ImageDraw.ImageDraw, float, float, np.random.Generator, float], None],
    reach: float,
    ground: int = 90,
) -> Array:
    """`count` small drawings one over the other on a periodic tile, values 0 to 1.

    `stamp(ink, x, y, rng, depth)` draws one at (x, y) in pixels of a tile of 2 x TEXELS; it
    reaches at most `reach` tiles; `depth` runs from 0 (lowest) to 1.
    """
    side = TEXELS * 2
    tile = Image.new("L", (side, side), ground)
    ink = ImageDraw.Draw(tile)
    rng = np.random.default_rng(seed)
    for k, (x, y) in enumerate(rng.random((count, 2))):
        state = int(rng.integers(1 << 30))
        for ox in _wraps(x, reach):
            for oy in _wraps(y, reach):
                stamp(
                    ink, (x + ox) * side, (y + oy) * side, np.random.default_rng(state), k / count
                )
    return np.asarray(tile.reduce(2), np.float32) / 255


def _wraps(x: float, reach: float) -> list[int]:
    return [0] + [1] * int(x < reach) + [-1] * int(x > 1 - reach)
