"""The same expectations of every WebUI, in images of 64x64.

An image takes seconds where the VAE is of full size, so each is made for several expectations.
"""

from __future__ import annotations

import urllib.error
from contextlib import suppress

import pytest
from compatibility import shows
from images_of_hosts import distance, encoded

pytestmark = pytest.mark.host

NATIVE = {"options": {"hires_guidance_native_size": 32}}
LARGER = {"width": 128, "height": 128, "options": {"hires_guidance_native_size": 64}}
"""Where the coarsest level of a tiny model needs more than one position."""
UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_factor": 1.5, "refine_eta2": "0.5"}
HIRES = {
    "enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 3, "denoising_strength": 0.6
}  # fmt: skip


def _sides(host) -> list[int]:
    """The latents' heights of the model's evaluations, in order."""
    return [size[0] for size, _ in host.evaluations()]


@shows("an error: a message, and the next image bit for bit")
@pytest.mark.parametrize("where", [2, 5, 11])
def test_after_a_failure_the_next_image_is_as_ever(host, generate, where):
    settings = UG | PFSA | REFINE
    plain, whole = generate().pixels, generate(settings).pixels
    before = host.state()
    with suppress(urllib.error.HTTPError):  # in the large evaluation of some hosts
        generate(settings, fault=("raise", where))
    assert generate().pixels == plain
    assert host.state() == before
    assert generate(settings).pixels == whole


@shows("an error: a message, and the next image bit for bit")
def test_a_native_evaluation_that_fails_leaves_an_image_and_a_message(generate):
    image = generate(UG, fault=("raise small", 2))
    assert "without Upsample Guidance" in image.info
    assert image.sizes == [(64, 64)]


@shows("interrupt and skip: the last finished stage")
@pytest.mark.parametrize("what", ["raise", "interrupt", "skip"])
def test_the_last_finished_stage_survives(generate, what):
    """4 steps of the first pass and 2 of each stage."""
    two = REFINE | {"refine_factor": 2, "refine_eta2": "0.5, 0.5"}
    one_stage = generate(two, fault=(what, 7))
    assert "after stage 1 of 2" in one_stage.info
    assert one_stage.sizes == [(96, 96)]
    none = generate(two, fault=(what, 6))
    assert "after the first pass" in none.info
    assert none.pixels == generate().pixels


@shows("evaluation in windows")
@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"sampler_name": "DDIM", "batch_size": 2},
        {"sampler_name": "Heun", "prompt": "red AND a blue circle:0.5 AND grass"},
        pytest.param(
            {"options": NATIVE["options"] | {"sd_model_checkpoint": "inpaint"}},
            marks=shows(model="SD 1.5 inpainting"),
        ),
        pytest.param(
            {"options": NATIVE["options"] | {"sd_model_checkpoint": "xl"}},
            marks=shows(model="SDXL"),
        ),
    ],
    ids=str,
)
def test_large_images_are_evaluated_in_windows(host, generate, request_):
    """Every call is about a native size, which SDXL receives. The next images are as they were."""
    plain, whole, before = generate(**request_), generate(UG, **request_), host.state()
    made = generate(UG | {"ug_windows": "Hann"}, fault=("record", 0), **request_)
    assert "note" not in made.info
    assert set(_sides(host)) == {4}
    if request_.get("options", {}).get("sd_model_checkpoint") == "xl":
        assert all(received == [32, 32] for _, received in host.evaluations())
    assert made.pixels[0] not in (plain.pixels[0], whole.pixels[0])
    assert generate(UG | {"ug_windows": "Hann"}, **request_).pixels == made.pixels
    assert generate(**request_).pixels == plain.pixels
    assert host.state() == before


@shows("evaluation in windows")
@pytest.mark.parametrize("request_", [{}, {"sampler_name": "DDIM", "batch_size": 2}], ids=str)
def test_self_attention_alone_sees_windows(host, generate, request_):
    """Every evaluation has the size that it has without; the next images are as they were."""
    plain, whole, before = generate(**request_), generate(UG, **request_), host.state()
    made = generate(UG | {"ug_windows": "attention"}, fault=("record", 0), **request_)
    assert "note" not in made.info
    assert set(_sides(host)) == {8, 4}
    assert made.pixels[0] not in (plain.pixels[0], whole.pixels[0])
    assert generate(UG | {"ug_windows": "attention"}, **request_).pixels == made.pixels
    assert generate(**request_).pixels == plain.pixels
    assert host.state() == before


@shows("evaluation in windows")
def test_windows_in_the_stages(host, generate):
    whole, made = generate(UG | REFINE), generate(UG | REFINE | {"ug_windows": "Hann"})
    assert "note" not in made.info
    assert made.sizes == whole.sizes
    assert made.pixels != whole.pixels


