"""The extension's part of the real WebUI's page, as a user meets it in Chromium."""

from __future__ import annotations

import re
from typing import Any

from lib_hires.settings import declarations

SIDE, NATIVE = 128, 64  # of the images that are made, and of what the hosts' sliders begin at
PATIENCE = 120_000  # milliseconds; a busy machine takes half a minute to build the page


class Page:
    """One of the WebUI's tabs in a window of its own."""

    def __init__(self, page: Any, url: str, tab: str = "txt2img", closed: bool = False) -> None:
        self.page, self.tab, self.messages = page, tab, []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.goto(url)
        switch = f"#script_{tab}_hires_guidance_ug-visible-checkbox"
        page.wait_for_selector(switch, state="attached")
        if tab == "img2img":
            page.locator("#tabs > .tab-nav button", has_text="img2img").click()
        if not closed:
            self.open_accordion()

    def open_accordion(self) -> None:
        self.ours("accordion").locator(".label-wrap").first.click()
        self.ours("preset_apply").wait_for()

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
