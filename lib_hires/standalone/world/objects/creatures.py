"""The objects with eyes: fish, face, bird."""

from __future__ import annotations

import math

import numpy as np

from lib_hires.standalone.world.description import RGB, Point
from lib_hires.standalone.world.pen import (
    INK,
    WHITE,
    Frame,
    Look,
    Pen,
    curve,
    fringed,
    mix,
    oval_points,
    path,
)

HAIR: RGB = (92, 58, 38)


def _eye(pen: Pen, at: Point, radius: float, iris: RGB, look_to: Point = (0.0, 0.0)) -> None:
    x, y = at
    pen.oval(
        at, (radius, radius * 1.08), Look("plain", (250, 250, 248), soft=radius * 0.5), line=0.012
    )
    ix, iy, r = x + look_to[0] * radius, y + look_to[1] * radius, 0.60 * radius
    pen.oval((ix, iy), (r, r), Look("plain", mix(iris, INK, 0.35), soft=0.01), line=0.006)
    for k in range(36):
        a = 2 * math.pi * k / 36
        tone = mix(iris, WHITE if k % 3 else INK, 0.28)
        pen.stroke(
            [
                (ix + 0.4 * r * math.cos(a), iy + 0.4 * r * math.sin(a)),
                (ix + 0.92 * r * math.cos(a), iy + 0.92 * r * math.sin(a)),
            ],
            tone,
            r * 0.11,
        )
    pen.dot((ix, iy), 0.50 * r, (14, 12, 18))
    pen.dot((ix - 0.34 * r, iy - 0.38 * r), 0.22 * r, WHITE)
    pen.dot((ix + 0.3 * r, iy + 0.34 * r), 0.09 * r, (210, 214, 224))


def fish(pen: Pen) -> None:
    fin = Look("petal", pen.dark, third=pen.light, soft=0.05)
    pen.part(
        curve(
            path(
                "0.5,-0.04 0.72,-0.34 0.99,-0.52 0.9,-0.18 0.85,0 0.9,0.18 0.99,0.52 "
                "0.72,0.34 0.5,0.04"
            ),
            5,
        ),
        fin,
        Frame(0.72, 0, 90, 1.3, 0.8),
    )
    pen.part(
        curve(path("-0.4,-0.36 -0.15,-0.76 0.12,-0.82 0.26,-0.62 0.46,-0.26"), 5),
        fin,
        Frame(0.05, -0.5, 10, 1.2, 0.9),
    )
    pen.part(
        curve([(-0.12, 0.40), (0.0, 0.70), (0.16, 0.78), (0.34, 0.30)], 5),
        fin,
        Frame(0.1, 0.55, 175, 0.9, 0.7),
    )
    body = curve(
        path(
            "-0.97,0.02 -0.82,-0.24 -0.5,-0.44 -0.1,-0.5 0.26,-0.38 0.52,-0.16 0.6,0 "
            "0.52,0.17 0.26,0.38 -0.1,0.5 -0.5,0.44 -0.82,0.26"
        ),
        6,
    )
    pen.part(
        body,
        Look("fish_scales", pen.base, soft=0.26, dark=0.42),
        Frame(pen.variant, 0, 90, 0.95, 0.95),
        cast=0.03,
    )
    _bands(pen)
    _fish_head(pen)
    pen.part(
        curve(path("-0.26,0.06 -0.02,0.08 0.1,0.26 -0.02,0.3 -0.24,0.2"), 5),
        fin,
        Frame(-0.1, 0.16, 110, 0.5, 0.55),
        cast=0.04,
    )


def _bands(pen: Pen) -> None:
    """Bands round the body."""
    for x in (0.02, 0.26) if pen.variant < 0.5 else (0.14,):
        tall = 0.46 * math.cos(x * 1.9)
        band = [
            (x + 0.05 + 0.07 * math.cos(a), tall * math.sin(a))
            for a in np.linspace(-1.35, 1.35, 12)
        ]
        back = [(p - 0.11, q) for p, q in reversed(band)]
        pen.part(
            [*band, *back],
            Look("fish_scales", pen.light, soft=0.05, dark=0.7),
            Frame(pen.variant, 0, 90, 0.95, 0.95),
            line=0,
        )


