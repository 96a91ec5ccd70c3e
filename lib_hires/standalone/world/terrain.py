"""What skies and grounds are made of: periodic textures as in `materials`."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import ImageDraw

from lib_hires.standalone.world.textures import TEXELS, Texture, grid, noise, stamped, step


@cache
def terrain(name: str) -> Texture:
    """The texture called `name`, one of TERRAIN."""
    return TERRAIN[name]()


def _blade(
    ink: ImageDraw.ImageDraw, x: float, y: float, rng: np.random.Generator, depth: float
) -> None:
    long, wide = TEXELS * rng.uniform(0.07, 0.15), TEXELS * rng.uniform(0.006, 0.011)
    bend = long * rng.uniform(-0.6, 0.6)
    tone = 74 + 46 * depth + rng.uniform(-24, 24)
    left = [(x - wide + bend * t * t, y - long * t) for t in (0.0, 0.4, 0.75)]
    right = [(x + wide * (1 - t) + bend * t * t, y - long * t) for t in (0.75, 0.4, 0.0)]
    tip = (x + bend, y - long)
    ink.polygon([*left, tip, *right], fill=int(tone))
    middle = [(x + bend * t * t, y - long * t) for t in (0.0, 0.4, 0.75, 1.0)]
    ink.polygon([middle[0], middle[1], middle[2], tip, *right], fill=int(tone * 1.22))
    ink.line(middle, fill=int(tone * 0.72), width=3)


def grass() -> Texture:
    blades = stamped(3600, 301, _blade, 0.12, 66) * 2.05
    return Texture.of(blades * (1 + 0.05 * noise(302, 1, 5)))


def _pebble(
    ink: ImageDraw.ImageDraw, x: float, y: float, rng: np.random.Generator, depth: float
) -> None:
    r = TEXELS * min(0.0035 / (rng.random() + 0.05) ** 0.6, 0.02)
    tone = rng.uniform(92, 142)
    ink.ellipse((x - r * 0.9, y - r * 0.5, x + r * 1.4, y + r * 1.1), fill=int(tone * 0.72))
    ink.ellipse((x - r, y - r * 0.8, x + r, y + r * 0.8), fill=int(tone))
    ink.ellipse((x - r * 0.7, y - r * 0.6, x + r * 0.1, y), fill=int(tone * 1.18))


def sand() -> Texture:
    x, y = grid()
    grains = stamped(9000, 311, _pebble, 0.03, 122) * 2.0
    wave = np.sin(2 * np.pi * (7 * y + 0.35 * noise(312, 1, 5) + 0.1 * noise(313, 4, 12)))
    ripple = 0.10 * wave + 0.06 * step(0.4, 1.0, wave)
    return Texture.of(grains * 0.72 + 0.28 + ripple + 0.05 * noise(314, 100, 440, fall=0) + 0 * x)


def snow() -> Texture:
    drift = noise(321, 1, 8, (2.2, 1.0), fall=1.3)
    crust = noise(322, 10, 120, (1.6, 1.0), fall=0.7)
    pits = step(1.2, 2.2, noise(323, 30, 200, fall=0.2))
    spark = step(2.0, 2.7, noise(324, 90, 440, fall=0))
    flakes = noise(325, 100, 440, fall=0)
    return Texture.of(
        0.95 + 0.035 * drift + 0.045 * crust - 0.13 * pits + 0.035 * flakes, 0.0, 0.35 * spark
    )


def water() -> Texture:
    x, y = grid()
    swell = np.sin(2 * np.pi * (9 * y + 0.55 * noise(331, 1, 6)))
    ripple = noise(332, 10, 90, (3.2, 0.8), fall=0.6)
    fine = noise(333, 50, 400, (3.0, 0.8), fall=0.4)
    crest = step(1.1, 1.9, ripple + 0.5 * swell)
    line = step(0.16, 0.0, np.abs(noise(334, 6, 60, (2.6, 0.9), fall=0.6) - 0.4))
    body = 0.90 + 0.09 * swell + 0.10 * ripple + 0.06 * fine + 0 * x
    return Texture.of(body, 0.0, 0.30 * crest + 0.10 * line + 0.10 * step(1.6, 2.4, fine))


def cloud() -> Texture:
    """Base: the sky's colour; second: the clouds' white; the clouds carry their own shade."""
    x, y = grid()
    lump = noise(341, 1, 300, (1.7, 1.0), fall=1.55)
    wisp = noise(342, 3, 420, (4.0, 0.9), fall=0.95)
    dense = step(0.15, 2.1, lump + 0.16 * wisp)
    lower = np.roll(lump, -24, 0)
    shade = 0.98 + 0.10 * np.clip(lump - lower, -1.2, 1.0) + 0.03 * wisp * dense
    veil = 0.10 * step(0.2, 1.8, wisp)
    cover = np.clip(dense * 0.88 + veil, 0, 1)
    return Texture.of(1 - cover + 0 * (x + y), cover * shade)


def overcast() -> Texture:
    x, y = grid()
    lump = noise(351, 1, 320, (2.2, 1.0), fall=1.55)
    wisp = noise(352, 4, 420, (4.0, 0.8), fall=1.0)
    under = lump - np.roll(lump, -30, 0)
    cover = step(-1.3, 1.6, lump + 0.10 * wisp) * 0.85
    return Texture.of(
        (1 - cover) * (0.97 + 0.04 * wisp) + 0 * (x + y),
        cover * (0.98 + 0.06 * under + 0.025 * wisp),
    )


def stars() -> Texture:
    """A night sky: stars of many sizes, the larger with a halo, and a faint band of light."""
    rng = np.random.default_rng(361)
    x, y = grid()
    light = np.zeros((TEXELS, TEXELS), np.float32)
    count = 900
    sizes = 0.75 / (rng.random(count) + 0.012) ** 0.42
    for (px, py), size, tone in zip(
        rng.random((count, 2)) * TEXELS, sizes, rng.random(count), strict=True
    ):
        reach = int(size * 4) + 3
        ix, iy = np.arange(-reach, reach + 1) + int(px), np.arange(-reach, reach + 1) + int(py)
        d = np.hypot(ix[None, :] - px, iy[:, None] - py)
        ray = np.minimum(np.abs(ix[None, :] - px), np.abs(iy[:, None] - py))
        glow = np.clip(size - d + 0.5, 0, 1) + 0.5 * np.exp(-d / size) * np.exp(
            -ray / (0.25 * size)
        )
        light[np.ix_(iy % TEXELS, ix % TEXELS)] += (0.55 + 0.45 * tone) * glow
    mist = step(-0.3, 1.8, noise(362, 1, 60, (2.0, 0.8), fall=1.2))
    dust = noise(363, 30, 440, fall=0.3)
    return Texture.of(1.0 + 0.05 * dust + 0 * (x + y), np.clip(light, 0, 1.3), 0.10 * mist)


def _treetop(
    ink: ImageDraw.ImageDraw, x: float, y: float, rng: np.random.Generator, depth: float
) -> None:
    high, wide = TEXELS * rng.uniform(0.10, 0.20), TEXELS * rng.uniform(0.03, 0.055)
    tone = 84 + 44 * depth + rng.uniform(-20, 20)
    for k in range(6):
        top, foot = y - high * (1 - k / 7), y - high * (1 - (k + 1.7) / 7)
        w = wide * (0.25 + k / 6)
        ink.polygon([(x - w, foot), (x, top), (x + w, foot)], fill=int(tone * (0.75 + 0.05 * k)))
        ink.polygon([(x - w, foot), (x, top), (x - 0.1 * w, foot)], fill=int(tone * 1.1))


def forest() -> Texture:
    return Texture.of(stamped(900, 371, _treetop, 0.2, 90) * 2.0)


TERRAIN = {f.__name__: f for f in (grass, sand, snow, water, cloud, overcast, stars, forest)}
