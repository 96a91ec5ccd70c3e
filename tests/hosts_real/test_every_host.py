"""The same expectations of every WebUI, in images of 64x64. Skipped where HIRES_WEBUI is unset.

An image takes seconds where the VAE is of full size, so each is made for several questions.
"""

from __future__ import annotations

import base64
import io
import os
import urllib.error
from contextlib import suppress
from pathlib import Path

import pytest

SMALL = {"width": 64, "height": 64, "steps": 4}
NATIVE = {"options": {"hires_guidance_native_size": 32}}
LARGER = {"width": 128, "height": 128, "options": {"hires_guidance_native_size": 64}}
"""Where the coarsest level of a tiny model needs more than one position."""

UG = {"ug": True}
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_factor": 1.5, "refine_eta2": "0.5"}
HIRES = {
    "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "hr_second_pass_steps": 3,
    "denoising_strength": 0.6,
}  # fmt: skip
COMMON_SAMPLERS = (
    "Euler", "Euler a", "Heun", "DPM++ 2M", "DPM++ SDE", "Restart", "LCM", "DDIM", "PLMS", "UniPC"
)  # fmt: skip


@pytest.fixture
def paint(host):
    """Images of 64x64 with a native size of 32, and what the model was asked for them."""

    def paint(settings=None, **request):
        return host.paint(settings, **(SMALL | NATIVE | request))

    return paint


def _sides(host) -> list[int]:
    """The latents' heights that the model was asked about, in order."""
    return [size[0] for size, _ in host.asked()]


FEATURES = {
    "without weight": UG | PFSA | {"ug_theta": 0, "pfsa_gamma": 0},
    "UG": UG,
    "PFSA": PFSA,
    "refinement": UG | REFINE,
}
LEFT_OUT = {
    "UG": "Upsample Guidance was left out, because",
    "PFSA": "Attentive Guidance was left out, because",
    "refinement": "Upsample Guidance was left out, because",
}
"""What the sentence under the image says where a sampler cannot have a feature."""


@pytest.fixture(scope="module")
def plain_images(host):
    """Of every sampler of the host's own list, by its name; RF stands for flow models."""
    names = [sampler["name"] for sampler in host.request("/sdapi/v1/samplers")]
    assert set(names) >= set(COMMON_SAMPLERS)
    return {
        name: host.paint(sampler_name=name, **SMALL, **NATIVE)
        for name in names
        if not name.endswith(" RF")
    }


@pytest.mark.parametrize("feature", FEATURES)
def test_every_sampler(host, paint, plain_images, feature):
    """What the feature does, or the sentence; then the plain image once more."""
    faults = {}
    for name, plain in plain_images.items():
        try:
            _check_sampler(host, paint, name, plain, feature)
        except (AssertionError, urllib.error.HTTPError) as error:
            faults[name] = str(error)
    assert not faults


def _check_sampler(host, paint, sampler, plain, feature) -> None:
    before = host.state()
    made = paint(FEATURES[feature], sampler_name=sampler, fault=("record", 0))
    left_out = "note" in made.info
    assert not (left_out and sampler in COMMON_SAMPLERS)
    if left_out:
        assert LEFT_OUT[feature] in made.info
    if feature == "refinement":
        assert made.sizes == [(96, 96)]
    else:
        assert (made.pixels == plain.pixels) == (left_out or feature == "without weight")
    if feature == "UG" and not left_out:
        sides = _sides(host)
        assert all(small == 4 for large, small in zip(sides, sides[1:], strict=False) if large == 8)
    assert paint(sampler_name=sampler).pixels == plain.pixels
    assert host.state() == before


def test_every_schedule_type(host, paint):
    """With all three; nothing is left, nothing left out."""
    names = [schedule["label"] for schedule in host.request("/sdapi/v1/schedulers")]
    assert {"Karras", "SGM Uniform", "Simple"} < set(names)
    faults = {}
    for name in names:
        plain = paint(scheduler=name)
        try:
            made = paint(UG | PFSA | REFINE, scheduler=name)
            assert made.sizes == [(96, 96)]
            assert "note" not in made.info
            assert paint(scheduler=name).pixels == plain.pixels
        except (AssertionError, urllib.error.HTTPError) as error:
            faults[name] = str(error)
    assert not faults


