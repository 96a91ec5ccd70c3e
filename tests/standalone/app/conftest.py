"""The page of `hires app`, served by the command, and a browser that visits it."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_page import PATIENCE, Served, Visit, playwright, serving, visiting
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
    yield from serving(tiny_folder, tmp_path_factory.mktemp("page"))


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
    yield from visiting(browser, served)
