"""Drawn scenes: the same image at every size, with detail that only larger sizes show."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image

from lib_hires.standalone.world.scenes import (
    CLASSES,
    COLOURS,
    VIEWS,
    Scene,
    Subject,
    View,
    draw,
    random_scene,
)


@cache
def pixels(scene: Scene, width: int, height: int) -> np.ndarray:
    return np.asarray(draw(scene, width, height)).astype(np.float32)


def seeded(seed: int, view: str = "whole", kind: str | None = None) -> Scene:
    rng = np.random.default_rng(seed)
    scenes = (random_scene(rng, view=view) for _ in range(500))
    return next(s for s in scenes if kind in (None, s.subjects[0].kind))


def halved(image: np.ndarray) -> np.ndarray:
    h, w = image.shape[0] // 2, image.shape[1] // 2
    return image.reshape(h, 2, w, 2, 3).mean((1, 3))


def finest_octave(image: np.ndarray) -> float:
    """The variance that an image loses when it is halved and resized back (bicubic)."""
    size = image.shape[1::-1]
    small = halved(image)
    back = [
        np.asarray(Image.fromarray(small[..., c]).resize(size, Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return float(((image - np.stack(back, -1)) ** 2).mean())


def test_the_scene_decides_every_pixel() -> None:
    scene = seeded(5)
    one, again = (np.asarray(draw(scene, 64, 64)) for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, np.asarray(draw(replace(scene, relief=0.123), 64, 64)))


@pytest.mark.parametrize("kind", CLASSES)
def test_larger_drawings_are_the_same_image(kind: str) -> None:
    scene = seeded(1, kind=kind)
    assert np.abs(halved(pixels(scene, 512, 512)) - pixels(scene, 256, 256)).mean() < 4.0


@pytest.mark.parametrize("view", VIEWS)
def test_views_too_are_the_same_image_at_every_size(view: str) -> None:
    scene = seeded(2, view)
    assert np.abs(halved(pixels(scene, 512, 512)) - pixels(scene, 256, 256)).mean() < 5.0
    assert np.abs(halved(pixels(scene, 256, 256)) - pixels(scene, 128, 128)).mean() < 7.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_every_size_has_detail_of_its_own(kind: str) -> None:
    scene = seeded(4, kind=kind)
    native, twice, four = (finest_octave(pixels(scene, n, n)) for n in (256, 512, 1024))
    enlarged = Image.fromarray(pixels(scene, 256, 256).astype(np.uint8)).resize((512, 512), 1)
    assert twice > 5 * finest_octave(np.asarray(enlarged).astype(np.float32))
    assert 0.3 * native < twice < 3 * native
    assert 0.3 * twice < four < 3 * twice


@pytest.mark.slow
def test_there_is_detail_at_eight_times_the_native_size() -> None:
    scene = seeded(4, kind="house")
    assert finest_octave(pixels(scene, 2048, 2048)) > 0.2 * finest_octave(pixels(scene, 512, 512))


def test_a_close_view_is_a_window_of_the_larger_whole() -> None:
    whole = seeded(6, kind="boat")
    window = replace(whole, view=View("near", 2.0, 0.375, 0.625))
    large = pixels(whole, 512, 512)[192:448, 64:320]
    assert np.abs(pixels(window, 256, 256) - large).mean() < 3.0


@pytest.mark.parametrize("kind", CLASSES)
def test_every_object_shows_and_lies_inside_the_image(kind: str) -> None:
    scene = replace(seeded(1, kind=kind), ground="sand")
    changed = np.abs(pixels(scene, 128, 128) - pixels(replace(scene, subjects=()), 128, 128)).sum(2)
    assert 0.03 < (changed > 30).mean() < 0.5
    border = np.concatenate([changed[0], changed[-1], changed[:, 0], changed[:, -1]])
    assert (border > 30).mean() < 0.05


def hue(colour: np.ndarray) -> np.ndarray:
    """Colours without their brightness: their direction from black."""
    return colour / np.maximum(np.linalg.norm(colour, axis=-1, keepdims=True), 1)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", CLASSES)
def test_an_object_shows_its_colour(kind: str, colour: str) -> None:
    """Among the bright pixels that the object changes, its own colour is the commonest."""
    scene = Scene((Subject(kind, colour, 0.5, 0.5, 0.6),), sky="cloudy", ground="sand")
    image = pixels(scene, 96, 96)
    bare = pixels(replace(scene, subjects=()), 96, 96)
    object_ = image[(np.abs(image - bare).sum(2) > 40) & (image.max(2) > 90)]
    palette = hue(np.array(list(COLOURS.values()), np.float32))
    nearest = (hue(object_) @ palette.T).argmax(1)
    counts = np.bincount(nearest, minlength=len(COLOURS))
    assert counts[list(COLOURS).index(colour)] > 0.15 * len(object_)
    others = np.delete(counts, [list(COLOURS).index(c) for c in {colour, "white", "orange"}])
    assert counts[list(COLOURS).index(colour)] > others.max()


@pytest.mark.parametrize("ground", ["snow", "sand"])
@pytest.mark.parametrize("kind", CLASSES)
def test_white_objects_stand_out(kind: str, ground: str) -> None:
    scene = Scene((Subject(kind, "white", 0.5, 0.6, 0.6),), sky="cloudy", ground=ground)
    changed = np.abs(pixels(scene, 96, 96) - pixels(replace(scene, subjects=()), 96, 96)).mean(2)
    assert (changed > 20).mean() > 0.08


@pytest.mark.parametrize("objects", [0, 1, 2, 4, 7, 16])
def test_any_number_of_objects(objects: int) -> None:
    scene = random_scene(np.random.default_rng(objects), objects=objects)
    assert len(scene.subjects) == objects
    assert draw(scene, 96, 64).size == (96, 64)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(8, 8), (16, 40), (250, 130)])
def test_any_size_can_be_drawn(view: str, size: tuple[int, int]) -> None:
    for seed in range(4):
        assert draw(seeded(seed, view), *size).size == size