@pytest.mark.parametrize("where", [2, 5, 11])
def test_after_a_failure_the_next_image_is_as_ever(host, paint, where):
    settings = UG | PFSA | REFINE
    plain, whole = paint().pixels, paint(settings).pixels
    before = host.state()
    with suppress(urllib.error.HTTPError):  # in the large question of some hosts
        paint(settings, fault=("raise", where))
    assert paint().pixels == plain
    assert host.state() == before
    assert paint(settings).pixels == whole


def test_a_small_question_that_fails_leaves_a_image_and_a_sentence(paint):
    image = paint(UG, fault=("raise small", 2))
    assert "without Upsample Guidance" in image.info
    assert image.sizes == [(64, 64)]


@pytest.mark.parametrize("what", ["raise", "interrupt", "skip"])
def test_the_last_finished_stage_survives(paint, what):
    """4 steps of the first pass and 2 of each stage."""
    two = REFINE | {"refine_factor": 2, "refine_eta2": "0.5, 0.5"}
    one_stage = paint(two, fault=(what, 7))
    assert "after stage 1 of 2" in one_stage.info
    assert one_stage.sizes == [(96, 96)]
    none = paint(two, fault=(what, 6))
    assert "after the first pass" in none.info
    assert none.pixels == paint().pixels


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"sampler_name": "DDIM", "batch_size": 2},
        {"sampler_name": "Heun", "prompt": "red AND a blue circle:0.5 AND grass"},
        {"options": NATIVE["options"] | {"sd_model_checkpoint": "inpaint"}},
        {"options": NATIVE["options"] | {"sd_model_checkpoint": "xl"}},
    ],
    ids=str,
)
def test_large_images_are_asked_about_in_windows(host, paint, request_):
    """Every call is about a native size; SDXL is told so. The next images are as they were."""
    plain, whole, before = paint(**request_), paint(UG, **request_), host.state()
    made = paint(UG | {"ug_windows": "Hann"}, fault=("record", 0), **request_)
    assert "note" not in made.info
    assert set(_sides(host)) == {4}
    if request_.get("options", {}).get("sd_model_checkpoint") == "xl":
        assert all(told == [32, 32] for _, told in host.asked())
    assert made.pixels[0] not in (plain.pixels[0], whole.pixels[0])
    assert paint(UG | {"ug_windows": "Hann"}, **request_).pixels == made.pixels
    assert paint(**request_).pixels == plain.pixels
    assert host.state() == before


def test_windows_in_the_stages(host, paint):
    whole, made = paint(UG | REFINE), paint(UG | REFINE | {"ug_windows": "Hann"})
    assert "note" not in made.info
    assert made.sizes == whole.sizes
    assert made.pixels != whole.pixels


def test_a_batch_gives_each_image_the_one_it_gives_alone(paint):
    settings = UG | PFSA | REFINE
    batch = paint(settings, batch_size=2, n_iter=2, sampler_name="Euler a")
    for place in (1, 3):
        alone = paint(settings, seed=1 + place, sampler_name="Euler a").images[0]
        assert _distance(batch.images[-4:][place], alone) <= 2  # rounding


def test_img2img_and_inpainting(host, paint):
    from PIL import Image

    start = paint(seed=7)
    request = {"kind": "img2img", "init_images": list(start.encoded), "denoising_strength": 0.7}
    plain = paint(n_iter=2, **request)
    guided = paint(UG | PFSA, n_iter=2, fault=("record", 0), **request)
    assert guided.pixels != plain.pixels
    assert set(_sides(host)) == {8, 4}
    refined = paint(UG | REFINE, **request)
    assert refined.sizes == [(96, 96)]
    assert "note" not in guided.info + refined.info
    mask = Image.new("L", (64, 64))
    mask.paste(255, (24, 24, 50, 50))
    request |= {"mask": _encoded(mask), "mask_blur": 2}
    for whole in (False, True):
        request["inpaint_full_res"] = whole
        plain, made = paint(**request), paint(UG, **request)
        assert "note" not in made.info
        assert made.pixels != plain.pixels
        corner = 0, 0, 8, 8
        assert made.images[0].crop(corner).tobytes() == start.images[0].crop(corner).tobytes()
    assert "was not refined" in paint(UG | REFINE, **request).info


