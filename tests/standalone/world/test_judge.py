"""The judge: its verdicts on drawn scenes, and its helpers."""

import numpy as np
import pytest
import torch

from lib_hires.standalone.bundled import JUDGE
from lib_hires.standalone.world.drawing import draw
from lib_hires.standalone.world.judge import (
    Judge,
    inspect,
    load_judge,
    reduce_area,
    save_judge,
    to_tensor,
)
from lib_hires.standalone.world.scenes import CLASSES, COLOURS, Scene, Subject, random_scene


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def drawn(objects: int, number: int, width: int, height: int, seed: int = 7):
    rng = np.random.default_rng([seed, objects])
    scenes = [random_scene(rng, objects=objects) for _ in range(number)]
    return scenes, [draw(scene, width, height) for scene in scenes]


def test_the_file_is_small_and_knows_the_worlds_names(judge):
    assert JUDGE.stat().st_size <= 1_000_000
    assert judge.classes == CLASSES
    assert judge.palette == tuple(COLOURS)


@pytest.mark.parametrize(("width", "height"), [(128, 128), (256, 256), (512, 512), (384, 256)])
def test_one_drawn_object_is_seen_and_named(judge, width, height):
    scenes, images = drawn(1, 40, width, height)
    verdicts = inspect(images, judge)
    wanted = [scene.subjects[0] for scene in scenes]
    hits = [
        (seen.objects == 1, seen.kind == subject.kind, seen.colour == subject.colour)
        for seen, subject in zip(verdicts, wanted, strict=True)
    ]
    assert np.mean(hits, axis=0).min() >= 0.95


def test_several_objects_are_never_called_one(judge):
    for number in (2, 3, 4):
        verdicts = inspect(drawn(number, 20, 256, 256)[1], judge)
        assert all(verdict.objects > 1 for verdict in verdicts)


def test_an_empty_scene_holds_nothing_and_a_crowd_is_eight_or_more(judge):
    assert {v.objects for v in inspect(drawn(0, 10, 256, 256)[1], judge)} == {0}
    places = [(x, y) for x in (0.13, 0.38, 0.63, 0.88) for y in (0.13, 0.38, 0.63, 0.88)]
    crowd = Scene(tuple(Subject("tree", "red", x, y, 0.2) for x, y in places))
    assert inspect([draw(crowd, 256, 256)], judge)[0].objects == 8


def test_a_verdict_does_not_depend_on_the_batch(judge):
    images = torch.cat([to_tensor(image) for image in drawn(1, 5, 128, 128)[1]])
    together = judge.features(images)
    for index, image in enumerate(images):
        torch.testing.assert_close(judge.features(image[None])[0], together[index])
    assert [v.kind for v in judge.look(images)] == [judge.look(i[None])[0].kind for i in images]


def test_features_at_full_size_tell_blur_which_reduced_ones_hardly_do(judge):
    images = torch.cat([to_tensor(image) for image in drawn(1, 4, 256, 256)[1]])
    half = torch.nn.functional.interpolate(images, (128, 128), mode="area")
    blurred = torch.nn.functional.interpolate(half, (256, 256), mode="bicubic")
    assert judge.features(images).shape == judge.features(images, side=None).shape
    change = [(judge.features(images, s) - judge.features(blurred, s)).norm() for s in (128, None)]
    assert change[1] > 2 * change[0]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (128, 128)),
        ((512, 256), (176, 96)),
        ((64, 64), (128, 128)),
        ((9, 300), (16, 736)),
    ],
)
def test_images_of_any_shape_come_to_multiples_of_16_and_keep_their_mean(size, expected):
    reduced = reduce_area(torch.full((1, 3, *size), 0.25), 128)
    assert reduced.shape[-2:] == expected
    torch.testing.assert_close(reduced.mean(), torch.tensor(0.25))


def test_saving_and_loading_keeps_the_network(tmp_path):
    judge = Judge(("a", "b"), ("c",), (8, 8, 8, 8)).half().float()
    save_judge(judge, tmp_path / "small.safetensors", seed=3)
    again = load_judge(tmp_path / "small.safetensors")
    assert (again.classes, again.palette) == (("a", "b"), ("c",))
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(judge.eval().features(images), again.features(images))


@pytest.mark.parametrize("content", [None, b"", b"not a safetensors file"])
def test_a_missing_or_damaged_file_is_one_clear_error(tmp_path, content):
    path = tmp_path / "judge.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="judge: expected the judge's weights in"):
        load_judge(path)
