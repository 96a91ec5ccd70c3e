"""`hires app` in a real browser, as a user would have it: served by the command, a tiny model."""

from __future__ import annotations

import gc
import html
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chromium import CHROMIUM, FLAGS
from PIL import Image

from lib_hires.run.drawing import element, facts, tables
from lib_hires.run.record import RunRecord
from lib_hires.run.schedules import Model, Sampler, Sampling, sigmas_of
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.pipeline.png import read_about, save

gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser needs playwright")

# Gradio's blocks and the browser's driver leave event loops and sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

HTML = "text/html; charset=utf-8"
PATIENCE = 120  # seconds, for a machine with other work
GRADIO_S_OWN = "Method not implemented."  # said by gradio's page at the end of every upload


@pytest.fixture(scope="module", autouse=True)
def gradio_is_the_real_one() -> Iterator[None]:
    """Not the stand-in that the tests of the WebUI's side put in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gradio", gradio)
        yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@dataclass(frozen=True)
class Served:
    address: str
    folder: Path  # of the images


@pytest.fixture(scope="module")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    port = _free_port()
    options = ["app", "--model", str(tiny_folder), "--out", str(folder / "out"), "--port", port]
    program = f"from lib_hires.standalone.cli import main; main({options!r})"
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder / "dropped"), "OMP_NUM_THREADS": "1"}
    log = (folder / "log.txt").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=log, stderr=log, env=environment
    )
    try:
        yield Served(_address(process, folder / "log.txt"), folder / "out")
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(4 * PATIENCE):
        found = re.search(r"the page is at (\S+)", log.read_text())
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise RuntimeError("the page did not come up:\n" + log.read_text())


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


@dataclass
class Visit:
    """A browser's page, and everything that it has complained of."""

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
        playwright.expect(self.element(name)).to_contain_text(
            re.compile(pattern), timeout=PATIENCE * 1000
        )
        return str(self.element(name).inner_text())


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Visit]:
    page = browser.new_page()
    visit = Visit(page)
    page.on("console", lambda message: visit.complaints.append(message.text))
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("request", lambda request: visit.complaints.extend(_foreign(request.url, served)))
    page.goto(served.address)
    visit.element("generate").wait_for()
    yield visit
    page.close()
    assert [said for said in visit.complaints if said != GRADIO_S_OWN] == []


def _foreign(url: str, served: Served) -> list[str]:
    inside = url.startswith((served.address, "data:", "blob:"))
    return [] if inside else [f"asked for {url}"]


def test_the_drawing_follows_a_slider(visit: Visit, tiny_model: Any) -> None:
    see_the_drawing_follow(visit, tiny_model)


def test_the_drawing_follows_in_the_gradio_of_forge(
    browser: Any, tiny_model: Any, tmp_path: Path
) -> None:
    """The same controls and script, with a gradio of 4.40.

    HIRES_GRADIO4_PYTHON: a Python that has it, and beside it what this package needs.
    """
    if "HIRES_GRADIO4_PYTHON" not in os.environ:
        pytest.skip("HIRES_GRADIO4_PYTHON names no Python with gradio 4.40")
    from lib_hires.standalone.app.controls import drawing_element

    element, log = tmp_path / "element.html", tmp_path / "log.txt"
    element.write_text(drawing_element(tiny_model), encoding="utf-8")
    program = Path(__file__).with_name("gradio4_page.py")
    command = [os.environ["HIRES_GRADIO4_PYTHON"], program, _free_port(), element]
    root = {"PYTHONPATH": str(Path(__file__).parents[3])}
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | root)
    try:
        page = browser.new_page()
        page.goto(_address(process, log))
        visit = Visit(page)
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.element("generate").wait_for()
        see_the_drawing_follow(visit, tiny_model)
        page.close()
    finally:
        process.terminate()
        process.wait(30)
    assert "gradio 4.40." in log.read_text()
    assert visit.complaints == []


def see_the_drawing_follow(visit: Visit, tiny_model: Any) -> None:
    """Move a slider, and compare what is drawn with the engine's numbers."""
    visit.switch_on("ug")
    visit.fill(width=32, height=32, steps=10, ug_edge=2)
    eta = visit.element("ug_eta", "input[type=range]")
    for presses in (0, 8, 6):
        for _ in range(presses):
            eta.press("ArrowLeft")
        known = Model(sigmas_of(tiny_model.alphas_cumprod), (16, 16), 2, tiny_model.multiple)
        value = float(eta.input_value())
        settings = Settings.from_values({"ug": True, "ug_eta": value, "ug_edge": 2})
        wanted = tables(settings, Sampling((32, 32), 10, schedule="Karras"), known)
        drawing = visit.page.locator(".hires-guidance")
        playwright.expect(drawing).to_contain_text(f"{wanted['evaluations']} model evaluations")
        marks = drawing.locator(".hires-guidance-ask")
        playwright.expect(marks).to_have_count(sum(wanted["passes"][0]["evaluates_native"]))
        if wanted["edge"]:
            end = f"timestep {wanted['edge']['timestep']:.0f}, after step {wanted['edge']['step']}"
            playwright.expect(drawing).to_contain_text(end)
        label = drawing.locator("svg[role=img]").get_attribute("aria-label")
        assert label.startswith("first image 32x32 in 10 steps")


