"""`hires app` as a user meets it: the command's own page in Chromium."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from launched import free_port

playwright = pytest.importorskip("playwright.sync_api", reason="the browser needs playwright")

PATIENCE = 120  # seconds, for a machine with other work
playwright.expect.set_options(timeout=PATIENCE * 1000)
GRADIO_S_OWN = {
    "Method not implemented.",  # logged at the end of every upload
    # The oldest that is allowed asks for a script from elsewhere, and logs that it is not there.
    "requested https://cdnjs.cloudflare.com/ajax/libs/iframe-resizer/4.3.1/"
    "iframeResizer.contentWindow.min.js",
    "Failed to load resource: net::ERR_NAME_NOT_RESOLVED",
}


@dataclass(frozen=True)
class Served:
    address: str
    folder: Path  # of the images


@dataclass
class Visit:
    """A browser's page, and everything that it has logged."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def element(self, name: str, inside: str = "") -> Any:
        return self.page.locator(f"#hires_app_{name}" + (f" :is({inside})" if inside else ""))

    def switch_on(self, *groups: str) -> None:
        for group in groups:
            if not self.element(group, "input").is_visible():
                title = {"ug": "Upsample Guidance", "refine": "Progressive Refinement"}[group]
                self.page.get_by_role("button", name=title).click()
            self.element(group, "input").check()

    def fill(self, **values: object) -> None:
        for name, value in values.items():
            box = self.element(name, "input[type=number], textarea, input[type=text]").first
            box.fill(str(value))
            box.press("Tab")

    def wait_for_text(self, name: str, pattern: str) -> str:
        playwright.expect(self.element(name)).to_contain_text(re.compile(pattern))
        return str(self.element(name).inner_text())


def address_of(process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(4 * PATIENCE):
        found = re.search(r"the page is at (\S+)", log.read_text())
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise RuntimeError("the page did not come up:\n" + log.read_text())


def foreign(url: str, served: Served) -> list[str]:
    inside = url.startswith((served.address, "data:", "blob:"))
    return [] if inside else [f"requested {url}"]


def serving(model: Path, folder: Path, *more: str) -> Iterator[Served]:
    """The command with a model and more options, its files in `folder`."""
    port = free_port()
    options = ["app", "--model", str(model), "--out", str(folder / "out"), "--port", port, *more]
    program = f"from lib_hires.standalone.cli import main; main({options!r})"
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder / "dropped")}
    log = (folder / "log.txt").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=log, stderr=log, env=environment
    )
    try:
        yield Served(address_of(process, folder / "log.txt"), folder / "out")
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def visiting(browser: Any, served: Served) -> Iterator[Visit]:
    """A new page of the browser, which must log nothing and request nothing from elsewhere."""
    page = browser.new_page()
    visit = Visit(page)
    page.on("console", lambda message: visit.complaints.append(message.text))
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("request", lambda request: visit.complaints.extend(foreign(request.url, served)))
    page.goto(served.address)
    visit.element("generate").wait_for()
    yield visit
    page.close()
    assert [text for text in visit.complaints if text not in GRADIO_S_OWN] == []


def fetched(served: Served, path: Path) -> int:
    """The status of a request for a file on this machine."""
    address = f"{served.address}gradio_api/file={urllib.parse.quote(str(path))}"
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def choose_preset(visit: Visit, purpose: str) -> None:
    visit.element("preset", "input").click()
    visit.page.get_by_role("option", name=purpose, exact=True).click()
