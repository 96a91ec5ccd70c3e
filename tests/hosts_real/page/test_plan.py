"""The plan line and the drawing in the real page."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import Tensor
from webui_page import NATIVE, SIDE, Page

from lib_hires.run.drawing import drawing
from lib_hires.run.plan import run_plan
from lib_hires.run.schedules import Model, Sampler, Sampling, sigmas_of
from lib_hires.settings import Settings

pytestmark = [pytest.mark.host, pytest.mark.browser]

DEFAULTS = {"DPM++ 2M": Sampler(schedule="Karras"), "Euler a": Sampler()}  # of the hosts


def test_the_line_follows_sliders_and_size(open_page: Any) -> None:
    page = open_page()
    page.size(512, 512)
    page.open("refine")
    page.wait_for_line("stage 1 1024x1024 in 4 steps")
    page.set(page.host("width"), 256)
    page.set(page.host("height"), 384)
    page.wait_for_line("First pass 256x384 in 20 steps, then stage 1 512x768 in 4 steps")
    page.set(page.host("steps"), 10)
    page.wait_for_line("256x384 in 10 steps, then stage 1 512x768 in 2 steps")
    page.set(page.ours("refine_factor"), 1.3)
    page.wait_for_line("stage 1 336x496")
    page.ours("refine_eta2").locator("textarea").fill("0.1, x")
    page.wait_for_line("refine_eta2: expected numbers")
    page.ours("refine_eta2").locator("textarea").fill("0.2")
    page.open("refine")
    page.open("ug")
    page.set(page.host("width"), NATIVE)
    page.set(page.host("height"), NATIVE)
    page.wait_for_line("Upsample Guidance does nothing here")


SLOWLY = """
    const at_once = window.fetch;
    window.fetch = async (address, ...rest) => {
        const slow = String(address).includes("run/predict");
        if (slow) await new Promise((go_on) => setTimeout(go_on, 1500));
        return at_once(address, ...rest);
    };
"""


def test_the_line_is_true_also_where_the_server_is_slow(open_page: Any) -> None:
    """A change while a response is awaited is not forgotten."""
    page = open_page()
    page.page.add_init_script(SLOWLY)
    page = Page(page.page, page.page.url)
    page.size(512, 512)
    page.open("refine")
    page.wait_for_line("stage 1 1024x1024")
    for width in (576, 640, 704):
        page.set(page.host("width"), width)
        page.page.wait_for_timeout(400)
    page.wait_for_line("stage 1 1408x1024")
    page.page.wait_for_timeout(3000)  # a request that its page leaves keeps a host from restarting


def test_the_drawing_follows_a_slider_as_computed(
    open_page: Any, sd_alphas_cumprod: Tensor
) -> None:
    page = open_page()
    page.small(steps=10)
    name, schedule = (
        page.host(each).locator("input").input_value() for each in ("sampling", "scheduler")
    )
    assert name in DEFAULTS
    page.open("ug")
    model = Model(sigmas_of(sd_alphas_cumprod), (NATIVE, NATIVE))
    for eta in (1.0, 0.6, 0.25):
        page.set(page.ours("ug_eta"), eta)
        settings = Settings.from_values({"ug": True, "ug_eta": eta})
        plan = run_plan(settings, Sampling((SIDE, SIDE), 10, DEFAULTS[name], schedule), model)
        made = drawing(plan, settings, model)
        page.wait_for_line(f"{plan.evaluations} model evaluations")
        end = made["edge"] and f"ends at timestep {made['edge']['timestep']:.0f}, after step"
        native = f"{made['native_evaluations']} evaluations at the native size"
        for words in filter(None, (native, end)):
            page.drawing().get_by_text(words).wait_for()
        marks = page.drawing().locator("path.hires-guidance-evaluation")
        assert marks.count() == sum(made["passes"][0]["evaluated"])
        assert "model evaluation" not in page.drawing().inner_text()  # the line's


def test_hires_fix_is_drawn(open_page: Any) -> None:
    page = open_page()
    page.small(steps=10)
    page.open("ug", "refine")
    page.wait_for_line("stage 1 256x256")
    page.host("hr").locator(".label-wrap > span").first.click()
    page.wait_for_line("then Hires. fix 256x256 in .*, then stage 1 512x512")
    page.drawing().locator("text", has_text="Hires. fix").wait_for()
    assert page.drawing().locator("rect").count() == 3


def test_two_tabs_learn_seconds_from_one_run_and_draw_by_themselves(
    browser: Any, host: Any
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    one, other = (Page(context.new_page(), f"{host.url}/") for _ in range(2))
    for page, group in ((one, "ug"), (other, "refine")):
        page.small()
        page.open(group)
        page.drawing().get_by_text("seconds are known after the first run").wait_for()
    one.generate()
    for page in (one, other):
        page.drawing().get_by_text(re.compile(r"about [\d.]+ s, .*\(from 1 run in this")).wait_for()
    assert list(one.page.evaluate("JSON.parse(localStorage['hires-guidance-runs'])"))
    one.wait_for_line(f"4 guided at {NATIVE}x{NATIVE}")
    other.wait_for_line("stage 1 256x256")
    assert one.drawing().locator("rect").count() == 1  # a pass each
    assert other.drawing().locator("rect").count() == 2
    context.close()
