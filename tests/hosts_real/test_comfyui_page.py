"""The workflows in a real ComfyUI's page, in Chromium.

HIRES_SCREENSHOTS: a folder for an image of each.
"""

import json
import os
from pathlib import Path

import pytest
from chromium import CHROMIUM, FLAGS
from comfyui_process import NEEDED, ROOT
from comfyui_server import serving

PATIENCE = 360_000  # milliseconds, on a busy machine
NAMES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
SCREENSHOTS = os.environ.get("HIRES_SCREENSHOTS")
pytestmark = [*NEEDED, pytest.mark.browser]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium; HIRES_CHROMIUM may name one")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    data = tmp_path_factory.mktemp("comfyui")
    settings = data / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}))  # no dialog in front
    with serving(data) as server:
        page = browser.new_page(viewport={"width": 1600, "height": 950})
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{server.port}/", wait_until="domcontentloaded")
        ours = "Object.keys(window.LiteGraph?.registered_node_types ?? {}).includes('HiResPlan')"
        page.wait_for_function(f"window.app?.graph && {ours}")
        yield page


@pytest.mark.parametrize("name", NAMES)
def test_the_page_runs_a_template_as_the_api_would(page, name):
    """What the page would queue for it is the workflow of docs/comfy."""
    made = page.evaluate(
        """async (name) => {
            const path = `/api/workflow_templates/hires-guidance/${name}.json`;
            const workflow = await (await fetch(path)).json();
            await window.app.loadGraphData(workflow, true, true, name);
            return (await window.app.graphToPrompt()).output;
        }""",
        name,
    )
    if SCREENSHOTS:
        page.wait_for_timeout(3000)
        page.screenshot(path=Path(SCREENSHOTS, f"{name}.png"))
    wanted = json.loads((ROOT / "docs" / "comfy" / f"{name}.json").read_text())
    assert {key: part["class_type"] for key, part in made.items()} == {
        key: part["class_type"] for key, part in wanted.items()
    }
    assert {key: part["inputs"] for key, part in made.items()} == {
        key: part["inputs"] for key, part in wanted.items()
    }
