"""Several kinds of models, and inpainting, in a real WebUI."""

from __future__ import annotations

import pytest
from images_of_hosts import encoded

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
XL = SMALL | {"options": NATIVE | {"sd_model_checkpoint": "xl"}}


def test_inpainting_is_guided_but_not_refined(webui):
    from PIL import Image

    start = webui.generate(seed=7).encoded[0]
    mask = encoded(Image.new("L", webui.times(1), 255))
    request = {"kind": "img2img", "init_images": [start], "mask": mask, "inpaint_full_res": False}
    image = webui.generate(UG | REFINE, **request)
    assert image.sizes == [webui.times(1)]
    assert "was not refined" in image.info


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM", "UniPC"])
def test_a_model_that_predicts_v(webui, sampler):
    request = {"sampler_name": sampler, "options": {"sd_model_checkpoint": "v"}}
    plain = webui.generate(**request)
    nothing = webui.generate(UG | PFSA | {"ug_theta": 0, "pfsa_gamma": 0}, **request)
    assert nothing.pixels == plain.pixels
    for settings in (UG, PFSA, UG | REFINE):
        made = webui.generate(settings, **request)
        assert made.pixels != plain.pixels
        assert "note" not in made.info
    assert webui.generate(**request).pixels == plain.pixels


def test_the_refiner_takes_over_in_the_middle_and_the_next_image_is_as_ever(webui):
    plain = webui.generate().pixels
    request = {"refiner_checkpoint": "other", "refiner_switch_at": 0.5}
    settings = UG | PFSA | REFINE
    for sampler in ("Euler", "DDIM"):
        refined = webui.generate(settings, sampler_name=sampler, **request)
        assert refined.sizes == [webui.times(1.5)]
        assert "Refiner: other" in refined.info
        assert "note" not in refined.info
        assert webui.generate(settings, sampler_name=sampler, **request).pixels == refined.pixels
        assert webui.generate(settings, sampler_name=sampler).pixels != refined.pixels
    assert webui.generate().pixels == plain


def test_a_nine_channel_inpainting_model(webui):
    from PIL import Image

    before = webui.generate()
    options = {"sd_model_checkpoint": "inpaint"}
    plain = webui.generate(options=options)
    made = webui.generate(UG | PFSA | REFINE, options=options)
    assert made.sizes == [webui.times(1.5)]
    assert "note" not in made.info
    mask = Image.new("L", webui.times(1))
    mask.paste(255, (*webui.times(0.25), *webui.times(0.75)))
    request = {"kind": "img2img", "init_images": list(plain.encoded), "mask": encoded(mask)}
    for area in (True, False):
        request["inpaint_full_res"] = area
        unguided = webui.generate(options=options, **request)
        guided = webui.generate(UG, options=options, **request)
        assert "note" not in guided.info
        assert guided.pixels != unguided.pixels
    assert webui.generate().pixels == before.pixels


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "Heun", "DPM++ 2M"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        UG,
        UG | PFSA | {"ug_eta": 0.6},
        UG | {"refine": True, "refine_eta2": "0.5"},
        UG | {"ug_windows": "Hann"},
        UG | {"refine": True, "refine_eta2": "0.5", "ug_windows": "average", "ug_overlap": 0.75},
        UG | {"refine": True, "refine_eta2": "0.5", "refine_upsampler": "mine"},
    ],
)
def test_the_standalone_side_makes_the_same_image(webui, sampler, settings):
    """To rounding: the same model, seed, sampler, schedule and settings."""
    import torch

    from lib_hires.settings import Settings
    from lib_hires.standalone.models import load_model
    from lib_hires.standalone.pipeline.generate import Run
    from lib_hires.standalone.pipeline.request import Request

    side, name = 256 if "refine" in settings else 512, settings.get("refine_upsampler")
    request = {"prompt": "a red circle on grass", "negative": "blue", "steps": 6, "seed": 1}
    request |= {"width": side, "height": side, "cfg": 5, "sampler": sampler, "schedule": "Karras"}
    files = webui.model.parents[1] / "hires-guidance"
    named = {"refine_upsampler": f"{files / name}.safetensors"} if name else {}
    wanted = Settings.from_values(settings | named)
    run = Run(load_model(webui.model), Request.from_values(request), wanted)
    *_, generated = run.generate()
    expected = generated.images[0].add(1).mul(127.5).clamp(0, 255)
    made = webui.generate(
        settings, sampler_name=sampler, scheduler="Karras", width=side, height=side,
        options={"hires_guidance_native_size": 0, "randn_source": "CPU"},
    ).images[0]  # fmt: skip
    pixels = torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8)
    expected = expected.byte().permute(1, 2, 0).flatten()  # the host cuts off, too
    difference = (pixels.float() - expected.float()).abs()
    assert difference.mean() < 0.5
    assert (difference > 5).float().mean() < 0.01


@pytest.mark.usefixtures("any_shape")
def test_sdxl_receives_the_size_of_each_image(webui):
    before = webui.generate(**SMALL)
    made = webui.generate(UG | REFINE, fault=RECORD, **XL)
    assert made.sizes == [(192, 192)]
    assert "note" not in made.info
    evaluated = webui.evaluations()
    assert {size[0] for size, _ in evaluated} == {16, 24, 8}
    assert all(received == [8 * size[0], 8 * size[1]] for size, received in evaluated)
    assert webui.generate(UG, **XL).pixels != webui.generate(**XL).pixels
    assert webui.generate(**SMALL).pixels == before.pixels


@pytest.mark.usefixtures("any_shape")
def test_sdxls_images_are_encoded_to_the_mode(webui):
    """Its own code draws from torch's stream, which goes on from image to image."""
    first = webui.generate(REFINE, **XL)
    start = webui.generate(seed=7).encoded[0]
    webui.generate(kind="img2img", init_images=[start], **XL)  # draws
    assert webui.generate(REFINE, **XL).pixels == first.pixels


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_inpainting_with_a_mask(webui, soft, only_masked, sampler):
    """Guided inside the mask; without soft edges the image stays what it was outside it."""
    from PIL import Image

    if soft and "soft inpainting" not in webui.scripts():
        pytest.skip("this WebUI has no Soft Inpainting")
    start = webui.generate(seed=7, **SMALL)
    mask = Image.new("L", (128, 128))
    mask.paste(255, (40, 40, 100, 100))
    request = SMALL | {
        "kind": "img2img", "init_images": list(start.encoded), "mask": encoded(mask),
        "inpaint_full_res": only_masked, "mask_blur": 4, "sampler_name": sampler, "options": NATIVE,
        "more_scripts": {"Soft Inpainting": [True, 1, 0.5, 4, 0, 0.5, 2]} if soft else None,
    }  # fmt: skip
    plain = webui.generate(**request)
    if soft and plain.pixels == start.pixels:
        pytest.skip("this WebUI's Soft Inpainting leaves the image as it was")
    made = webui.generate(UG | PFSA, **request)
    assert "note" not in made.info
    assert made.pixels != plain.pixels
    corner = 0, 0, 20, 20
    if not soft:
        assert made.images[0].crop(corner).tobytes() == start.images[0].crop(corner).tobytes()
    assert ("Soft inpainting enabled: True" in made.info) == soft
