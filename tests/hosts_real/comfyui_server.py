"""A real ComfyUI's server with the repository in its custom_nodes.

HIRES_COMFYUI_CHECKPOINT: a file that the host can load, of a small model of Stable Diffusion 1's
kind. The rest as in comfyui_process.py.
"""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

from comfyui_process import HOST, PYTHON, ROOT

CHECKPOINT = os.environ.get("HIRES_COMFYUI_CHECKPOINT")
NATIVE = 64  # pixels, of small workflows
SLOWEST_START = 500  # seconds


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
        """The images that a workflow saves, those that it only shows left out."""
        result = self.ended(self.start(workflow))
        assert result["status"]["status_str"] == "success", self.log[-3000:]
        images = [image for out in result["outputs"].values() for image in out["images"]]
        return [image for image in images if image["type"] == "output"]


@contextmanager
def serving(data):
    """A server with an empty folder for its data."""
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
        changes = {"ckpt_name": "small.safetensors", "steps": 4, "native": NATIVE}
        inputs |= {k: value for k, value in changes.items() if k in inputs}
    return workflow