def _fish_head(pen: Pen) -> None:
    """The head with gill, mouth and eye."""
    head = curve(
        path("-0.965,0.02 -0.82,-0.23 -0.5,-0.42 -0.4,-0.3 -0.33,0 -0.4,0.3 -0.5,0.42 -0.82,0.25"),
        6,
    )
    pen.part(head, Look("skin", mix(pen.base, pen.light, 0.25), soft=0.16, dark=0.55), line=0.008)
    gill = [(-0.42 + 0.09 * math.cos(a), 0.32 * math.sin(a)) for a in np.linspace(-1.2, 1.2, 12)]
    pen.stroke(gill, pen.line, 0.022)
    pen.stroke([(x - 0.03, y) for x, y in gill], pen.light, 0.010)
    pen.stroke(
        curve([(-0.96, 0.07), (-0.84, 0.13), (-0.74, 0.10)], 6, closed=False), pen.line, 0.022
    )
    _eye(pen, (-0.64, -0.12), 0.115, (196, 140, 30), (-0.1, 0.0))


def face(pen: Pen) -> None:
    skin = Look("skin", pen.base, soft=0.30, dark=0.50)
    back = oval_points((0.0, -0.08), (0.96, 0.90))
    pen.part(
        fringed(back, pen.rng, 0.05, 0.03),
        Look("hair", mix(HAIR, INK, 0.2), soft=0.15),
        Frame(0, 0, 0, 0.9, 0.9),
        line=0.008,
    )
    for x in (-0.86, 0.86):
        pen.oval((x, 0.12), (0.13, 0.20), Look("skin", mix(pen.base, pen.dark, 0.4), soft=0.08))
        pen.oval((x * 0.99, 0.12), (0.06, 0.11), Look("skin", pen.dark, soft=0.05), line=0)
    pen.part(
        curve(
            path(
                "0,-0.86 0.62,-0.66 0.86,-0.1 0.82,0.36 0.56,0.78 0.22,0.96 -0.22,0.96 "
                "-0.56,0.78 -0.82,0.36 -0.86,-0.1 -0.62,-0.66"
            ),
            6,
        ),
        skin,
        Frame(pen.variant, 0.2, 0, 0.8, 0.8),
    )
    _features(pen)
    _hairdo(pen)


def _features(pen: Pen) -> None:
    for x in (-0.33, 0.33):
        _eye(pen, (x, 0.04), 0.15, (86, 122, 150), (0.30 * (pen.variant - 0.5), -0.04))
        _lid(pen, x, 0.04, 0.155)
        _brow(pen, x)
    nose = curve(path("-0.03,0.1 0.03,0.1 0.09,0.32 0.06,0.38 -0.06,0.38 -0.09,0.32"), 6)
    bright = mix(pen.base, pen.light, 0.12)
    pen.part(nose, Look("skin", bright, soft=0.08, dark=0.60), line=0.003)
    for x in (-0.045, 0.045):
        pen.dot((x, 0.365), 0.014, mix(pen.base, INK, 0.6))
    _mouth(pen)


def _lid(pen: Pen, x: float, y: float, radius: float) -> None:
    """The upper lid over the eye's upper third, its fold and its lashes."""
    r = radius * 1.06
    lid = oval_points((x, y), (r, r * 1.08), arc=(206, 334))
    pen.part(lid, Look("skin", mix(pen.base, pen.dark, 0.25), soft=0.04, dark=0.8), line=0.004)
    edge = [lid[0], (x, y - 0.50 * r), lid[-1]]
    pen.stroke([*curve(edge, 6, closed=False), lid[-1]], INK, 0.024)
    fold = [
        (x + 1.15 * r * math.cos(a), y - 1.25 * r * math.sin(a)) for a in np.linspace(0.5, 2.64, 12)
    ]
    pen.stroke(fold, mix(pen.base, INK, 0.45), 0.010)
    for k in range(9):
        t = 2 * k / 8 - 1
        root = (x + 0.88 * r * t, y - r * (0.50 - 0.08 * t * t))
        pen.stroke([root, (root[0] + 0.05 * t, root[1] - 0.045)], INK, 0.009)


