"""The same expectations of several kinds of models and additions in every WebUI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from compatibility import shows
from images_of_hosts import distance, encoded

pytestmark = pytest.mark.host

SMALL = {"width": 64, "height": 64, "steps": 4}
NATIVE = {"options": {"hires_guidance_native_size": 32}}
LARGER = {"width": 128, "height": 128, "options": {"hires_guidance_native_size": 64}}
"""Where the coarsest level of a tiny model needs more than one position."""
UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_factor": 1.5, "refine_eta2": "0.5"}
TWICE = {"refine": True, "refine_factor": 2, "refine_eta2": "0.5"}
MINE = TWICE | {"refine_upsampler": "mine"}


def _sides(host) -> list[int]:
    """The latents' heights of the model's evaluations, in order."""
    return [size[0] for size, _ in host.evaluations()]


XL = {"options": NATIVE["options"] | {"sd_model_checkpoint": "xl"}}


@pytest.fixture(scope="module")
def flow_models(host):
    """The files of flux and sd3 are written here, for no other test wants them."""
    from tiny_flow_models import put_flow_models

    if not (Path(os.environ["HIRES_WEBUI"]) / "backend").is_dir():
        pytest.skip("guidance knows flow models in Forge and Forge Neo alone")
    put_flow_models(host.model)
    host.request("/sdapi/v1/refresh-checkpoints", {})


@pytest.fixture(
    params=[
        pytest.param("flux", marks=shows(model="Flux")),
        pytest.param("sd3", marks=shows(model="SD 3")),
    ]
)
def flow(flow_models, request):
    """A request for an image by a flow model."""
    engines = Path(os.environ["HIRES_WEBUI"]) / "backend" / "diffusion_engine"
    if request.param == "sd3" and not (engines / "sd35.py").is_file():
        pytest.skip("the host has no SD 3")
    options = NATIVE["options"] | {"sd_model_checkpoint": request.param}
    return {"options": options, "cfg_scale": 1, "scheduler": "Simple"}


@shows("refiner")
def test_the_refiner_takes_over_in_the_middle_and_the_next_image_is_as_ever(host, generate):
    plain = generate().pixels
    request = {"refiner_checkpoint": "other", "refiner_switch_at": 0.5}
    guided = generate(UG, **request)
    assert "Refiner: other" in guided.info
    assert "note" not in guided.info
    assert guided.pixels != generate(UG).pixels
    assert guided.pixels != generate(**request).pixels
    refined = generate(UG | PFSA | REFINE, **request)
    assert refined.sizes == [(96, 96)]
    assert "note" not in refined.info
    assert generate().pixels == plain


def test_automatic_guidance_that_has_ended_stays_so_with_a_refiner(generate):
    late = {"refiner_checkpoint": "other", "refiner_switch_at": 0.8}
    automatic = {"ug": True, "ug_theta": 2}  # strong, for the last steps change little
    decided = automatic | {"ug_eta": 0.8, "ug_cadence": 3}
    images = [generate(settings, steps=20, **late) for settings in (automatic, decided)]
    assert images[0].pixels == images[1].pixels
    assert images[0].pixels != generate(steps=20, **late).pixels


@shows("UG, refinement, a mask", model="SD 1.5 inpainting")
def test_a_nine_channel_inpainting_model(host, generate):
    from PIL import Image

    before = generate()
    options = NATIVE["options"] | {"sd_model_checkpoint": "inpaint"}
    made = generate(UG | REFINE, options=options)
    assert made.sizes == [(96, 96)]
    assert "note" not in made.info
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 50, 50))
    request = {"kind": "img2img", "init_images": list(before.encoded), "mask": encoded(mask)}
    plain, guided = (generate(settings, options=options, **request) for settings in (None, UG))
    assert "note" not in guided.info
    assert guided.pixels != plain.pixels
    assert generate().pixels == before.pixels


@shows("LoRA")
def test_a_lora_with_guidance_and_stages(generate):
    plain = generate(UG | REFINE)
    prompt = "a red circle on grass <lora:tiny:1>"
    made = generate(UG | REFINE, prompt=prompt)
    assert made.sizes == [(96, 96)]
    assert "note" not in made.info
    assert made.pixels != plain.pixels
    assert generate(UG | REFINE).pixels == plain.pixels


@shows("ControlNet at every size")
def test_controlnet_acts_at_every_size(host, generate):
    """With a unit, UG and the stages make other images than without it; nothing is left."""
    from PIL import Image

    if not host.controlled:
        pytest.skip("the WebUI has no ControlNet")
    hint = Image.new("RGB", (128, 128))
    hint.paste((255, 255, 255), (0, 0, 64, 128))
    models = host.request("/controlnet/model_list")["model_list"]
    (model,) = [name for name in models if name.startswith("tiny")]
    modules = host.request("/controlnet/module_list")["module_list"]
    (module,) = [name for name in modules if name.lower() == "none"]
    values = {"enabled": True, "module": module, "model": model, "image": encoded(hint)}
    chosen = {"sd_model_checkpoint": host.controlled}
    options = LARGER | {"options": LARGER["options"] | chosen}
    controlled = options | {"more_scripts": {"ControlNet": [values]}}
    alone, plain = generate(**controlled), generate(**options)
    before = host.state()
    assert alone.pixels[0] != plain.pixels[0]
    for settings in (UG, REFINE, UG | REFINE):
        made = generate(settings, **controlled)
        assert "note" not in made.info
        assert made.pixels[0] != alone.pixels[0]
        assert made.pixels[0] != generate(settings, **options).pixels[0]
    assert made.sizes[0] == (192, 192)
    upsampled = generate(MINE, **controlled)
    assert "note" not in upsampled.info
    assert upsampled.pixels[0] != generate(TWICE, **controlled).pixels[0]
    assert upsampled.pixels[0] != generate(MINE, **options).pixels[0]
    whole = generate(UG | {"ug_windows": "Hann"}, **controlled)
    assert "at full size, because ControlNet's units see whole images only" in whole.info
    assert whole.pixels[0] == generate(UG, **controlled).pixels[0]
    unasked = generate(UG | {"ug_controlnet": False}, **controlled)
    assert "note" not in unasked.info
    assert unasked.pixels[0] != generate(UG, **controlled).pixels[0]
    assert generate(**options).pixels == plain.pixels
    assert host.state() == before


@shows("feature upsamplers: Euler, Heun, DPM++ 2M, DDIM, UniPC")
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM++ 2M", "DDIM", "UniPC"])
def test_a_feature_upsampler_changes_the_stage_alone(host, generate, sampler):
    """Untrained it changes no bit; its small image is evaluated once."""
    plain = generate(TWICE, sampler_name=sampler, fault=("record", 0))
    without, before = _sides(host), host.state()
    untrained = generate(TWICE | {"refine_upsampler": "untrained"}, sampler_name=sampler)
    assert untrained.pixels == plain.pixels
    made = generate(MINE, sampler_name=sampler, fault=("record", 0))
    assert _sides(host) == [8, *without]
    assert made.sizes == [(128, 128)]
    assert made.pixels != plain.pixels
    assert "note" not in untrained.info + made.info
    assert generate(MINE, sampler_name=sampler).pixels == made.pixels
    assert generate(TWICE, sampler_name=sampler).pixels == plain.pixels
    assert host.state() == before


@shows("feature upsamplers: Euler, Heun, DPM++ 2M, DDIM, UniPC")
@pytest.mark.parametrize(
    "request_",
    [{"cfg_scale": 1}, {"prompt": "red AND a blue circle:0.5 " + "on grass " * 40} | LARGER],
    ids=["cond alone", "parts of other lengths"],
)
def test_every_row_has_the_features_of_its_own_image_and_prompt(generate, request_):
    """Each image of a batch is the one it is alone, with Upsample Guidance too."""
    settings = MINE | UG
    batch = generate(settings, batch_size=2, **request_)
    assert "note" not in batch.info
    for place, image in enumerate(batch.images[-2:]):
        alone = generate(settings, seed=1 + place, **request_)
        assert "note" not in alone.info
        assert distance(image, alone.images[0]) <= 2  # rounding
        assert alone.pixels != generate(TWICE | UG, seed=1 + place, **request_).pixels


@shows("an error: a message, and the next image bit for bit")
def test_a_feature_upsampler_fails_with_a_sentence_and_the_next_image_is_as_ever(host, generate):
    plain, made = generate(TWICE).pixels, generate(MINE).pixels
    before = host.state()
    failed = generate(MINE, fault=("raise", 5))  # after four steps, the evaluation for the features
    assert "without the feature upsampler" in failed.info
    assert failed.pixels == plain
    assert host.state() == before
    assert generate(MINE).pixels == made


@shows("feature upsamplers: Euler, Heun, DPM++ 2M, DDIM, UniPC")
def test_a_feature_upsampler_of_another_model_is_left_out_with_a_message(generate):
    made = generate(TWICE | {"refine_upsampler": "for xl"})
    assert "the feature upsampler was left out. for xl was trained on tiny (sdxl" in made.info
    assert made.pixels == generate(TWICE).pixels


@shows("UG, PFSA, refinement; its size conditioning", model="SDXL")
def test_sdxl_receives_the_size_of_each_image(host, generate):
    before, plain = generate(), generate(**XL)
    made = generate(UG | REFINE, fault=("record", 0), **XL)
    assert made.sizes == [(96, 96)]
    assert "note" not in made.info
    evaluated = host.evaluations()
    assert {size[0] for size, _ in evaluated} == {8, 12, 4}
    assert all(received == [8 * size[0], 8 * size[1]] for size, received in evaluated)
    assert generate(UG, **XL).pixels != plain.pixels
    nothing = generate(UG | PFSA | {"ug_theta": 0, "pfsa_gamma": 0}, **XL)
    assert nothing.pixels == plain.pixels == generate(**XL).pixels
    assert generate().pixels == before.pixels


@shows("Hires. fix, img2img, inpainting, batches, windows, PNG info", model="SDXL")
def test_sdxl_in_every_kind_of_run(host, generate):
    from PIL import Image

    before, start, state = generate(), generate(**XL), host.state()
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": host.hires_upscaler()}
    hires["hr_second_pass_steps"] = 3
    mask = Image.new("L", (64, 64))
    mask.paste(255, (24, 24, 50, 50))
    request = {"kind": "img2img", "init_images": list(start.encoded), "denoising_strength": 0.7}
    masked = {**request, "mask": encoded(mask), "mask_blur": 2}
    for more in ({"denoising_strength": 0.6, **hires}, request, masked):
        plain, made = generate(**XL, **more), generate(UG | PFSA, **XL, **more)
        assert "note" not in made.info
        assert made.pixels != plain.pixels
    settings = UG | REFINE | {"ug_windows": "Hann"}
    batch, alone = generate(settings, batch_size=2, **XL), generate(settings, seed=2, **XL)
    assert distance(batch.images[-1], alone.images[0]) <= 2  # rounding
    text = "a red circle on grass\nNegative prompt: blue\n" + alone.info
    assert generate(infotext=text, styles=[], seed=2, **XL).pixels == alone.pixels
    assert "note" not in batch.info + alone.info
    assert generate(**XL).pixels == start.pixels
    assert host.state() == state
    assert generate().pixels == before.pixels


@shows("UG: the coarse image is the native sampler's")
def test_a_flow_models_coarse_image_walks_the_native_way(host, generate, flow):
    """tau, the small state and D[x0'] = x0_small, computed from the model's evaluations."""
    from torch.nn.functional import avg_pool2d
    from torch.testing import assert_close

    made = generate(UG, fault=("trace", 0), **flow)
    assert "note" not in made.info
    calls = host.traced()
    larges, smalls = calls[::2], calls[1::2]
    assert len(larges) == len(smalls) == SMALL["steps"]
    for large, small in zip(larges, smalls, strict=True):
        t = large["t"]
        power = 1 - t + t / 2
        assert_close(small["t"], t / 2 / power)
        assert_close(small["x"], avg_pool2d(large["x"], 2) / power)
    for large, small, after in zip(larges, smalls, larges[1:], strict=False):
        t, x = large["t"], large["x"]
        guided = x - t * (after["x"] - x) / (after["t"] - t)  # Euler's step, solved for x0'
        assert_close(avg_pool2d(guided, 2), small["prediction"], rtol=1e-4, atol=1e-4)


@shows("UG, PFSA, refinement, windows")
def test_a_flow_model_with_everything(host, generate, flow):
    before, plain = generate(), generate(**flow)
    state = host.state()
    nothing = generate(UG | PFSA | {"ug_theta": 0, "pfsa_gamma": 0}, **flow)
    assert nothing.pixels == plain.pixels
    for settings in (UG, PFSA, UG | {"ug_windows": "Hann"}):
        made = generate(settings, **flow)
        assert "note" not in made.info
        assert made.pixels != plain.pixels
    narrow = generate(width=80, **flow).sizes[0][0]
    assert narrow in (80, 64)  # Forge Neo of August 2026 rounds sides to multiples of 64
    for settings in (REFINE, UG | PFSA | REFINE | {"refine_method": "Pivot"}):
        made = generate(settings, width=80, **(flow | {"cfg_scale": 3}))
        # 1.5 times as wide; 120 would be seven patches and a half
        assert made.sizes == [({80: 128, 64: 96}[narrow], 96)]
        assert "note" not in made.info
    assert "this sampler knows no flow models" in generate(UG, sampler_name="DDIM", **flow).info
    assert generate(**flow).pixels == plain.pixels
    assert host.state() == state
    assert generate().pixels == before.pixels
