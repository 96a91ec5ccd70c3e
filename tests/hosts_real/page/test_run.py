"""A run started from the real page, and what it shows."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest
from webui_page import NATIVE, SIDE

pytestmark = [pytest.mark.host, pytest.mark.browser]


def test_an_image_is_made_and_its_text_sets_the_page_again(open_page: Any) -> None:
    page = open_page()
    page.small()
    page.open("ug", "refine")
    page.set(page.ours("ug_theta"), 0.8)
    page.set(page.ours("refine_factor"), 1.5)
    page.wait_for_line("stage 1 192x192")
    info = page.generate()
    for part in (f"Size: {SIDE}x{SIDE}", "HiRes ug: True", "ug theta: 0.8", "refine factor: 1.5"):
        assert part in info
    page.wait_for_image(192)

    again = open_page()
    again.page.locator("#txt2img_prompt textarea").fill(info)
    again.page.locator("#txt2img_tools #paste").click()
    again.wait_for_line("stage 1 192x192")
    assert again.is_on("ug") and again.is_on("refine") and not again.is_on("pfsa")
    assert again.number(again.ours("ug_theta")) == 0.8
    assert again.number(again.ours("refine_factor")) == 1.5


def test_what_happened_is_a_line_that_opens(open_page: Any) -> None:
    page = open_page()
    page.small()
    page.open("ug", "refine")
    page.wait_for_line("stage 1")
    info = page.generate()
    record = page.log().locator("details.hires-guidance-record")
    summary, lines = record.locator("summary"), record.locator("li")
    summary.wait_for()
    pattern = (
        r"HiRes Guidance ran: 5 of 5 steps guided; first pass in \d+\.\d s, stage 1 in \d+\.\d s"
    )
    assert re.fullmatch(pattern, summary.inner_text())
    assert lines.count() == 2 and not lines.first.is_visible()
    summary.focus()
    page.page.keyboard.press("Enter")
    lines.first.wait_for()
    details = lines.all_inner_texts()
    assert details[0].startswith("first pass 128x128: 4 steps, 4 guided, 8 model evaluations (4 at")
    assert details[1].startswith("stage 1 256x256: 1 step, 1 guided, 2 model evaluations (1 at")
    assert "ran" not in info and "4 guided" not in info
    assert "·" not in page.log().inner_text()


def test_stop_in_the_middle_gives_the_last_finished_stage(open_page: Any) -> None:
    page = open_page()
    page.small(steps=60)
    page.open("refine")
    page.ours("refine_eta2").locator("textarea").fill("1")
    page.wait_for_line("stage 1 256x256 in 60 steps")
    page.press("generate")
    page.page.locator(".progressDiv", has_text="stage 1 of 1").first.wait_for(state="attached")
    page.press("interrupt")  # the host would finish what it counts as more than one job ...
    page.press("interrupting")  # ... unless pressed again
    page.log().get_by_text("stopped; this is the image after the first pass").wait_for()
    page.log().get_by_text(re.compile("ran: .*; stopped in stage 1")).wait_for()
    page.wait_for_image(SIDE)


def test_a_feature_upsampler_is_chosen_from_the_list(open_page: Any, host: Any) -> None:
    """The list is read again by the button beside it, and set by PNG info."""
    page = open_page()
    for name, value in (("width", NATIVE), ("height", NATIVE), ("steps", 4)):
        page.set(page.host(name), value)
    page.open("refine")
    files = host.model.parents[1] / "hires-guidance"
    shutil.copy(files / "mine.safetensors", files / "later.safetensors")
    page.ours("refine_upsampler_refresh").click()
    page.wait_for_choice("later").click()
    page.wait_for_line("stage 1 128x128")
    info = page.generate()
    assert re.search(r"HiRes refine upsampler: later \[[0-9a-f]{10}\]", info)

    again = open_page()
    again.open("refine")
    again.ours("refine_upsampler_refresh").click()  # Gradio 4 shows no name that it has not listed
    again.wait_for_choice("later")
    again.page.locator("#txt2img_prompt textarea").fill(info)
    again.page.locator("#txt2img_tools #paste").click()
    again.wait_for_line("stage 1 128x128")
    assert again.ours("refine_upsampler").locator("input").input_value() == "later"
    (files / "later.safetensors").unlink()
