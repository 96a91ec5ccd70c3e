"""The plan beside the controls of `hires app`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from app_page import Visit, choose_preset, playwright

from lib_hires.run.drawing import drawing, element
from lib_hires.run.plan import run_plan
from lib_hires.run.schedules import Model, Sampling, sigmas_of
from lib_hires.settings import Settings

# Gradio's blocks and the browser's driver leave event loops and sockets to the garbage collector.
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]


def test_the_drawing_follows_a_slider(visit: Visit, tiny_model: Any) -> None:
    """The line and the drawing are the engine's numbers for what the controls show."""
    visit.switch_on("ug")
    visit.fill(width=32, height=32, steps=10)
    eta = visit.element("ug_eta", "input[type=range]")
    for presses in (0, 12, 8):  # automatic, 0.6 and 1
        for _ in range(presses):
            eta.press("ArrowRight")
        known = Model(sigmas_of(tiny_model.alphas_cumprod), (16, 16), 2, tiny_model.multiple)
        value = float(eta.input_value())
        settings = Settings.from_values({"ug": True, "ug_eta": value})
        plan = run_plan(settings, Sampling((32, 32), 10, schedule="Karras"), known)
        wanted, shown = drawing(plan, settings, known), visit.page.locator(".hires-guidance")
        line = visit.page.locator("p.hires-guidance-plan")
        playwright.expect(line).to_have_text(plan.summary())
        marks = shown.locator("path.hires-guidance-evaluation")
        playwright.expect(marks).to_have_count(sum(wanted["passes"][0]["evaluated"]))
        if wanted["edge"]:
            end = f"timestep {wanted['edge']['timestep']:.0f}, after step {wanted['edge']['step']}"
            playwright.expect(shown).to_contain_text(end)
        label = shown.locator("svg[role=img]").get_attribute("aria-label")
        assert label.startswith("first pass 32x32 in 10 steps")


def test_settings_that_cannot_run_are_a_message_in_the_place_of_the_plan(visit: Visit) -> None:
    visit.switch_on("refine")
    visit.fill(refine_eta2="0.2, <b>")
    line = visit.page.locator("p.hires-guidance-plan")
    message = "refine_eta2: expected numbers in (0, 1], got '0.2, <b>'"
    playwright.expect(line).to_have_text(f"{message}.")
    playwright.expect(visit.page.locator(".hires-guidance svg")).to_have_count(0)
    visit.element("generate").click()
    visit.wait_for_text("status", "expected numbers in")


def test_a_preset_for_closed_groups_is_planned_too(visit: Visit) -> None:
    choose_preset(visit, "2x, UG alone")
    line = visit.page.locator("p.hires-guidance-plan")
    playwright.expect(line).to_contain_text("First pass 32x32 in 20 steps (13 guided at 16x16)")


PLAN = {
    "passes": [
        {
            "name": "first pass",
            "message": "first pass 64x64 in 2 steps",
            "size": [64, 64],
            "native": None,
            "strength": 1,
            "weights": [0, 0],
            "evaluated": [False, False],
            "gammas": [0, 0],
        }
    ],
    "edge": None,
    "theta": 1,
    "gamma": 0,
    "native_evaluations": 0,
    "pixels": 8192,
    "plain_pixels": 8192,
    "latent_bytes": 1024,
    "notes": [],
}
IDS = {"model": "m", "generate": "generate", "stop": "stop", "time": "time"}


@pytest.fixture
def drawn(browser: Any) -> Iterator[Any]:
    """A page of the drawing alone, which no server changes."""
    from lib_hires.standalone.app.serve import SCRIPT, page_part

    markup = f"""<div>{element(PLAN, IDS)}</div><div id="time"></div>
        <button id="generate">Generate</button><button id="stop">Stop</button>
        <script>{page_part(SCRIPT).read_text(encoding="utf-8")}</script>"""
    page = browser.new_page()
    html = "text/html; charset=utf-8"
    page.route("http://page.invalid/", lambda route: route.fulfill(body=markup, content_type=html))
    page.goto("http://page.invalid/")
    page.evaluate("localStorage.clear()")
    yield page
    page.close()


ENDED = """document.getElementById("time").innerHTML = '<i class="measurement">9.0 sec.</i>'"""


def test_a_run_teaches_its_seconds(drawn: Any) -> None:
    shown = drawn.locator(".hires-guidance")
    playwright.expect(shown).to_contain_text("seconds are known after the first run")
    drawn.locator("#generate").click()
    drawn.evaluate(ENDED)
    playwright.expect(shown).to_contain_text("about 9 s, 1 times the plain run's (from 1 run in")
    runs = drawn.evaluate("JSON.parse(localStorage['hires-guidance-runs'])")
    assert runs == {"m": [[8192, 9.0]]}


def test_a_stopped_run_teaches_nothing(drawn: Any) -> None:
    drawn.locator("#generate").click()
    drawn.locator("#stop").click()
    drawn.evaluate(ENDED)
    drawn.wait_for_timeout(1000)  # the script looks every 400 ms
    assert drawn.evaluate("localStorage['hires-guidance-runs']") is None


def test_changes_during_a_run_are_about_the_next_one(drawn: Any) -> None:
    drawn.locator("#generate").click()
    drawn.wait_for_timeout(1500)  # the plan of the run is read after 1000 ms
    more = json.dumps(PLAN | {"pixels": 99999})
    drawn.evaluate(f"document.querySelector('.hires-guidance').dataset.plan = {json.dumps(more)}")
    drawn.evaluate(ENDED)
    shown = drawn.locator(".hires-guidance")
    playwright.expect(shown).to_contain_text("from 1 run in")
    runs = drawn.evaluate("JSON.parse(localStorage['hires-guidance-runs'])")
    assert runs == {"m": [[8192, 9.0]]}
