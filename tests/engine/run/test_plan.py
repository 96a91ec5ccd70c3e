import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_hires.run.drawing import drawing
from lib_hires.run.plan import TailPass, run_plan
from lib_hires.run.schedules import Model, Sampler, Sampling, sigmas_of
from lib_hires.settings import Settings, SettingsError

ABAR = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).cumprod(0)
SD1 = Model(sigmas_of(ABAR), native=(512, 512))


def planned(size=(512, 512), steps=20, per_step=1, strength=None, second=None, **values):
    sampling = Sampling(size, steps, Sampler(per_step), strength=strength)
    return run_plan(Settings.from_values(values), sampling, SD1, second)


def test_all_off_is_the_plain_run():
    plan = planned()
    assert plan.relative_evaluations == plan.relative_pixels == 1
    assert plan.summary() == (
        "First pass 512x512 in 20 steps: 20 model evaluations, as in the plain run."
    )


def test_guidance_alone_evaluates_natively_at_every_step():
    plan = planned((1024, 1024), ug=True, ug_eta=1, ug_cadence=1)
    (first,) = plan.passes
    assert (first.small, first.guided_steps, first.evaluations) == ((512, 512), 20, 40)
    assert plan.relative_evaluations == 2
    assert plan.relative_pixels == 1.25
    assert plan.summary() == (
        "First pass 1024x1024 in 20 steps (20 guided at 512x512): 40 model evaluations, "
        "2 times the plain run's (1.25 times by pixels)."
    )


@pytest.mark.parametrize(
    ("per_step", "cadence", "small"), [(1, 1, 20), (1, 3, 7), (2, 1, 39), (2, 3, 7)]
)
def test_the_native_evaluations_of_a_cadence(per_step, cadence, small):
    plan = planned((1024, 1024), per_step=per_step, ug=True, ug_eta=1, ug_cadence=cadence)
    assert plan.passes[0].native_evaluations == small
    assert plan.plain_evaluations == 20 * per_step - (per_step - 1)  # Heun ends on Euler's step


def test_the_share_of_the_run_ends_the_guidance():
    plan = planned((1024, 1024), 21, ug=True, ug_eta=0.6, ug_edge=0, ug_shifted_start=False)
    assert plan.passes[0].guided_steps == 12  # at 999, 949, ... 449 of 999 timesteps


def test_an_automatic_share_ends_early_near_noise():
    """There as 0.8 does; a stage, and img2img of half the strength, to their last step."""
    values = {"ug": True, "refine": True, "refine_eta2": "0.4", "ug_edge": 0}
    plan = planned((1024, 1024), **values)
    assert plan.passes[0] == planned((1024, 1024), **values, ug_eta=0.8).passes[0]
    assert 0 < plan.passes[0].guided_steps < 20
    assert plan.passes[1] == planned((1024, 1024), **values, ug_eta=1).passes[1]
    for strength, eta in ((0.5, 1), (0.75, 0.8)):
        image = planned((1024, 1024), strength=strength, **values)
        wanted = planned((1024, 1024), strength=strength, **values, ug_eta=eta)
        assert image.passes[0] == wanted.passes[0]


def test_stages_have_their_sizes_and_steps():
    plan = planned(refine=True, refine_factor=4, refine_eta2="0.2, 0.4", ug=True, ug_cadence=1)
    sizes = [(part.summary().split(" in ")[0], part.steps, part.small) for part in plan.passes]
    assert sizes == [
        ("first pass 512x512", 20, None),
        ("stage 1 1472x1472", 4, (512, 512)),
        ("stage 2 2048x2048", 8, (512, 512)),
    ]
    assert plan.evaluations == 20 + 2 * (4 + 8)
    area = (1472 / 512) ** 2
    assert plan.relative_pixels == pytest.approx((20 + 4 * (area + 1) + 8 * (16 + 1)) / 20)


