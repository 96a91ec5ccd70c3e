"""The nodes in a real ComfyUI, with the bundled model."""

import pytest
from comfyui_process import NEEDED, checked

from lib_hires.noise import draw, generators
from lib_hires.settings import Settings
from lib_hires.standalone.models import load_model
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request

pytestmark = NEEDED
ROUNDING = 2e-5  # of float32 over three steps, relative to the largest value
REFINED = {
    "refined": {"refine_eta2": "0.5"},
    "pivot": {"refine_method": "Pivot"},
    "features": {"refine_method": "Pivot", "refine_upsampler": "hires-demo-2x"},
}
"""Refinements to twice the sides, by the settings of our own side."""


@pytest.fixture(scope="module")
def standalone():
    """Our own images of the bundled model, (1, 3, H, W) in [-1, 1], and what they were made of.

    "image": guided, between whole timesteps as everywhere on our side. The others have k-diffusion
    round each noise level to the nearest whole timestep, as ComfyUI does.
    """
    model = load_model()
    run = made(model, 512, {"ug": True}, rounded=False)
    images = {"image": next(iter(run.generate())).images}
    images["rounded"] = next(iter(made(model, 512, {"ug": True}).generate())).images
    firsts = {}
    for name, settings in REFINED.items():
        first, *_, last = made(model, 256, {"refine": True, **settings}).generate()
        firsts[f"first {name}"], images[name] = first.latent, last.images
    return run, images, firsts


def made(model, side, settings, rounded=True):
    request = Request(
        prompt="a red circle", width=side, height=side, steps=6, sampler="DPM++ 2M", cfg=4.0, seed=7
    )
    run = Run(model, request, Settings.from_values(settings))
    run.denoiser.quantize = rounded  # k-diffusion's own rule
    return run


@pytest.fixture(scope="module")
def seen(standalone, tmp_path_factory):
    """What comfyui_checks.py has seen in the host."""
    run, _, firsts = standalone
    conditioning = run.model.encode_prompts([run.request.prompt], [run.request.negative])
    tensors = {
        "cond": conditioning.cond,
        "uncond": conditioning.uncond,
        "noise": draw(generators(run.request.seeds), (4, 64, 64)),
        "sigmas": run.sigmas,
        **firsts,
    }
    given = {"cfg": run.request.cfg, "seed": run.request.seeds[0], "refined": REFINED}
    exchange = tmp_path_factory.mktemp("comfyui")
    return checked("comfyui_checks", exchange, tensors, given)


def test_the_host_loads_the_nodes(seen):
    assert {"HiResUpsampleGuidance", "HiResProgressiveRefinement"} <= set(seen["nodes"])


@pytest.mark.parametrize("name", ["rounded", "image", *REFINED])
def test_an_image_is_the_standalone_sides(seen, standalone, name):
    """The host as it is, but for "image", where it does not round noise levels to timesteps."""
    expected = standalone[1][name].clamp(-1, 1).movedim(1, -1) / 2 + 0.5  # (1, H, W, 3) in [0, 1]
    off = (seen["files"][name] - expected).abs().max() * 255
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
