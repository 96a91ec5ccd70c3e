"""The accordion and the three techniques in it, in the real page."""

from __future__ import annotations

from typing import Any

import pytest
from webui_page import NATIVE, PATIENCE, SIDE

from lib_hires.presets import BUILT_IN
from lib_hires.settings import declarations

pytestmark = [pytest.mark.host, pytest.mark.browser]


def test_one_accordion_holds_everything(open_page: Any) -> None:
    page = open_page(closed=True)
    head = page.ours("accordion").locator(".label-wrap").first
    assert head.inner_text().strip().startswith("HiRes Guidance")
    parts = [page.ours(name) for name in ("preset", "ug", "pfsa", "refine")]
    assert not any(part.is_visible() for part in parts)
    head.click()
    for part in parts:
        part.wait_for()
    page.open("refine")
    page.wait_for_line("stage 1")
    head.click()
    parts[0].wait_for(state="hidden")
    assert page.is_on("refine")
    mark = "(head) => getComputedStyle(head.querySelector('span'), '::after').content"
    assert head.evaluate(mark) == '" · on"'


def at_every_step_to_the_end(page: Any) -> None:
    page.set(page.ours("ug_eta"), 1)
    page.set(page.ours("ug_cadence"), 1)


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_an_accordion_switches_on_by_opening(open_page: Any, tab: str) -> None:
    page = open_page(tab)
    page.size(512, 512)
    assert not any(page.is_on(group) for group in ("ug", "pfsa", "refine"))
    page.open("ug", "refine")
    at_every_step_to_the_end(page)
    assert [page.is_on(group) for group in ("ug", "pfsa", "refine")] == [True, False, True]
    page.wait_for_line("stage 1 1024x1024")
    page.open("refine")  # closes it
    assert not page.is_on("refine")
    page.wait_for_line("^(First pass|Img2img) 512x512 in .*evaluations, 2 times")


def test_the_keyboard_switches_too(open_page: Any) -> None:
    page = open_page()
    page.size(512, 512)
    page.open("ug")
    at_every_step_to_the_end(page)
    page.open("ug")  # closes it
    assert not page.is_on("ug")
    page.ours("ug-visible-checkbox").focus()
    page.page.keyboard.press("Space")
    page.wait_for_line(f"20 guided at {NATIVE}x{NATIVE}")
    page.page.keyboard.press("Tab")
    accordion = "document.activeElement.closest('.input-accordion')"  # in Forge its button
    assert page.page.evaluate(f"{accordion}.id") == "script_txt2img_hires_guidance_pfsa"


def test_every_label_choice_and_help_is_translated(open_page: Any, host: Any) -> None:
    schema = host.request("/hires-guidance/schema")
    words = {*schema["groups"].values(), "Preset", "Apply", "Save as", "Delete"}
    for control in schema["controls"]:
        symbol = f" ({control['symbol']})" if control["symbol"] else ""
        words |= {control["label"] + symbol, control["help"], *control.get("choices", ())}
    page = open_page(words={text: f"§ {text}" for text in words})
    page.open("ug", "pfsa", "refine")
    page.ours("ug").get_by_text("§ Strength (θ)", exact=True).wait_for()
    for row in declarations():
        for text in page.ours(row.name).locator("span, div, button").all_inner_texts():
            lines = [line.strip() for line in text.split("\n") if line.strip()]
            untranslated = [line for line in lines if line in words]
            assert not untranslated, row.name
    for button in ("apply", "save", "delete"):
        assert page.ours(f"preset_{button}").inner_text().startswith("§ ")


def test_the_browsers_console_says_nothing_more(
    browser: Any, open_page: Any, plain_url: str
) -> None:
    """Both pages are loaded, filled in and make an image."""
    page = open_page()
    page.open("ug", "pfsa", "refine")
    page.wait_for_line("stage 1")
    page.choose_preset(BUILT_IN[0].name)
    plain = browser.new_page()
    plain.set_default_timeout(PATIENCE)
    plain_messages: list[str] = []
    plain.on("console", lambda message: plain_messages.append(message.text))
    plain.on("pageerror", lambda error: plain_messages.append(str(error)))
    plain.goto(plain_url)
    for each in (page.page, plain):
        for name, value in (("width", str(SIDE)), ("height", str(SIDE)), ("steps", "2")):
            box = each.locator(f"#txt2img_{name} input[type=number]")
            box.wait_for()
            box.fill(value)
            box.blur()
        each.locator("#txt2img_generate").click()
        each.locator("#html_info_txt2img p", has_text="Steps:").first.wait_for()
    plain.close()
    assert set(page.messages) <= set(plain_messages)


def test_all_is_there_once_after_the_ui_is_reloaded(open_page: Any, host: Any) -> None:
    """The host serves nobody until it has started anew: an early request would end it."""
    page = open_page()
    before = page.parts()
    started = host.log.read_text().count("Startup time:")
    page.page.route("**/internal/ping*", lambda route: route.abort())
    page.page.locator("#tabs > .tab-nav button", has_text="Settings").click()
    page.page.locator("#settings_restart_gradio").click()
    for _ in range(PATIENCE // 500):
        if host.log.read_text().count("Startup time:") > started:
            break
        page.page.wait_for_timeout(500)
    with page.page.expect_navigation():
        page.page.unroute("**/internal/ping*")
    page.page.wait_for_selector(
        "#script_txt2img_hires_guidance_ug-visible-checkbox", state="attached"
    )
    page.open_accordion()
    page.choose_preset(next(each for each in BUILT_IN if "2x, refine" in each.name).name)
    page.wait_for_line("stage 1")
    page.small()
    page.wait_for_line("First pass 128x128 in 4 steps.*, then stage 1 256x256")
    page.drawing().locator("svg").wait_for()
    assert (page.parts(), page.drawing().count()) == (before, 1)
    page.generate()
    assert page.log().locator("details.hires-guidance-record").count() == 1
