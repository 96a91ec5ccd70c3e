"""The judge: what it says of drawn scenes, its helpers, and the training's bookkeeping."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lib_hires.standalone.bundled import JUDGE
from lib_hires.standalone.training import judge as train_judge
from lib_hires.standalone.world.judge import (
    Judge,
    inspect,
    load_judge,
    reduce_area,
    save_judge,
    score,
    to_tensor,
)
from lib_hires.standalone.world.scenes import CLASSES, COLOURS, Scene, Subject, draw, random_scene


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
    wanted = [(scene.subjects[0].kind, scene.subjects[0].colour) for scene in scenes]
    result = score(images, wanted, judge)
    assert result.n == 40
    assert min(result.one_object, result.class_accuracy, result.colour_accuracy) >= 0.95


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


def test_score_counts_hits_and_refuses_lists_that_do_not_fit(judge):
    scenes, images = drawn(1, 4, 128, 128)
    result = score(images, [("no class", s.subjects[0].colour) for s in scenes], judge)
    assert (result.class_accuracy, result.all_right) == (0, 0)
    assert result.one_object == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.n = 5
    with pytest.raises(ValueError, match=r"one per image \(4\), got 1"):
        score(images, [("tree", "red")], judge)


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


def test_targets_hold_one_hill_per_object_also_at_the_border():
    scene = Scene(
        (Subject("car", "blue", 0.02, 0.5, 0.5), Subject("fish", "red", 0.7, 0.3, 0.1)), "night"
    )
    objects = torch.from_numpy(train_judge._objects_of(scene, 1.0))[None]
    density, kinds, colours = train_judge.targets(objects, 32, 32)
    assert density.sum().item() == pytest.approx(2)
    assert kinds[0, 16, 2] == CLASSES.index("car") + 1
    assert colours[0, 9, 22] == tuple(COLOURS).index("red")
    assert kinds[0, 31, 31] == train_judge.NOTHING
    assert colours[0, 31, 31] == train_judge.UNSURE


def test_degrading_keeps_shape_and_range_and_leaves_the_given_images():
    torch.manual_seed(0)
    images = torch.rand(12, 3, 48, 64) * 2 - 1
    before = images.clone()
    for effect, _ in train_judge.EFFECTS:
        assert effect(images).shape == images.shape
    degraded = train_judge.degrade(images)
    assert degraded.abs().max() <= 1
    assert not torch.equal(degraded, images)
    assert torch.equal(images, before)
    assert torch.equal(train_judge.degrade(images, clean=1.0), images)


def test_images_repeat_by_seed_and_hold_their_objects():
    first, again = (train_judge.draw_images(6, 64, 48, seed=2) for _ in range(2))
    assert torch.equal(first.pixels, again.pixels)
    assert first.pixels.shape == (6, 3, 48, 64)
    assert torch.equal(first.objects, again.objects)


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    config = train_judge.Config(steps=3, batch=4, scenes=10)
    shapes = [train_judge.draw_images(8, 32, 32, seed=1)] * 3

    def run(path: Path, stops: bool) -> dict[str, torch.Tensor]:
        training = train_judge._Run.resume(path, config)
        for _ in range(3):
            training.advance(shapes)
            if stops:
                training.save()
                training = train_judge._Run.resume(path, config)
        return training.average.state_dict()

    straight, stopped = run(tmp_path / "a", False), run(tmp_path / "b", True)
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)
    with pytest.raises(ValueError, match="expected a training with"):
        train_judge._Run.resume(tmp_path / "b", dataclasses.replace(config, seed=9))