def test_stages_take_their_share_of_their_own_steps():
    values = {"refine": True, "refine_factor": 4, "refine_eta2": "0.2, 0.4", "ug": True}
    plan = planned(refine_steps=10, **values)
    assert [part.steps for part in plan.passes] == [20, 2, 4]
    shorter = planned((512, 512), 10, **values)
    assert plan.passes[1:] == shorter.passes[1:]


def test_a_pivot_counts_the_steps_below_its_timestep():
    plan = planned(refine=True, refine_method="Pivot", refine_pivot=700)
    assert plan.passes[1].steps == 15  # 700, and 14 of the schedule


def test_the_target_is_rounded_before_the_run():
    plan = planned((520, 520), refine=True, refine_factor=1.25)
    assert plan.passes[-1].size == (648, 648)


def test_at_the_native_size_guidance_does_nothing_and_the_line_explains_it():
    plan = planned(ug=True)
    assert plan.evaluations == 20
    assert plan.summary().endswith(
        " Upsample Guidance does nothing here, because 512x512 is not clearly above the model's "
        "native 512x512 (sides 1.15 times as long)."
    )
    assert planned(ug=True, ug_theta=0).idle == ""
    assert planned((1024, 1024), ug=True, ug_passes="img2img").idle == (
        'the run has no pass that is "img2img"'
    )


def test_what_the_run_would_refuse_is_refused():
    with pytest.raises(SettingsError, match="smaller than the first"):
        planned((1024, 1024), refine=True, refine_width=512, refine_height=512)


@pytest.mark.parametrize(
    ("passes", "guided", "mixed"),
    [
        ("automatic", {"hires"}, {"text"}),
        ("first pass", set(), {"text"}),
        ("Hires. fix", {"hires"}, {"hires"}),
        ("both", {"hires"}, {"text", "hires"}),
        ("img2img", set(), set()),
    ],
)
def test_the_choice_of_passes(passes, guided, mixed):
    values = {"ug": True, "ug_passes": passes, "pfsa": True, "pfsa_passes": passes}
    plan = planned(second=TailPass((1024, 1024), steps=10, of=20), **values)
    assert [(part.kind, part.steps) for part in plan.passes] == [("text", 20), ("hires", 10)]
    assert {part.kind for part in plan.passes if part.small} == guided
    assert {part.kind for part in plan.passes if part.mixed_steps} == mixed


def test_a_pass_with_a_sampler_and_schedule_of_its_own():
    second = TailPass((512, 512), 5, 10, Sampler(evaluations=2), "Exponential")
    first, own = planned(second=second).passes
    assert (first.evaluations, own.evaluations) == (20, 9)
    assert own.timesteps != planned(second=replace(second, schedule=None)).passes[1].timesteps


def test_plms_evaluates_twice_in_its_first_step():
    sampling = Sampling((512, 512), 10, Sampler(opening=1, timesteps=True))
    assert run_plan(Settings(), sampling, SD1).evaluations == 10


def test_img2img_denoises_the_end_of_the_schedule():
    plan = planned((1024, 1024), strength=0.5, ug=True, ug_eta=0.6, ug_edge=0)
    (part,) = plan.passes
    assert (part.kind, part.steps, part.strength) == ("image", 11, 0.5)
    assert part.timesteps[0] == pytest.approx(999 * 10 / 19, abs=1)
    assert part.guided_steps == 3  # at 526, 473, 421


def test_img2img_of_fixed_steps_stretches_the_schedule():
    sampling = Sampling((512, 512), 10, strength=0.5, fixed_steps=True)
    (part,) = run_plan(Settings(), sampling, SD1).passes
    assert part.steps == 10
    assert part.timesteps[0] == pytest.approx(999 * 9 / 19, abs=1)


