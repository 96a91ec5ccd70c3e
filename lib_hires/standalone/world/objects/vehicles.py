"""The objects that carry people: car, boat, rocket."""

from __future__ import annotations

import math

from lib_hires.standalone.world.description import RGB, Point
from lib_hires.standalone.world.pen import (
    CREAM,
    GLASS,
    INK,
    WOOD,
    Frame,
    Look,
    Pen,
    curve,
    mix,
    oval_points,
    path,
)

STEEL: RGB = (196, 200, 208)


def car(pen: Pen) -> None:
    roof = -0.56 + 0.08 * pen.variant
    paint = Look("paint", pen.base, soft=0.12, dark=0.52)
    cabin = curve(
        [
            (-0.66, 0.04),
            (-0.50, roof + 0.14),
            (-0.36, roof),
            (0.30, roof),
            (0.44, roof + 0.12),
            (0.68, 0.04),
        ],
        8,
        closed=False,
    )
    pen.part(cabin, paint)
    pane = Look("glass", mix(GLASS, (70, 96, 130), 0.30), soft=0.05)
    for pts in (
        [(-0.52, 0.0), (-0.36, roof + 0.11), (-0.05, roof + 0.11), (-0.05, 0.0)],
        [(0.05, 0.0), (0.05, roof + 0.11), (0.27, roof + 0.11), (0.50, 0.0)],
    ):
        pen.part(pts, pane, Frame(0.1, -0.2, 0, 0.8, 0.8), line=0.014)
    body = curve(
        path(
            "-0.98,0.2 -0.9,0.05 -0.6,0 0.3,0 0.84,0.05 0.97,0.2 0.98,0.5 0.9,0.6 "
            "-0.9,0.6 -0.99,0.5"
        ),
        5,
    )
    pen.part(body, paint, cast=0.02)
    pen.part(
        [(-0.985, 0.44), (0.985, 0.44), (0.96, 0.60), (-0.96, 0.60)],
        Look("panels", pen.dark, soft=0.05),
        Frame(0, 0.52, 0, 0.6, 0.6),
        line=0.006,
    )
    pen.stroke([(-0.92, 0.12), (0.90, 0.12)], pen.light, 0.028)
    pen.stroke([(-0.92, 0.145), (0.90, 0.145)], mix(pen.base, INK, 0.5), 0.008)
    for x in (-0.54, 0.0, 0.52):
        pen.stroke([(x, 0.02), (x - 0.01, 0.46)], pen.line, 0.012)
        pen.stroke([(x + 0.012, 0.02), (x + 0.002, 0.46)], pen.light, 0.006)
    for x in (-0.14, 0.38):
        pen.stroke([(x, 0.205), (x + 0.12, 0.205)], INK, 0.040)
        pen.stroke([(x, 0.195), (x + 0.12, 0.195)], STEEL, 0.024)
    _lamps(pen)
    for x in (-0.54, 0.54):
        _wheel(pen, x, 0.62, 0.31)


def _lamps(pen: Pen) -> None:
    pen.oval(
        (-0.90, 0.26),
        (0.07, 0.10),
        Look("weave", (255, 240, 176), soft=0.04),
        Frame(0, 0, 45, 0.5, 0.5),
        line=0.012,
    )
    pen.oval(
        (0.93, 0.26),
        (0.045, 0.09),
        Look("weave", (214, 60, 40), soft=0.04),
        Frame(0, 0, 45, 0.5, 0.5),
        line=0.012,
    )
    pen.box(-1.0, 0.47, -0.84, 0.55, Look("paint", STEEL, soft=0.03), line=0.01)
    pen.box(0.84, 0.47, 1.0, 0.55, Look("paint", STEEL, soft=0.03), line=0.01)


