"""The nodes in a real ComfyUI's server, driven through its API.

Without HIRES_COMFYUI_CHECKPOINT (comfyui_server.py) nothing is sampled.
"""

import json
import time

import pytest
from comfyui_process import NEEDED, ROOT
from comfyui_server import CHECKPOINT, serving, small
from PIL import Image

WORKFLOWS = ("2x", "refinement-2x", "refinement-4x")
pytestmark = NEEDED


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("comfyui")) as server:
        yield server


def test_the_page_gets_our_nodes(server):
    info = server.request("/object_info")
    ours = {name: node for name, node in info.items() if name.startswith("HiRes")}
    assert len(ours) >= 6
    assert {node["category"] for node in ours.values()} == {"hires"}
    kind, options = ours["HiResUpsampleGuidance"]["input"]["required"]["theta"]
    assert kind == "FLOAT"
    assert (options["min"], options["max"], options["default"]) == (0, 2, 1)
    assert ours["HiResProgressiveRefinement"]["output_is_list"] == [False, True]


def test_the_host_has_nothing_to_say_about_us(server):
    lines = [line for line in server.log.splitlines() if "hires" in line.lower()]
    assert not [line for line in lines if "FAILED" in line or "rror" in line], lines
    assert "Unable to parse pyproject.toml" not in server.log


@pytest.mark.parametrize("name", [*WORKFLOWS, "controlnet"])
def test_an_example_is_refused_for_its_files_alone(server, name):
    workflow = json.loads((ROOT / "docs" / "comfy" / f"{name}.json").read_text())
    answer = server.request("/prompt", {"prompt": workflow})
    wrong = {node["class_type"] for node in answer["node_errors"].values()}
    assert wrong <= {"CheckpointLoaderSimple", "ControlNetLoader", "LoadImage"}, answer


@pytest.mark.skipif(not CHECKPOINT, reason="HIRES_COMFYUI_CHECKPOINT names no checkpoint")
@pytest.mark.parametrize(("name", "images"), zip(WORKFLOWS, (1, 1, 2), strict=True))
def test_an_example_makes_its_images(server, name, images):
    assert len(server.run(small(name))) == images
    assert "Upsample Guidance: 128x128 guided at 64x64" in server.log


@pytest.mark.skipif(not CHECKPOINT, reason="HIRES_COMFYUI_CHECKPOINT names no checkpoint")
def test_the_plan_is_shown_on_its_node_without_a_sampling(server):
    workflow = {key: part for key, part in small("2x").items() if key in ("1", "4", "12")}
    result = server.ended(server.start(workflow))
    assert result["status"]["status_str"] == "success", server.log[-3000:]
    (image,) = result["outputs"]["12"]["images"]
    with Image.open(server.data / image["type"] / image["filename"]) as drawing:
        assert drawing.size[0] > drawing.size[1] > 300


@pytest.mark.skipif(not CHECKPOINT, reason="HIRES_COMFYUI_CHECKPOINT names no checkpoint")
def test_an_interruption_keeps_finished_stages_and_the_next_run_is_whole(server):
    workflow, stage = small("refinement-4x"), "stage 2 at 256x256 in 12 steps"
    workflow["7"]["inputs"] |= {"steps": 12, "eta2": "0.1, 1", "seed": 2}
    number = server.start(workflow)
    while stage not in server.log:
        time.sleep(0.1)
    server.request("/interrupt", {})
    messages = [name for name, _ in server.ended(number)["status"]["messages"]]
    assert "execution_interrupted" in messages
    (kept,) = (server.data / "output").glob("hires-stage*.png")
    with Image.open(kept) as image:
        assert image.size[0] == image.size[1] and 64 < image.size[0] < 256
        assert json.loads(image.info["prompt"])["7"]["inputs"]["seed"] == 2
    workflow["7"]["inputs"] |= {"steps": 4, "eta2": "0.5", "seed": 3, "factor": 2.0}
    assert len(server.run(workflow)) == 1


def test_the_page_offers_the_workflows(server):
    """Each is of nodes that the host has, and in the page's form what docs/comfy has in the API's
    (tests/comfy/test_workflows.py)."""
    offered = server.request("/workflow_templates")
    (ours,) = (names for folder, names in offered.items() if folder == "hires-guidance")
    assert set(ours) == {*WORKFLOWS, "controlnet"}
    nodes = server.request("/object_info")
    for name in ours:
        page = server.request(f"/api/workflow_templates/hires-guidance/{name}.json")
        assert {node["type"] for node in page["nodes"]} <= set(nodes)
