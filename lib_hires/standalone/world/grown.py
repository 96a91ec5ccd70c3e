"""The objects that grow: tree, fish, face, flower, mushroom, bird."""

from __future__ import annotations

import math

import numpy as np

from lib_hires.standalone.world.description import RGB, Point
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
)

HAIR: RGB = (92, 58, 38)
LEAF: RGB = (74, 136, 62)


def tree(pen: Pen) -> None:
    trunk = curve([(-0.10, 0.05), (0.10, 0.05), (0.12, 0.55), (0.16, 0.82), (0.27, 0.98), (0.08, 0.95),
                   (0.0, 0.99), (-0.10, 0.95), (-0.26, 0.98), (-0.16, 0.80), (-0.12, 0.5)], 4)  # fmt: skip
    pen.part(trunk, Look("bark", WOOD, soft=0.08, dark=0.45), Frame(0, 0, 0, 0.6, 0.6))
    (_pine if pen.variant < 0.5 else _crown)(pen)


def _pine(pen: Pen) -> None:
    wide = 0.80 + 0.28 * pen.variant
    for foot, share, tall in ((0.62, 1.0, 0.66), (0.28, 0.84, 0.60), (-0.06, 0.66, 0.52),
                              (-0.38, 0.46, 0.58)):  # fmt: skip
        w = wide * share
        top = foot - tall
        sag = [(w * t, foot + 0.05 * math.sin(abs(t) * math.pi * 0.5) - 0.02 * math.cos(t * 9))
               for t in np.linspace(1, -1, 9)]  # fmt: skip
        shape = [(0.0, top), (0.30 * w, top + 0.52 * tall), *sag, (-0.30 * w, top + 0.52 * tall)]
        pen.part(fringed(shape, pen.rng, 0.045, 0.055),
                 Look("needles", mix(pen.base, pen.light, 0.15), soft=0.14, dark=0.46),
                 Frame(pen.variant, foot, 0, 0.8, 0.8), line=0.008, cast=0.09)  # fmt: skip


def _crown(pen: Pen) -> None:
    for x0, y0, x1, y1 in (
        (0.0, 0.3, -0.34, 0.0),
        (0.0, 0.25, 0.36, -0.06),
        (0.0, 0.2, 0.05, -0.3),
    ):
        pen.stroke([(x0, y0), (x1, y1)], mix(WOOD, INK, 0.3), 0.07)
    blobs = ((0.0, -0.10, 0.72, 0.42), (-0.48, -0.10, 0.40, 0.36), (0.48, -0.14, 0.40, 0.36),
             (-0.26, -0.46, 0.44, 0.38), (0.28, -0.50, 0.42, 0.38), (0.0, -0.26, 0.46, 0.40))  # fmt: skip
    for k, (x, y, rx, ry) in enumerate(blobs):
        rim = oval_points((x, y), (rx, ry))
        pen.part(fringed(rim, pen.rng, 0.05, 0.05),
                 Look("leaves", mix(pen.base, pen.light, 0.12 + 0.03 * k), soft=0.20, dark=0.46),
                 Frame(x + pen.variant, y, 40 * k, 0.9, 0.9), line=0.006, cast=0.06)  # fmt: skip


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
        pen.stroke([(ix + 0.4 * r * math.cos(a), iy + 0.4 * r * math.sin(a)),
                    (ix + 0.92 * r * math.cos(a), iy + 0.92 * r * math.sin(a))], tone, r * 0.11)  # fmt: skip
    pen.dot((ix, iy), 0.50 * r, (14, 12, 18))
    pen.dot((ix - 0.34 * r, iy - 0.38 * r), 0.22 * r, WHITE)
    pen.dot((ix + 0.3 * r, iy + 0.34 * r), 0.09 * r, (210, 214, 224))