def test_settings_that_cannot_run_are_a_sentence_in_the_drawing(visit: Visit) -> None:
    visit.switch_on("refine")
    visit.fill(refine_eta2="0.2, <b>")
    error = visit.page.locator(".hires-guidance-error")
    playwright.expect(error).to_have_text("refine_eta2: expected numbers in (0, 1], got '0.2, <b>'")
    visit.element("generate").click()
    visit.wait_for_text("status", "expected numbers in")


def test_the_button_makes_a_image_and_a_dropped_image_moves_the_sliders(
    visit: Visit, served: Served
) -> None:
    visit.switch_on("ug", "refine")
    visit.fill(prompt="a red house", steps=4, ug_theta=0.75, refine_eta2="0.5")
    visit.element("generate").click()
    visit.wait_for_text("status", "done in")
    record = visit.element("status", "details")
    summary = record.locator("summary")
    assert re.fullmatch(
        r"2 of 6 steps guided; first pass in \d+\.\d s, stage 1 in \d+\.\d s", summary.inner_text()
    )
    playwright.expect(record.locator("li").first).to_be_hidden()
    summary.press("Enter")
    playwright.expect(record.locator("li")).to_contain_text(
        ["first pass 16x16: 4 steps, 4 model evaluations", "stage 1 32x32: 2 steps, 2 guided"]
    )
    playwright.expect(visit.element("gallery", "img")).to_have_count(1)
    playwright.expect(visit.element("compare", "img")).to_have_count(2)
    visit.wait_for_text("about", "ug_theta")
    newest = max(served.folder.glob("*.png"))
    about = read_about(newest)
    assert about["request"]["prompt"] == "a red house"
    assert about["settings"]["ug_theta"] == 0.75
    learnt = visit.page.locator(".hires-guidance")
    playwright.expect(learnt).to_contain_text("from 1 run in this browser")

    visit.page.reload()
    visit.element("generate").wait_for()
    playwright.expect(visit.element("ug_theta")).to_have_count(0)  # its group is closed
    visit.element("drop", "input[type=file]").set_input_files(newest)
    visit.wait_for_text("status", "the settings of an image")
    playwright.expect(visit.element("ug_theta", "input[type=number]")).to_have_value("0.75")
    playwright.expect(visit.element("prompt", "textarea")).to_have_value("a red house")
    playwright.expect(learnt).to_contain_text("4 steps")
    playwright.expect(learnt.locator("rect")).to_have_count(2)  # the first image and a stage


def test_a_preset_sets_the_groups_and_the_size_and_leaves_the_rest(
    visit: Visit, served: Served
) -> None:
    visit.fill(prompt="a blue boat", steps=4)
    visit.switch_on("ug", "refine")
    visit.fill(ug_theta=0.5, refine_eta2="nonsense")
    _choose_preset(visit, "2x, AP-LDM as published")
    visit.wait_for_text("status", "the settings of 2x, AP-LDM as published")
    playwright.expect(visit.element("ug", "input[type=checkbox]")).not_to_be_checked()
    for group in ("pfsa", "refine"):
        playwright.expect(visit.element(group, "input[type=checkbox]")).to_be_checked()
    playwright.expect(visit.element("refine_eta2", "textarea, input")).to_have_value("0.2")
    _choose_preset(visit, "2x, UG alone")
    visit.wait_for_text("status", "the settings of 2x, UG alone")
    playwright.expect(visit.element("ug_theta", "input[type=number]")).to_have_value("1")
    playwright.expect(visit.element("width", "input[type=number]")).to_have_value("32")
    visit.element("generate").click()
    visit.wait_for_text("status", "done in")
    about = read_about(max(served.folder.glob("*.png")))
    assert (about["request"]["prompt"], about["request"]["steps"]) == ("a blue boat", 4)
    assert (about["request"]["width"], about["settings"]) == (32, {"ug": True})
    visit.fill(width=16, height=32)
    _choose_preset(visit, "2x, UG alone")  # again, now in a shape of one's own
    playwright.expect(visit.element("height", "input[type=number]")).not_to_have_value("32")
    sides = [
        visit.element(side, "input[type=number]").input_value() for side in ("width", "height")
    ]
    assert [int(side) for side in sides] == [24, 48]


