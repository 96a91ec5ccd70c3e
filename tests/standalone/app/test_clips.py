"""Clips in `hires app`: the page plays them, and its drawing shows frames and evaluations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_page import Served, Visit, playwright, serving, visiting
from PIL import Image
from tiny_lora import random_pairs, write_lora
from tiny_motion import write_adapter

from lib_hires.standalone.pipeline.outputs import read_about

# Gradio's blocks and the browser's driver leave event loops and sockets to the garbage collector.
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def clips(
    tiny_folder: Path, tiny_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The page with a motion module of 4 native frames, and a LoRA."""
    folder = tmp_path_factory.mktemp("clips")
    motion = write_adapter(folder / "tiny-motion")
    lora = write_lora(folder / "warm.safetensors", random_pairs(tiny_model))
    more = ["--motion", str(motion), "--lora", f"{lora}:0.25"]
    yield from serving(tiny_folder, folder, *more)


@pytest.fixture
def visit(browser: Any, clips: Served) -> Iterator[Visit]:
    yield from visiting(browser, clips)


def choose_clips(visit: Visit) -> None:
    visit.element("model", "input").click()
    visit.page.get_by_role("option", name=re.compile("tiny with tiny-motion")).click()
    visit.wait_for_text("generate", "Generate")
    drawn = visit.page.locator(".hires-guidance")
    playwright.expect(drawn).to_contain_text("16x16, 4 frames")


def looks(element: Any, wanted: int) -> int:
    """How many different images the page has shown in an element, at most `wanted`."""
    seen: set[bytes] = set()
    for _ in range(100):
        seen.add(element.screenshot())
        if len(seen) == wanted:
            break
    return len(seen)


def test_a_clip_is_planned_made_and_played(visit: Visit, clips: Served) -> None:
    choose_clips(visit)
    visit.switch_on("ug")
    visit.fill(prompt="a red house", steps=4, frames=8, width=32, height=32)
    drawn = visit.page.locator(".hires-guidance")
    playwright.expect(drawn).to_contain_text("32x32, 8 frames")
    playwright.expect(drawn).to_contain_text("4 evaluations at the native size of 4 frames")
    playwright.expect(drawn.locator("path.hires-guidance-evaluation")).to_have_count(4)
    line = visit.page.locator("p.hires-guidance-plan")
    playwright.expect(line).to_contain_text("32x32 of 8 frames in 4 steps (4 guided at 16x16 of 4")
    visit.element("generate").click()
    visit.wait_for_text("status", "done in")
    image = visit.element("clip", "img")
    playwright.expect(image).to_be_visible()
    file = max(clips.folder.glob("*.webp"))
    with Image.open(file) as made:
        assert made.n_frames == 8 and made.size == (32, 32)
    assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 32
    assert looks(image, 4) == 4
    about = read_about(file)
    assert (about["motion"], about["request"]["frames"]) == ("tiny-motion", 8)
    assert [(lora["name"], lora["weight"]) for lora in about["loras"]] == [("warm", 0.25)]
    playwright.expect(visit.element("gallery", "img")).to_have_count(1)
    playwright.expect(visit.element("compare", "img")).to_have_count(2)

    visit.page.reload()
    visit.element("generate").wait_for()
    visit.element("drop", "input[type=file]").set_input_files(file)
    visit.wait_for_text("status", "made with tiny, tiny-motion, warm:0.25")
    playwright.expect(visit.element("frames", "input[type=number]")).to_have_value("8")


def test_a_video_file_is_played_and_an_image_is_none(visit: Visit, clips: Served) -> None:
    pytest.importorskip("av", reason="MP4 files need PyAV: pip install -e '.[video]'")
    choose_clips(visit)
    visit.fill(prompt="a red house", steps=2, seed=5)
    visit.element("clip_format", "input[value=mp4]").check()
    visit.element("generate").click()
    visit.wait_for_text("status", "done in")
    video = visit.element("clip", "video")
    video.scroll_into_view_if_needed()  # Chromium plays only what is seen
    playing = "video => !video.paused && video.loop && video.duration"
    playwright.expect(video).to_have_js_property("paused", False)
    assert video.evaluate(playing) == pytest.approx(4 / 8, abs=0.01)

    visit.element("model", "input").click()
    visit.page.get_by_role("option", name=re.compile("tiny$")).click()
    drawn = visit.page.locator(".hires-guidance")
    playwright.expect(drawn).not_to_contain_text("frames")
    visit.element("generate").click()
    playwright.expect(visit.element("clip", "video")).to_have_count(0)
    assert len(list(clips.folder.glob("*.png"))) == 1


def test_frames_of_an_image_model_are_refused(visit: Visit) -> None:
    visit.fill(frames=8)
    line = visit.page.locator("p.hires-guidance-plan")
    playwright.expect(line).to_contain_text("a clip needs a motion module")