def _brow(pen: Pen, x: float) -> None:
    side = 1 if x > 0 else -1
    for k in range(90):
        t = k / 89 * 2 - 1
        root = (x + 0.20 * t, -0.24 + 0.05 * t * t + pen.rng.uniform(-0.020, 0.020))
        tip = (root[0] + 0.045 * side, root[1] - 0.020 + 0.02 * t * side)
        pen.stroke([root, tip], mix(HAIR, INK, 0.1 + 0.3 * (k % 2)), 0.008)


def _mouth(pen: Pen) -> None:
    """A smile: closed lips with fine lines."""
    lips = curve(
        path("-0.38,0.52 -0.16,0.555 0,0.565 0.16,0.555 0.38,0.52 0.26,0.7 0,0.79 -0.26,0.7"),
        6,
    )
    pen.part(
        lips,
        Look("fibres", (196, 66, 78), soft=0.06, dark=0.7),
        Frame(0, 0, 0, 0.5, 0.5),
        line=0.008,
    )
    pen.stroke(
        curve(path("-0.33,0.555 -0.16,0.625 0,0.645 0.16,0.625 0.33,0.555"), 6, closed=False),
        (110, 26, 44),
        0.022,
    )
    for k in range(25):
        x = -0.27 + 0.54 * k / 24
        y = 0.655 - 0.9 * x * x
        pen.stroke([(x, y), (x * 1.04, y + 0.07 - 0.4 * x * x)], (236, 128, 134), 0.006)
    for x, turn in ((-0.41, 1), (0.41, -1)):
        pen.stroke(
            [(x, 0.47), (x - 0.02 * turn, 0.52), (x + 0.02 * turn, 0.56)],
            mix(pen.base, INK, 0.4),
            0.012,
        )


def _hairdo(pen: Pen) -> None:
    lock = Look("hair", HAIR, soft=0.10, dark=0.50)
    part = 0.3 if pen.variant < 0.5 else -0.2
    for side in (-1, 1):
        reach = 0.92 * side
        shape = curve(
            [
                (part, -0.88),
                (part + (reach - part) * 0.5, -0.94),
                (reach * 0.98, -0.55),
                (reach, -0.02),
                (reach * 0.86, 0.06),
                (reach * 0.74, -0.34),
                (part + (reach - part) * 0.36, -0.56),
            ],
            6,
        )
        pen.part(
            fringed(shape, pen.rng, 0.06, 0.025),
            lock,
            Frame(part, -0.5, -38 * side, 0.8, 0.9),
            line=0.006,
            cast=0.05,
        )
    for k in range(44):  # single hairs
        t = pen.rng.uniform(-1, 1)
        root = (
            min(max(part + 0.85 * t * abs(t), -0.75), 0.75),
            -0.80 + 0.25 * abs(t) + pen.rng.uniform(-0.08, 0.05),
        )
        bend, fall = 0.16 * t, 0.18 + 0.16 * abs(t)
        middle = (root[0] + 0.75 * bend, root[1] + 0.45 * fall)
        hair = curve([root, middle, (root[0] + bend, root[1] + fall)], 5, closed=False)
        pen.stroke(hair, mix(HAIR, (220, 170, 120) if k % 2 else INK, 0.35), 0.0055)


