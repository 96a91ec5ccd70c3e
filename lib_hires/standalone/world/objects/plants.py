"""The objects that grow: tree, flower, mushroom."""

from __future__ import annotations

import math

import numpy as np

from lib_hires.standalone.world.description import RGB
from lib_hires.standalone.world.pen import (
    CREAM,
    INK,
    WHITE,
    WOOD,
    Frame,
    Look,
    Pen,
    curve,
    fringed,
    mix,
    oval_points,
    path,
)

LEAF: RGB = (74, 136, 62)


def tree(pen: Pen) -> None:
    trunk = curve(
        path(
            "-0.1,0.05 0.1,0.05 0.12,0.55 0.16,0.82 0.27,0.98 0.08,0.95 0,0.99 -0.1,0.95 "
            "-0.26,0.98 -0.16,0.8 -0.12,0.5"
        ),
        4,
    )
    pen.part(trunk, Look("bark", WOOD, soft=0.08, dark=0.45), Frame(0, 0, 0, 0.6, 0.6))
    (_pine if pen.variant < 0.5 else _crown)(pen)


def _pine(pen: Pen) -> None:
    wide = 0.80 + 0.28 * pen.variant
    for foot, share, tall in (
        (0.62, 1.0, 0.66),
        (0.28, 0.84, 0.60),
        (-0.06, 0.66, 0.52),
        (-0.38, 0.46, 0.58),
    ):
        w = wide * share
        top = foot - tall
        sag = [
            (w * t, foot + 0.05 * math.sin(abs(t) * math.pi * 0.5) - 0.02 * math.cos(t * 9))
            for t in np.linspace(1, -1, 9)
        ]
        shape = [(0.0, top), (0.30 * w, top + 0.52 * tall), *sag, (-0.30 * w, top + 0.52 * tall)]
        pen.part(
            fringed(shape, pen.rng, 0.045, 0.055),
            Look("needles", mix(pen.base, pen.light, 0.15), soft=0.14, dark=0.46),
            Frame(pen.variant, foot, 0, 0.8, 0.8),
            line=0.008,
            cast=0.09,
        )


def _crown(pen: Pen) -> None:
    for x0, y0, x1, y1 in (
        (0.0, 0.3, -0.34, 0.0),
        (0.0, 0.25, 0.36, -0.06),
        (0.0, 0.2, 0.05, -0.3),
    ):
        pen.stroke([(x0, y0), (x1, y1)], mix(WOOD, INK, 0.3), 0.07)
    blobs = (
        (0.0, -0.10, 0.72, 0.42),
        (-0.48, -0.10, 0.40, 0.36),
        (0.48, -0.14, 0.40, 0.36),
        (-0.26, -0.46, 0.44, 0.38),
        (0.28, -0.50, 0.42, 0.38),
        (0.0, -0.26, 0.46, 0.40),
    )
    for k, (x, y, rx, ry) in enumerate(blobs):
        rim = oval_points((x, y), (rx, ry))
        pen.part(
            fringed(rim, pen.rng, 0.05, 0.05),
            Look("leaves", mix(pen.base, pen.light, 0.12 + 0.03 * k), soft=0.20, dark=0.46),
            Frame(x + pen.variant, y, 40 * k, 0.9, 0.9),
            line=0.006,
            cast=0.06,
        )


def flower(pen: Pen) -> None:
    stem = curve(path("-0.035,-0.2 0.035,-0.2 0.05,0.4 0.045,0.98 -0.055,0.98 -0.03,0.4"), 5)
    pen.part(stem, Look("fibres", LEAF, soft=0.04), Frame(0, 0, 0, 0.4, 0.6))
    for k in range(60):  # the stem's down
        y = -0.1 + 1.05 * k / 60
        side = 1 if k % 2 else -1
        pen.stroke([(0.042 * side, y), (0.075 * side, y - 0.03)], mix(LEAF, WHITE, 0.35), 0.006)
    for side, y in ((-1, 0.70), (1, 0.80)):
        blade = curve(
            [
                (0.02 * side, y),
                (0.20 * side, y - 0.20),
                (0.46 * side, y - 0.26),
                (0.60 * side, y - 0.20),
                (0.42 * side, y - 0.02),
                (0.18 * side, y + 0.05),
            ],
            6,
        )
        pen.part(
            blade,
            Look("petal", LEAF, third=(200, 230, 150), soft=0.08),
            Frame(0.3 * side, y - 0.1, 68 * side, 0.45, 0.8),
            cast=0.03,
        )
        pen.stroke(
            [(0.02 * side, y), (0.28 * side, y - 0.15), (0.58 * side, y - 0.20)],
            mix(LEAF, (230, 250, 190), 0.5),
            0.014,
        )
    petals = 6 if pen.variant < 0.5 else 8
    for ring in (0, 1):
        for k in range(petals):
            _one_petal(pen, 360 * (k + 0.5 * ring) / petals, 1.0 if ring == 0 else 0.80, petals)
    pen.oval(
        (0.0, -0.30),
        (0.20, 0.20),
        Look("seeds", (150, 92, 36), third=(250, 206, 90), soft=0.10, dark=0.45),
        Frame(0, -0.30, 0, 0.42, 0.42),
        cast=0.05,
    )


