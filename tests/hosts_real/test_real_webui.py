"""The extension in a real WebUI, through its API. Skipped where HIRES_WEBUI names none."""

from __future__ import annotations

import re
import urllib.error
from contextlib import nullcontext, suppress

import pytest

UG = {"ug": True}
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_factor": 1.5, "refine_eta2": "0.5"}
THETA = "[HiRes] Upsample Guidance: Strength (θ)"


@pytest.fixture
def webui(host):
    return host


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ SDE", "UniPC", "DDIM", "PLMS", "Restart"])
@pytest.mark.parametrize("strength", ["0.1", "1", "0.2, 0.4"])
def test_stages_of_any_length(webui, sampler, strength):
    settings = REFINE | {"refine_eta2": strength}
    refined = webui.paint(settings, sampler_name=sampler)
    assert refined.sizes == [webui.times(1.5)]
    assert "note" not in refined.info


def test_the_pivot_and_latent_enlargement(webui):
    for sampler in ("Euler", "DDIM"):
        refined = webui.paint(REFINE | UG | {"refine_method": "Pivot"}, sampler_name=sampler)
        assert refined.sizes == [webui.times(1.5)]
        assert "note" not in refined.info


def test_decoding_in_tiles_changes_little(webui):
    whole = webui.paint(REFINE).images[0]
    tiles = webui.paint(REFINE | {"refine_tile": 256}).images[0]
    assert tiles.size == whole.size
    # An untrained VAE, whose norms see each tile alone; a misplaced tile would differ far more.
    assert _mean_distance(tiles, whole) < 6
    assert _mean_distance(tiles, whole.rotate(180)) > 6


@pytest.mark.parametrize("where", [1, 5, 12])
def test_after_a_failure_the_next_image_is_as_ever(webui, where):
    settings = UG | PFSA | REFINE
    plain, guided, before = webui.paint().pixels, webui.paint(settings).pixels, webui.state()
    with pytest.raises(urllib.error.HTTPError):
        webui.paint({}, fault=("raise", 2))
    with suppress(urllib.error.HTTPError) if webui.by_shape else nullcontext():
        webui.paint(UG, fault=("raise", where))  # Forge and its kin ask the large question alone
    assert webui.paint().pixels == plain
    with pytest.raises(urllib.error.HTTPError):
        webui.paint(PFSA, fault=("raise", 3))
    assert webui.paint().pixels == plain
    assert webui.paint(settings).pixels == guided
    assert webui.state() == before


def test_a_small_call_that_fails_leaves_a_image_and_a_sentence(webui):
    image = webui.paint(UG, fault=("raise small", 2))
    assert "without Upsample Guidance" in image.info
    assert image.sizes == [webui.times(1)]


@pytest.mark.parametrize("what", ["raise", "interrupt", "skip"])
def test_the_last_finished_stage_survives(webui, what):
    """6 steps of the first pass, 3 of the first stage, then the second stage is stopped."""
    two = REFINE | {"refine_factor": 2, "refine_eta2": "0.5, 0.5"}
    first = webui.paint().pixels
    one_stage = webui.paint(two, fault=(what, 11))
    assert "after stage 1 of 2" in one_stage.info
    assert webui.times(1) < one_stage.sizes[0] < webui.times(2)
    none = webui.paint(two, fault=(what, 8))
    assert "after the first pass" in none.info
    assert none.pixels == first


def test_an_interrupt_in_the_first_pass_refines_nothing(webui):
    stopped = webui.paint(REFINE | UG, fault=("interrupt", 3))
    assert stopped.sizes == [webui.times(1)]


def test_a_batch_gives_each_image_the_one_it_gives_alone(webui):
    settings = UG | PFSA | REFINE
    batch = webui.paint(settings, batch_size=2, n_iter=2, sampler_name="Euler a")
    for k, image in enumerate(batch.images[-4:]):
        alone = webui.paint(settings, seed=1 + k, sampler_name="Euler a").images[0]
        assert _distance(image, alone) <= 2  # rounding


def test_img2img_with_two_batches_on_one_sampler(webui):
    start = webui.paint(seed=7).encoded[0]
    request = {"kind": "img2img", "init_images": [start], "denoising_strength": 0.7, "n_iter": 2}
    plain = webui.paint(**request)
    assert webui.paint(UG | {"ug_theta": 0}, **request).sizes == plain.sizes
    guided = webui.paint(UG, **request)
    assert guided.pixels != plain.pixels
    refined = webui.paint(UG | PFSA | REFINE, **request)
    assert set(refined.sizes[-2:]) == {webui.times(1.5)}
    assert "note" not in refined.info