def test_hires_fix_before_refinement(host, paint):
    plain, guided = paint(**HIRES), paint(UG, fault=("record", 0), **HIRES)
    assert plain.sizes == guided.sizes == [(96, 96)]
    assert plain.pixels != guided.pixels
    assert set(_sides(host)) == {8, 12, 4}
    both = paint(UG | PFSA | REFINE, **HIRES)
    assert both.sizes == [(144, 144)]
    assert "note" not in guided.info + both.info


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "red AND a blue circle:0.5 AND grass"},
        {"prompt": "a circle, " * 40} | LARGER,
        {"prompt": "a [red:blue:3] circle [on grass:0.5]"},
        {"cfg_scale": 1},
        {"s_min_uncond": 4} | LARGER,
        {"scheduler": "Karras"},
        {"width": 96, "height": 72},
    ],
    ids=str,
)
def test_combination(paint, request_):
    """Each with all three and a cadence: guided, refined, nothing left, nothing left out."""
    settings = UG | PFSA | REFINE | {"ug_cadence": 2}
    plain = paint(**request_)
    made = paint(settings, **request_)
    assert made.sizes[0][0] > plain.sizes[0][0]
    assert "note" not in made.info
    assert paint(settings, **request_).pixels == made.pixels
    assert paint(**request_).pixels == plain.pixels


def test_the_refiner_takes_over_in_the_middle_and_the_next_image_is_as_ever(host, paint):
    plain = paint().pixels
    request = {"refiner_checkpoint": "other", "refiner_switch_at": 0.5}
    guided = paint(UG, **request)
    assert "Refiner: other" in guided.info
    assert "note" not in guided.info
    assert guided.pixels != paint(UG).pixels
    assert guided.pixels != paint(**request).pixels
    refined = paint(UG | PFSA | REFINE, **request)
    assert refined.sizes == [(96, 96)]
    assert "note" not in refined.info
    assert paint().pixels == plain


def test_a_nine_channel_inpainting_model(host, paint):
    from PIL import Image

    before = paint()
    options = NATIVE["options"] | {"sd_model_checkpoint": "inpaint"}
    made = paint(UG | REFINE, options=options)
    assert made.sizes == [(96, 96)]
    assert "note" not in made.info
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 50, 50))
    request = {"kind": "img2img", "init_images": list(before.encoded), "mask": _encoded(mask)}
    plain, guided = (paint(settings, options=options, **request) for settings in (None, UG))
    assert "note" not in guided.info
    assert guided.pixels != plain.pixels
    assert paint().pixels == before.pixels


def test_the_plot_has_an_axis_for_every_control(host, paint):
    from lib_hires.settings import declarations

    assert sum(name.startswith("[HiRes]") for name in host.plot_axes()) == len(declarations())
    strength = "[HiRes] Upsample Guidance: Strength (θ)"
    made = paint(UG, **host.plot((strength, "0, 1")))
    for cell, theta in zip(made.pixels[1:], (0, 1), strict=True):
        assert cell == paint(UG | {"ug_theta": theta}).pixels[0]


def test_png_info_makes_the_same_image(paint):
    first = paint({**UG, "ug_eta": 0.5, **PFSA, **REFINE})
    text = "a red circle on grass\nNegative prompt: blue\n" + first.info
    again = paint(infotext=text, styles=[])  # Forge's API fails to read those of a text
    assert again.pixels == first.pixels


def test_bad_values_are_refused_with_a_sentence(paint):
    image = paint({"ug_teta": 1})
    assert "did you mean ug_theta" in image.info
    assert image.pixels == paint().pixels


def test_the_page_has_three_accordions_with_stable_ids(host):
    from lib_hires.settings import GROUPS, declarations

    components = host.request("/config")["components"]
    props = {part["props"].get("elem_id"): part for part in components}
    for tab in ("txt2img", "img2img"):
        for row in declarations():
            made = props[f"script_{tab}_hires_guidance_{row.name}"]
            assert (made["type"] == "accordion") == (row.name in GROUPS)