def _one_petal(pen: Pen, angle: float, scale: float, petals: int) -> None:
    w = (0.27 if petals == 6 else 0.22) * scale
    long = 0.66 * scale
    shape = curve(
        [
            (0.0, -0.05),
            (0.55 * w, -0.30 * long),
            (w, -0.66 * long),
            (0.72 * w, -0.92 * long),
            (0.0, -1.0 * long),
            (-0.72 * w, -0.92 * long),
            (-w, -0.66 * long),
            (-0.55 * w, -0.30 * long),
        ],
        5,
    )
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    placed = [(x * cos - y * sin, -0.30 + x * sin + y * cos) for x, y in shape]
    mid = 0.5 * long
    pen.part(
        placed,
        Look("petal", pen.base, third=WHITE, soft=0.07, dark=0.60),
        Frame(mid * sin, -0.30 - mid * cos, angle, 0.62, long * 1.04),
        line=0.012,
        cast=0.04,
    )


def mushroom(pen: Pen) -> None:
    stem = curve(
        path(
            "-0.2,0.05 0.2,0.05 0.22,0.45 0.3,0.8 0.34,0.95 0,0.98 -0.34,0.95 -0.3,0.8 -0.22,0.45"
        ),
        6,
    )
    pen.part(stem, Look("fibres", CREAM, soft=0.16, dark=0.50), Frame(0, 0, 0, 0.6, 0.7))
    under = oval_points((0.0, 0.10), (0.86, 0.16))
    pen.part(
        under, Look("gills", mix(CREAM, WOOD, 0.25), soft=0.08), Frame(0, 0, 0, 0.9, 0.9), cast=0.05
    )
    skirt = curve(
        path("-0.22,0.26 0.22,0.26 0.34,0.44 0.16,0.41 0,0.46 -0.16,0.41 -0.34,0.44"),
        6,
    )
    pen.part(
        skirt, Look("gills", mix(CREAM, WHITE, 0.4), soft=0.05), Frame(0, 0, 0, 0.5, 0.5), cast=0.05
    )
    dome = curve(
        path(
            "-0.97,0.1 -0.93,-0.22 -0.7,-0.62 -0.36,-0.86 0,-0.93 0.36,-0.86 0.7,-0.62 "
            "0.93,-0.22 0.97,0.1 0.6,0.17 0,0.12 -0.6,0.17"
        ),
        6,
    )
    spot = _pale(pen)
    pen.part(
        dome, Look("cap", pen.base, spot, soft=0.30, dark=0.42), Frame(pen.variant, 0, 0, 0.9, 0.9)
    )
    for k in range(90):  # the brim's folds
        x = -0.92 + 1.84 * k / 89
        y = 0.10 + 0.06 * math.sin(abs(x) * math.pi * 0.85)
        pen.stroke([(x, y), (x * 0.985, y - 0.06)], pen.dark, 0.008)
    _spots(pen)


def _pale(pen: Pen) -> RGB:
    return CREAM if min(pen.base) < 200 else (182, 160, 150)


def _spots(pen: Pen) -> None:
    """Knobs on the cap."""
    spot = _pale(pen)
    spots = (
        (-0.52, -0.22, 0.15),
        (0.02, -0.56, 0.18),
        (0.50, -0.26, 0.14),
        (-0.08, -0.12, 0.11),
        (-0.30, -0.62, 0.08),
        (0.36, -0.62, 0.08),
        (-0.78, -0.04, 0.08),
        (0.76, 0.0, 0.08),
        (0.22, -0.10, 0.07),
    )
    for x, y, r in spots:
        rim = [
            (
                x
                + 0.06 * (pen.variant - 0.5)
                + r * (1 + 0.10 * math.sin(3 * a + 9 * x)) * math.cos(a),
                y + 0.85 * r * (1 + 0.10 * math.cos(4 * a + 9 * y)) * math.sin(a),
            )
            for a in np.linspace(0, 2 * math.pi, 30)[:-1]
        ]
        pen.part(
            rim,
            Look("skin", spot, soft=0.06, dark=0.62),
            Frame(x, y, 0, 0.5, 0.5),
            line=0.006,
            cast=0.03,
        )