def test_inpainting_is_guided_but_not_refined(webui):
    from PIL import Image

    start = webui.paint(seed=7).encoded[0]
    mask = _encoded(Image.new("L", webui.times(1), 255))
    request = {"kind": "img2img", "init_images": [start], "mask": mask, "inpaint_full_res": False}
    image = webui.paint(UG | REFINE, **request)
    assert image.sizes == [webui.times(1)]
    assert "was not refined" in image.info


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_hires_fix_before_refinement(webui, upscaler):
    request = {
        "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": upscaler, "hr_second_pass_steps": 4,
        "denoising_strength": 0.6,
    }  # fmt: skip
    plain = webui.paint(**request)
    guided = webui.paint(UG, **request)
    assert plain.sizes == guided.sizes == [webui.times(1.5)]
    assert "note" not in guided.info
    assert plain.pixels != guided.pixels
    both = webui.paint(UG | PFSA | REFINE | {"refine_factor": 1.25}, **request)
    assert both.sizes == [webui.times(1.875)]
    assert "note" not in both.info


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
    plain = webui.paint(**request_)
    made = webui.paint(settings, **request_)
    assert made.sizes[0][0] > plain.sizes[0][0]
    assert "note" not in made.info
    assert webui.paint(settings, **request_).pixels == made.pixels
    assert webui.paint(**request_).pixels == plain.pixels


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM", "UniPC"])
def test_a_model_that_predicts_v(webui, sampler):
    request = {"sampler_name": sampler, "options": {"sd_model_checkpoint": "v"}}
    plain = webui.paint(**request)
    nothing = webui.paint(UG | PFSA | {"ug_theta": 0, "pfsa_gamma": 0}, **request)
    assert nothing.pixels == plain.pixels
    for settings in (UG, PFSA, UG | REFINE):
        made = webui.paint(settings, **request)
        assert made.pixels != plain.pixels
        assert "note" not in made.info
    assert webui.paint(**request).pixels == plain.pixels


def test_the_refiner_takes_over_in_the_middle_and_the_next_image_is_as_ever(webui):
    plain = webui.paint().pixels
    request = {"refiner_checkpoint": "other", "refiner_switch_at": 0.5}
    settings = UG | PFSA | REFINE
    for sampler in ("Euler", "DDIM"):
        refined = webui.paint(settings, sampler_name=sampler, **request)
        assert refined.sizes == [webui.times(1.5)]
        assert "Refiner: other" in refined.info
        assert "note" not in refined.info
        assert webui.paint(settings, sampler_name=sampler, **request).pixels == refined.pixels
        assert webui.paint(settings, sampler_name=sampler).pixels != refined.pixels
    assert webui.paint().pixels == plain


def test_a_nine_channel_inpainting_model(webui):
    from PIL import Image

    before = webui.paint()
    options = {"sd_model_checkpoint": "inpaint"}
    plain = webui.paint(options=options)
    made = webui.paint(UG | PFSA | REFINE, options=options)
    assert made.sizes == [webui.times(1.5)]
    assert "note" not in made.info
    mask = Image.new("L", webui.times(1))
    mask.paste(255, (*webui.times(0.25), *webui.times(0.75)))
    request = {"kind": "img2img", "init_images": list(plain.encoded), "mask": _encoded(mask)}
    for area in (True, False):
        request["inpaint_full_res"] = area
        unguided = webui.paint(options=options, **request)
        guided = webui.paint(UG, options=options, **request)
        assert "note" not in guided.info
        assert guided.pixels != unguided.pixels
    assert webui.paint().pixels == before.pixels


def test_the_plot_has_an_axis_for_every_control(webui):
    from lib_hires.settings import declarations

    assert sum(name.startswith("[HiRes]") for name in webui.plot_axes()) == len(declarations())
    plot = webui.plot((THETA, "0, 0.5, 1"), ("Steps", "4, 5"))
    made = webui.paint(UG, **plot)
    settings = [(steps, theta) for steps in (4, 5) for theta in (0, 0.5, 1)]
    for cell, (steps, theta) in zip(made.pixels[1:], settings, strict=True):
        assert cell == webui.paint(UG | {"ug_theta": theta}, steps=steps).pixels[0]


