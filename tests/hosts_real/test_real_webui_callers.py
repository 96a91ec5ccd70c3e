"""In a real WebUI, scripts that work on with an image get the size that they asked for."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.host

REFINE = {"refine": True, "refine_factor": 1.5, "refine_eta2": "0.5"}
SMALL = {"width": 128, "height": 128, "steps": 4}
NATIVE = {"options": {"hires_guidance_native_size": 64}}


def test_tiles_of_sd_upscale_keep_their_size(host):
    start = host.generate(seed=7, **SMALL).encoded[0]
    request = SMALL | NATIVE | {"kind": "img2img", "init_images": [start]}
    script = {"script_name": "sd upscale", "script_args": [None, 64, "Lanczos", 2]}
    made = host.generate(REFINE, fault=("record", 0), **request, **script)
    assert made.sizes == [(256, 256)]
    assert {size for size, _ in host.evaluations()} == {(16, 16)}
    assert "counts on images of the size" in made.info
    assert "HiRes refine" not in made.info
    guided = host.generate({**REFINE, "ug": True}, fault=("record", 0), **request, **script)
    assert {size for size, _ in host.evaluations()} == {(16, 16), (8, 8)}
    assert "HiRes ug: True" in guided.info


def test_loopback_keeps_its_canvas(host):
    start = host.generate(seed=7, **SMALL).encoded[0]
    request = SMALL | {"kind": "img2img", "init_images": [start]}
    script = {"script_name": "loopback", "script_args": [2, 0.5, "Linear", "None"]}
    made = host.generate(REFINE, **request, **script)
    assert set(made.sizes[-2:]) == {(128, 128)}
    assert 'the script \\"Loopback\\" counts on' in made.info


def test_a_prompt_matrix_shows_refined_images(host):
    script = {"script_name": "prompt matrix"}
    script["script_args"] = [False, False, "positive", "comma", 0]
    made = host.generate(REFINE, prompt="a circle|red", **SMALL, **script)
    assert made.sizes[-2:] == [(192, 192)] * 2
    assert "note" not in made.info


def test_a_request_through_its_text_keeps_its_stages(host):
    first = host.generate(REFINE | {"refine_keep_stages": True}, **SMALL)
    text = "a red circle on grass\nNegative prompt: blue\n" + first.info
    again = host.generate(infotext=text, styles=[], **SMALL)
    assert len(first.images) == 2
    assert again.pixels == first.pixels