def _choose_preset(visit: Visit, purpose: str) -> None:
    visit.element("preset", "input").click()
    visit.page.get_by_role("option", name=purpose, exact=True).click()


def test_stop_in_the_middle_gives_the_last_finished_stage(visit: Visit, served: Served) -> None:
    visit.switch_on("refine")
    visit.fill(prompt="a red house", steps=150, seed=7, refine_eta2="1")
    visit.element("generate").click()
    visit.wait_for_text("status", "stage 1 of 1, step")
    visit.element("stop").click()
    said = visit.wait_for_text("status", "stopped")
    assert said.strip().startswith("stopped in stage 1; the first image is kept")
    playwright.expect(visit.element("status", "summary")).to_contain_text("; stopped in stage 1")
    playwright.expect(visit.element("gallery", "img")).to_have_count(1)
    (image,) = served.folder.glob("*-7.png")
    assert (read_about(image)["stage"], read_about(image)["stages"]) == (0, 1)


def test_who_waits_can_stop_and_does_not_wait_for_who_has_left(
    browser: Any, visit: Visit, served: Served
) -> None:
    painting = Visit(browser.new_page())
    painting.page.goto(served.address)
    for seed, steps, each in ((31, 1000, painting), (32, 3, visit)):
        each.fill(steps=steps, seed=seed, width=96, height=96)
        each.element("generate").click()
        each.wait_for_text("status", "waiting for 1 run of others" if each is visit else "step")
    visit.element("stop").click()
    visit.wait_for_text("status", "stopped before it began")
    visit.element("generate").click()
    visit.wait_for_text("status", "waiting for 1 run of others")
    painting.page.close()
    visit.wait_for_text("status", "done in")
    assert [len(list(served.folder.glob(f"*-{seed}.png"))) for seed in (31, 32)] == [0, 1]


def test_a_line_is_passed_in_the_order_of_coming() -> None:
    from lib_hires.standalone.app.queue import Line

    line, told = Line(), []
    stops = [threading.Event() for _ in range(3)]

    def wait(number: int) -> None:
        with line.joined(stops[number]) as place:
            told.extend((number, ahead) for ahead in place.turns())
            told.append((number, "gone" if stops[number].is_set() else "turn"))

    with line.joined(threading.Event()):
        threads = []
        for number in range(3):
            threads.append(threading.Thread(target=wait, args=[number]))
            threads[-1].start()
            while (number, number + 1) not in told:
                time.sleep(0.01)
        stops[1].set()
        threads[1].join()
        while (2, 2) not in told:
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert [number for number, ahead in told if isinstance(ahead, str)] == [1, 0, 2]
    assert (1, "gone") in told and (0, "turn") in told and (2, "turn") in told


