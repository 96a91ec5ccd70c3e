"""Chromium with the real WebUI's page; skipped where one of both is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import CHROMIUM, FLAGS
from webui_page import NATIVE, Page


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
    host.generate(width=NATIVE, height=NATIVE, steps=1, options={option: NATIVE})
    yield
    host.request("/sdapi/v1/options", {option: 0})


@pytest.fixture
def open_page(browser: Any, host: Any) -> Iterator[Any]:
    made = []

    def open_(
        tab: str = "txt2img", words: dict[str, str] | None = None, *, closed: bool = False
    ) -> Page:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        made.append(page)
        if words:
            _translate(page, words)
        return Page(page, f"{host.url}/", tab, closed)

    yield open_
    for page in made:
        page.close()


def _translate(page: Any, words: dict[str, str]) -> None:
    """As if a localization were chosen in the host's settings, which it writes into its page."""
    fixed = f"{{value: {json.dumps(words)}, writable: false}}"
    page.add_init_script(f"Object.defineProperty(window, 'localization', {fixed})")
