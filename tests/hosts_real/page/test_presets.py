"""The row of presets in the real page."""

from __future__ import annotations

import re
from typing import Any

import pytest
from webui_page import NATIVE, PATIENCE

from lib_hires.presets import BUILT_IN

pytestmark = [pytest.mark.host, pytest.mark.browser]

OPTION = "hires_guidance_native_size"


def test_a_preset_fills_the_controls(open_page: Any) -> None:
    page = open_page()
    page.set(page.host("width"), 768)
    page.set(page.host("height"), 1152)
    preset = next(each for each in BUILT_IN if each.native == 1024 and "4x" in each.name)
    page.choose_preset(preset.name)
    page.wait_for_line("stage 2 ")
    assert page.is_on("ug") and page.is_on("refine") and not page.is_on("pfsa")
    assert page.number(page.ours("refine_factor")) == 4
    assert page.number(page.ours("refine_tile")) == 2048
    assert page.number(page.ours("refine_pivot")) == 250
    height, width = preset.first_size((1152, 768))
    assert (page.number(page.host("width")), page.number(page.host("height"))) == (width, height)
    assert page.ours("refine_factor").is_visible()


def test_ones_own_preset_lasts_and_goes(open_page: Any) -> None:
    page = open_page()
    page.open("pfsa")
    page.set(page.ours("pfsa_gamma"), 0.25)
    page.wait_for_line("mixed")
    box = page.ours("preset").locator("input")
    box.click()
    box.fill("page's own")
    box.press("Enter")
    page.ours("preset_save").click()
    page.ours("preset_message").get_by_text('Saved as "page\'s own".').wait_for()
    other = open_page("img2img")
    other.choose_preset("page's own")
    other.wait_for_line("mixed")
    assert other.number(other.ours("pfsa_gamma")) == 0.25
    other.page.on("dialog", lambda dialog: dialog.accept())
    other.ours("preset_delete").click()
    other.ours("preset_message").get_by_text('Deleted "page\'s own".').wait_for()


def test_the_preset_follows_the_kind_of_model(open_page: Any, host: Any) -> None:
    """The option stands for a model of another kind; a page notices with the next change."""
    page = open_page()
    box = page.ours("preset").locator("input")
    assert box.input_value() == BUILT_IN[0].name
    try:
        host.request("/sdapi/v1/options", {OPTION: 1024})
        page.size(512, 512)  # Forge begins with another shape
        page.open("refine")
        for _ in range(PATIENCE // 500):
            if box.input_value().startswith("SDXL"):
                break
            page.page.wait_for_timeout(500)
        assert box.input_value() == "SDXL (1024) 2x, refinement with UG"
        box.click()
        listed = page.ours("preset").locator("ul li")
        listed.nth(5).wait_for()
        names = [name.strip().removeprefix("✓").strip() for name in listed.all_inner_texts()]
        assert [name.startswith("SDXL (1024)") for name in names[:6]] == [True] * 5 + [False]
        box.blur()
        page.ours("preset_apply").click()
        page.wait_for_line(
            "First pass 1024x1024 .*, then stage 1 1632x1632 .*, then stage 2 2048x2048"
        )
        assert page.ours("refine_eta2").locator("textarea").input_value() == "0.5, 0.5"
    finally:
        host.request("/sdapi/v1/options", {OPTION: NATIVE})


def test_the_opened_list_has_all_presets_and_what_the_other_tab_has_saved(open_page: Any) -> None:
    page = open_page()
    box = page.ours("preset").locator("input")
    listed = page.ours("preset").locator("ul li")
    box.click()
    listed.nth(len(BUILT_IN) - 1).wait_for()
    box.fill("of both tabs")
    box.press("Enter")
    page.ours("preset_save").click()
    page.ours("preset_message").get_by_text('Saved as "of both tabs".').wait_for()
    page.page.locator("#tabs > .tab-nav button", has_text=re.compile("img2img", re.I)).click()
    page.tab = "img2img"
    page.open_accordion()
    page.choose_preset("of both tabs")
    page.ours("preset_message").locator("p").wait_for(state="detached")
    page.ours("preset").locator("input").click()
    page.ours("preset").locator("ul li", has_text="of both tabs").wait_for()
    page.page.on("dialog", lambda dialog: dialog.accept())
    page.ours("preset_delete").click()
    page.ours("preset_message").get_by_text('Deleted "of both tabs".').wait_for()
