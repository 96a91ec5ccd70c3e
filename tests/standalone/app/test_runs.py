"""Runs from the page of `hires app`, and what it shows of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from app_page import Served, Visit, choose_preset, playwright
from PIL import Image

from lib_hires.standalone.pipeline.outputs import read_about

# Gradio's blocks and the browser's driver leave event loops and sockets to the garbage collector.
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]


def test_the_button_makes_an_image_and_a_dropped_image_moves_the_sliders(
    visit: Visit, served: Served
) -> None:
    visit.switch_on("ug", "refine")
    visit.fill(prompt="a red house", steps=4, ug_theta=0.75, refine_eta2="0.5")
    visit.element("generate").click()
    visit.wait_for_text("status", "done in")
    record = visit.element("status", "details")
    summary = record.locator("summary")
    assert re.fullmatch(
        r"2 of 6 steps guided; first pass in \d+\.\d s, stage 1 in \d+\.\d s", summary.inner_text()
    )
    playwright.expect(record.locator("li").first).to_be_hidden()
    summary.press("Enter")
    playwright.expect(record.locator("li")).to_contain_text(
        ["first pass 16x16: 4 steps, 4 model evaluations", "stage 1 32x32: 2 steps, 2 guided"]
    )
    playwright.expect(visit.element("gallery", "img")).to_have_count(1)
    playwright.expect(visit.element("compare", "img")).to_have_count(2)
    visit.wait_for_text("about", "ug_theta")
    newest = max(served.folder.glob("*.png"))
    about = read_about(newest)
    assert about["request"]["prompt"] == "a red house"
    assert about["settings"]["ug_theta"] == 0.75
    drawn = visit.page.locator(".hires-guidance")
    playwright.expect(drawn).to_contain_text("from 1 run in this browser")

    visit.page.reload()
    visit.element("generate").wait_for()
    playwright.expect(visit.element("ug_theta")).to_have_count(0)  # its group is closed
    visit.element("drop", "input[type=file]").set_input_files(newest)
    visit.wait_for_text("status", "the settings of an image")
    playwright.expect(visit.element("ug_theta", "input[type=number]")).to_have_value("0.75")
    playwright.expect(visit.element("prompt", "textarea")).to_have_value("a red house")
    playwright.expect(drawn).to_contain_text("4 steps")
    playwright.expect(drawn.locator("rect")).to_have_count(2)  # the first image and a stage


def test_a_preset_sets_the_groups_and_the_size_and_leaves_the_rest(
    visit: Visit, served: Served
) -> None:
    visit.fill(prompt="a blue boat", steps=4)
    visit.switch_on("ug", "refine")
    visit.fill(ug_theta=0.5, refine_eta2="nonsense")
    choose_preset(visit, "2x, AP-LDM as published")
    visit.wait_for_text("status", "the settings of 2x, AP-LDM as published")
    playwright.expect(visit.element("ug", "input[type=checkbox]")).not_to_be_checked()
    for group in ("pfsa", "refine"):
        playwright.expect(visit.element(group, "input[type=checkbox]")).to_be_checked()
    playwright.expect(visit.element("refine_eta2", "textarea, input")).to_have_value("0.2")
    choose_preset(visit, "2x, UG alone")
    visit.wait_for_text("status", "the settings of 2x, UG alone")
    playwright.expect(visit.element("ug_theta", "input[type=number]")).to_have_value("1")
    playwright.expect(visit.element("width", "input[type=number]")).to_have_value("32")
    visit.element("generate").click()
    visit.wait_for_text("status", "done in")
    about = read_about(max(served.folder.glob("*.png")))
    assert (about["request"]["prompt"], about["request"]["steps"]) == ("a blue boat", 4)
    settings = {"ug": True, "ug_eta": 0, "ug_cadence": 0}
    assert (about["request"]["width"], about["settings"]) == (32, settings)
    visit.fill(width=16, height=32)
    choose_preset(visit, "2x, UG alone")  # again, now in a shape of one's own
    playwright.expect(visit.element("height", "input[type=number]")).not_to_have_value("32")
    sides = [
        visit.element(side, "input[type=number]").input_value() for side in ("width", "height")
    ]
    assert [int(side) for side in sides] == [24, 48]


def test_stop_in_the_middle_gives_the_last_finished_stage(visit: Visit, served: Served) -> None:
    visit.switch_on("refine")
    visit.fill(prompt="a red house", steps=600, seed=7, refine_factor=6, refine_eta2="1")
    visit.element("generate").click()
    visit.wait_for_text("status", "stage 1 of 1, step")
    visit.element("stop").click()
    text = visit.wait_for_text("status", "stopped")
    assert text.strip().startswith("stopped in stage 1; the first image is kept")
    playwright.expect(visit.element("status", "summary")).to_contain_text("; stopped in stage 1")
    playwright.expect(visit.element("gallery", "img")).to_have_count(1)
    (image,) = served.folder.glob("*-7.png")
    assert (read_about(image)["stage"], read_about(image)["stages"]) == (0, 1)


def test_who_waits_can_stop_and_does_not_wait_for_who_has_left(
    browser: Any, visit: Visit, served: Served
) -> None:
    first = Visit(browser.new_page())
    first.page.goto(served.address)
    for seed, steps, each in ((31, 1000, first), (32, 3, visit)):
        each.fill(steps=steps, seed=seed, width=96, height=96)
        each.element("generate").click()
        each.wait_for_text("status", "waiting for 1 run of others" if each is visit else "step")
    visit.element("stop").click()
    visit.wait_for_text("status", "stopped before it began")
    visit.element("generate").click()
    visit.wait_for_text("status", "waiting for 1 run of others")
    first.page.close()
    visit.wait_for_text("status", "done in")
    assert [len(list(served.folder.glob(f"*-{seed}.png"))) for seed in (31, 32)] == [0, 1]


def test_an_image_without_settings_is_refused_with_a_message(visit: Visit, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    visit.element("drop", "input[type=file]").set_input_files(tmp_path / "foreign.png")
    visit.wait_for_text("status", "holds no settings of ours")
