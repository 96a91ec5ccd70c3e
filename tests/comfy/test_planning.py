from collections import Counter

import nodes
import pytest
from PIL import Image, ImageDraw

from lib_hires.comfy import drawing
from lib_hires.comfy.guidance import guided_model
from lib_hires.comfy.nodes import PLAN
from lib_hires.comfy.planning import planned
from lib_hires.comfy.register import classic
from lib_hires.settings import Settings, UpsampleGuidance


def guided(host, **settings):
    settings = {"enabled": True, "eta": 1, "cadence": 1, **settings}
    return guided_model(host.model, UpsampleGuidance(**settings), host.native)


def test_the_plan_counts_what_the_host_evaluates(host):
    model = guided(host, cadence=2)
    plan = planned(model, Settings(), (64, 64), 3, "heun", "normal").plan
    noise = host.noise(8)
    sigmas = host.model.model.model_sampling.sigmas
    schedule = sigmas[[999, 500, 0]].tolist()
    host.sample(model, sigmas.new_tensor([*schedule, 0.0]), noise, "heun")
    sizes = Counter(shape[-1] for shape, _, _ in host.model.model.calls)
    assert (plan.evaluations, plan.passes[0].native_evaluations) == (sizes.total(), sizes[4])


def test_the_node_says_it_in_a_line(host):
    widgets = classic(PLAN).INPUT_TYPES()["required"]
    values = {name: part[1]["default"] for name, part in widgets.items() if "default" in part[1]}
    values |= {"width": 64, "height": 64, "steps": 10, "final_width": 128, "refine": True}
    line, _ = PLAN.run(guided(host), sampler_name="euler", scheduler="normal", **values)
    assert line.startswith("First pass 64x64 in 10 steps (10 guided at 32x32)")
    assert "stage 1 128x128" in line


def test_the_stages_may_have_steps_of_their_own(host):
    widgets = classic(PLAN).INPUT_TYPES()["required"]
    values = {name: part[1]["default"] for name, part in widgets.items() if "default" in part[1]}
    values |= {"width": 32, "height": 32, "steps": 20, "final_width": 64, "refine": True}
    values |= {"eta2": "0.5", "sampler_name": "euler", "scheduler": "normal"}
    for stage_steps, expected in ((0, 10), (6, 3)):
        line, _ = PLAN.run(host.model, stage_steps=stage_steps, **values)
        assert f"stage 1 64x64 in {expected} steps" in line


def test_an_unguided_model_is_planned_so(host):
    plan = planned(host.model, Settings(), (64, 64), 5, "euler", "normal").plan
    assert plan.evaluations == 5


def test_the_drawing_has_the_guidance_while_it_lasts(host):
    """Blue from the start to the end of guidance; the axis runs on without it."""

    def blue(eta):
        model = guided(host, eta=eta, edge=0.0)
        plan = planned(model, Settings(), (64, 64), 10, "euler", "normal")
        image = plan.image()[0]
        assert image.shape[-1] == 3 and image.min() >= 0 and image.max() <= 1
        weights = image[: 2 * drawing.FLOOR - 4]
        found = (weights[..., 2] - weights[..., 0] > 0.4).any(dim=0).nonzero()
        return int(found.min()), int(found.max()), plan.plan.passes[0].guided_steps

    whole, part = blue(1.0), blue(0.5)
    assert part[2] < whole[2] == 10
    assert whole[0] == part[0] < 2 * drawing.LEFT + 4
    assert whole[1] > 2 * drawing.WIDTH - 20
    step = (2 * drawing.WIDTH - 2 * drawing.LEFT) / 10
    assert part[1] - part[0] == pytest.approx(part[2] * step, abs=12)


def test_a_pass_of_few_steps_is_wide_enough_for_its_words():
    few = drawing._widths([{"weights": [1.0] * steps} for steps in (30, 2, 3)])
    words = drawing.Pen(ImageDraw.Draw(Image.new("RGB", (1, 1))))._font.getlength("strength 0.45")
    assert min(few) > words / drawing.SCALE and few[0] > 2 * few[2] > 2 * few[1]
    assert sum(few) == pytest.approx(drawing.WIDTH - drawing.LEFT - 2)
    many = drawing._widths([{"weights": [1.0] * 4}] * 8)
    assert many == pytest.approx([sum(many) / 8] * 8) and sum(many) == pytest.approx(sum(few))


def test_the_node_shows_its_drawing(host):
    nodes.SAVED.clear()
    widgets = classic(PLAN).INPUT_TYPES()["required"]
    values = {name: part[1]["default"] for name, part in widgets.items() if "default" in part[1]}
    values |= {"width": 64, "height": 64, "sampler_name": "euler", "scheduler": "normal"}
    answer = classic(PLAN)().run(model=guided(host), **values)
    ((kind, name, shape, _),) = nodes.SAVED
    assert kind == "temp" and answer["ui"]["images"][0]["filename"] == name
    assert tuple(answer["result"][1].shape) == (1, *shape)
    assert classic(PLAN).OUTPUT_NODE