def test_the_schema_has_every_control(host):
    from lib_hires.settings import declarations

    rows = host.request("/hires-guidance/schema")["controls"]
    assert [row["name"] for row in rows] == [row.name for row in declarations()]


def test_a_lora_with_guidance_and_stages(paint):
    plain = paint(UG | REFINE)
    prompt = "a red circle on grass <lora:tiny:1>"
    made = paint(UG | REFINE, prompt=prompt)
    assert made.sizes == [(96, 96)]
    assert "note" not in made.info
    assert made.pixels != plain.pixels
    assert paint(UG | REFINE).pixels == plain.pixels


def test_controlnet_acts_at_every_size(host, paint):
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
    values = {"enabled": True, "module": module, "model": model, "image": _encoded(hint)}
    chosen = {"sd_model_checkpoint": host.controlled}
    options = LARGER | {"options": LARGER["options"] | chosen}
    controlled = options | {"more_scripts": {"ControlNet": [values]}}
    alone, plain = paint(**controlled), paint(**options)
    before = host.state()
    assert alone.pixels[0] != plain.pixels[0]
    for settings in (UG, REFINE, UG | REFINE):
        made = paint(settings, **controlled)
        assert "note" not in made.info
        assert made.pixels[0] != alone.pixels[0]
        assert made.pixels[0] != paint(settings, **options).pixels[0]
    assert made.sizes[0] == (192, 192)
    upsampled = paint(MINE, **controlled)
    assert "note" not in upsampled.info
    assert upsampled.pixels[0] != paint(TWICE, **controlled).pixels[0]
    assert upsampled.pixels[0] != paint(MINE, **options).pixels[0]
    whole = paint(UG | {"ug_windows": "Hann"}, **controlled)
    assert "as a whole, because ControlNet's units see whole images only" in whole.info
    assert whole.pixels[0] == paint(UG, **controlled).pixels[0]
    unasked = paint(UG | {"ug_controlnet": False}, **controlled)
    assert "note" not in unasked.info
    assert unasked.pixels[0] != paint(UG, **controlled).pixels[0]
    assert paint(**options).pixels == plain.pixels
    assert host.state() == before


# --- feature upsamplers ---------------------------------------------------------------------------

TWICE = {"refine": True, "refine_factor": 2, "refine_eta2": "0.5"}
MINE = TWICE | {"refine_upsampler": "mine"}


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM++ 2M", "DDIM", "UniPC"])
def test_a_feature_upsampler_changes_the_stage_alone(host, paint, sampler):
    """Untrained it changes no bit; its small image is asked about once."""
    plain = paint(TWICE, sampler_name=sampler, fault=("record", 0))
    without, before = _sides(host), host.state()
    untrained = paint(TWICE | {"refine_upsampler": "untrained"}, sampler_name=sampler)
    assert untrained.pixels == plain.pixels
    made = paint(MINE, sampler_name=sampler, fault=("record", 0))
    assert _sides(host) == [8, *without]
    assert made.sizes == [(128, 128)]
    assert made.pixels != plain.pixels
    assert "note" not in untrained.info + made.info
    assert paint(MINE, sampler_name=sampler).pixels == made.pixels
    assert paint(TWICE, sampler_name=sampler).pixels == plain.pixels
    assert host.state() == before


@pytest.mark.parametrize(
    "request_",
    [{"cfg_scale": 1}, {"prompt": "red AND a blue circle:0.5 " + "on grass " * 40} | LARGER],
    ids=["cond alone", "parts of other lengths"],
)
def test_every_row_has_the_features_of_its_own_image_and_prompt(paint, request_):
    """Each image of a batch is the one it is alone, with Upsample Guidance too."""
    settings = MINE | UG
    batch = paint(settings, batch_size=2, **request_)
    assert "note" not in batch.info
    for place, image in enumerate(batch.images[-2:]):
        alone = paint(settings, seed=1 + place, **request_)
        assert "note" not in alone.info
        assert _distance(image, alone.images[0]) <= 2  # rounding
        assert alone.pixels != paint(TWICE | UG, seed=1 + place, **request_).pixels


