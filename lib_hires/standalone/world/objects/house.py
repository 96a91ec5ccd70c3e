"""The house."""

from __future__ import annotations

import math

from lib_hires.standalone.world.description import RGB
from lib_hires.standalone.world.pen import (
    CREAM,
    GLASS,
    INK,
    WHITE,
    WOOD,
    Frame,
    Look,
    Pen,
    mix,
)


def _mortar(pen: Pen) -> RGB:
    pale = mix(pen.base, (236, 230, 220), 0.75)
    return mix(pale, (120, 116, 120), 0.55) if min(pen.base) > 200 else pale


def _window(pen: Pen, x: float, y: float, w: float, h: float) -> None:
    """A window of half width `w` and half height `h` with a frame, two bars, curtains, a sill."""
    frame = Look("boards", CREAM, soft=0.02)
    pen.box(
        x - w - 0.035,
        y - h - 0.035,
        x + w + 0.035,
        y + h + 0.035,
        frame,
        Frame(x, y, 0, 0.5, 0.5),
        cast=0.02,
    )
    pen.box(
        x - w,
        y - h,
        x + w,
        y + h,
        Look("glass", mix(GLASS, (60, 80, 110), 0.35), soft=0.05),
        Frame(x, y, 0, 0.6, 0.6),
        line=0.008,
    )
    for side in (-1, 1):
        cloth = [
            (x + side * w, y - h),
            (x + side * 0.35 * w, y - h),
            (x + side * 0.85 * w, y + 0.3 * h),
            (x + side * w, y + 0.6 * h),
        ]
        pen.part(
            cloth,
            Look("gills", mix(CREAM, WHITE, 0.4), soft=0.02),
            Frame(x, y, 8 * side, 0.6, 0.6),
            line=0.004,
        )
    for bar in ([(x, y - h), (x, y + h)], [(x - w, y), (x + w, y)]):
        pen.stroke(bar, mix(CREAM, INK, 0.45), 0.030)
        pen.stroke(bar, CREAM, 0.020)
    pen.box(
        x - w - 0.06,
        y + h + 0.03,
        x + w + 0.06,
        y + h + 0.075,
        Look("boards", mix(WOOD, CREAM, 0.4), soft=0.02),
        Frame(x, y, 0, 0.4, 0.4),
        line=0.01,
        cast=0.03,
    )


def house(pen: Pen) -> None:
    wall, peak = -0.12, -0.94 + 0.12 * pen.variant
    brick = Look("bricks", pen.base, _mortar(pen), soft=0.05, dark=0.70)
    pen.box(
        0.38,
        -0.88,
        0.6,
        -0.3,
        Look("bricks", (150, 96, 72), (206, 196, 180), soft=0.06),
        Frame(0.2, 0.1, 0, 0.7, 0.7),
    )
    pen.box(0.35, -0.93, 0.63, -0.86, Look("bark", (150, 140, 132), soft=0.03))
    pen.box(-0.78, wall, 0.78, 0.96, brick, Frame(pen.variant, 0.0, 0, 1.0, 1.0))
    pen.box(
        -0.80,
        0.88,
        0.80,
        0.97,
        Look("bark", (138, 132, 128), soft=0.03),
        Frame(0, 0, 90, 0.5, 0.5),
        line=0.008,
    )
    gable = [(-0.98, wall + 0.07), (-0.06, peak), (0.06, peak), (0.98, wall + 0.07)]
    pen.part(
        gable,
        Look("shingles", pen.dark, soft=0.06, dark=0.62),
        Frame(0, 0, 0, 0.95, 0.95),
        cast=0.10,
    )
    for side in (-1, 1):
        board = [
            (0.0, peak - 0.05),
            (side * 1.0, wall + 0.05),
            (side * 1.0, wall + 0.12),
            (0.0, peak + 0.03),
        ]
        pen.part(
            board,
            Look("boards", pen.light, soft=0.02),
            Frame(0, 0, side * math.degrees(math.atan2(wall - peak, 1.0)), 0.8, 0.5),
            line=0.01,
        )
    pen.box(
        -1.0,
        wall + 0.07,
        1.0,
        wall + 0.12,
        Look("boards", pen.light, soft=0.02),
        Frame(0, 0, 0, 0.8, 0.4),
        line=0.01,
        cast=0.06,
    )
    pen.oval((0.0, -0.38), (0.11, 0.11), Look("boards", CREAM, soft=0.02), cast=0.02)
    pen.oval((0.0, -0.38), (0.08, 0.08), Look("glass", mix(GLASS, (60, 80, 110), 0.4)), line=0.006)
    _door(pen)
    for x in (-0.48, 0.53):
        _window(pen, x, 0.30, 0.155, 0.19)


def _door(pen: Pen) -> None:
    pen.box(
        -0.19,
        0.36,
        0.23,
        0.97,
        Look("boards", CREAM, soft=0.02),
        Frame(0, 0, 90, 0.6, 0.6),
        cast=0.03,
    )
    pen.box(
        -0.15,
        0.41,
        0.19,
        0.97,
        Look("boards", WOOD, soft=0.03),
        Frame(0.0, 0, 90, 0.62, 0.62),
        line=0.008,
    )
    for y in (0.52, 0.86):
        pen.stroke([(-0.15, y), (0.06, y)], INK, 0.028)
        for x in (-0.11, -0.04, 0.03):
            pen.rivet((x, y), 0.010, (150, 150, 156))
    pen.rivet((0.13, 0.70), 0.026, (226, 186, 90))
    pen.box(
        -0.24,
        0.95,
        0.28,
        1.0,
        Look("bark", (156, 150, 146), soft=0.02),
        Frame(0, 0, 90, 0.5, 0.5),
        line=0.01,
    )
