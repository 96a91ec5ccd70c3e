"""A script of ours in a real ComfyUI's Python, and what it has seen there.

HIRES_COMFYUI: ComfyUI's folder, which is not written to. HIRES_COMFYUI_PYTHON: the Python that
runs it.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
HOST, PYTHON = os.environ.get("HIRES_COMFYUI"), os.environ.get("HIRES_COMFYUI_PYTHON")

NEEDED = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.skipif(
        not HOST or not PYTHON, reason="HIRES_COMFYUI and HIRES_COMFYUI_PYTHON name no ComfyUI"
    ),
]


def checked(script, exchange, tensors, given):
    """What each check of a script beside this file has seen, and "files": the images it wrote.

    exchange: an empty folder. tensors and given: what the script reads (comfyui_host.py).
    """
    save_file({k: v.contiguous() for k, v in tensors.items()}, exchange / "given.safetensors")
    (exchange / "given.json").write_text(json.dumps(given))
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name(f"{script}.py"), HOST, ROOT, exchange],
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert (exchange / "seen.json").exists(), done.stderr[-4000:]
    results = json.loads((exchange / "seen.json").read_text())
    image = exchange / "image.safetensors"
    return results | ({"files": load_file(image)} if image.exists() else {})
