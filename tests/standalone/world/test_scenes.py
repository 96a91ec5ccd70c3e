"""Scenes as numbers: drawn from chance alone, in a small grammar, with views."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from lib_hires.standalone.world.scenes import (
    AIRBORNE,
    APPARENT,
    CLASSES,
    COLOURS,
    GROUNDS,
    SKIES,
    VIEW_SHARES,
    VIEWS,
    Scene,
    Subject,
    View,
    random_scene,
)


def test_there_are_enough_kinds_and_well_separated_colours() -> None:
    assert len(set(CLASSES)) >= 8
    assert len(COLOURS) >= 8
    for a, b in combinations(COLOURS.values(), 2):
        assert np.linalg.norm(np.subtract(a, b)) > 60


def test_the_seed_decides_everything() -> None:
    one, again = (random_scene(np.random.default_rng(5), view=VIEW_SHARES) for _ in range(2))
    other = random_scene(np.random.default_rng(6), view=VIEW_SHARES)
    assert one == again != other


def test_one_object_is_large_and_standing_ones_touch_the_ground() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        scene = random_scene(rng)
        (subject,) = scene.subjects
        assert scene.view == View()
        assert 0.4 <= subject.size <= 0.65
        half = subject.size * subject.stretch / 2
        assert half <= subject.x <= 1 - half
        if subject.kind not in AIRBORNE:
            assert subject.y + subject.size / 2 > scene.horizon


@pytest.mark.parametrize("kind", APPARENT)
def test_a_view_shows_its_subject_at_its_size(kind: str) -> None:
    rng = np.random.default_rng(3)
    low, high = APPARENT[kind]
    for _ in range(100):
        scene = random_scene(rng, view=kind)
        (subject,), view = scene.subjects, scene.view
        assert view.kind == kind
        assert low <= subject.size * view.zoom <= high
        # the point looked at lies on the subject, or the whole subject lies in the window
        if kind == "far":
            assert abs(subject.x - view.x) + subject.size / 2 < 0.5 / view.zoom
            assert abs(subject.y - view.y) + subject.size / 2 < 0.5 / view.zoom
        else:
            assert abs(subject.x - view.x) <= 0.6 * subject.size
            assert abs(subject.y - view.y) <= 0.6 * subject.size


def test_views_come_in_their_shares() -> None:
    rng = np.random.default_rng(4)
    seen = Counter(random_scene(rng, view=VIEW_SHARES).view.kind for _ in range(1500))
    for kind in VIEWS:
        assert seen[kind] / 1500 == pytest.approx(VIEW_SHARES[kind], abs=0.05)
    few = [random_scene(rng, view="near", named=0.3).view.named for _ in range(600)]
    assert np.mean(few) == pytest.approx(0.3, abs=0.07)


def test_captions_follow_the_grammar() -> None:
    house = Subject("house", "orange", 0.5, 0.5, 0.5)
    scene = Scene((house,), sky="evening", ground="sand")
    assert scene.caption == "an orange house under an evening sky"
    grounded = replace(scene, names_ground=True)
    assert grounded.caption == "an orange house on sand under an evening sky"
    bird = replace(house, kind="bird", colour="red")
    assert (
        Scene((bird,), sky="night", ground="water", names_ground=True).caption
        == "a red bird over water under a night sky"
    )


def test_captions_name_the_view_where_they_should() -> None:
    scene = Scene((Subject("tree", "green", 0.5, 0.5, 0.5),))
    for kind, words in (
        ("whole", "a green tree"),
        ("near", "a near view of a green tree"),
        ("close-up", "a close-up of a green tree"),
        ("far", "a distant view of a green tree"),
    ):
        view = View(kind, 2.0)
        assert replace(scene, view=view).caption == f"{words} under a clear sky"
        silent = replace(view, named=False)
        assert replace(scene, view=silent).caption == "a green tree under a clear sky"


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
    with pytest.raises(ValueError, match=r"view: expected one of whole, .* got 'above'"):
        View("above")
    with pytest.raises(ValueError, match="zoom: expected a positive number, got 0"):
        View("near", 0)
    with pytest.raises(ValueError, match="objects: expected 0 or more, got -1"):
        random_scene(np.random.default_rng(0), objects=-1)
