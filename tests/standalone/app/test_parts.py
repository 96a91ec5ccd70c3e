"""The parts of `hires app` without a browser: its queue, jobs and controls."""

from __future__ import annotations

import argparse
import html
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from lib_hires.run.record import RunRecord
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone import bundled
from lib_hires.standalone.cli.app import add_app
from lib_hires.standalone.pipeline.outputs import save

# Gradio's blocks and the browser's driver leave event loops and sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def test_the_queue_is_passed_in_the_order_of_coming() -> None:
    from lib_hires.standalone.app.queue import Line

    line, seen = Line(), []
    stops = [threading.Event() for _ in range(3)]

    def wait(number: int) -> None:
        with line.joined(stops[number]) as place:
            seen.extend((number, ahead) for ahead in place.turns())
            seen.append((number, "gone" if stops[number].is_set() else "turn"))

    with line.joined(threading.Event()):
        threads = []
        for number in range(3):
            threads.append(threading.Thread(target=wait, args=[number]))
            threads[-1].start()
            while (number, number + 1) not in seen:
                time.sleep(0.01)
        stops[1].set()
        threads[1].join()
        while (2, 2) not in seen:
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert [number for number, ahead in seen if isinstance(ahead, str)] == [1, 0, 2]
    assert (1, "gone") in seen and (0, "turn") in seen and (2, "turn") in seen


def test_an_image_deleted_by_the_user_ends_nothing(tmp_path: Path) -> None:
    from lib_hires.standalone.app.events import Shown, choose
    from lib_hires.standalone.app.job import Saved

    made = Image.new("RGB", (8, 8), "red")
    paths = [tmp_path / name for name in ("deleted.png", "kept.png", "new.png")]
    for path in paths[1:]:
        save(made, path, {})
    session = [str(path) for path in paths[:2]]
    record = RunRecord(time.perf_counter)
    changed = Shown(session, tmp_path).after(Saved(0, 0, (paths[2],), made, 1.0, record))
    assert changed["session"] == [str(paths[2]), str(paths[1])]
    assert f"there is no file {paths[0]}" in choose(session, SimpleNamespace(index=0))[2]
    assert choose(session, SimpleNamespace(index=1))[:2] == (str(paths[1]), "{}")


def test_an_image_shown_twice_is_written_to_two_files(tmp_path: Path) -> None:
    from lib_hires.standalone.app.events import Shown
    from lib_hires.standalone.app.job import Saved, Step

    made, shown = Image.new("RGB", (8, 8), "red"), Shown([], tmp_path)
    save(made, tmp_path / "made.png", {})
    preview = shown.after(Step(0, 0, 4, 4, made))["preview"]["value"]
    was = Path(preview).stat()
    record = RunRecord(time.perf_counter)
    compared = shown.after(Saved(0, 0, (tmp_path / "made.png",), made, 1.0, record))["compare"]
    assert preview not in compared and Path(preview).stat().st_mtime_ns == was.st_mtime_ns
    for path in (preview, *compared):  # files: gradio never writes over its copy of one
        assert Image.open(path).convert("RGB").tobytes() == made.tobytes()


def test_a_job_that_cannot_begin_ends_with_a_message(tmp_path: Path) -> None:
    from lib_hires.standalone.app.job import Ended, Job

    def failing(_: object) -> None:
        raise IndexError("nothing to generate")

    run = SimpleNamespace(model=None, generate=failing, record=RunRecord(time.perf_counter))
    (event,) = Job(run, tmp_path, threading.Event()).events()  # type: ignore[arg-type]
    assert isinstance(event, Ended)
    assert event.message.startswith("the first image failed (IndexError")


def test_an_image_whose_feature_upsampler_is_not_here_is_refused(tmp_path: Path) -> None:
    from lib_hires.standalone.app.controls import Controls
    from lib_hires.standalone.app.page import Page

    page = SimpleNamespace(_controls=Controls({}, {}, {}))
    for name, words in [("None", "made with ours"), ("gone [0123456789]", "got 'gone [0123")]:
        about = {"model": "ours", "request": {}, "settings": {"refine_upsampler": name}}
        save(Image.new("RGB", (8, 8)), tmp_path / "image.png", about)
        (message,) = Page._use_settings(page, str(tmp_path / "image.png"))  # type: ignore[arg-type]
        assert words in html.unescape(message)


def test_a_model_that_cannot_be_loaded_leaves_no_plan_of_another(tmp_path: Path) -> None:
    import torch

    from lib_hires.standalone.app.models import BUNDLED, Models
    from lib_hires.standalone.app.page import Page
    from lib_hires.standalone.app.queue import Line

    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"<!DOCTYPE html>")
    models = Models([tmp_path / "gone", broken], "cpu", torch.float32)
    page = Page.__new__(Page)
    page._models, page._line = models, Line()
    for name, words in (
        (str(broken), "a web page, not a model"),
        (str(tmp_path / "gone"), "no su"),
    ):
        *_, (plan, message) = page._load(name)
        assert words in html.unescape(message) and name in html.unescape(message)
        assert "known once the model is loaded" in plan
    *_, (plan, message) = page._load(BUNDLED)
    assert "256x256" in plan and "not a model" not in message


def test_each_motion_module_is_offered_and_no_lora_is_lost() -> None:
    import torch

    from lib_hires.standalone.app.models import Models

    motions = [Path("one/mm.safetensors"), Path("two/mm.safetensors")]
    names = Models([], "cpu", torch.float32, motions=motions).names
    assert names == ["bundled with mm", f"bundled with {motions[1]}", "bundled"]
    with pytest.raises(SettingsError, match="--lora: expected --model"):
        Models([], "cpu", torch.float32, motions=motions, loras=[(Path("a.safetensors"), 1.0)])


def test_a_motion_module_without_a_name_is_the_bundled_one() -> None:
    commands = argparse.ArgumentParser()
    add_app(commands.add_subparsers())
    for words, expected in (
        ([], []),
        (["--motion"], [bundled.MOTION]),
        (["--motion", "a", "--motion"], [Path("a"), bundled.MOTION]),
    ):
        assert commands.parse_args(["app", *words]).motion == expected


def test_a_nudged_slider_stays_automatic() -> None:
    import gradio

    from lib_hires.standalone.app.controls import Controls

    with gradio.Blocks(analytics_enabled=False):
        controls = Controls.made()
    shown = {"ug_scale": 0.25, "refine_width": 8, "refine_tile": 64, "pfsa_lambda": 0.05}
    names = [*controls.request, *controls.settings]
    _, settings = controls.read([shown.get(name) for name in names])
    assert settings == Settings.from_values({"pfsa_lambda": 0.05})