def test_a_feature_upsampler_fails_with_a_sentence_and_the_next_image_is_as_ever(host, paint):
    plain, made = paint(TWICE).pixels, paint(MINE).pixels
    before = host.state()
    failed = paint(MINE, fault=("raise", 5))  # after four steps, the question about the features
    assert "without the feature upsampler" in failed.info
    assert failed.pixels == plain
    assert host.state() == before
    assert paint(MINE).pixels == made


def test_a_feature_upsampler_of_another_model_is_left_out_with_a_sentence(paint):
    made = paint(TWICE | {"refine_upsampler": "for xl"})
    assert "the feature upsampler was left out. for xl was trained on tiny (sdxl" in made.info
    assert made.pixels == paint(TWICE).pixels


# --- other kinds of models ------------------------------------------------------------------------

XL = {"options": NATIVE["options"] | {"sd_model_checkpoint": "xl"}}


def test_sdxl_is_told_the_size_of_each_image_it_is_asked_about(host, paint):
    before, plain = paint(), paint(**XL)
    made = paint(UG | REFINE, fault=("record", 0), **XL)
    assert made.sizes == [(96, 96)]
    assert "note" not in made.info
    asked = host.asked()
    assert {size[0] for size, _ in asked} == {8, 12, 4}
    assert all(told == [8 * size[0], 8 * size[1]] for size, told in asked)
    assert paint(UG, **XL).pixels != plain.pixels
    nothing = paint(UG | PFSA | {"ug_theta": 0, "pfsa_gamma": 0}, **XL)
    assert nothing.pixels == plain.pixels == paint(**XL).pixels
    assert paint().pixels == before.pixels


@pytest.fixture(scope="module")
def flow_models(host):
    """The files of flux and sd3 are written here, for no other test wants them."""
    from tiny_checkpoints import put_flow_models

    if not (Path(os.environ["HIRES_WEBUI"]) / "backend").is_dir():
        pytest.skip("guidance knows flow models in Forge alone")
    put_flow_models(host.model)
    host.request("/sdapi/v1/refresh-checkpoints", {})


@pytest.fixture(params=["flux", "sd3"])
def flow(flow_models, request):
    """A request for an image by a flow model."""
    options = NATIVE["options"] | {"sd_model_checkpoint": request.param}
    return {"options": options, "cfg_scale": 1, "scheduler": "Simple"}


def test_a_flow_models_coarse_image_walks_the_native_way(host, paint, flow):
    """tau, the small state and D[x0'] = x0_small, computed from what the model was asked."""
    from torch.nn.functional import avg_pool2d
    from torch.testing import assert_close

    made = paint(UG, fault=("trace", 0), **flow)
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
        assert_close(avg_pool2d(guided, 2), small["answer"], rtol=1e-4, atol=1e-4)


def test_a_flow_model_with_everything(host, paint, flow):
    before, plain = paint(), paint(**flow)
    state = host.state()
    nothing = paint(UG | PFSA | {"ug_theta": 0, "pfsa_gamma": 0}, **flow)
    assert nothing.pixels == plain.pixels
    for settings in (UG, PFSA, UG | {"ug_windows": "Hann"}):
        made = paint(settings, **flow)
        assert "note" not in made.info
        assert made.pixels != plain.pixels
    for settings in (REFINE, UG | PFSA | REFINE | {"refine_method": "Pivot"}):
        made = paint(settings, width=80, **(flow | {"cfg_scale": 3}))
        assert made.sizes == [(128, 96)]  # 120 would be seven patches and a half
        assert "note" not in made.info
    assert "this sampler knows no flow models" in paint(UG, sampler_name="DDIM", **flow).info
    assert paint(**flow).pixels == plain.pixels
    assert host.state() == state
    assert paint().pixels == before.pixels


def _distance(one, other) -> int:
    """The largest difference of two images' values, of 255."""
    from PIL import ImageChops

    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def _encoded(image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
