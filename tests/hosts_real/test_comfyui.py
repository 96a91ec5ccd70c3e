"""The nodes in a real ComfyUI.

HIRES_COMFYUI: ComfyUI's folder, which is not written to. HIRES_COMFYUI_PYTHON: the Python that
runs it.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lib_hires.noise import draw, generators
from lib_hires.settings import Settings
from lib_hires.standalone.models import load_model
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request

ROOT = Path(__file__).parents[2]
HOST, PYTHON = os.environ.get("HIRES_COMFYUI"), os.environ.get("HIRES_COMFYUI_PYTHON")

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.skipif(
        not HOST or not PYTHON, reason="HIRES_COMFYUI and HIRES_COMFYUI_PYTHON name no ComfyUI"
    ),
]
ROUNDING = 2e-5  # of float32 over three steps, relative to the largest value


@pytest.fixture(scope="module")
def standalone():
    """A guided run of the bundled model by ourselves, and its image (1, 3, H, W) in [-1, 1]."""
    request = Request(
        prompt="a red circle", width=512, height=512, steps=6, sampler="DPM++ 2M", cfg=4.0, seed=7
    )
    settings = Settings.from_values({"ug": True})
    run = Run(load_model(), request, settings)
    return run, next(iter(run.generate())).images


@pytest.fixture(scope="module")
def seen(standalone, tmp_path_factory):
    """What comfyui_checks.py has seen in the host."""
    run, _ = standalone
    exchange = tmp_path_factory.mktemp("comfyui")
    conditioning = run.model.encode_prompts([run.request.prompt], [run.request.negative])
    tensors = {
        "cond": conditioning.cond,
        "uncond": conditioning.uncond,
        "noise": draw(generators(run.request.seeds), (4, 64, 64)),
        "sigmas": run.sigmas,
    }
    save_file({k: v.contiguous() for k, v in tensors.items()}, exchange / "given.safetensors")
    (exchange / "given.json").write_text(json.dumps({"cfg": run.request.cfg}))
    script = Path(__file__).with_name("comfyui_checks.py")
    done = subprocess.run(
        [PYTHON, script, HOST, ROOT, exchange],
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert (exchange / "seen.json").exists(), done.stderr[-4000:]
    results = json.loads((exchange / "seen.json").read_text())
    return results | {"files": load_file(exchange / "image.safetensors")}


def test_the_host_loads_the_nodes(seen):
    assert {"HiResUpsampleGuidance", "HiResProgressiveRefinement"} <= set(seen["nodes"])


def test_an_image_is_the_standalone_sides(seen, standalone):
    expected = standalone[1].movedim(1, -1) / 2 + 0.5  # (1, H, W, 3) in [0, 1]
    off = (seen["files"]["image"] - expected).abs().max() * 255
    assert off <= 1, f"{off} of 255"


def test_the_hosts_whole_timesteps_change_little(seen):
    off = (seen["files"]["image"] - seen["files"]["rounded"]).abs() * 255
    assert 0 < off.mean() < 0.5


def test_theta_0_changes_no_bit_and_nothing_is_left_behind(seen):
    assert seen["theta_0_is_the_model"] == {"off": True, "on": False, "after": True, "again": True}


@pytest.mark.parametrize("name", ["exact_by_sampler", "exact_by_prediction", "exact_with_patches"])
def test_the_coarse_image_is_the_native_samplers(seen, name):
    assert isinstance(seen[name], dict), seen[name]
    assert max(seen[name].values()) < ROUNDING, seen[name]


def test_masks_are_shrunk_and_areas_scaled(seen):
    masked = seen["exact_with_areas_and_masks"]
    assert isinstance(masked, dict), masked
    assert masked["masks"] < ROUNDING
    assert masked["areas"]


def test_a_controlnet_acts_at_the_native_size_too(seen):
    assert isinstance(seen["exact_with_controlnet"], float), seen["exact_with_controlnet"]
    assert seen["exact_with_controlnet"] < ROUNDING


def test_other_nodes_run_beside_guidance(seen):
    results = seen["runs_with_other_nodes"]
    assert isinstance(results, dict), results
    assert results["Deep Shrink"] and results["HyperTile"] and results["KSampler Advanced"]


def test_attentive_guidance_mixes_once_a_step(seen):
    results = seen["attentive_guidance"]
    assert isinstance(results, dict), results
    assert results["off"] < ROUNDING and results["mixed"]
    assert "dpm_adaptive" in results["refused"]


def test_refinement_makes_an_image_of_each_stage(seen):
    whole = [[1, 512, 512, 3]]
    expected = {"AP-LDM": [[1, 384, 384, 3], *whole], "Pivot": whole, "tiles": whole}
    assert seen["refinement"] == expected
