"""Upsample Guidance on the transformers of Forge Neo's newer models, see neo_models_checks.py."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from compatibility import shows

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[2]
TRIED = "UG: the coarse image is the native sampler's"
MODELS = "Chroma", "Lumina", "Z-Image", "Qwen-Image", "Anima", "Wan"
WITH_FRAMES = "Qwen-Image", "Anima", "Wan"


@pytest.fixture(scope="module")
def seen():
    folder = Path(os.environ.get("HIRES_WEBUI", ""))
    if not (folder / "backend" / "nn" / "anima.py").is_file():
        pytest.skip("the host does not have Forge Neo's models")
    script = Path(__file__).with_name("neo_models_checks.py")
    command = [os.environ["HIRES_WEBUI_PYTHON"], str(script), str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "model", ["Flux", *(pytest.param(model, marks=shows(TRIED, model=model)) for model in MODELS)]
)
def test_the_coarse_image_is_the_native_one(seen, model, partly):
    """With a time axis too, frame by frame; and nothing is left."""
    partly("seen on the host's transformer and sampling function, not in a run of the whole WebUI")
    if model in WITH_FRAMES:
        partly("refinement and evaluation in windows are left out, with a message")
    found = seen[model]
    assert isinstance(found, dict), found
    assert found["supported"] and found["flow"] and found["finite"] and not found["messages"]
    assert found["off"] < 1e-4
    assert found["changed"] > 1e-3
    assert found["same after"]