def test_a_image_without_settings_is_refused_with_a_sentence(visit: Visit, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    visit.element("drop", "input[type=file]").set_input_files(tmp_path / "foreign.png")
    visit.wait_for_text("status", "holds no settings of ours")


def test_nothing_but_the_outputs_is_served(served: Served) -> None:
    served.folder.joinpath("served.txt").write_text("ours")
    assert _fetched(served, served.folder / "served.txt") == 200
    for path in (Path(__file__), Path("pyproject.toml").resolve(), served.folder.parent):
        assert _fetched(served, path) in (403, 404)


def test_a_image_deleted_by_the_user_ends_nothing(tmp_path: Path) -> None:
    from lib_hires.standalone.app.job import Saved
    from lib_hires.standalone.app.page import _choose, _Shown

    made = Image.new("RGB", (8, 8), "red")
    paths = [tmp_path / name for name in ("deleted.png", "kept.png", "new.png")]
    for path in paths[1:]:
        save(made, path, {})
    session = [str(path) for path in paths[:2]]
    record = RunRecord(time.perf_counter)
    changed = _Shown(session).after(Saved(0, 0, (paths[2],), made, 1.0, record))
    assert changed["session"] == [str(paths[2]), str(paths[1])]
    assert f"there is no file {paths[0]}" in _choose(session, SimpleNamespace(index=0))[2]
    assert _choose(session, SimpleNamespace(index=1))[:2] == (str(paths[1]), "{}")


def test_a_job_that_cannot_begin_ends_with_a_sentence(tmp_path: Path) -> None:
    from lib_hires.standalone.app.job import Ended, Job

    def paint(_: object) -> None:
        raise IndexError("nothing to paint")

    run = SimpleNamespace(model=None, paint=paint, record=RunRecord(time.perf_counter))
    (event,) = Job(run, tmp_path, threading.Event()).events()  # type: ignore[arg-type]
    assert isinstance(event, Ended)
    assert event.sentence.startswith("the first image failed (IndexError")


def test_a_image_whose_feature_upsampler_is_not_here_is_refused(tmp_path: Path) -> None:
    from lib_hires.standalone.app.controls import Controls
    from lib_hires.standalone.app.page import Page

    page = SimpleNamespace(_controls=Controls({}, {}, {}))
    for name, words in [("None", "made with ours"), ("gone [0123456789]", "got 'gone [0123")]:
        about = {"model": "ours", "request": {}, "settings": {"refine_upsampler": name}}
        save(Image.new("RGB", (8, 8)), tmp_path / "image.png", about)
        (said,) = Page._use_settings(page, str(tmp_path / "image.png"))  # type: ignore[arg-type]
        assert words in html.unescape(said)


def test_a_run_with_hires_fix_is_a_sentence_and_teaches_nothing(browser: Any) -> None:
    from lib_hires.standalone.app.page import SCRIPT, page_part

    model = Model((0.1, 1.0, 10.0), (512, 512))
    host = {name: name for name in ("hires", "generate", "stop", "time")}
    figure = element(facts(model, {"Euler": Sampler()}, element_id=str, host=host))
    markup = f"""<div>{figure}</div><div id="time"></div><button id="generate">Generate</button>
        <div id="refine"><input type="checkbox" checked></div>
        <div id="hires"><input type="checkbox" checked></div>
        <script>{page_part(SCRIPT).read_text(encoding="utf-8")}</script>"""
    page = browser.new_page()
    page.route("http://page.invalid/", lambda route: route.fulfill(body=markup, content_type=HTML))
    page.goto("http://page.invalid/")
    drawing = page.locator(".hires-guidance")
    playwright.expect(drawing).to_have_text("a run with Hires. fix is not drawn")
    ended = """document.getElementById("time").innerHTML = '<i class="measurement">9.0 sec.</i>'"""
    page.locator("#generate").click()
    page.evaluate(ended)
    page.locator("#hires input").uncheck()
    playwright.expect(drawing).to_contain_text("the first run here tells the seconds")
    page.locator("#generate").click()
    page.evaluate(ended)
    playwright.expect(drawing).to_contain_text("from 1 run in this browser")
    page.close()


def test_a_nudged_slider_stays_automatic() -> None:
    from lib_hires.standalone.app.controls import Controls

    with gradio.Blocks(analytics_enabled=False):
        controls = Controls.made()
    shown = {"ug_scale": 0.25, "refine_width": 8, "refine_tile": 64, "pfsa_lambda": 0.05}
    names = [*controls.request, *controls.settings]
    _, settings = controls.read([shown.get(name) for name in names])
    assert settings == Settings.from_values({"pfsa_lambda": 0.05})


def test_the_working_folder_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_hires.standalone.app.page import check_served

    monkeypatch.chdir(tmp_path)
    check_served(Path("pictures"))
    for folder in (Path(), Path(".."), tmp_path, Path("/")):
        with pytest.raises(SettingsError, match="--out: expected a folder for images alone"):
            check_served(folder)


def test_the_page_is_served_without_a_tunnel_whatever_the_environment_says(tmp_path: Path) -> None:
    from lib_hires.standalone.app.page import serve

    asked: dict[str, Any] = {}

    def launch(**options: Any) -> tuple[None, str, None]:
        asked.update(options)
        return None, "http://here/", None

    page = SimpleNamespace(blocks=SimpleNamespace(launch=launch))
    assert serve(page, tmp_path, listen="::1", port=None, auth=None) == "http://here/"  # type: ignore[arg-type]
    assert asked["share"] is False  # None is what GRADIO_SHARE would change
    assert asked["allowed_paths"] == [str(tmp_path.resolve())]


def _fetched(served: Served, path: Path) -> int:
    """The status of a request for a file on this machine."""
    address = f"{served.address}gradio_api/file={urllib.parse.quote(str(path))}"
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_others_come_in_with_a_password_alone() -> None:
    from lib_hires.standalone.app.page import visitors

    assert visitors("127.0.0.1", None, None) is None
    assert visitors("0.0.0.0", "ann", "secret") == ("ann", "secret")
    for address, user, password in [
        ("0.0.0.0", None, None),
        ("192.168.0.7", "ann", None),
        ("127.0.0.1", None, "secret"),
    ]:
        with pytest.raises(SettingsError, match="expected --user and --password"):
            visitors(address, user, password)