def _wheel(pen: Pen, x: float, y: float, r: float) -> None:
    pen.oval((x, y), (r + 0.035, r + 0.035), Look("plain", (30, 28, 34), soft=0.04), line=0.0)
    pen.oval((x, y), (r, r), Look("rubber", (62, 60, 66), soft=0.07, dark=0.45), line=0.0)
    for k in range(40):  # the tread's blocks
        a = 2 * math.pi * k / 40
        c, s = math.cos(a), math.sin(a)
        pen.stroke(
            [(x + 0.93 * r * c, y + 0.93 * r * s), (x + 1.02 * r * c, y + 1.02 * r * s)],
            (24, 22, 28),
            0.020,
        )
    for ring in (0.80, 0.86):
        pen.stroke([*oval_points((x, y), (ring * r, ring * r))], (98, 96, 102), 0.008)
    rim = 0.64 * r
    pen.oval((x, y), (rim, rim), Look("paint", (206, 208, 214), soft=0.06), line=0.014)
    pen.oval((x, y), (0.84 * rim, 0.84 * rim), Look("plain", (66, 66, 74), soft=0.05), line=0.0)
    for k in range(12):
        a = 2 * math.pi * (k + 0.5 * pen.variant) / 12
        c, s = math.cos(a), math.sin(a)
        pen.stroke([(x, y), (x + 0.9 * rim * c, y + 0.9 * rim * s)], (112, 114, 122), 0.026)
        pen.stroke([(x, y), (x + 0.9 * rim * c, y + 0.9 * rim * s)], (224, 226, 232), 0.014)
        pen.rivet((x + 0.92 * rim * c, y + 0.92 * rim * s), 0.010, STEEL)
    pen.oval((x, y), (0.26 * rim, 0.26 * rim), Look("paint", STEEL, soft=0.03), line=0.01)
    for k in range(5):
        a = 2 * math.pi * k / 5
        pen.rivet((x + 0.15 * rim * math.cos(a), y + 0.15 * rim * math.sin(a)), 0.007, STEEL)


def boat(pen: Pen) -> None:
    cloth = Look("weave", CREAM, soft=0.08, dark=0.70)
    pen.box(-0.035, -0.97, 0.035, 0.42, Look("boards", WOOD, soft=0.03), Frame(0, 0, 90, 0.5, 0.3))
    back = curve([(0.09, -0.90), (0.60, -0.10), (0.86, 0.32)], 10, closed=False)
    pen.part([*back, (0.09, 0.30)], cloth, Frame(0, 0, 0, 0.9, 0.9), cast=0.03)
    band: list[Point] = [(0.09, -0.06), (0.09, 0.10), (0.725, 0.10), (0.635, -0.06)]
    pen.part(band, Look("weave", pen.base, soft=0.04), Frame(0, 0, 0, 0.9, 0.9), line=0.0)
    front = curve(
        [(-0.09, -0.70 - 0.1 * pen.variant), (-0.34, -0.05), (-0.72, 0.32)], 10, closed=False
    )
    pen.part(
        [*front, (-0.09, 0.30)],
        Look("weave", pen.light, soft=0.08, dark=0.7),
        Frame(0, 0, 0, 0.9, 0.9),
        cast=0.03,
    )
    for a, b in (((0.0, -0.95), (-0.93, 0.42)), ((0.0, -0.95), (0.95, 0.42))):
        pen.stroke([a, b], mix(WOOD, INK, 0.5), 0.014)
        for k in range(70):  # the rope's twist
            x, y = (p + (q - p) * k / 70 for p, q in zip(a, b, strict=True))
            pen.stroke(
                [(x - 0.006, y - 0.004), (x + 0.006, y + 0.010)], mix(WOOD, CREAM, 0.6), 0.005
            )
    pen.part(
        [(0.035, -0.96), (0.30, -0.90), (0.035, -0.82)],
        Look("weave", pen.base, soft=0.03),
        Frame(0, 0, 0, 0.8, 0.8),
    )
    _hull(pen)


