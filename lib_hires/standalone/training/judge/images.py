"""Drawn images for the judge: scenes of 0 to 16 objects of every size, and where they are."""

from __future__ import annotations

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from lib_hires.standalone.world.scenes import (
    AIRBORNE,
    CLASSES,
    COLOURS,
    GROUNDS,
    SKIES,
    Scene,
    Subject,
    draw,
)

MOST = 16  # objects in a training image
COUNTS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, MOST)
COUNT_SHARES = (0.07, 0.43, 0.18, 0.08, 0.07, 0.04, 0.03, 0.03, 0.03, 0.02, 0.02)


@dataclass(frozen=True)
class Images:
    """Images of one shape and what they show. `objects`: (n, MOST, 6) with centre x and y, half
    width and half height in fractions of the image, class and colour; class -1 for no object."""

    pixels: Tensor  # (n, 3, H, W) uint8
    objects: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def pick(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, 3, H, W) in [-1, 1] and their objects (b, MOST, 6)."""
        return self.pixels[indices].float() / 127.5 - 1, self.objects[indices]


def random_layout(rng: np.random.Generator, aspect: float) -> Scene:
    """A scene with every number and size of objects; alike more often than not, as the repeats of a
    image sampled too large are. `aspect`: width over height."""
    number = int(rng.choice(COUNTS, p=COUNT_SHARES))
    scene = Scene(
        subjects=(),
        sky=str(rng.choice(tuple(SKIES))),
        ground=str(rng.choice(tuple(GROUNDS))),
        horizon=float(rng.uniform(0.4, 0.85)),
        relief=float(rng.random()),
    )
    largest = 0.72 if number < 2 else min(0.55, 1.0 / math.sqrt(number))
    typical = float(
        rng.uniform(0.1, 0.95) if rng.random() < 0.15 else rng.uniform(0.4, 1) * largest
    )
    alike = bool(rng.random() < 0.6)
    placed: list[Subject] = []
    for _ in range(number):
        like = placed[0] if alike and placed else None
        size = typical * float(np.exp(0.2 * rng.standard_normal()))
        subject = place(rng, scene, placed, max(size, 0.085), aspect, like)
        placed += [subject] if subject else []
    return _with_subjects(scene, placed)


def place(
    rng: np.random.Generator,
    scene: Scene,
    others: list[Subject],
    size: float,
    aspect: float,
    like: Subject | None = None,
) -> Subject | None:
    """A subject at a free place, sometimes touching others or cropped by the border; None if there
    was no place. `like`: a subject whose class and colour it takes."""
    wide, high = size * min(1, 1 / aspect), size * min(1, aspect)  # in fractions of each side
    inside = 0.3 if rng.random() < 0.15 else 0.5
    gap = rng.uniform(0.05, 0.55)  # 0: half hidden behind the larger one; 0.5: side by side
    kind = like.kind if like else str(rng.choice(CLASSES))
    for _ in range(30):
        x = _between(rng, inside * wide, 1 - inside * wide)
        y = _between(rng, inside * high, 1 - inside * high)
        if kind not in AIRBORNE and rng.random() < 0.6:  # stands on the ground
            y = _between(rng, max(scene.horizon + 0.05 - high / 2, high / 2), 1 - inside * high)
        if all(
            max(abs(x - o.x) / wide, abs(y - o.y) / high) * size
            > max(size, o.size) / 2 + gap * min(size, o.size)
            for o in others
        ):
            return Subject(
                kind=kind,
                colour=like.colour if like else str(rng.choice(tuple(COLOURS))),
                x=x,
                y=y,
                size=size,
                stretch=float(rng.uniform(0.85, 1.18)),
                tilt=float(rng.uniform(-15, 15) if kind in AIRBORNE else rng.uniform(-4, 4)),
                mirrored=bool(rng.random() < 0.5),
                variant=float(rng.random()),
            )
    return None


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high)) if low < high else 0.5


def _with_subjects(scene: Scene, subjects: list[Subject]) -> Scene:
    ordered = sorted(subjects, key=lambda s: s.y + s.size / 2)
    return Scene(tuple(ordered), scene.sky, scene.ground, scene.horizon, scene.relief)


def random_image(rng: np.random.Generator, width: int, height: int) -> tuple[Image.Image, Scene]:
    """A drawn image and the objects to be counted in it.

    Now and then it holds a ghost (an object half seen through, counted when it is more than half
    there), a sliver of an object at the border or stray shapes, which do not count.
    """
    aspect = width / height
    scene = random_layout(rng, aspect)
    image = draw(scene, width, height)
    subjects = list(scene.subjects)
    if rng.random() < 0.12 and len(subjects) < MOST:
        counted = bool(rng.random() < 0.5)
        size = float(rng.uniform(0.12, 0.4))
        like = subjects[0] if subjects and rng.random() < 0.6 else None
        ghost = place(rng, scene, subjects, size, aspect, like)
        if ghost:
            seen = rng.uniform(0.6, 0.95) if counted else rng.uniform(0.05, 0.28)
            haunted = draw(_with_subjects(scene, [*subjects, ghost]), width, height)
            image = Image.blend(image, haunted, float(seen))
            subjects += [ghost] if counted else []
    if rng.random() < 0.15:
        _stray_shapes(rng, image)
    return image, _with_subjects(scene, subjects)


def _stray_shapes(rng: np.random.Generator, image: Image.Image) -> None:
    """Draw a few spots and slabs, too plain to be an object, into `image`."""
    ink = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 5))):
        base = np.array(list(COLOURS.values())[int(rng.integers(len(COLOURS)))])
        fill = tuple(int(v) for v in base * rng.uniform(0.4, 1))
        w, h = rng.uniform(0.01, 0.07, 2) * min(image.size)
        x, y = rng.uniform(0, 1, 2) * image.size
        shape = ink.ellipse if rng.random() < 0.5 else ink.rectangle
        shape((x - w, y - h, x + w, y + h), fill=fill)


def _objects_of(scene: Scene, aspect: float) -> np.ndarray:
    rows = np.full((MOST, 6), -1.0, np.float32)
    for row, s in zip(rows, scene.subjects[:MOST], strict=False):
        half_width = s.size / 2 * s.stretch * min(1, 1 / aspect)
        half_height = s.size / 2 * min(1, aspect)
        kind, colour = CLASSES.index(s.kind), tuple(COLOURS).index(s.colour)
        row[:] = (s.x, s.y, half_width, half_height, kind, colour)
    return rows


def _draw_chunk(job: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, count, width, height = job
    rng = np.random.default_rng(seed)
    pairs = [random_image(rng, width, height) for _ in range(count)]
    pixels = np.stack([np.asarray(image) for image, _ in pairs]).transpose(0, 3, 1, 2)
    return pixels, np.stack([_objects_of(scene, width / height) for _, scene in pairs])


def draw_images(number: int, width: int, height: int, seed: int) -> Images:
    """Draw `number` images, on all cores; the same ones for the same seed."""
    chunk = 100
    sizes = [min(chunk, number - start) for start in range(0, number, chunk)]
    seeds = np.random.SeedSequence([seed, width, height]).generate_state(len(sizes))
    jobs = [(int(s), size, width, height) for s, size in zip(seeds, sizes, strict=True)]
    bar = partial(tqdm, desc=f"draw {width}x{height}", total=len(jobs), leave=False)
    if len(jobs) == 1:
        parts = [_draw_chunk(jobs[0])]
    else:  # spawned: forking a process in which torch has threads can hang
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as workers:
            parts = list(bar(workers.map(_draw_chunk, jobs)))
    pixels, objects = (torch.from_numpy(np.concatenate(p)) for p in zip(*parts, strict=True))
    return Images(pixels, objects)