def test_at_or_below_the_native_size_nothing_happens(webui):
    plain = webui.paint(options={"hires_guidance_native_size": 0})
    guided = webui.paint(UG, options={"hires_guidance_native_size": 0})
    assert guided.pixels == plain.pixels
    assert "not clearly above the model's native" in guided.info


def test_positions_and_names_are_the_same(webui):
    by_position = webui.paint([True, 0.8, 0.6])
    by_name = webui.paint({"ug": True, "ug_theta": 0.8, "ug_eta": 0.6})
    assert by_position.pixels == by_name.pixels
    assert by_position.info == by_name.info


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ug_teta": 1}, "did you mean ug_theta"),
        ({"ug": True, "ug_theta": "much"}, "expected a number from 0 to 2"),
        ([True, None, 7], "expected a number from 0 to 1"),
        ({"refine": True, "refine_width": 32}, "expected a whole number from 64"),
        ({"refine": True, "refine_width": 64, "refine_height": 64}, "is smaller than the first"),
    ],
)
def test_bad_values_are_refused_with_a_sentence(webui, settings, sentence):
    size = {"width": 128, "height": 128}
    image = webui.paint(settings, **size)
    assert sentence in image.info
    assert image.pixels == webui.paint(**size).pixels


def test_png_info_makes_the_same_image(webui):
    settings = {**UG, "ug_eta": 0.5, **PFSA, **REFINE, "refine_eta2": "0.3, 0.5"}
    first = webui.paint(settings)
    keys = [part.split(":")[0] for part in first.info.split(", ") if part.startswith("HiRes")]
    assert keys == [
        "HiRes ug", "HiRes ug eta", "HiRes pfsa", "HiRes pfsa gamma", "HiRes refine",
        "HiRes refine factor", "HiRes refine eta2", "HiRes native size",
    ]  # fmt: skip
    text = "a red circle on grass\nNegative prompt: blue\n" + first.info
    again = webui.paint(infotext=text, styles=[])  # Forge's API fails to read those of a text
    assert again.pixels == first.pixels


def test_png_info_of_a_plain_image_has_nothing_of_ours(webui):
    off = webui.paint({"ug_theta": 0.5}, options={"hires_guidance_native_size": 0})
    assert "HiRes" not in off.info


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
    *_, painted = run.generate()
    expected = painted.images[0].add(1).mul(127.5).clamp(0, 255)
    made = webui.paint(
        settings, sampler_name=sampler, scheduler="Karras", width=side, height=side,
        options={"hires_guidance_native_size": 0, "randn_source": "CPU"},
    ).images[0]  # fmt: skip
    pixels = torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8)
    expected = expected.byte().permute(1, 2, 0).flatten()  # the host cuts off, too
    difference = (pixels.float() - expected.float()).abs()
    assert difference.mean() < 0.5
    assert (difference > 5).float().mean() < 0.01


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_page_has_three_accordions_with_stable_ids(webui, tab):
    from lib_hires.settings import GROUPS, declarations

    components = webui.request("/config")["components"]
    props = {part["props"].get("elem_id"): part for part in components}
    prefix = f"script_{tab}_hires_guidance_"
    for row in declarations():
        accordion = row.name in GROUPS
        made = props[prefix + row.name]
        assert (made["type"] == "accordion") == accordion
        wanted = GROUPS[row.group] if accordion else row.control.help
        assert made["props"]["label" if accordion else "info"] == wanted


def test_the_host_lists_every_control(webui):
    from lib_hires.settings import declarations

    for info in webui.request("/sdapi/v1/script-info"):
        if info["name"] == "hires guidance":
            assert len(info["args"]) == len(declarations())
            assert info["is_alwayson"]
            break
    else:
        pytest.fail("the script is not listed")


RECORD = ("record", 0)
SMALL = {"width": 128, "height": 128, "steps": 4}
NATIVE = {"hires_guidance_native_size": 64}


@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "PLMS", "UniPC"])
def test_a_stage_takes_its_share_of_the_steps(webui, sampler):
    """0.5 of 10 steps: DDIM and PLMS take one step less of the host than is asked for, and PLMS
    asks once more in its first."""
    request = SMALL | {"steps": 10, "sampler_name": sampler, "fault": RECORD}
    webui.paint(REFINE, **request)
    asked = [size for size, _ in webui.asked()]
    whole = {"Euler": 10, "DDIM": 9, "PLMS": 10, "UniPC": 10}[sampler]
    stage = {"Euler": 5, "DDIM": 4, "PLMS": 5, "UniPC": 5}[sampler]
    assert asked == [(16, 16)] * whole + [(24, 24)] * stage


HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}


@pytest.mark.parametrize(
    ("choice", "guided"),
    [("automatic", {16, 24}), ("first pass", {16}), ("Hires. fix", {24}), ("img2img", set())],
)
def test_the_passes_that_are_chosen(webui, choice, guided):
    request = SMALL | HIRES | {"options": NATIVE, "fault": RECORD}
    image = webui.paint(UG | {"ug_passes": choice}, **request)
    sides = [size[0] for size, _ in webui.asked()]
    pairs = zip(sides, sides[1:], strict=False)
    assert {large for large, small in pairs if small == 8 and large != 8} == guided
    assert ("the run has no pass" in image.info) == (not guided)


def test_every_stage_is_kept(webui):
    keep = REFINE | {"refine_eta2": "0.5, 0.5", "refine_keep_stages": True}
    plain = webui.paint(**SMALL)
    final = webui.paint(keep | {"refine_keep_stages": False}, **SMALL)

    def saved():
        return {path.name for path in webui.log.parent.glob("outputs/txt2img-images/*/*.png")}

    before = saved()
    made = webui.paint(keep, n_iter=2, save_images=True, **SMALL)
    assert made.pixels[-6] == final.pixels[0]  # behind the grid
    assert made.pixels[-4] == plain.pixels[0]
    assert [size[0] for size in made.sizes[-4:]] == [128, 160, 128, 160]
    stages = [re.search(r"HiRes stage: (\d of \d)", info) for info in made.infos[-6:]]
    assert [found and found[1] for found in stages] == [
        None, None, "0 of 2", "1 of 2", "0 of 2", "1 of 2"
    ]  # fmt: skip
    for stage in (0, 1):
        assert sum(name.endswith(f"-stage-{stage}.png") for name in saved() - before) == 2


def test_kept_stages_do_not_get_into_the_grid_of_a_script(webui):
    settings = REFINE | {"refine_keep_stages": True}
    made = webui.paint(settings, **webui.plot(("Steps", "4, 5")), **SMALL)
    assert made.sizes[1:] == [(192, 192)] * 2


XL = SMALL | {"options": NATIVE | {"sd_model_checkpoint": "xl"}}


@pytest.mark.usefixtures("any_shape")
def test_sdxl_is_told_the_size_of_each_image_it_is_asked_about(webui):
    before = webui.paint(**SMALL)
    made = webui.paint(UG | REFINE, fault=RECORD, **XL)
    assert made.sizes == [(192, 192)]
    assert "note" not in made.info
    asked = webui.asked()
    assert {size[0] for size, _ in asked} == {16, 24, 8}
    assert all(told == [8 * size[0], 8 * size[1]] for size, told in asked)
    assert webui.paint(UG, **XL).pixels != webui.paint(**XL).pixels
    assert webui.paint(**SMALL).pixels == before.pixels


@pytest.mark.usefixtures("any_shape")
def test_sdxls_images_are_encoded_to_the_mode(webui):
    """Its own code draws from torch's stream, which goes on from image to image."""
    first = webui.paint(REFINE, **XL)
    start = webui.paint(seed=7).encoded[0]
    webui.paint(kind="img2img", init_images=[start], **XL)  # draws
    assert webui.paint(REFINE, **XL).pixels == first.pixels


CONTROL = SMALL | {"options": NATIVE | {"sd_model_checkpoint": "control"}}


@pytest.fixture
def unit(webui, any_shape):
    """A function from a unit's settings to a request with it; its image is half white."""
    if not webui.has_controlnet:
        pytest.skip("the WebUI has no extension sd-webui-controlnet")
    from PIL import Image

    hint = Image.new("RGB", (128, 128))
    hint.paste((255, 255, 255), (0, 0, 64, 128))
    values = {"enabled": True, "module": "none", "model": "tiny", "image": _encoded(hint)}

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
    alone, plain = webui.paint(**controlled), webui.paint(**request)
    before = webui.state()  # ControlNet leaves the U-Net's own forward on the U-Net
    assert alone.pixels[0] != plain.pixels[0]
    for settings in (UG, REFINE, UG | REFINE):
        made = webui.paint(settings, **controlled)
        assert "note" not in made.info
        assert made.pixels[0] != alone.pixels[0]
        assert made.pixels[0] != webui.paint(settings, **request).pixels[0]
    assert made.sizes[0] == (192, 192)
    assert webui.paint(settings, **controlled).pixels[0] == made.pixels[0]
    assert webui.paint(**request).pixels == plain.pixels
    assert webui.state() == before
    assert _failures(webui) == failures


