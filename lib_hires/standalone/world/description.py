"""Scenes as numbers: subjects, views, captions and chance. Nothing here knows pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

RGB = tuple[int, int, int]
Point = tuple[float, float]

CLASSES: tuple[str, ...] = (
    "house",
    "tree",
    "fish",
    "face",
    "car",
    "flower",
    "boat",
    "mushroom",
    "rocket",
    "bird",
)
AIRBORNE: frozenset[str] = frozenset({"fish", "rocket", "bird"})

COLOURS: dict[str, RGB] = {
    "red": (214, 36, 44),
    "orange": (246, 132, 28),
    "yellow": (252, 214, 48),
    "green": (40, 156, 70),
    "blue": (36, 92, 214),
    "purple": (132, 58, 180),
    "pink": (248, 132, 184),
    "white": (246, 246, 242),
}
SKIES: tuple[str, ...] = ("clear", "evening", "night", "cloudy")
GROUNDS: tuple[str, ...] = ("grass", "sand", "snow", "water")

# How the caption names a view, before the subject. A whole view is what an ordinary caption means.
VIEWS: dict[str, str] = {
    "whole": "",
    "near": "a near view of ",
    "close-up": "a close-up of ",
    "far": "a distant view of ",
}
# The frame's side of a single subject as it appears in each view, in sides of the image.
APPARENT: dict[str, tuple[float, float]] = {
    "near": (0.85, 1.25),
    "close-up": (1.6, 2.6),
    "far": (0.15, 0.27),
}
VIEW_SHARES: dict[str, float] = {"whole": 0.55, "near": 0.20, "close-up": 0.15, "far": 0.10}

# Where a close-up looks, in the subject's frame (x right, y down, both -1 to 1).
_FOCUS: dict[str, tuple[Point, ...]] = {
    "house": ((-0.35, 0.35), (0.35, 0.35), (-0.3, -0.3), (0.3, -0.25), (0.0, 0.5)),
    "tree": ((0.0, -0.3), (-0.3, 0.1), (0.3, 0.1), (0.0, 0.4)),
    "fish": ((-0.5, 0.0), (0.0, 0.0), (0.4, 0.0), (0.7, 0.0)),
    "face": ((-0.3, 0.0), (0.3, 0.0), (0.0, 0.4), (0.0, -0.5)),
    "car": ((-0.5, 0.4), (0.5, 0.4), (0.0, -0.1), (0.0, 0.3)),
    "flower": ((0.0, -0.3), (0.3, -0.3), (-0.3, -0.2), (0.0, -0.6), (0.0, 0.3)),
    "boat": ((0.0, 0.6), (0.35, 0.0), (-0.3, 0.0), (-0.5, 0.5), (0.5, 0.5)),
    "mushroom": ((0.0, -0.4), (-0.45, -0.15), (0.45, -0.15), (0.0, 0.3)),
    "rocket": ((0.0, -0.4), (0.0, 0.1), (0.2, 0.5), (0.0, -0.1)),
    "bird": ((-0.5, -0.3), (0.1, 0.1), (0.4, 0.1), (0.0, 0.4)),
}


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@dataclass(frozen=True)
class Subject:
    """One object. `x`, `y`: centre, in fractions of width and height; `size`: its frame's side, in
    fractions of the image's shorter side; `stretch`: width over height of the frame; `tilt` in
    degrees; `variant` in [0, 1) picks details (door's side, number of petals, ...)."""

    kind: str
    colour: str
    x: float
    y: float
    size: float
    stretch: float = 1.0
    tilt: float = 0.0
    mirrored: bool = False
    variant: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in CLASSES:
            raise ValueError(f"kind: expected one of {', '.join(CLASSES)}, got {self.kind!r}")
        if self.colour not in COLOURS:
            raise ValueError(f"colour: expected one of {', '.join(COLOURS)}, got {self.colour!r}")

    @property
    def phrase(self) -> str:
        return f"{_article(self.colour)} {self.colour} {self.kind}"


@dataclass(frozen=True)
class View:
    """A window of the scene: 1 / `zoom` of its sides wide and high, centred at (`x`, `y`) in
    fractions of the sides. `kind` is one of VIEWS; the caption names it where `named`."""

    kind: str = "whole"
    zoom: float = 1.0
    x: float = 0.5
    y: float = 0.5
    named: bool = True

    def __post_init__(self) -> None:
        if self.kind not in VIEWS:
            raise ValueError(f"view: expected one of {', '.join(VIEWS)}, got {self.kind!r}")
        if not self.zoom > 0:
            raise ValueError(f"zoom: expected a positive number, got {self.zoom}")


@dataclass(frozen=True)
class Scene:
    """An image as numbers. `horizon`: its height in fractions from the top; `relief` in [0, 1)
    shapes the hills, the clouds and every other accident; `names_ground`: whether the caption
    does; `view`: which window of it the image shows. `drift` and `flow`: how far the clouds and a
    water's waves have moved, in widths of the scene and in tiles of the waves."""

    subjects: tuple[Subject, ...]
    sky: str = "clear"
    ground: str = "grass"
    horizon: float = 0.65
    relief: float = 0.5
    names_ground: bool = False
    view: View = View()
    drift: float = 0.0
    flow: float = 0.0

    def __post_init__(self) -> None:
        if self.sky not in SKIES:
            raise ValueError(f"sky: expected one of {', '.join(SKIES)}, got {self.sky!r}")
        if self.ground not in GROUNDS:
            raise ValueError(f"ground: expected one of {', '.join(GROUNDS)}, got {self.ground!r}")

    @property
    def caption(self) -> str:
        """For example "a close-up of a red house on grass under an evening sky"."""
        what = " and ".join(s.phrase for s in self.subjects) or "nothing"
        view = VIEWS[self.view.kind] if self.view.named and self.subjects else ""
        where = ""
        if self.names_ground:
            flies = bool(self.subjects) and all(s.kind in AIRBORNE for s in self.subjects)
            where = f" {'over' if flies else 'on'} {self.ground}"
        return f"{view}{what}{where} under {_article(self.sky)} {self.sky} sky"


# --- chance ---------------------------------------------------------------------------------------


def random_scene(
    rng: np.random.Generator,
    objects: int = 1,
    size_range: tuple[float, float] | None = None,
    *,
    view: str | Mapping[str, float] = "whole",
    named: float = 1.0,
) -> Scene:
    """A scene of `objects` subjects drawn from `rng` alone.

    `size_range` is in fractions of the image's shorter side; by default a single subject is large
    (0.42 to 0.65) and several are smaller, mostly side by side. `view`: one of VIEWS, or the share
    of each (for example VIEW_SHARES); other views than the whole need a subject and look at the
    first. `named`: the share of them whose caption names the view.
    """
    if objects < 0:
        raise ValueError(f"objects: expected 0 or more, got {objects}")
    scene = _whole_scene(rng, objects, size_range)
    kind = view if isinstance(view, str) else _pick_share(rng, view)
    if kind == "whole" or not objects:
        return replace(scene, view=View(kind))
    return replace(scene, view=replace(_random_view(rng, scene, kind), named=rng.random() < named))


def _whole_scene(
    rng: np.random.Generator, objects: int, size_range: tuple[float, float] | None
) -> Scene:
    horizon = float(rng.uniform(0.52, 0.76))
    low, high = size_range or (
        (0.42, 0.65) if objects <= 1 else (0.18, max(0.66 / math.sqrt(objects), 0.19))
    )
    placed: list[Subject] = []
    for _ in range(objects):
        candidates = (_random_subject(rng, horizon, low, high) for _ in range(12))
        careless = bool(rng.random() < 0.08)
        subject = next((s for s in candidates if careless or _is_clear(s, placed)), None)
        placed.append(subject or _random_subject(rng, horizon, low, high * 0.6 + low * 0.4))
    return Scene(
        subjects=tuple(sorted(placed, key=lambda s: s.y + s.size / 2)),
        sky=_pick(rng, SKIES),
        ground=_pick(rng, GROUNDS),
        horizon=horizon,
        relief=float(rng.random()),
        names_ground=bool(rng.random() < 0.5),
    )


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _pick_share(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    point = rng.random() * sum(shares.values())
    for kind, share in shares.items():
        point -= share
        if point < 0:
            return kind
    return next(reversed(list(shares)))


def _random_subject(rng: np.random.Generator, horizon: float, low: float, high: float) -> Subject:
    kind = _pick(rng, CLASSES)
    size = float(rng.uniform(low, high))
    stretch = float(rng.uniform(0.9, 1.1))
    half, wide = size / 2 + 0.02, size * stretch / 2 + 0.02
    top, bottom = half, 1 - half
    if kind not in AIRBORNE:  # stands on the ground: its lower edge lies below the horizon
        top = min(max(top, horizon + 0.06 - size / 2), bottom)
    return Subject(
        kind=kind,
        colour=_pick(rng, tuple(COLOURS)),
        x=float(rng.uniform(wide, 1 - wide)),
        y=float(rng.uniform(top, bottom)),
        size=size,
        stretch=stretch,
        tilt=float(rng.uniform(-12, 12)) if kind in AIRBORNE else 0.0,
        mirrored=bool(rng.random() < 0.5),
        variant=float(rng.random()),
    )


def _is_clear(subject: Subject, others: Sequence[Subject]) -> bool:
    return all(
        max(abs(subject.x - o.x), abs(subject.y - o.y)) > 0.52 * (subject.size + o.size)
        for o in others
    )


def _random_view(rng: np.random.Generator, scene: Scene, kind: str) -> View:
    """A view of the first subject, which appears as large as APPARENT has it."""
    subject = scene.subjects[0]
    zoom = float(rng.uniform(*APPARENT[kind])) / subject.size
    half = subject.size / 2
    if kind == "close-up":
        points = _FOCUS[subject.kind]
        u, v = points[int(rng.integers(len(points)))] + rng.uniform(-0.12, 0.12, 2)
        u = -u if subject.mirrored else u
        return View(kind, zoom, subject.x + u * half * subject.stretch, subject.y + v * half)
    if kind == "near":
        u, v = rng.uniform(-0.5, 0.5, 2)
        return View(kind, zoom, subject.x + u * half, subject.y + v * half)
    u, v = rng.uniform(0.2, 0.8), rng.uniform(0.45, 0.7)  # of the subject's x, of the horizon
    return View(kind, zoom, subject.x + (0.5 - u) / zoom, float(scene.horizon + (0.5 - v) / zoom))