@shows("batches")
def test_a_batch_gives_each_image_the_one_it_gives_alone(generate):
    settings = UG | PFSA | REFINE
    batch = generate(settings, batch_size=2, n_iter=2, sampler_name="Euler a")
    for place in (1, 3):
        alone = generate(settings, seed=1 + place, sampler_name="Euler a").images[0]
        assert distance(batch.images[-4:][place], alone) <= 2  # rounding


@shows("img2img and inpainting")
def test_img2img_and_inpainting(host, generate):
    from PIL import Image

    start = generate(seed=7)
    request = {"kind": "img2img", "init_images": list(start.encoded), "denoising_strength": 0.7}
    plain = generate(n_iter=2, **request)
    guided = generate(UG | PFSA, n_iter=2, fault=("record", 0), **request)
    assert guided.pixels != plain.pixels
    assert set(_sides(host)) == {8, 4}
    refined = generate(UG | REFINE, **request)
    assert refined.sizes == [(96, 96)]
    assert "note" not in guided.info + refined.info
    mask = Image.new("L", (64, 64))
    mask.paste(255, (24, 24, 50, 50))
    request |= {"mask": encoded(mask), "mask_blur": 2}
    for whole in (False, True):
        request["inpaint_full_res"] = whole
        plain, made = generate(**request), generate(UG, **request)
        assert "note" not in made.info
        assert made.pixels != plain.pixels
        corner = 0, 0, 8, 8
        assert made.images[0].crop(corner).tobytes() == start.images[0].crop(corner).tobytes()
    assert "was not refined" in generate(UG | REFINE, **request).info


@shows("Hires. fix")
def test_hires_fix_before_refinement(host, generate):
    request = HIRES | {"hr_upscaler": host.hires_upscaler()}
    plain, guided = generate(**request), generate(UG, fault=("record", 0), **request)
    side = plain.sizes[0][0]
    assert side in (96, 128)  # Forge Neo of August 2026 rounds to multiples of 64
    assert plain.sizes == guided.sizes == [(side, side)]
    assert plain.pixels != guided.pixels
    assert set(_sides(host)) == {8, side // 8, 4}
    both = generate(UG | PFSA | REFINE, **request)
    assert both.sizes == [(side * 3 // 2, side * 3 // 2)]
    assert "note" not in guided.info + both.info


@shows("AND, prompt edits, long prompts, CFG 1, NGMS, cadence, odd sizes")
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
def test_combination(generate, request_):
    """Each with all three and a cadence: guided, refined, nothing left, nothing left out."""
    settings = UG | PFSA | REFINE | {"ug_cadence": 2}
    plain = generate(**request_)
    made = generate(settings, **request_)
    assert made.sizes[0][0] > plain.sizes[0][0]
    assert "note" not in made.info
    assert generate(settings, **request_).pixels == made.pixels
    assert generate(**request_).pixels == plain.pixels


@shows("X/Y/Z plot")
def test_the_plot_has_an_axis_for_every_control(host, generate):
    from lib_hires.settings import declarations

    assert sum(name.startswith("[HiRes]") for name in host.plot_axes()) == len(declarations())
    strength = "[HiRes] Upsample Guidance: Strength (θ)"
    made = generate(UG, **host.plot((strength, "0, 1")))
    for cell, theta in zip(made.pixels[1:], (0, 1), strict=True):
        assert cell == generate(UG | {"ug_theta": theta}).pixels[0]


@shows("PNG info")
def test_png_info_makes_the_same_image(generate):
    first = generate({**UG, "ug_eta": 0.5, **PFSA, **REFINE})
    text = "a red circle on grass\nNegative prompt: blue\n" + first.info
    again = generate(infotext=text, styles=[])  # Forge's API fails to read those of a text
    assert again.pixels == first.pixels


@shows("API")
def test_bad_values_are_refused_with_a_message(generate):
    image = generate({"ug_teta": 1})
    assert "did you mean ug_theta" in image.info
    assert image.pixels == generate().pixels


@shows("the page: accordion and controls")
def test_the_page_has_three_accordions_with_stable_ids(host):
    from lib_hires.settings import GROUPS, declarations

    components = host.request("/config")["components"]
    props = {part["props"].get("elem_id"): part for part in components}
    for tab in ("txt2img", "img2img"):
        for row in declarations():
            made = props[f"script_{tab}_hires_guidance_{row.name}"]
            assert (made["type"] == "accordion") == (row.name in GROUPS)


@shows("API")
def test_the_schema_has_every_control(host):
    from lib_hires.settings import declarations

    rows = host.request("/hires-guidance/schema")["controls"]
    assert [row["name"] for row in rows] == [row.name for row in declarations()]