@pytest.mark.parametrize(
    ("sampler", "strength", "steps"),
    [
        (Sampler(), None, 1),
        (Sampler(2), 0.5, 1),
        (Sampler(timesteps=True), None, 0),
        (Sampler(timesteps=True), 0.5, 0),
        (Sampler(timesteps=True, ends_at_zero=True), None, 1),
        (Sampler(timesteps=True, ends_at_zero=True), 0.5, 1),
    ],
)
def test_a_run_of_one_step(sampler, strength, steps):
    """DDIM and PLMS stop at their lowest timestep, which is then their first."""
    sampling = Sampling((512, 512), 1, sampler, strength=strength)
    plan = run_plan(Settings(), sampling, SD1)
    assert (plan.passes[0].steps, plan.evaluations) == (steps, steps)
    assert plan.summary().endswith(", as in the plain run.")
    values = {"ug": True, "pfsa": True, "refine": True}
    plan = run_plan(Settings.from_values(values), sampling, SD1)
    assert [part.steps for part in plan.passes] == [steps] * 2
    assert plan.evaluations == 3 * steps
    assert math.isfinite(plan.relative_evaluations) and math.isfinite(plan.relative_pixels)


def test_what_cannot_be_compared_is_not():
    sampling = Sampling((512, 512), 1, Sampler(timesteps=True))
    values = {"ug": True, "refine": True, "refine_method": "Pivot"}
    plan = run_plan(Settings.from_values(values), sampling, SD1)
    assert plan.summary() == (
        "First pass 512x512 in 0 steps, then stage 1 1024x1024 in 1 step "
        "(1 guided at 512x512): 2 model evaluations."
    )


@settings(deadline=None)
@given(
    st.integers(8, 256),
    st.integers(8, 256),
    st.integers(1, 60),
    st.integers(1, 2),
    st.none() | st.floats(0, 1),
    st.fixed_dictionaries(
        {},
        optional={
            "ug": st.booleans(),
            "ug_eta": st.just(0) | st.floats(0.05, 1),
            "ug_cadence": st.integers(1, 10),
            "pfsa": st.booleans(),
            "refine": st.booleans(),
            "refine_factor": st.floats(1, 4),
            "refine_steps": st.integers(0, 150),
            "refine_eta2": st.lists(st.floats(0.01, 1), min_size=1, max_size=3),
        },
    ),
)
def test_every_plan_adds_up(height, width, steps, per_step, strength, values):
    plan = planned((8 * height, 8 * width), steps, per_step, strength, **values)
    for part in plan.passes:
        assert 0 <= part.guided_steps <= part.steps
        assert part.evaluations - part.native_evaluations == per_step * (part.steps - 1) + 1
        assert all(side % 8 == 0 for side in part.size)
    assert plan.relative_evaluations >= 1
    assert math.isfinite(plan.relative_pixels)
    assert plan.summary().endswith(".")


@pytest.mark.parametrize("unfinished", ["same", "matched"])
def test_unfinished_stages_are_left_where_the_next_begins(unfinished):
    """By hand: the steps above the level, which is half of the next one's start if matched."""
    values = {"refine": True, "refine_factor": 4, "refine_method": "Pivot", "refine_pivot": 500}
    sampling = Sampling((512, 512), 20, Sampler(schedule="Karras"))
    wanted = Settings.from_values(values)
    finished = run_plan(wanted, sampling, SD1)
    assert run_plan(wanted, sampling, SD1, unfinished="no") == finished
    left = run_plan(wanted, sampling, SD1, unfinished=unfinished)

    sigmas = ((1 - ABAR) / ABAR).sqrt()
    level = float(sigmas[500]) * (0.5 if unfinished == "matched" else 1)
    ramp = torch.linspace(0, 1, 20).double()
    low, high = float(sigmas[0]) ** (1 / 7), float(sigmas[-1]) ** (1 / 7)
    karras = (high + ramp * (low - high)) ** 7
    first, *_, last = left.passes
    assert first.steps == int((karras > level * (1 + 1e-4)).sum()) < 20
    assert first.timesteps == finished.passes[0].timesteps[: first.steps]
    assert last == finished.passes[-1]  # the last stage is finished
    assert left.passes[1].steps < finished.passes[1].steps
    assert left.plain_evaluations == finished.plain_evaluations == 20
    assert f"First pass 512x512 in {first.steps} of 20 steps" in left.summary()
    drawn = drawing(left, wanted, SD1)["passes"]
    assert [part["whole_steps"] for part in drawn] == [20, finished.passes[1].steps, 0]
