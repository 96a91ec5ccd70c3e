"""Scenes that move: a clip is a scene and its motion, drawn at any size and any frame rate.

Time runs from 0 to 1 over a clip. Frame k of f shows the moment (k + 1/2)/f, so that the mean of m
neighbouring frames of a clip with m times as many lies at the moment of one frame of the slower
clip: what temporal Upsample Guidance takes for the same clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from lib_hires.standalone.world.description import AIRBORNE, Scene, Subject, random_scene
from lib_hires.standalone.world.drawing import draw

FRAMES = 16  # of a native clip
CROSSING: frozenset[str] = frozenset({"fish", "car", "boat", "bird"})
"""They look to the left where they are not mirrored, and move where they look."""
ROOTED: frozenset[str] = frozenset({"tree", "flower", "mushroom", "face"})
"""They sway about their foot."""
CLIP_SIZES = (0.36, 0.55)  # of a single subject
MARGIN = 0.04  # between a subject's frame and the image's border, in sides


@dataclass(frozen=True)
class Motion:
    """How a scene changes over a clip.

    The first subject moves by `across` widths and `down` heights and turns by `turn` degrees, all
    evenly; it bobs by `bob` heights and sways by `sway` degrees, `times` times, begun at `phase` of
    a time. The camera pans by `pan_x` and `pan_y` sides and zooms by a factor of `zoom`. Clouds
    drift by `drift` widths, waves by `flow` tiles.
    """

    across: float = 0.0
    down: float = 0.0
    turn: float = 0.0
    bob: float = 0.0
    sway: float = 0.0
    times: float = 1.0
    phase: float = 0.0
    pan_x: float = 0.0
    pan_y: float = 0.0
    zoom: float = 1.0
    drift: float = 0.0
    flow: float = 0.0

    def __post_init__(self) -> None:
        if not self.zoom > 0:
            raise ValueError(f"zoom: expected a positive number, got {self.zoom}")


def moment(scene: Scene, motion: Motion, time: float) -> Scene:
    """The scene at a time from 0 to 1; at 1/2 the even motions are where the scene has them."""
    share = time - 0.5
    wave = math.sin(2 * math.pi * (motion.times * time + motion.phase))
    subjects = scene.subjects
    if subjects:
        subjects = (_moved(subjects[0], motion, share, wave), *subjects[1:])
    view = replace(
        scene.view,
        zoom=scene.view.zoom * motion.zoom**share,
        x=scene.view.x + motion.pan_x * share,
        y=scene.view.y + motion.pan_y * share,
    )
    return replace(
        scene,
        subjects=subjects,
        view=view,
        drift=scene.drift + motion.drift * share,
        flow=scene.flow + motion.flow * share,
    )


def _moved(subject: Subject, motion: Motion, share: float, wave: float) -> Subject:
    turned = math.radians(motion.sway * wave)
    half = subject.size / 2 if subject.kind in ROOTED else 0.0
    return replace(
        subject,
        x=subject.x + motion.across * share + half * math.sin(turned),
        y=subject.y + motion.down * share + motion.bob * wave + half * (1 - math.cos(turned)),
        tilt=subject.tilt + motion.turn * share + motion.sway * wave,
    )


def moments(scene: Scene, motion: Motion, frames: int = FRAMES) -> tuple[Scene, ...]:
    """The scenes of a clip's frames. Raises ValueError for less than one."""
    if frames < 1:
        raise ValueError(f"frames: expected 1 or more, got {frames}")
    return tuple(moment(scene, motion, (frame + 0.5) / frames) for frame in range(frames))


def draw_clip(
    scene: Scene, motion: Motion, width: int, height: int, frames: int = FRAMES
) -> list[Image.Image]:
    """A clip's frames, each an RGB image of `width` x `height` pixels."""
    return [draw(still, width, height) for still in moments(scene, motion, frames)]


# --- chance ---------------------------------------------------------------------------------------


def random_clip(rng: np.random.Generator, objects: int = 1) -> tuple[Scene, Motion]:
    """A scene with room for what crosses it, and its motion, drawn from `rng` alone."""
    scene = random_scene(rng, objects, CLIP_SIZES if objects == 1 else None)
    if objects:
        first, *others = scene.subjects
        if first.kind in CROSSING:
            first = replace(first, x=0.5 + 0.25 * (first.x - 0.5))
        if first.kind == "rocket":
            first = replace(first, y=0.5 + 0.25 * (first.y - 0.5))
        scene = replace(scene, subjects=(first, *others))
    return scene, random_motion(rng, scene)


def random_motion(rng: np.random.Generator, scene: Scene) -> Motion:
    """A motion that suits a scene, drawn from `rng` alone.

    What can move crosses the image, the way it looks; what stands sways or bobs; the camera pans or
    zooms in two of five clips. Clouds drift and water flows always. A whole subject stays in view.
    """
    motion = _random_subject_motion(rng, scene.subjects[0]) if scene.subjects else Motion()
    camera = float(rng.random())
    pan, tilt, zoom = rng.uniform(-0.12, 0.12), rng.uniform(-0.05, 0.05), rng.uniform(-1, 1)
    drift = float(rng.choice((-1, 1)) * rng.uniform(0.03, 0.12))
    flow = float(rng.uniform(0.15, 0.4))
    motion = replace(motion, drift=drift, flow=flow)
    near = scene.view.zoom
    if camera < 0.25:
        return replace(motion, pan_x=float(pan) / near, pan_y=float(tilt) / near)
    if camera < 0.4:
        return replace(motion, zoom=float(1.25**zoom))
    return motion


def _random_subject_motion(rng: np.random.Generator, subject: Subject) -> Motion:
    """Of the first subject; numbers are drawn alike for every class."""
    share, lift, phase = (
        float(rng.uniform(0.5, 1.0)),
        float(rng.uniform(-1, 1)),
        float(rng.random()),
    )
    times, strength = float(rng.uniform(0.7, 1.6)), float(rng.uniform(0.4, 1.0))
    if subject.kind == "rocket":
        room = _room(subject.y, subject.size / 2)
        return Motion(
            down=-share * min(room, 0.35), across=0.04 * lift, sway=3 * strength, times=times,
            phase=phase,
        )  # fmt: skip
    if subject.kind in CROSSING:
        facing = 1 if subject.mirrored else -1
        room = _room(subject.x, subject.size * subject.stretch / 2)
        flies = subject.kind in AIRBORNE
        bob = 0.025 if flies else 0.012 if subject.kind == "boat" else 0.003
        sway = 5.0 if flies else 3.0 if subject.kind == "boat" else 0.0
        return Motion(
            across=facing * share * max(min(room, 0.5), 0.08),
            down=0.05 * lift if flies else 0.0,
            bob=bob * strength, sway=sway * strength, times=times, phase=phase,
        )  # fmt: skip
    if subject.kind == "house":
        return Motion()
    if subject.kind == "face":
        return Motion(bob=0.02 * strength, sway=9 * strength, times=times, phase=phase)
    return Motion(sway=5 * strength, times=times, phase=phase)


def _room(centre: float, half: float) -> float:
    """How far a frame of this half can move evenly about its centre and stay inside, doubled."""
    return max(2 * (min(centre, 1 - centre) - half - MARGIN), 0.0)