def bird(pen: Pen) -> None:
    for x in (-0.10, 0.14):
        _leg(pen, x)
    for k in range(4):
        a = -26 + 13 * k
        _quill(pen, (0.42, 0.20), a, 0.60 - 0.02 * k, mix(pen.dark, pen.base, 0.2 * k))
    body = curve(
        path(
            "-0.46,-0.12 -0.2,-0.16 0.2,-0.14 0.54,0.06 0.62,0.22 0.46,0.44 0.1,0.6 "
            "-0.28,0.54 -0.54,0.3 -0.62,0.02"
        ),
        6,
    )
    pen.part(
        body,
        Look("plumage", pen.base, third=pen.light, soft=0.26, dark=0.45),
        Frame(pen.variant, 0, -70, 0.8, 0.8),
    )
    belly = curve(path("-0.5,0.1 -0.26,0.2 0.06,0.4 0.2,0.54 -0.1,0.58 -0.36,0.46"), 6)
    pen.part(
        fringed(belly, pen.rng, 0.05, 0.03),
        Look("plumage", pen.light, third=WHITE, soft=0.12),
        Frame(0, 0, -60, 0.6, 0.6),
        line=0,
    )
    beak: list[Point] = [(-0.80, -0.46), (-1.0, -0.33), (-0.80, -0.25)]
    pen.part(beak, Look("fibres", (250, 176, 40), soft=0.06), Frame(0, 0, 90, 0.4, 0.4))
    pen.stroke([(-0.97, -0.335), (-0.80, -0.34)], (140, 84, 20), 0.014)
    pen.part(
        fringed(oval_points((-0.52, -0.34), (0.35, 0.35)), pen.rng, 0.04, 0.02),
        Look("plumage", pen.base, third=pen.light, soft=0.22, dark=0.50),
        Frame(0, 0, -50, 0.5, 0.5),
        line=0.008,
    )
    neck = curve(path("-0.6,-0.1 -0.3,-0.24 -0.1,-0.06 -0.3,0.16 -0.56,0.14"), 6)
    pen.part(
        neck,
        Look("plumage", pen.base, third=pen.light, soft=0.20, dark=0.72),
        Frame(0, 0, -60, 0.7, 0.7),
        line=0,
    )
    _wing(pen)


def _wing(pen: Pen) -> None:
    """The long feathers and those that cover their roots."""
    lift = 10 - 26 * pen.variant
    for k in range(7):
        _quill(
            pen, (-0.14 + 0.03 * k, 0.06 + 0.015 * k), lift - 22 + 9 * k, 0.80 - 0.055 * k, pen.dark
        )
    cover = curve(path("-0.24,0.02 0.02,-0.1 0.26,-0.06 0.24,0.12 0.06,0.26 -0.16,0.22"), 6)
    pen.part(
        fringed(cover, pen.rng, 0.05, 0.03),
        Look("plumage", mix(pen.dark, pen.base, 0.5), third=pen.light, soft=0.10),
        Frame(0, 0, -80, 0.5, 0.5),
        line=0.006,
        cast=0.03,
    )
    _eye(pen, (-0.60, -0.40), 0.085, (150, 90, 30))


def _quill(pen: Pen, root: Point, angle: float, long: float, colour: RGB) -> None:
    """One long feather from `root` to the right, turned by `angle` degrees."""
    w = 0.075
    shape = curve(
        [
            (0.0, -0.02),
            (0.3 * long, -w),
            (0.8 * long, -w),
            (long, 0.0),
            (0.85 * long, w),
            (0.3 * long, w),
            (0.0, 0.02),
        ],
        4,
    )
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    placed = [(root[0] + x * cos - y * sin, root[1] + x * sin + y * cos) for x, y in shape]
    mid = (root[0] + 0.5 * long * cos, root[1] + 0.5 * long * sin)
    pen.part(
        placed,
        Look("feather", colour, third=mix(colour, WHITE, 0.8), soft=0.03),
        Frame(*mid, angle - 90, 2.2 * w, 1.1 * long),
        line=0.010,
        cast=0.02,
    )


def _leg(pen: Pen, x: float) -> None:
    tone: RGB = (196, 122, 52)
    foot = (x - 0.03, 0.92)
    pen.stroke([(x, 0.48), foot], INK, 0.060)
    pen.stroke([(x, 0.48), foot], tone, 0.040)
    for k in range(12):
        y = 0.56 + 0.34 * k / 12
        pen.stroke([(x - 0.022, y), (x + 0.016, y + 0.008)], mix(tone, INK, 0.5), 0.008)
    for dx in (-0.15, -0.05, 0.08):
        toe = (foot[0] + dx, foot[1] + 0.05)
        pen.stroke([foot, toe], INK, 0.046)
        pen.stroke([foot, toe], tone, 0.028)
        pen.stroke([toe, (toe[0] - 0.025, toe[1] + 0.02)], INK, 0.014)
