"""Scenes that move: the same clip at every size and at every frame rate."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from lib_hires.standalone.world.motion import (
    CROSSING,
    ROOTED,
    Motion,
    draw_clip,
    moment,
    moments,
    random_clip,
    random_motion,
)
from lib_hires.standalone.world.scenes import CLASSES, VIEW_SHARES, Scene, draw, random_scene


def seeded(kind: str, seed: int = 3, **wanted: str) -> tuple[Scene, Motion]:
    rng = np.random.default_rng(seed)
    clips = (random_clip(rng) for _ in range(500))
    scene, motion = next(clip for clip in clips if clip[0].subjects[0].kind == kind)
    return replace(scene, **wanted), motion


@cache
def pixels(scene: Scene, motion: Motion, side: int, frames: int) -> np.ndarray:
    """(f, side, side, 3)"""
    clip = draw_clip(scene, motion, side, side, frames)
    return np.stack([np.asarray(frame) for frame in clip]).astype(np.float32)


def test_without_motion_every_frame_is_the_image() -> None:
    scene, _ = seeded("car")
    image = np.asarray(draw(scene, 48, 48))
    for frame in draw_clip(scene, Motion(), 48, 48, 3):
        assert np.array_equal(np.asarray(frame), image)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_faster_clip_is_the_same_clip(kind: str) -> None:
    """Neighbouring frames of the double rate lie about the moment of one frame, evenly."""
    scene, motion = seeded(kind)
    slow, fast = moments(scene, motion, 8), moments(scene, motion, 16)
    for frame, still in enumerate(slow):
        pair = fast[2 * frame : 2 * frame + 2]
        for name in ("x", "y", "tilt"):
            values = [getattr(moved.subjects[0], name) for moved in pair]
            bent = 0.3 if name == "tilt" else 0.003  # of what sways, which is not even
            assert np.mean(values) == pytest.approx(getattr(still.subjects[0], name), abs=bent)
        assert np.mean([moved.drift for moved in pair]) == pytest.approx(still.drift)
    assert moment(scene, replace(motion, bob=0, sway=0), 0.5) == scene


def test_a_subject_turns_evenly_about_how_it_is() -> None:
    scene, _ = seeded("bird")
    tilts = [still.subjects[0].tilt for still in moments(scene, Motion(turn=40), 4)]
    assert np.diff(tilts) == pytest.approx([10] * 3)
    assert np.mean(tilts) == pytest.approx(scene.subjects[0].tilt)


@pytest.mark.parametrize("kind", ["car", "bird", "rocket", "flower"])
def test_frames_are_drawn_alike_at_every_size_and_rate(kind: str) -> None:
    scene, motion = seeded(kind)
    small, large = pixels(scene, motion, 96, 4), pixels(scene, motion, 192, 4)
    halved = large.reshape(4, 96, 2, 96, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 7
    fast = pixels(scene, motion, 96, 8)
    blurred = fast.reshape(4, 2, 96, 96, 3).mean(1)
    unlike = np.abs(small - small[::-1]).mean()
    assert np.abs(blurred - small).mean() < 0.75 * unlike, "D in time is nearly the slower clip"
    steps = [np.abs(np.diff(clip, axis=0)).mean() for clip in (small, fast)]
    assert 0 < steps[1] < 0.95 * steps[0], "and its steps are smaller"


def test_chance_decides_and_nothing_else() -> None:
    scene, motion = seeded("fish")
    assert seeded("fish") == (scene, motion)
    assert seeded("fish", seed=4)[1] != motion


@pytest.mark.parametrize("kind", sorted(CROSSING))
def test_what_crosses_moves_where_it_looks(kind: str) -> None:
    """All of them are drawn looking to the left."""
    for seed in range(20):
        scene, motion = seeded(kind, seed)
        assert motion.across * (1 if scene.subjects[0].mirrored else -1) > 0
        assert 0.1 < abs(motion.across) <= 0.5


@pytest.mark.parametrize("kind", CLASSES)
def test_a_subject_stays_in_view(kind: str) -> None:
    for seed in range(20):
        scene, motion = seeded(kind, seed)
        for still in moments(scene, replace(motion, pan_x=0, pan_y=0, zoom=1), 5):
            (subject,) = still.subjects
            half = subject.size * subject.stretch / 2
            assert half - 0.06 < subject.x < 1 - half + 0.06
            assert subject.size / 2 - 0.08 < subject.y < 1 - subject.size / 2 + 0.08


@pytest.mark.parametrize("kind", sorted(ROOTED))
def test_what_stands_sways_about_its_foot(kind: str) -> None:
    scene, motion = seeded(kind)
    feet = []
    for still in moments(scene, replace(motion, bob=0), 6):
        (subject,) = still.subjects
        angle, half = np.radians(subject.tilt), subject.size / 2
        feet.append((subject.x - half * np.sin(angle), subject.y + half * np.cos(angle)))
    assert np.ptp(feet, axis=0).max() < 1e-9
    assert np.ptp([s.subjects[0].tilt for s in moments(scene, motion, 6)]) > 1


def test_clouds_and_water_move_and_stars_and_meadows_do_not() -> None:
    scene, _ = seeded("house")
    still = replace(scene, subjects=(), sky="clear", ground="water", horizon=0.5)
    clip = pixels(still, Motion(drift=0.2, flow=0.5), 64, 2)
    change = np.abs(clip[1] - clip[0]).mean((1, 2))
    assert change[:20].mean() > 1 and change[-20:].mean() > 1
    dark = replace(still, sky="night", ground="grass")
    assert np.array_equal(*pixels(dark, Motion(drift=0.2, flow=0.5), 64, 2))


def test_the_camera_pans_and_zooms_in_some_clips() -> None:
    rng = np.random.default_rng(1)
    motions = [random_motion(rng, random_scene(rng, view=VIEW_SHARES)) for _ in range(300)]
    assert 50 < sum(motion.pan_x != 0 for motion in motions) < 100
    assert 25 < sum(motion.zoom != 1 for motion in motions) < 70
    scene, _ = seeded("house")
    zoomed = moments(scene, Motion(zoom=2.0), 2)
    assert zoomed[1].view.zoom / zoomed[0].view.zoom == pytest.approx(2**0.5)


@pytest.mark.parametrize("frames", [0, -1])
def test_what_is_no_clip(frames: int) -> None:
    with pytest.raises(ValueError, match="frames"):
        moments(seeded("car")[0], Motion(), frames)
    with pytest.raises(ValueError, match="zoom"):
        Motion(zoom=0)
