"""The page of `hires app`, served by the command, and a browser that visits it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_page import (
    GRADIO_S_OWN,
    PATIENCE,
    Served,
    Visit,
    address_of,
    foreign,
    free_port,
    playwright,
)
from chromium import CHROMIUM, FLAGS

gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")


@pytest.fixture(scope="module", autouse=True)
def gradio_is_the_real_one() -> Iterator[None]:
    """Not the stand-in that the tests of the WebUI's side put in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gradio", gradio)
        yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    port = free_port()
    options = ["app", "--model", str(tiny_folder), "--out", str(folder / "out"), "--port", port]
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"),
            executable_path=CHROMIUM,
            args=FLAGS,
            viewport={"width": 1280, "height": 1000},
        )
        context.set_default_timeout(PATIENCE * 1000)
        yield context
        context.close()


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Visit]:
    page = browser.new_page()
    visit = Visit(page)
    page.on("console", lambda message: visit.complaints.append(message.text))
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("request", lambda request: visit.complaints.extend(foreign(request.url, served)))
    page.goto(served.address)
    visit.element("generate").wait_for()
    yield visit
    page.close()
    assert [text for text in visit.complaints if text != GRADIO_S_OWN] == []