def fish(pen: Pen) -> None:
    fin = Look("petal", pen.dark, third=pen.light, soft=0.05)
    pen.part(curve([(0.50, -0.04), (0.72, -0.34), (0.99, -0.52), (0.90, -0.18), (0.85, 0.0),
                    (0.90, 0.18), (0.99, 0.52), (0.72, 0.34), (0.50, 0.04)], 5), fin,
             Frame(0.72, 0, 90, 1.3, 0.8))  # fmt: skip
    pen.part(curve([(-0.40, -0.36), (-0.15, -0.76), (0.12, -0.82), (0.26, -0.62), (0.46, -0.26)], 5),
             fin, Frame(0.05, -0.5, 10, 1.2, 0.9))  # fmt: skip
    pen.part(curve([(-0.12, 0.40), (0.0, 0.70), (0.16, 0.78), (0.34, 0.30)], 5), fin,
             Frame(0.1, 0.55, 175, 0.9, 0.7))  # fmt: skip
    body = curve([(-0.97, 0.02), (-0.82, -0.24), (-0.50, -0.44), (-0.10, -0.50), (0.26, -0.38),
                  (0.52, -0.16), (0.60, 0.0), (0.52, 0.17), (0.26, 0.38), (-0.10, 0.50),
                  (-0.50, 0.44), (-0.82, 0.26)], 6)  # fmt: skip
    pen.part(body, Look("fish_scales", pen.base, soft=0.26, dark=0.42),
             Frame(pen.variant, 0, 90, 0.95, 0.95), cast=0.03)  # fmt: skip
    for x in (0.02, 0.26) if pen.variant < 0.5 else (0.14,):
        tall = 0.46 * math.cos(x * 1.9)
        band = [
            (x + 0.05 + 0.07 * math.cos(a), tall * math.sin(a))
            for a in np.linspace(-1.35, 1.35, 12)
        ]
        back = [(p - 0.11, q) for p, q in reversed(band)]
        pen.part([*band, *back], Look("fish_scales", pen.light, soft=0.05, dark=0.7),
                 Frame(pen.variant, 0, 90, 0.95, 0.95), line=0)  # fmt: skip
    head = curve([(-0.965, 0.02), (-0.82, -0.23), (-0.50, -0.42), (-0.40, -0.30), (-0.33, 0.0),
                  (-0.40, 0.30), (-0.50, 0.42), (-0.82, 0.25)], 6)  # fmt: skip
    pen.part(head, Look("skin", mix(pen.base, pen.light, 0.25), soft=0.16, dark=0.55), line=0.008)
    gill = [(-0.42 + 0.09 * math.cos(a), 0.32 * math.sin(a)) for a in np.linspace(-1.2, 1.2, 12)]
    pen.stroke(gill, pen.line, 0.022)
    pen.stroke([(x - 0.03, y) for x, y in gill], pen.light, 0.010)
    pen.stroke(
        curve([(-0.96, 0.07), (-0.84, 0.13), (-0.74, 0.10)], 6, closed=False), pen.line, 0.022
    )
    _eye(pen, (-0.64, -0.12), 0.115, (196, 140, 30), (-0.1, 0.0))
    pen.part(curve([(-0.26, 0.06), (-0.02, 0.08), (0.10, 0.26), (-0.02, 0.30), (-0.24, 0.20)], 5), fin,
             Frame(-0.1, 0.16, 110, 0.5, 0.55), cast=0.04)  # fmt: skip


def face(pen: Pen) -> None:
    skin = Look("skin", pen.base, soft=0.30, dark=0.50)
    back = oval_points((0.0, -0.08), (0.96, 0.90))
    pen.part(fringed(back, pen.rng, 0.05, 0.03), Look("hair", mix(HAIR, INK, 0.2), soft=0.15),
             Frame(0, 0, 0, 0.9, 0.9), line=0.008)  # fmt: skip
    for x in (-0.86, 0.86):
        pen.oval((x, 0.12), (0.13, 0.20), Look("skin", mix(pen.base, pen.dark, 0.4), soft=0.08))
        pen.oval((x * 0.99, 0.12), (0.06, 0.11), Look("skin", pen.dark, soft=0.05), line=0)
    pen.part(curve([(0.0, -0.86), (0.62, -0.66), (0.86, -0.10), (0.82, 0.36), (0.56, 0.78), (0.22, 0.96),
                    (-0.22, 0.96), (-0.56, 0.78), (-0.82, 0.36), (-0.86, -0.10), (-0.62, -0.66)], 6),
             skin, Frame(pen.variant, 0.2, 0, 0.8, 0.8))  # fmt: skip
    _features(pen)
    _hairdo(pen)


