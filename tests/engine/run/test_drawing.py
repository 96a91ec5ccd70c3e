"""The drawing's numbers, and the element that carries them."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import pytest
import torch

from lib_hires.run.drawing import drawing, element
from lib_hires.run.plan import TailPass, run_plan
from lib_hires.run.schedules import Model, Sampler, Sampling, sigmas_of
from lib_hires.settings import Settings

SIGMAS = sigmas_of((1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).cumprod(0))
MODEL = Model(SIGMAS, (512, 512))
TWICE = Sampling((1024, 1024), 10, Sampler(schedule="Karras"))
DDIM = replace(TWICE, sampler=Sampler(timesteps=True))
UG = Settings.from_values({"ug": True, "ug_eta": 1, "ug_cadence": 1})


def test_a_guided_first_pass_of_twice_the_side():
    made = drawing(run_plan(UG, TWICE, MODEL), UG, MODEL)
    (first,) = made["passes"]
    assert (first["name"], first["size"], first["native"]) == (
        "first pass",
        (1024, 1024),
        (512,) * 2,
    )
    assert first["strength"] == 1
    assert first["weights"] == [1] * 10 and list(first["evaluated"]) == [True] * 10
    assert first["gammas"] == [0] * 10
    assert made["edge"] is None and made["notes"] == []
    assert (made["theta"], made["native_evaluations"]) == (1, 10)
    assert made["plain_pixels"] == 10 * 1024**2
    assert made["pixels"] == 10 * 1024**2 + 10 * 512**2
    assert made["latent_bytes"] == 4 * 128 * 128 * 4


def test_a_batch_is_larger_and_more_batches_take_longer():
    plan = run_plan(UG, TWICE, MODEL)
    one, many = (drawing(plan, UG, MODEL, batch=b, batches=n) for b, n in ((1, 1), (3, 4)))
    assert many["pixels"] == 12 * one["pixels"] and many["plain_pixels"] == 12 * one["plain_pixels"]
    assert many["latent_bytes"] == 3 * one["latent_bytes"]
    assert many["passes"] == one["passes"]


def test_a_clip_states_its_frames():
    module = replace(MODEL, native_frames=16)
    made = drawing(run_plan(UG, replace(TWICE, frames=32), module), UG, module)
    (first,) = made["passes"]
    assert (first["frames"], first["native_frames"]) == (32, 16)
    assert made["latent_bytes"] == 32 * 4 * 128 * 128 * 4
    image = drawing(run_plan(UG, TWICE, MODEL), UG, MODEL)["passes"][0]
    assert (image["frames"], image["native_frames"]) == (1, 1)


def test_the_edge_is_where_the_window_ends():
    """DDIM goes from timestep 901 by hundreds to 1; six of these nine steps begin above 400."""
    settings = Settings.from_values({"ug": True, "ug_eta": 0.6, "ug_edge": 0, "ug_cadence": 4})
    made = drawing(run_plan(settings, DDIM, MODEL), settings, MODEL)
    assert made["edge"] == {"timestep": 400, "step": 6}
    assert made["passes"][0]["weights"] == [1] * 6 + [0] * 3
    evaluated = [step for step, is_one in enumerate(made["passes"][0]["evaluated"]) if is_one]
    assert evaluated == [0, 4]
    assert made["native_evaluations"] == 2


def test_hires_fix_and_stages_are_passes_of_their_own():
    settings = Settings.from_values({"ug": True, "pfsa": True, "refine": True})
    second = TailPass((768, 768), 5, 10)
    made = drawing(
        run_plan(settings, replace(TWICE, first=(512, 512)), MODEL, second), settings, MODEL
    )
    assert [part["name"] for part in made["passes"]] == ["first pass", "Hires. fix", "stage 1"]
    assert [part["size"][0] for part in made["passes"]] == [512, 768, 1536]
    assert [part["strength"] for part in made["passes"]] == [1, 0.5, 0.2]
    assert [part["native"] for part in made["passes"]] == [None, (512, 512), (512, 512)]
    assert [any(part["gammas"]) for part in made["passes"]] == [True, False, False]
    assert made["passes"][1]["message"].startswith("Hires. fix 768x768 in 5 steps")
    assert made["latent_bytes"] == 192 * 192 * 4 * 4


@pytest.mark.parametrize("notes", [[], ['"><script>', "DPM's ünïcode"]])
def test_the_element_carries_everything_whatever_is_in_it(notes):
    plan = drawing(run_plan(UG, TWICE, MODEL), UG, MODEL, notes=notes)
    page = {"model": "<b>'\"&", "generate": "a", "stop": "b c", "time": "d"}
    text = element(plan, page)
    assert "<script" not in text and "<b>" not in text
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', text))
    read = {name: json.loads(html.unescape(value)) for name, value in found.items()}
    assert read == {"page": page, "plan": json.loads(json.dumps(plan))}


def test_without_a_plan_there_is_nothing_to_draw():
    assert 'data-plan="null"' in element(None, {})
