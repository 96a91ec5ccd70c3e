"""The extension in the real WebUI's page, in Chromium. Skipped where one of the two is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import CHROMIUM, FLAGS

from lib_hires.presets import BUILT_IN
from lib_hires.run.drawing import tables
from lib_hires.run.schedules import Model, Sampler, Sampling
from lib_hires.settings import Settings, declarations

SIDE, NATIVE = 128, 64  # of the images that are made, and of what the hosts' sliders begin at
PATIENCE = 120_000  # milliseconds; a busy machine takes half a minute to build the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium; HIRES_CHROMIUM may name one")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture(scope="module", autouse=True)
def native_size(host: Any) -> Iterator[None]:
    """Of the model that the pages are about; Forge loads it with the first image."""
    option = "hires_guidance_native_size"
    host.request("/sdapi/v1/options", {option: NATIVE})
    host.paint(width=NATIVE, height=NATIVE, steps=1, options={option: NATIVE})
    yield
    host.request("/sdapi/v1/options", {option: 0})


class Page:
    """One of the WebUI's tabs in a window of its own."""

    def __init__(self, page: Any, url: str, tab: str = "txt2img") -> None:
        self.page, self.tab, self.messages = page, tab, []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.goto(url)
        switch = f"#script_{tab}_hires_guidance_ug-visible-checkbox"
        page.wait_for_selector(switch, state="attached")
        if tab == "img2img":
            page.locator("#tabs > .tab-nav button", has_text="img2img").click()

    def ours(self, name: str) -> Any:
        return self.page.locator(f"#script_{self.tab}_hires_guidance_{name}").first

    def host(self, name: str) -> Any:
        return self.page.locator(f"#{self.tab}_{name}").first

    def set(self, slider: Any, value: float) -> None:
        box = slider.locator("input[type=number]")
        box.fill(str(value))
        box.blur()

    def number(self, slider: Any) -> float:
        return float(slider.locator("input[type=number]").input_value())

    def open(self, *groups: str) -> None:
        for group in groups:
            self.ours(group).locator(".label-wrap > span").first.click()

    def is_on(self, group: str) -> bool:
        return self.ours(f"{group}-visible-checkbox").is_checked()

    def wait_for_line(self, pattern: str) -> str:
        lines = self.page.locator(f"#script_{self.tab}_hires_guidance_plan p")
        line = lines.filter(has_text=re.compile(pattern)).first
        line.wait_for()
        return line.inner_text()

    def choose_preset(self, name: str) -> None:
        box = self.ours("preset").locator("input")
        box.click()
        box.fill(name)
        box.press("Enter")
        box.blur()
        self.ours("preset_apply").click()

    def wait_for_choice(self, name: str) -> Any:
        """An upsampler in the list, which is left open; an open list stays as it was."""
        box = self.ours("refine_upsampler").locator("input")
        item = self.ours("refine_upsampler").locator("ul li", has_text=name)
        for _ in range(40):
            box.click()
            if item.count():
                break
            box.blur()
            self.page.wait_for_timeout(500)
        return item

    def press(self, button: str) -> None:
        self.page.locator(f"#{self.tab}_{button}").click()

    def parts(self) -> dict[str, int]:
        """How many there are of what is ours; of some the host nests two."""
        ids = [f"#script_{self.tab}_hires_guidance_{row.name}" for row in declarations()]
        ids += [f"#script_{self.tab}_hires_guidance_{name}" for name in ("plan", "preset")]
        return {each: self.page.locator(each).count() for each in ids}

    def wait_for_image(self, width: int) -> None:
        shown = f"#{self.tab}_gallery img:not(.livePreview img)"  # the preview goes a moment later
        images = f"""[...document.querySelectorAll("{shown}")]"""
        self.page.wait_for_function(f"{images}.some((image) => image.naturalWidth == {width})")

    def drawing(self) -> Any:
        return self.ours("drawing").locator(".hires-guidance")

    def log(self) -> Any:
        """What stands under the image beside its PNG info."""
        return self.page.locator(f"#html_log_{self.tab}").first  # the host's page nests two

    def size(self, width: int, height: int, steps: int = 20) -> None:
        for name, value in (("width", width), ("height", height), ("steps", steps)):
            self.set(self.host(name), value)

    def small(self, steps: int = 4) -> None:
        self.size(SIDE, SIDE, steps)

    def generate(self) -> str:
        """Makes an image; returns the PNG info that the page shows."""
        self.press("generate")
        info = self.page.locator(f"#html_info_{self.tab} p", has_text="Steps:")
        info.first.wait_for()
        return info.first.inner_text()


@pytest.fixture
def open_page(browser: Any, host: Any) -> Iterator[Any]:
    made = []

    def open_(tab: str = "txt2img", words: dict[str, str] | None = None) -> Page:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        made.append(page)
        if words:
            _translate(page, words)
        return Page(page, f"{host.url}/", tab)

    yield open_
    for page in made:
        page.close()


def _translate(page: Any, words: dict[str, str]) -> None:
    """As if a localization were chosen in the host's settings, which it writes into its page."""
    fixed = f"{{value: {json.dumps(words)}, writable: false}}"
    page.add_init_script(f"Object.defineProperty(window, 'localization', {fixed})")


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_an_accordion_switches_on_by_opening(open_page: Any, tab: str) -> None:
    page = open_page(tab)
    page.size(512, 512)
    assert not any(page.is_on(group) for group in ("ug", "pfsa", "refine"))
    page.open("ug", "refine")
    assert [page.is_on(group) for group in ("ug", "pfsa", "refine")] == [True, False, True]
    page.wait_for_line("stage 1 1024x1024")
    page.open("refine")  # closes it
    assert not page.is_on("refine")
    page.wait_for_line("^(First pass|Img2img) 512x512 in .*evaluations, 2 times")