def test_controlnet_can_be_left_out_of_the_small_question(webui, unit):
    both = webui.paint(UG, **unit())
    without = webui.paint(UG | {"ug_controlnet": False}, **unit())
    assert "note" not in without.info
    assert both.pixels[0] != without.pixels[0]
    assert both.pixels[0] == webui.paint(UG, **unit()).pixels[0]


@pytest.mark.parametrize("side", ["Both", "Low res only", "High res only"])
def test_controlnet_and_hires_fix(webui, unit, side):
    """128, then 192, then a stage of 240, with small questions at 64."""
    failures, settings = _failures(webui), UG | REFINE | {"refine_factor": 1.25}
    made = webui.paint(settings, **unit(hr_option=side), **HIRES)
    assert made.sizes[0] == (240, 240)
    assert "note" not in made.info
    assert _failures(webui) == failures


def test_controlnet_tells_cond_from_uncond_in_the_stages(webui, unit):
    """The mode "ControlNet is more important" acts on cond alone, which it knows by its marks."""
    failures = _failures(webui)
    made = [
        webui.paint(UG | REFINE, **unit(control_mode=mode)).pixels[0]
        for mode in ("Balanced", "ControlNet is more important")
    ]
    assert made[0] != made[1]
    assert _failures(webui) == failures


def test_after_a_failure_with_controlnet_the_next_image_is_as_ever(webui, unit):
    plain, whole = webui.paint(**CONTROL), webui.paint(UG | REFINE, **unit())
    with pytest.raises(urllib.error.HTTPError):
        webui.paint(PFSA, fault=("raise", 2), **unit())
    webui.paint(UG | REFINE, fault=("raise", 9), **unit())
    assert webui.paint(**CONTROL).pixels == plain.pixels
    assert webui.paint(UG | REFINE, **unit()).pixels[0] == whole.pixels[0]


WINDOWS = UG | {"ug_windows": "Hann"}


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
def test_large_images_are_asked_about_in_windows(webui, request_):
    """Of every sampler's own calls; the image is another, and the next one as it was."""
    request_ = SMALL | {"options": NATIVE} | request_
    plain, whole = webui.paint(**request_), webui.paint(UG, **request_)
    made = webui.paint(WINDOWS, **request_)
    assert "note" not in made.info
    assert made.pixels[0] not in (plain.pixels[0], whole.pixels[0])
    assert made.pixels == webui.paint(WINDOWS, **request_).pixels
    assert webui.paint(**request_).pixels == plain.pixels


@pytest.mark.usefixtures("any_shape")
def test_windows_in_the_stages(webui):
    request = SMALL | {"options": NATIVE}
    whole = webui.paint(UG | REFINE, **request)
    made = webui.paint(WINDOWS | REFINE, **request)
    assert "note" not in made.info
    assert made.sizes == whole.sizes
    assert made.pixels[0] != whole.pixels[0]


@pytest.mark.usefixtures("any_shape")
def test_controlnet_wants_the_whole_image(webui, unit):
    made = webui.paint(WINDOWS, **unit())
    assert "as a whole, because ControlNet's units see whole images only" in made.info
    assert made.pixels[0] == webui.paint(UG, **unit()).pixels[0]


@pytest.mark.usefixtures("any_shape")
def test_a_feature_upsampler_wants_the_whole_image(webui):
    made = webui.paint(UPSAMPLED | WINDOWS, **NATIVE_SIDES)
    assert "the feature upsampler was left out. mine works at full size only" in made.info
    without = webui.paint(UPSAMPLED | WINDOWS | {"refine_upsampler": "None"}, **NATIVE_SIDES)
    assert made.pixels == without.pixels


