"""ControlNet (the extension) in a real WebUI."""

from __future__ import annotations

import urllib.error

import pytest
from images_of_hosts import encoded

pytestmark = pytest.mark.host

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_factor": 1.5, "refine_eta2": "0.5"}


@pytest.fixture
def webui(host):
    return host


SMALL = {"width": 128, "height": 128, "steps": 4}
NATIVE = {"hires_guidance_native_size": 64}
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
CONTROL = SMALL | {"options": NATIVE | {"sd_model_checkpoint": "control"}}
WINDOWS = UG | {"ug_windows": "Hann"}


@pytest.fixture
def unit(webui, any_shape):
    """A function from a unit's settings to a request with it; its image is half white."""
    if not webui.has_controlnet:
        pytest.skip("the WebUI has no extension sd-webui-controlnet")
    from PIL import Image

    hint = Image.new("RGB", (128, 128))
    hint.paste((255, 255, 255), (0, 0, 64, 128))
    values = {"enabled": True, "module": "none", "model": "tiny", "image": encoded(hint)}

    def request(**more):
        return CONTROL | {"more_scripts": {"ControlNet": [{**values, **more}]}}

    return request


def _failures(webui) -> int:
    return webui.log.read_text(errors="replace").count("Traceback")


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_controlnet_acts_at_every_size(webui, unit, sampler):
    """With a unit, UG and the stages make other images than without it; nothing is left."""
    failures, request = _failures(webui), CONTROL | {"sampler_name": sampler}
    controlled = unit() | {"sampler_name": sampler}
    alone, plain = webui.generate(**controlled), webui.generate(**request)
    before = webui.state()  # ControlNet leaves the U-Net's own forward on the U-Net
    assert alone.pixels[0] != plain.pixels[0]
    for settings in (UG, REFINE, UG | REFINE):
        made = webui.generate(settings, **controlled)
        assert "note" not in made.info
        assert made.pixels[0] != alone.pixels[0]
        assert made.pixels[0] != webui.generate(settings, **request).pixels[0]
    assert made.sizes[0] == (192, 192)
    assert webui.generate(settings, **controlled).pixels[0] == made.pixels[0]
    assert webui.generate(**request).pixels == plain.pixels
    assert webui.state() == before
    assert _failures(webui) == failures


def test_controlnet_can_be_left_out_of_native_evaluations(webui, unit):
    both = webui.generate(UG, **unit())
    without = webui.generate(UG | {"ug_controlnet": False}, **unit())
    assert "note" not in without.info
    assert both.pixels[0] != without.pixels[0]
    assert both.pixels[0] == webui.generate(UG, **unit()).pixels[0]


@pytest.mark.parametrize("side", ["Both", "Low res only", "High res only"])
def test_controlnet_and_hires_fix(webui, unit, side):
    """128, then 192, then a stage of 240, with native evaluations at 64."""
    failures, settings = _failures(webui), UG | REFINE | {"refine_factor": 1.25}
    made = webui.generate(settings, **unit(hr_option=side), **HIRES)
    assert made.sizes[0] == (240, 240)
    assert "note" not in made.info
    assert _failures(webui) == failures


def test_controlnet_tells_cond_from_uncond_in_the_stages(webui, unit):
    """The mode "ControlNet is more important" acts on cond alone, which it knows by its marks."""
    failures = _failures(webui)
    made = [
        webui.generate(UG | REFINE, **unit(control_mode=mode)).pixels[0]
        for mode in ("Balanced", "ControlNet is more important")
    ]
    assert made[0] != made[1]
    assert _failures(webui) == failures


def test_after_a_failure_with_controlnet_the_next_image_is_as_ever(webui, unit):
    plain, whole = webui.generate(**CONTROL), webui.generate(UG | REFINE, **unit())
    with pytest.raises(urllib.error.HTTPError):
        webui.generate(PFSA, fault=("raise", 2), **unit())
    webui.generate(UG | REFINE, fault=("raise", 9), **unit())
    assert webui.generate(**CONTROL).pixels == plain.pixels
    assert webui.generate(UG | REFINE, **unit()).pixels[0] == whole.pixels[0]


@pytest.mark.usefixtures("any_shape")
def test_controlnet_wants_the_whole_image(webui, unit):
    made = webui.generate(WINDOWS, **unit())
    assert "at full size, because ControlNet's units see whole images only" in made.info
    assert made.pixels[0] == webui.generate(UG, **unit()).pixels[0]
