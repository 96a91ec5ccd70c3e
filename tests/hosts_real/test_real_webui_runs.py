"""Whole runs in a real WebUI, through its API."""

from __future__ import annotations

import urllib.error
from contextlib import nullcontext, suppress

import pytest
from images_of_hosts import distance

pytestmark = pytest.mark.host

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_factor": 1.5, "refine_eta2": "0.5"}


@pytest.fixture
def webui(host):
    return host


RECORD = ("record", 0)
SMALL = {"width": 128, "height": 128, "steps": 4}
NATIVE = {"hires_guidance_native_size": 64}
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
WINDOWS = UG | {"ug_windows": "Hann"}


@pytest.mark.parametrize("where", [1, 5, 12])
def test_after_a_failure_the_next_image_is_as_ever(webui, where):
    settings = UG | PFSA | REFINE
    plain, guided, before = webui.generate().pixels, webui.generate(settings).pixels, webui.state()
    with pytest.raises(urllib.error.HTTPError):
        webui.generate({}, fault=("raise", 2))
    with suppress(urllib.error.HTTPError) if webui.by_shape else nullcontext():
        webui.generate(
            UG, fault=("raise", where)
        )  # Forge and its kin make the large evaluation alone
    assert webui.generate().pixels == plain
    with pytest.raises(urllib.error.HTTPError):
        webui.generate(PFSA, fault=("raise", 3))
    assert webui.generate().pixels == plain
    assert webui.generate(settings).pixels == guided
    assert webui.state() == before


def test_a_native_evaluation_that_fails_leaves_an_image_and_a_message(webui):
    image = webui.generate(UG, fault=("raise small", 2))
    assert "without Upsample Guidance" in image.info
    assert image.sizes == [webui.times(1)]


def test_a_batch_gives_each_image_the_one_it_gives_alone(webui):
    settings = UG | PFSA | REFINE
    batch = webui.generate(settings, batch_size=2, n_iter=2, sampler_name="Euler a")
    for k, image in enumerate(batch.images[-4:]):
        alone = webui.generate(settings, seed=1 + k, sampler_name="Euler a").images[0]
        assert distance(image, alone) <= 2  # rounding


def test_img2img_with_two_batches_on_one_sampler(webui):
    start = webui.generate(seed=7).encoded[0]
    request = {"kind": "img2img", "init_images": [start], "denoising_strength": 0.7, "n_iter": 2}
    plain = webui.generate(**request)
    assert webui.generate(UG | {"ug_theta": 0}, **request).sizes == plain.sizes
    guided = webui.generate(UG, **request)
    assert guided.pixels != plain.pixels
    refined = webui.generate(UG | PFSA | REFINE, **request)
    assert set(refined.sizes[-2:]) == {webui.times(1.5)}
    assert "note" not in refined.info


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "red AND a blue circle:0.5 AND grass"},
        {"prompt": "a circle, " * 40},
        {"prompt": "a circle, " * 40, "sampler_name": "DDIM"},
        {"prompt": "a [red:blue:3] circle [on grass:0.5]"},
        {"cfg_scale": 1},
        {"options": {"batch_cond_uncond": False}},
        {"options": {"batch_cond_uncond": False}, "prompt": "a circle, " * 40},
        {"options": {"pad_cond_uncond": True}, "prompt": "a circle, " * 40},
        {"s_min_uncond": 4},
        {"options": {"skip_early_cond": 0.4}},
        {"options": {"img2img_fix_steps": True}},
        {"options": {"randn_source": "NV"}},
        {"options": {"eta_noise_seed_delta": 31337}, "sampler_name": "Euler a"},
        {"options": {"always_discard_next_to_last_sigma": True}},
        {"options": {"sgm_noise_multiplier": True}},
        {"subseed": 3, "subseed_strength": 0.4},
        {"scheduler": "Karras"},
        {"scheduler": "SGM Uniform", "sampler_name": "DPM++ 2M"},
        {"width": 320, "height": 200},
        {"tiling": True},
    ],
    ids=str,
)
def test_combination(webui, request_):
    """Each with all three and a cadence: guided, refined, nothing left, nothing left out."""
    settings = UG | PFSA | REFINE | {"ug_cadence": 2}
    plain = webui.generate(**request_)
    made = webui.generate(settings, **request_)
    assert made.sizes[0][0] > plain.sizes[0][0]
    assert "note" not in made.info
    assert webui.generate(settings, **request_).pixels == made.pixels
    assert webui.generate(**request_).pixels == plain.pixels


def test_at_or_below_the_native_size_nothing_happens(webui):
    plain = webui.generate(options={"hires_guidance_native_size": 0})
    guided = webui.generate(UG, options={"hires_guidance_native_size": 0})
    assert guided.pixels == plain.pixels
    assert "not clearly above the model's native" in guided.info


@pytest.mark.parametrize(
    ("choice", "guided"),
    [("automatic", {16, 24}), ("first pass", {16}), ("Hires. fix", {24}), ("img2img", set())],
)
def test_the_passes_that_are_chosen(webui, choice, guided):
    request = SMALL | HIRES | {"options": NATIVE, "fault": RECORD}
    image = webui.generate(UG | {"ug_passes": choice}, **request)
    sides = [size[0] for size, _ in webui.evaluations()]
    pairs = zip(sides, sides[1:], strict=False)
    assert {large for large, small in pairs if small == 8 and large != 8} == guided
    assert ("the run has no pass" in image.info) == (not guided)


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize(
    "request_",
    [
        {"sampler_name": "DDIM"},
        {"sampler_name": "Heun", "batch_size": 2},
        {"prompt": "a red circle AND a blue house :0.6"},
        {"options": NATIVE | {"batch_cond_uncond": False}},
        {"options": NATIVE | {"sd_model_checkpoint": "inpaint"}},
    ],
)
def test_large_images_are_evaluated_in_windows(webui, request_):
    """Of every sampler's own calls; the image is another, and the next one as it was."""
    request_ = SMALL | {"options": NATIVE} | request_
    plain, whole = webui.generate(**request_), webui.generate(UG, **request_)
    made = webui.generate(WINDOWS, **request_)
    assert "note" not in made.info
    assert made.pixels[0] not in (plain.pixels[0], whole.pixels[0])
    assert made.pixels == webui.generate(WINDOWS, **request_).pixels
    assert webui.generate(**request_).pixels == plain.pixels