def test_a_lora_with_guidance_and_stages(webui):
    settings, request = UG | REFINE, SMALL | {"options": NATIVE}
    prompt = "a red circle on grass <lora:tiny:1>"
    plain = webui.paint(settings, **request)
    made = webui.paint(settings, prompt=prompt, **request)
    assert made.sizes == [(192, 192)]
    assert "note" not in made.info
    assert made.pixels != plain.pixels
    assert webui.paint(settings, prompt=prompt, **request).pixels == made.pixels
    assert webui.paint(settings, **request).pixels == plain.pixels


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_inpainting_with_a_mask(webui, soft, only_masked, sampler):
    """Guided inside the mask; without soft edges the image stays what it was outside it."""
    from PIL import Image

    if soft and "soft inpainting" not in webui.scripts():
        pytest.skip("this WebUI has no Soft Inpainting")
    start = webui.paint(seed=7, **SMALL)
    mask = Image.new("L", (128, 128))
    mask.paste(255, (40, 40, 100, 100))
    request = SMALL | {
        "kind": "img2img", "init_images": list(start.encoded), "mask": _encoded(mask),
        "inpaint_full_res": only_masked, "mask_blur": 4, "sampler_name": sampler, "options": NATIVE,
        "more_scripts": {"Soft Inpainting": [True, 1, 0.5, 4, 0, 0.5, 2]} if soft else None,
    }  # fmt: skip
    plain = webui.paint(**request)
    if soft and plain.pixels == start.pixels:
        pytest.skip("this WebUI's Soft Inpainting leaves the image as it was")
    made = webui.paint(UG | PFSA, **request)
    assert "note" not in made.info
    assert made.pixels != plain.pixels
    corner = 0, 0, 20, 20
    if not soft:
        assert made.images[0].crop(corner).tobytes() == start.images[0].crop(corner).tobytes()
    assert ("Soft inpainting enabled: True" in made.info) == soft


UPSAMPLED = {"refine": True, "refine_eta2": "0.5", "refine_upsampler": "mine"}
NATIVE_SIDES = {"width": 128, "height": 128}


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "Heun", "DDIM", "UniPC"])
def test_a_feature_upsampler_changes_the_stage_alone(webui, sampler):
    before = webui.state()
    plain = webui.paint(
        UPSAMPLED | {"refine_upsampler": "None"}, sampler_name=sampler, **NATIVE_SIDES
    )
    made = webui.paint(UPSAMPLED, sampler_name=sampler, **NATIVE_SIDES)
    assert made.sizes == plain.sizes == [(256, 256)]
    assert made.pixels != plain.pixels
    assert "note" not in made.info
    assert re.search(r"HiRes refine upsampler: mine \[[0-9a-f]{10}\]", made.info)
    again = webui.paint(
        UPSAMPLED | {"refine_upsampler": "None"}, sampler_name=sampler, **NATIVE_SIDES
    )
    assert again.pixels == plain.pixels
    assert webui.state() == before


@pytest.mark.usefixtures("any_shape")
def test_a_feature_upsampler_with_everything_else(webui):
    """UG, prompts of several parts, a batch, and conds asked about one after another."""
    settings = UPSAMPLED | UG
    request = {"prompt": "a red circle AND a blue sky :0.4", "batch_size": 2, **NATIVE_SIDES}
    together = webui.paint(settings, **request)
    apart = webui.paint(settings, options={"batch_cond_uncond": False}, **request)
    assert "note" not in together.info + apart.info
    for one, other in zip(together.images, apart.images, strict=True):
        assert _distance(one, other) <= 2


@pytest.mark.usefixtures("any_shape")
def test_a_feature_upsamplers_small_image_is_told_to_the_model(webui):
    webui.paint(UPSAMPLED, fault=("record", 0), **NATIVE_SIDES)
    sizes = [size for size, _ in webui.asked()]
    assert sizes == [(16, 16)] * 6 + [(16, 16)] + [(32, 32)] * 3


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("for xl", "the feature upsampler was left out. for xl was trained on tiny (sdxl"),
        ("../mine", "the image was made without it. refine_upsampler: expected the name"),
    ],
)
def test_a_feature_upsampler_that_cannot_serve_is_a_sentence(webui, name, sentence):
    made = webui.paint(UPSAMPLED | {"refine_upsampler": name}, **NATIVE_SIDES)
    assert sentence in made.info


def test_the_schema_lists_the_feature_upsamplers(webui):
    rows = webui.request("/hires-guidance/schema")["controls"]
    (row,) = [row for row in rows if row["name"] == "refine_upsampler"]
    assert row["choices"] == ["None", "for xl", "mine", "untrained"]


def _distance(one, other) -> int:
    """The largest difference of two images' values, of 255."""
    from PIL import ImageChops

    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def _mean_distance(one, other) -> float:
    from PIL import ImageChops, ImageStat

    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


def _encoded(image) -> str:
    import base64
    import io

    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
