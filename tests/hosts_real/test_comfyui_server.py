"""The nodes in a real ComfyUI's server, driven through its API.

Without HIRES_COMFYUI_CHECKPOINT (comfyui_server.py) nothing is sampled.
"""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from comfyui_process import HOST, NEEDED, ROOT
from comfyui_server import CHECKPOINT, serving, small
from PIL import Image, ImageOps

from lib_hires.settings import Settings
from lib_hires.standalone.models import Overrides, load_model
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request

WORKFLOWS = ("2x", "refinement-2x", "refinement-4x")
EVENLY = {"method": "AP-LDM", "enlargement": "automatic"}  # stages' areas
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
@pytest.mark.parametrize(("name", "images"), list(zip(WORKFLOWS, (1, 2, 2), strict=True)))
def test_an_example_makes_its_images(server, name, images):
    assert len(server.run(small(name))) == images
    assert "Upsample Guidance: 128x128 guided at 64x64" in server.log


@pytest.mark.skipif(not CHECKPOINT, reason="HIRES_COMFYUI_CHECKPOINT names no checkpoint")
def test_the_command_line_makes_the_same_image_by_comfyuis_rules(server, tmp_path):
    """Of the same file, prompt and seed, through the host's own loader, text encoder and VAE. The
    checkpoint is one of tiny_checkpoints.py, whose own tokenizer the host does not have."""
    workflow = small("2x")
    workflow["6"]["inputs"]["seed"] = 5
    (image,) = server.run(workflow)
    theirs = np.asarray(opened(server.data / "output" / image["filename"]), dtype=int)
    own = {"width": 128, "height": 128, "steps": 4, "cfg": 7.0, "seed": 5, "rules": "ComfyUI"}
    request = Request(prompt=workflow["2"]["inputs"]["text"], **own)
    file = Path(CHECKPOINT)
    (tmp_path / file.name).symlink_to(file)
    config = file.with_suffix(".yaml").read_text().replace("image_size: 32", "image_size: 8")
    (tmp_path / f"{file.stem}.yaml").write_text(config)  # NATIVE, as the workflow has it
    (tmp_path / f"{file.stem}-clip").symlink_to(Path(HOST) / "comfy" / "sd1_tokenizer")
    overrides = Overrides(prediction="eps")  # the host does not read the yaml
    model = load_model(tmp_path / file.name, overrides=overrides)
    run = Run(model, request, Settings.from_values({"ug": True}))
    (made,) = run.generate()
    ours = (made.images[0].movedim(0, -1).numpy() / 2 + 0.5) * 255
    off = abs(theirs - ours.astype(int))  # the host cuts fractions off
    assert off.max() <= 1 and off.mean() < 1e-3, f"{off.max()} of 255, {off.mean()} in the mean"


@pytest.mark.skipif(not CHECKPOINT, reason="HIRES_COMFYUI_CHECKPOINT names no checkpoint")
def test_the_plan_is_shown_on_its_node_without_a_sampling(server):
    workflow = {key: part for key, part in small("2x").items() if key in ("1", "4", "12")}
    result = server.ended(server.start(workflow))
    assert result["status"]["status_str"] == "success", server.log[-3000:]
    (image,) = result["outputs"]["12"]["images"]
    with Image.open(server.data / image["type"] / image["filename"]) as drawing:
        assert drawing.size[0] > drawing.size[1] > 300


@pytest.mark.skipif(not CHECKPOINT, reason="HIRES_COMFYUI_CHECKPOINT names no checkpoint")
def test_a_refinement_shows_its_steps_as_the_hosts_sampler_does(server, tmp_path):
    """A preview after each step of each stage, in the shape of its latent, on one progress bar."""
    workflow, steps = small("refinement-4x"), 2
    workflow["5"]["inputs"] |= {"width": 128, "height": 64}
    workflow["7"]["inputs"] |= EVENLY | {"eta2": "0.5, 0.5"}
    told, images = server.told(workflow, tmp_path)
    stages = [opened(server.data / "output" / image["filename"]) for image in images]
    assert [image.width for image in stages] == [384, 512]

    own = [event for event in told if event["type"] in ("executing", "progress", "preview")]
    begun = own.index(next(e for e in own if (e.get("data") or {}).get("node") == "7"))
    progress = [e["data"] for e in own[begun:] if e["type"] == "progress"]
    assert [(p["value"], p["max"]) for p in progress if p["node"] == "7"] == [
        (step, 2 * steps) for step in range(1, 2 * steps + 1)
    ]
    previews = [opened(tmp_path / e["file"]) for e in own[begun:] if e["type"] == "preview"]
    assert len(previews) == 2 * steps
    for step, preview in enumerate(previews):
        stage = stages[step // steps]
        expected = ImageOps.contain(Image.new("RGB", (stage.width // 8, stage.height // 8)), SHOWN)
        assert preview.size == expected.size
        assert min(high - low for low, high in preview.getextrema()) > 50  # not one colour
    assert len({preview.tobytes() for preview in previews}) == len(previews)


SHOWN = (512, 512)  # pixels, what the host enlarges its previews to


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


@pytest.mark.skipif(not CHECKPOINT, reason="HIRES_COMFYUI_CHECKPOINT names no checkpoint")
def test_an_interruption_keeps_finished_stages_and_the_next_run_is_whole(server):
    workflow, stage = small("refinement-4x"), "stage 2 at 256x256 in 12 steps"
    workflow["7"]["inputs"] |= EVENLY | {"steps": 12, "eta2": "0.1, 1", "seed": 2}
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