def test_the_keyboard_switches_too(open_page: Any) -> None:
    page = open_page()
    page.size(512, 512)
    page.ours("ug-visible-checkbox").focus()
    page.page.keyboard.press("Space")
    page.wait_for_line(f"20 guided at {NATIVE}x{NATIVE}")
    page.page.keyboard.press("Tab")
    accordion = "document.activeElement.closest('.input-accordion')"  # in Forge its button
    assert page.page.evaluate(f"{accordion}.id") == "script_txt2img_hires_guidance_pfsa"


def test_a_preset_fills_the_controls(open_page: Any) -> None:
    page = open_page()
    page.set(page.host("width"), 768)
    page.set(page.host("height"), 1152)
    preset = next(each for each in BUILT_IN if each.native == 1024 and "4x" in each.name)
    page.choose_preset(preset.name)
    page.wait_for_line("stage 2 ")
    assert page.is_on("ug") and page.is_on("refine") and not page.is_on("pfsa")
    assert page.number(page.ours("refine_factor")) == 4
    assert page.number(page.ours("refine_tile")) == 1024
    assert page.ours("refine_eta2").locator("textarea").input_value() == "0.2, 0.3"
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
    """A change while an answer is awaited is not forgotten."""
    page = open_page()
    if page.page.evaluate("gradio_config.version").startswith("4"):
        pytest.skip("Gradio 4 drops what is asked meanwhile, and nothing tells us")
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


def test_a_image_is_made_and_its_text_sets_the_page_again(open_page: Any) -> None:
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
    said = r"HiRes Guidance ran: 5 of 5 steps guided; first pass in \d+\.\d s, stage 1 in \d+\.\d s"
    assert re.fullmatch(said, summary.inner_text())
    assert lines.count() == 2 and not lines.first.is_visible()
    summary.focus()
    page.page.keyboard.press("Enter")
    lines.first.wait_for()
    told = lines.all_inner_texts()
    assert told[0].startswith("first pass 128x128: 4 steps, 4 guided, 8 model evaluations (4 at")
    assert told[1].startswith("stage 1 256x256: 1 step, 1 guided, 2 model evaluations (1 at")
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
    page.press("interrupting")  # ... unless asked again
    page.log().get_by_text("stopped; this is the image after the first pass").wait_for()
    page.log().get_by_text(re.compile("ran: .*; stopped in stage 1")).wait_for()
    page.wait_for_image(SIDE)


def test_the_drawing_follows_a_slider_as_computed(open_page: Any) -> None:
    page = open_page()
    page.small(steps=10)
    page.open("ug")
    page.set(page.ours("ug_edge"), 2)
    facts = json.loads(page.drawing().get_attribute("data-facts"))
    model, name = Model(**facts["model"]), page.host("sampling").locator("input").input_value()
    sampling = Sampling((SIDE, SIDE), 10, Sampler(**facts["samplers"][name]))
    assert tuple(model.native) == (NATIVE, NATIVE)
    for eta in (1.0, 0.6, 0.25):
        page.set(page.ours("ug_eta"), eta)
        settings = Settings.from_values({"ug": True, "ug_edge": 2, "ug_eta": eta})
        made = tables(settings, sampling, model)
        end = made["edge"] and f"ends at timestep {made['edge']['timestep']:.0f}, after step"
        for words in (f"{made['evaluations']} model evaluations", *filter(None, [end])):
            page.drawing().get_by_text(words).wait_for()
        marks = page.drawing().locator(".hires-guidance-ask")
        assert marks.count() == sum(made["passes"][0]["evaluates_native"])


def test_two_tabs_learn_seconds_from_one_run_and_draw_by_themselves(
    browser: Any, host: Any
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    one, other = (Page(context.new_page(), f"{host.url}/") for _ in range(2))
    for page, group in ((one, "ug"), (other, "refine")):
        page.small()
        page.open(group)
        page.drawing().get_by_text("the first run here tells the seconds").wait_for()
    one.generate()
    for page in (one, other):
        page.drawing().get_by_text(re.compile(r"about [\d.]+ s \(from 1 run in this")).wait_for()
    assert list(one.page.evaluate("JSON.parse(localStorage['hires-guidance-runs'])"))
    one.wait_for_line(f"4 guided at {NATIVE}x{NATIVE}")
    other.wait_for_line("stage 1 256x256")
    assert one.drawing().locator("rect").count() == 1  # a pass each
    assert other.drawing().locator("rect").count() == 2
    context.close()


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


def test_every_label_choice_and_help_is_translated(open_page: Any, host: Any) -> None:
    schema = host.request("/hires-guidance/schema")
    words = {*schema["groups"].values(), "HiRes Guidance preset", "Apply", "Save as", "Delete"}
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
    """The host answers nobody until it has started anew: an early request would end it."""
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
    page.choose_preset(next(each for each in BUILT_IN if "2x, refine" in each.name).name)
    page.wait_for_line("stage 1")
    page.small()
    page.wait_for_line("First pass 128x128 in 4 steps.*, then stage 1 256x256")
    page.drawing().locator("svg").wait_for()
    assert (page.parts(), page.drawing().count()) == (before, 1)
    page.generate()
    assert page.log().locator("details.hires-guidance-record").count() == 1