def _hull(pen: Pen) -> None:
    hull = curve(
        path(
            "-0.99,0.42 -0.6,0.45 0,0.46 0.6,0.45 0.99,0.4 0.84,0.78 0.62,0.96 0,0.97 "
            "-0.64,0.96 -0.86,0.76"
        ),
        6,
    )
    pen.part(
        hull, Look("boards", pen.base, soft=0.16, dark=0.50), Frame(pen.variant, 0, 0, 0.9, 0.72)
    )
    lower = path("-0.8,0.8 0,0.82 0.8,0.8 0.62,0.955 0,0.965 -0.64,0.955")
    pen.part(
        lower, Look("boards", pen.dark, soft=0.08), Frame(pen.variant, 0, 0, 0.9, 0.72), line=0
    )
    rail = path("-1,0.4 0,0.45 1,0.38 0.98,0.46 0,0.53 -0.98,0.48")
    pen.part(rail, Look("boards", pen.light, soft=0.03), Frame(0, 0, 0, 0.8, 0.5), cast=0.03)
    for x in (-0.45, 0.0, 0.45):
        pen.oval((x, 0.66), (0.10, 0.10), Look("paint", (222, 190, 110), soft=0.03), cast=0.02)
        pen.oval(
            (x, 0.66), (0.068, 0.068), Look("glass", mix(GLASS, (40, 70, 110), 0.35)), line=0.006
        )
        for k in range(8):
            a = 2 * math.pi * k / 8
            pen.rivet((x + 0.084 * math.cos(a), 0.66 + 0.084 * math.sin(a)), 0.009, (240, 214, 150))


def rocket(pen: Pen) -> None:
    for layer, colour in ((1.0, (250, 120, 30)), (0.72, (255, 196, 60)), (0.42, (255, 244, 190))):
        tip = 0.60 + (0.30 + 0.08 * pen.variant) * layer
        w = 0.22 * layer
        flame = curve(
            [
                (-w, 0.56),
                (w, 0.56),
                (w * 0.7, 0.56 + (tip - 0.56) * 0.5),
                (0.0, tip),
                (-w * 0.7, 0.56 + (tip - 0.56) * 0.5),
            ],
            6,
        )
        pen.part(
            flame, Look("hair", colour, soft=0.02, dark=0.9), Frame(0, 0.7, 0, 0.5, 0.6), line=0
        )
    for side in (-1, 1):
        fin = [
            (side * x, y)
            for x, y in (
                (0.26, 0.06),
                (0.52, 0.30),
                (0.68, 0.56),
                (0.66, 0.84),
                (0.46, 0.66),
                (0.24, 0.56),
            )
        ]
        pen.part(fin, Look("panels", pen.dark, soft=0.06), Frame(0.2, 0.4, 40 * side, 0.6, 0.6))
    sides = path("0,-0.99 0.13,-0.84 0.24,-0.62 0.32,-0.34 0.345,0.06 0.32,0.36 0.26,0.58")
    hull = curve([*sides, *((-x, y) for x, y in reversed(sides[1:]))], 5)
    pen.part(
        hull, Look("panels", pen.base, soft=0.20, dark=0.42), Frame(0.03, pen.variant, 0, 0.8, 0.8)
    )
    nose = [
        *curve(
            path(
                "0.255,-0.585 0.24,-0.62 0.13,-0.84 0,-0.99 -0.13,-0.84 -0.24,-0.62 -0.255,-0.585"
            ),
            5,
            closed=False,
        ),
        (0.0, -0.56),
    ]
    pen.part(nose, Look("paint", pen.light, soft=0.12, dark=0.5), line=0.008)
    _fittings(pen)


def _fittings(pen: Pen) -> None:
    """Bands, nozzle and porthole."""
    for y, w in ((0.34, 0.325), (0.46, 0.30)):
        pen.box(
            -w, y, w, y + 0.055, Look("paint", mix(pen.light, STEEL, 0.3), soft=0.03), line=0.008
        )
        for k in range(9):
            pen.rivet((-w + 0.035 + (2 * w - 0.07) * k / 8, y + 0.027), 0.012, STEEL)
    pen.box(
        -0.22, 0.55, 0.22, 0.64, Look("gills", (92, 92, 102), soft=0.06), Frame(0, 0, 0, 0.5, 0.5)
    )
    pen.oval((0.0, -0.20), (0.185, 0.185), Look("paint", STEEL, soft=0.04), cast=0.03)
    pen.oval(
        (0.0, -0.20),
        (0.135, 0.135),
        Look("glass", mix(GLASS, (30, 60, 110), 0.4), soft=0.06),
        Frame(0, 0, 20, 0.6, 0.6),
        line=0.01,
    )
    for k in range(12):
        a = 2 * math.pi * k / 12
        pen.rivet((0.16 * math.cos(a), -0.20 + 0.16 * math.sin(a)), 0.013, STEEL)