def _features(pen: Pen) -> None:
    for x in (-0.50, 0.50):
        pen.oval((x, 0.40), (0.17, 0.12), Look("skin", mix(pen.base, (235, 70, 80), 0.25), soft=0.12,
                                                dark=0.9), line=0)  # fmt: skip
    for x in (-0.34, 0.34):
        _eye(pen, (x, 0.0), 0.19, (70, 110, 160), (0.35 * (pen.variant - 0.5), 0.05))
        lid = [
            (x + 0.21 * math.cos(a), 0.0 - 0.215 * math.sin(a)) for a in np.linspace(0.2, 2.94, 14)
        ]
        pen.stroke(lid, pen.line, 0.026)
        for k in range(11):  # lashes
            a = 0.35 + 2.4 * k / 10
            p = (x + 0.21 * math.cos(a), -0.215 * math.sin(a))
            pen.stroke([p, (p[0] + 0.06 * math.cos(a), p[1] - 0.06 * math.sin(a))], INK, 0.012)
        for k in range(46):  # the brow's hairs
            t = k / 45 * 2 - 1
            p = (x + 0.23 * t, -0.30 + 0.05 * t * t + pen.rng.uniform(-0.02, 0.02))
            pen.stroke([p, (p[0] + 0.05, p[1] - 0.035 + 0.04 * t)], mix(HAIR, INK, 0.4), 0.014)
    nose = curve(
        [(-0.04, 0.06), (0.04, 0.06), (0.12, 0.32), (0.08, 0.39), (-0.08, 0.39), (-0.12, 0.32)], 6
    )
    pen.part(nose, Look("skin", mix(pen.base, pen.light, 0.12), soft=0.08, dark=0.55), line=0.004)
    for x in (-0.05, 0.05):
        pen.dot((x, 0.365), 0.022, mix(pen.base, INK, 0.7))
    pen.oval((0.0, 0.50), (0.40, 0.30), Look("fibres", (190, 60, 70), soft=0.05),
             Frame(0, 0, 0, 0.6, 0.6), arc=(0, 180), line=0.012)  # fmt: skip
    pen.oval(
        (0.0, 0.54), (0.34, 0.215), Look("plain", (96, 20, 34), soft=0.05), arc=(0, 180), line=0
    )
    pen.part([(-0.32, 0.54), (0.32, 0.54), (0.27, 0.63), (-0.27, 0.63)],
             Look("plain", (248, 246, 240), soft=0.03), line=0)  # fmt: skip
    for k in range(1, 8):
        x = -0.32 + 0.64 * k / 8
        pen.stroke([(x, 0.54), (x * 0.95, 0.63)], (170, 160, 160), 0.010)


def _hairdo(pen: Pen) -> None:
    lock = Look("hair", HAIR, soft=0.10, dark=0.50)
    part = 0.3 if pen.variant < 0.5 else -0.2
    for side in (-1, 1):
        reach = 0.92 * side
        shape = curve([(part, -0.88), (part + (reach - part) * 0.5, -0.94), (reach * 0.98, -0.55),
                       (reach, -0.02), (reach * 0.86, 0.06), (reach * 0.74, -0.34),
                       (part + (reach - part) * 0.36, -0.56)], 6)  # fmt: skip
        pen.part(fringed(shape, pen.rng, 0.06, 0.025), lock, Frame(part, -0.5, -38 * side, 0.8, 0.9),
                 line=0.006, cast=0.05)  # fmt: skip
    for k in range(60):  # single hairs
        t = pen.rng.uniform(-1, 1)
        a = (part + 0.85 * t * abs(t), -0.82 + 0.25 * abs(t) + pen.rng.uniform(-0.08, 0.08))
        b = (a[0] + 0.22 * t, a[1] + 0.30 * abs(t))
        tone = mix(HAIR, (220, 170, 120) if k % 2 else INK, 0.5)
        pen.stroke([a, ((a[0] + b[0]) / 2 + 0.03 * t, (a[1] + b[1]) / 2 - 0.03), b], tone, 0.008)


def flower(pen: Pen) -> None:
    stem = curve([(-0.035, -0.2), (0.035, -0.2), (0.05, 0.4), (0.045, 0.98), (-0.055, 0.98),
                  (-0.03, 0.4)], 5)  # fmt: skip
    pen.part(stem, Look("fibres", LEAF, soft=0.04), Frame(0, 0, 0, 0.4, 0.6))
    for k in range(60):  # the stem's down
        y = -0.1 + 1.05 * k / 60
        side = 1 if k % 2 else -1
        pen.stroke([(0.042 * side, y), (0.075 * side, y - 0.03)], mix(LEAF, WHITE, 0.35), 0.006)
    for side, y in ((-1, 0.70), (1, 0.80)):
        blade = curve([(0.02 * side, y), (0.20 * side, y - 0.20), (0.46 * side, y - 0.26),
                       (0.60 * side, y - 0.20), (0.42 * side, y - 0.02), (0.18 * side, y + 0.05)], 6)  # fmt: skip
        pen.part(blade, Look("petal", LEAF, third=(200, 230, 150), soft=0.08),
                 Frame(0.3 * side, y - 0.1, 68 * side, 0.45, 0.8), cast=0.03)  # fmt: skip
        pen.stroke([(0.02 * side, y), (0.28 * side, y - 0.15), (0.58 * side, y - 0.20)],
                   mix(LEAF, (230, 250, 190), 0.5), 0.014)  # fmt: skip
    petals = 6 if pen.variant < 0.5 else 8
    for ring in (0, 1):
        for k in range(petals):
            _one_petal(pen, 360 * (k + 0.5 * ring) / petals, 1.0 if ring == 0 else 0.80, petals)
    pen.oval((0.0, -0.30), (0.20, 0.20), Look("seeds", (150, 92, 36), third=(250, 206, 90), soft=0.10,
             dark=0.45), Frame(0, -0.30, 0, 0.42, 0.42), cast=0.05)  # fmt: skip


