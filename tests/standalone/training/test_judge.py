"""Training the judge: its images, their degradations, its targets, and its way to a file."""

import dataclasses
import json

import pytest
import torch

from lib_hires.standalone.training import judge as train_judge
from lib_hires.standalone.training.judge import Config, train_network
from lib_hires.standalone.training.judge.effects import EFFECTS, degrade
from lib_hires.standalone.training.judge.images import _objects_of, draw_images
from lib_hires.standalone.training.judge.targets import NOTHING, UNSURE, targets
from lib_hires.standalone.training.loop import Pace, computed_in
from lib_hires.standalone.world.judge import load_judge
from lib_hires.standalone.world.scenes import CLASSES, COLOURS, Scene, Subject


def test_targets_hold_one_hill_per_object_also_at_the_border():
    scene = Scene(
        (Subject("car", "blue", 0.02, 0.5, 0.5), Subject("fish", "red", 0.7, 0.3, 0.1)), "night"
    )
    objects = torch.from_numpy(_objects_of(scene, 1.0))[None]
    density, kinds, colours = targets(objects, 32, 32)
    assert density.sum().item() == pytest.approx(2)
    assert kinds[0, 16, 2] == CLASSES.index("car") + 1
    assert colours[0, 9, 22] == tuple(COLOURS).index("red")
    assert kinds[0, 31, 31] == NOTHING
    assert colours[0, 31, 31] == UNSURE


def test_degrading_keeps_shape_and_range_and_leaves_the_given_images():
    torch.manual_seed(0)
    images = torch.rand(12, 3, 48, 64) * 2 - 1
    before = images.clone()
    for effect, _ in EFFECTS:
        assert effect(images).shape == images.shape
    degraded = degrade(images)
    assert degraded.abs().max() <= 1
    assert not torch.equal(degraded, images)
    assert torch.equal(images, before)
    assert torch.equal(degrade(images, clean=1.0), images)


@pytest.mark.slow
def test_images_repeat_by_seed_and_hold_their_objects():
    first, again = (draw_images(6, 64, 48, seed=2) for _ in range(2))
    assert torch.equal(first.pixels, again.pixels)
    assert first.pixels.shape == (6, 3, 48, 64)
    assert torch.equal(first.objects, again.objects)


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    config = Config(steps=3, batch=4, scenes=10)
    shapes = [draw_images(8, 32, 32, seed=1)] * 3
    straight, progress = train_network(tmp_path / "a", config, shapes)
    assert progress.step == 3
    for steps in (1, 2, 3):  # of the three, each in a call of its own
        with monkeypatch.context() as patch:
            patch.setattr(train_judge, "Pace", lambda steps=steps, **_: Pace(steps=steps))
            stopped, _ = train_network(tmp_path / "b", config, shapes)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, stopped.state_dict()[name])
    with pytest.raises(ValueError, match="expected a training with"):
        train_network(tmp_path / "b", dataclasses.replace(config, seed=9), shapes)


def test_a_training_ends_in_a_judge_its_record_and_its_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(train_judge, "evaluate", lambda judge, degraded: {"class": 0.5})
    monkeypatch.setattr(train_judge, "SHAPES", ((32, 32),) * 3)
    path = train_judge.train(tmp_path, Config(steps=20, batch=2, scenes=20))
    assert load_judge(path).classes == CLASSES
    record = json.loads((tmp_path / "judge-training.json").read_text())
    assert [set(point) for point in record["curve_every_20"]] == [
        {"place", "count", "class", "colour", "named"}
    ]
    assert record["dtype"] == computed_in()
    assert (tmp_path / "judge-loss.png").is_file()
    assert not (tmp_path / "judge-state.pt").exists()
