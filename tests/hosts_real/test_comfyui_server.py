"""A real ComfyUI's server with the repository in its custom_nodes, driven through its API.

HIRES_COMFYUI and HIRES_COMFYUI_PYTHON as in test_comfyui.py. HIRES_COMFYUI_CHECKPOINT: a file that
the host can load, of a small model of Stable Diffusion 1's kind; without it nothing is sampled.
"""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOST, PYTHON = os.environ.get("HIRES_COMFYUI"), os.environ.get("HIRES_COMFYUI_PYTHON")
CHECKPOINT = os.environ.get("HIRES_COMFYUI_CHECKPOINT")
WORKFLOWS = ("2x", "refinement-2x", "refinement-4x")
SLOWEST_START = 500  # seconds

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.skipif(
        not HOST or not PYTHON, reason="HIRES_COMFYUI and HIRES_COMFYUI_PYTHON name no ComfyUI"
    ),
]


class Server:
    """A running ComfyUI and its data folder."""

    def __init__(self, data, port):
        self.data, self.port = data, port

    @property
    def log(self):
        return (self.data / "log.txt").read_text()

    def request(self, path, body=None):
        """The answer as JSON; a refusal's too."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return json.loads(response.read() or "null")
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)

    def start(self, workflow):
        """The number of a run that is begun."""
        answer = self.request("/prompt", {"prompt": workflow})
        assert "prompt_id" in answer, answer
        return answer["prompt_id"]

    def ended(self, number):
        """What the host tells of a run when it has ended."""
        while not (history := self.request(f"/history/{number}")):
            time.sleep(0.5)
        (result,) = history.values()
        return result

    def run(self, workflow):
        """The images that a workflow saves."""
        result = self.ended(self.start(workflow))
        assert result["status"]["status_str"] == "success", self.log[-3000:]
        return [image for out in result["outputs"].values() for image in out["images"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    data = tmp_path_factory.mktemp("comfyui")
    (data / "custom_nodes").mkdir()
    (data / "custom_nodes" / "hires-guidance").symlink_to(ROOT)
    (data / "models" / "checkpoints").mkdir(parents=True)
    if CHECKPOINT:
        (data / "models" / "checkpoints" / "small.safetensors").symlink_to(CHECKPOINT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "main.py", "--cpu", "--disable-auto-launch", "--listen", "127.0.0.1"]
    command += ["--port", str(port), "--base-directory", str(data)]
    command += ["--database-url", f"sqlite:///{data}/comfyui.db"]
    with (data / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=HOST, stdout=log, stderr=log)
    started, server = time.monotonic(), Server(data, port)
    try:
        while "To see the GUI" not in server.log:
            assert process.poll() is None, server.log[-3000:]
            assert time.monotonic() - started < SLOWEST_START, server.log[-3000:]
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def small(name):
    """An example workflow with the small model, at 64 pixels native and few steps."""
    workflow = json.loads((ROOT / "docs" / "comfy" / f"{name}.json").read_text())
    for part in workflow.values():
        inputs = part["inputs"]
        inputs |= {k: inputs[k] // 8 for k in ("width", "height") if k in inputs}
        changes = {"ckpt_name": "small.safetensors", "steps": 4, "native": 64}
        inputs |= {k: value for k, value in changes.items() if k in inputs}
    return workflow


def test_the_page_gets_our_nodes(server):
    info = server.request("/object_info")
    ours = {name: node for name, node in info.items() if name.startswith("HiRes")}
    assert len(ours) >= 4
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
def test_an_interruption_in_a_stage_is_the_hosts_and_the_next_run_is_whole(server):
    workflow, stage = small("refinement-2x"), "stage 1 at 128x128 in 12 steps"
    workflow["7"]["inputs"] |= {"steps": 12, "eta2": "1", "seed": 2}
    number = server.start(workflow)
    while stage not in server.log:
        time.sleep(0.1)
    server.request("/interrupt", {})
    messages = [name for name, _ in server.ended(number)["status"]["messages"]]
    assert "execution_interrupted" in messages
    workflow["7"]["inputs"] |= {"steps": 4, "eta2": "0.5", "seed": 3}
    assert len(server.run(workflow)) == 1