def _one_petal(pen: Pen, angle: float, scale: float, petals: int) -> None:
    w = (0.27 if petals == 6 else 0.22) * scale
    long = 0.66 * scale
    shape = curve([(0.0, -0.05), (0.55 * w, -0.30 * long), (w, -0.66 * long), (0.72 * w, -0.92 * long),
                   (0.0, -1.0 * long), (-0.72 * w, -0.92 * long), (-w, -0.66 * long),
                   (-0.55 * w, -0.30 * long)], 5)  # fmt: skip
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    placed = [(x * cos - y * sin, -0.30 + x * sin + y * cos) for x, y in shape]
    mid = 0.5 * long
    pen.part(placed, Look("petal", pen.base, third=WHITE, soft=0.07, dark=0.60),
             Frame(mid * sin, -0.30 - mid * cos, angle, 0.62, long * 1.04), line=0.012, cast=0.04)  # fmt: skip


def mushroom(pen: Pen) -> None:
    stem = curve([(-0.20, 0.05), (0.20, 0.05), (0.22, 0.45), (0.30, 0.80), (0.34, 0.95), (0.0, 0.98),
                  (-0.34, 0.95), (-0.30, 0.80), (-0.22, 0.45)], 6)  # fmt: skip
    pen.part(stem, Look("fibres", CREAM, soft=0.16, dark=0.50), Frame(0, 0, 0, 0.6, 0.7))
    under = oval_points((0.0, 0.10), (0.86, 0.16))
    pen.part(
        under, Look("gills", mix(CREAM, WOOD, 0.25), soft=0.08), Frame(0, 0, 0, 0.9, 0.9), cast=0.05
    )
    skirt = curve([(-0.22, 0.26), (0.22, 0.26), (0.34, 0.44), (0.16, 0.41), (0.0, 0.46), (-0.16, 0.41),
                   (-0.34, 0.44)], 6)  # fmt: skip
    pen.part(
        skirt, Look("gills", mix(CREAM, WHITE, 0.4), soft=0.05), Frame(0, 0, 0, 0.5, 0.5), cast=0.05
    )
    dome = curve([(-0.97, 0.10), (-0.93, -0.22), (-0.70, -0.62), (-0.36, -0.86), (0.0, -0.93),
                  (0.36, -0.86), (0.70, -0.62), (0.93, -0.22), (0.97, 0.10), (0.60, 0.17), (0.0, 0.12),
                  (-0.60, 0.17)], 6)  # fmt: skip
    spot = CREAM if min(pen.base) < 200 else (182, 160, 150)
    pen.part(
        dome, Look("cap", pen.base, spot, soft=0.30, dark=0.42), Frame(pen.variant, 0, 0, 0.9, 0.9)
    )
    for k in range(90):  # the brim's folds
        x = -0.92 + 1.84 * k / 89
        y = 0.10 + 0.06 * math.sin(abs(x) * math.pi * 0.85)
        pen.stroke([(x, y), (x * 0.985, y - 0.06)], pen.dark, 0.008)
    spots = ((-0.52, -0.22, 0.15), (0.02, -0.56, 0.18), (0.50, -0.26, 0.14), (-0.08, -0.12, 0.11),
             (-0.30, -0.62, 0.08), (0.36, -0.62, 0.08), (-0.78, -0.04, 0.08), (0.76, 0.0, 0.08),
             (0.22, -0.10, 0.07))  # fmt: skip
    for x, y, r in spots:
        rim = [(x + 0.06 * (pen.variant - 0.5) + r * (1 + 0.10 * math.sin(3 * a + 9 * x)) * math.cos(a),
                y + 0.85 * r * (1 + 0.10 * math.cos(4 * a + 9 * y)) * math.sin(a))
               for a in np.linspace(0, 2 * math.pi, 30)[:-1]]  # fmt: skip
        pen.part(rim, Look("skin", spot, soft=0.06, dark=0.62), Frame(x, y, 0, 0.5, 0.5), line=0.006,
                 cast=0.03)  # fmt: skip


