"""Scenes: drawn from chance alone, the same image at every size, in a small grammar."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from lib_hires.standalone.world.scenes import (
    CLASSES,
    COLOURS,
    GROUNDS,
    SKIES,
    Scene,
    Subject,
    draw,
    random_scene,
)


def pixels(scene: Scene, width: int, height: int) -> np.ndarray:
    return np.asarray(draw(scene, width, height)).astype(float)


def test_there_are_enough_kinds_and_well_separated_colours() -> None:
    assert len(set(CLASSES)) >= 8
    assert len(COLOURS) >= 8
    for a, b in combinations(COLOURS.values(), 2):
        assert np.linalg.norm(np.subtract(a, b)) > 60


def test_the_seed_decides_everything() -> None:
    one, again = (random_scene(np.random.default_rng(5)) for _ in range(2))
    other = random_scene(np.random.default_rng(6))
    assert one == again != other
    assert np.array_equal(pixels(one, 64, 64), pixels(again, 64, 64))


@pytest.mark.parametrize("seed", range(5))
def test_larger_drawings_are_the_same_image_only_sharper(seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed))
    small, large = pixels(scene, 256, 256), pixels(scene, 512, 512)
    reduced = large.reshape(256, 2, 256, 2, 3).mean((1, 3))
    assert np.abs(reduced - small).mean() < 1.5  # of 255
    detail = np.abs(np.diff(large, axis=1)).max()
    assert detail >= np.abs(np.diff(small, axis=1)).max() - 40


@pytest.mark.parametrize("kind", CLASSES)
def test_every_object_shows_and_lies_inside_the_image(kind: str) -> None:
    rng = np.random.default_rng(1)
    scene = next(s for s in (random_scene(rng) for _ in range(500)) if s.subjects[0].kind == kind)
    changed = np.abs(pixels(scene, 128, 128) - pixels(replace(scene, subjects=()), 128, 128)).sum(2)
    assert 0.03 < (changed > 30).mean() < 0.5
    border = np.concatenate([changed[0], changed[-1], changed[:, 0], changed[:, -1]])
    assert (border > 30).mean() < 0.05


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", CLASSES)
def test_an_object_shows_its_colour(kind: str, colour: str) -> None:
    scene = Scene((Subject(kind, colour, 0.5, 0.5, 0.6),))
    image = pixels(scene, 96, 96)
    near = np.abs(image - np.array(COLOURS[colour])).max(2) < 12
    assert near.mean() > 0.015


def test_one_object_is_large_and_standing_ones_touch_the_ground() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        scene = random_scene(rng)
        (subject,) = scene.subjects
        assert 0.4 <= subject.size <= 0.65
        half = subject.size * subject.stretch / 2
        assert half <= subject.x <= 1 - half
        if subject.kind not in {"fish", "rocket", "bird"}:
            assert subject.y + subject.size / 2 > scene.horizon


@pytest.mark.parametrize("objects", [0, 1, 2, 4, 7])
def test_any_number_of_objects(objects: int) -> None:
    scene = random_scene(np.random.default_rng(objects), objects=objects)
    assert len(scene.subjects) == objects
    assert draw(scene, 96, 64).size == (96, 64)


def test_captions_follow_the_grammar() -> None:
    house = Subject("house", "orange", 0.5, 0.5, 0.5)
    scene = Scene((house,), sky="evening", ground="sand")
    assert scene.caption == "an orange house under an evening sky"
    assert (
        replace(scene, names_ground=True).caption == "an orange house on sand under an evening sky"
    )
    bird = replace(house, kind="bird", colour="red")
    assert (
        Scene((bird,), sky="night", ground="water", names_ground=True).caption
        == "a red bird over water under a night sky"
    )


def test_random_scenes_cover_the_world() -> None:
    rng = np.random.default_rng(3)
    scenes = [random_scene(rng) for _ in range(400)]
    assert {s.subjects[0].kind for s in scenes} == set(CLASSES)
    assert {s.subjects[0].colour for s in scenes} == set(COLOURS)
    assert {s.sky for s in scenes} == set(SKIES)
    assert {s.ground for s in scenes} == set(GROUNDS)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kind: expected one of house, .* got 'castle'"):
        Subject("castle", "red", 0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"colour: .* got 'beige'"):
        Subject("house", "beige", 0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"sky: .* got 'green'"):
        Scene((), sky="green")
    with pytest.raises(ValueError, match="objects: expected 0 or more, got -1"):
        random_scene(np.random.default_rng(0), objects=-1)
