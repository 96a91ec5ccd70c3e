from collections import Counter

from lib_hires.comfy.guidance import guided_model
from lib_hires.comfy.nodes import PLAN
from lib_hires.comfy.planning import planned
from lib_hires.comfy.register import classic
from lib_hires.settings import Settings, UpsampleGuidance


def guided(host, **settings):
    return guided_model(host.model, UpsampleGuidance(enabled=True, **settings), host.native)


def test_the_plan_counts_what_the_host_evaluates(host):
    model = guided(host, cadence=2)
    plan = planned(model, Settings(), (64, 64), 3, "heun", "normal")
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
    (line,) = PLAN.run(guided(host), sampler_name="euler", scheduler="normal", **values)
    assert line.startswith("First pass 64x64 in 10 steps (10 guided at 32x32)")
    assert "stage 1 128x128" in line


def test_an_unguided_model_is_planned_so(host):
    plan = planned(host.model, Settings(), (64, 64), 5, "euler", "normal")
    assert plan.evaluations == 5