def bird(pen: Pen) -> None:
    for x in (-0.10, 0.14):
        _leg(pen, x)
    for k in range(4):
        a = -26 + 13 * k
        _quill(pen, (0.42, 0.20), a, 0.60 - 0.02 * k, mix(pen.dark, pen.base, 0.2 * k))
    body = curve([(-0.46, -0.12), (-0.20, -0.16), (0.20, -0.14), (0.54, 0.06), (0.62, 0.22), (0.46, 0.44),
                  (0.10, 0.60), (-0.28, 0.54), (-0.54, 0.30), (-0.62, 0.02)], 6)  # fmt: skip
    pen.part(body, Look("plumage", pen.base, third=pen.light, soft=0.26, dark=0.45),
             Frame(pen.variant, 0, -70, 0.8, 0.8))  # fmt: skip
    belly = curve(
        [(-0.50, 0.10), (-0.26, 0.20), (0.06, 0.40), (0.20, 0.54), (-0.10, 0.58), (-0.36, 0.46)], 6
    )
    pen.part(fringed(belly, pen.rng, 0.05, 0.03), Look("plumage", pen.light, third=WHITE, soft=0.12),
             Frame(0, 0, -60, 0.6, 0.6), line=0)  # fmt: skip
    beak: list[Point] = [(-0.80, -0.46), (-1.0, -0.33), (-0.80, -0.25)]
    pen.part(beak, Look("fibres", (250, 176, 40), soft=0.06), Frame(0, 0, 90, 0.4, 0.4))
    pen.stroke([(-0.97, -0.335), (-0.80, -0.34)], (140, 84, 20), 0.014)
    pen.part(fringed(oval_points((-0.52, -0.34), (0.35, 0.35)), pen.rng, 0.04, 0.02),
             Look("plumage", pen.base, third=pen.light, soft=0.22, dark=0.50), Frame(0, 0, -50, 0.5, 0.5),
             line=0.008)  # fmt: skip
    neck = curve([(-0.60, -0.10), (-0.30, -0.24), (-0.10, -0.06), (-0.30, 0.16), (-0.56, 0.14)], 6)
    pen.part(neck, Look("plumage", pen.base, third=pen.light, soft=0.20, dark=0.72),
             Frame(0, 0, -60, 0.7, 0.7), line=0)  # fmt: skip
    lift = 10 - 26 * pen.variant
    for k in range(7):
        _quill(
            pen, (-0.14 + 0.03 * k, 0.06 + 0.015 * k), lift - 22 + 9 * k, 0.80 - 0.055 * k, pen.dark
        )
    cover = curve(
        [(-0.24, 0.02), (0.02, -0.10), (0.26, -0.06), (0.24, 0.12), (0.06, 0.26), (-0.16, 0.22)], 6
    )
    pen.part(fringed(cover, pen.rng, 0.05, 0.03), Look("plumage", mix(pen.dark, pen.base, 0.5),
             third=pen.light, soft=0.10), Frame(0, 0, -80, 0.5, 0.5), line=0.006, cast=0.03)  # fmt: skip
    _eye(pen, (-0.60, -0.40), 0.085, (150, 90, 30))


def _quill(pen: Pen, root: Point, angle: float, long: float, colour: RGB) -> None:
    """One long feather from `root` to the right, turned by `angle` degrees."""
    w = 0.075
    shape = curve([(0.0, -0.02), (0.3 * long, -w), (0.8 * long, -w), (long, 0.0), (0.85 * long, w),
                   (0.3 * long, w), (0.0, 0.02)], 4)  # fmt: skip
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    placed = [(root[0] + x * cos - y * sin, root[1] + x * sin + y * cos) for x, y in shape]
    mid = (root[0] + 0.5 * long * cos, root[1] + 0.5 * long * sin)
    pen.part(placed, Look("feather", colour, third=mix(colour, WHITE, 0.8), soft=0.03),
             Frame(*mid, angle - 90, 2.2 * w, 1.1 * long), line=0.010, cast=0.02)  # fmt: skip


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
