"""Stages in a real WebUI."""

from __future__ import annotations

import re

import pytest
from compatibility import shows
from images_of_hosts import mean_distance

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
WINDOWS = UG | {"ug_windows": "Hann"}


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ SDE", "UniPC", "DDIM", "PLMS", "Restart"])
@pytest.mark.parametrize("strength", ["0.1", "1", "0.2, 0.4"])
def test_stages_of_any_length(webui, sampler, strength):
    settings = REFINE | {"refine_eta2": strength}
    refined = webui.generate(settings, sampler_name=sampler)
    assert refined.sizes == [webui.times(1.5)]
    assert "note" not in refined.info


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM"])
def test_stages_of_their_own_steps(webui, sampler):
    run = {"sampler_name": sampler, "steps": 4}
    own = webui.generate(REFINE, **run)
    same = webui.generate(REFINE | {"refine_steps": 4}, **run)
    assert same.pixels == own.pixels
    more = webui.generate(REFINE | {"refine_steps": 10}, **run)
    assert more.sizes == own.sizes and more.pixels != own.pixels
    assert "note" not in more.info


def test_the_pivot_and_latent_enlargement(webui):
    for sampler in ("Euler", "DDIM"):
        refined = webui.generate(REFINE | UG | {"refine_method": "Pivot"}, sampler_name=sampler)
        assert refined.sizes == [webui.times(1.5)]
        assert "note" not in refined.info


def test_decoding_in_tiles_changes_little(webui):
    whole = webui.generate(REFINE).images[0]
    tiles = webui.generate(REFINE | {"refine_tile": 256}).images[0]
    assert tiles.size == whole.size
    # An untrained VAE, whose norms see each tile alone; a misplaced tile would differ far more.
    assert mean_distance(tiles, whole) < 6
    assert mean_distance(tiles, whole.rotate(180)) > 6


@pytest.mark.parametrize("what", ["raise", "interrupt", "skip"])
def test_the_last_finished_stage_survives(webui, what):
    """6 steps of the first pass, 3 of the first stage, then the second stage is stopped."""
    two = REFINE | {"refine_factor": 2, "refine_eta2": "0.5, 0.5"}
    first = webui.generate().pixels
    one_stage = webui.generate(two, fault=(what, 11))
    assert "after stage 1 of 2" in one_stage.info
    assert webui.times(1) < one_stage.sizes[0] < webui.times(2)
    none = webui.generate(two, fault=(what, 8))
    assert "after the first pass" in none.info
    assert none.pixels == first


def test_an_interrupt_in_the_first_pass_refines_nothing(webui):
    stopped = webui.generate(REFINE | UG, fault=("interrupt", 3))
    assert stopped.sizes == [webui.times(1)]


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_hires_fix_before_refinement(webui, upscaler):
    request = {
        "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": upscaler, "hr_second_pass_steps": 4,
        "denoising_strength": 0.6,
    }  # fmt: skip
    plain = webui.generate(**request)
    guided = webui.generate(UG, **request)
    assert plain.sizes == guided.sizes == [webui.times(1.5)]
    assert "note" not in guided.info
    assert plain.pixels != guided.pixels
    both = webui.generate(UG | PFSA | REFINE | {"refine_factor": 1.25}, **request)
    assert both.sizes == [webui.times(1.875)]
    assert "note" not in both.info


@shows("refinement from the WebUI's own upscalers")
def test_stages_start_from_the_hosts_upscaler(webui):
    """Nearest and Lanczos are in every host; a name that is not there is bicubic."""

    def made(upscaler):
        chosen = {"hires_guidance_upscaler": upscaler}
        return webui.generate(REFINE, options=chosen, **SMALL)

    plain = webui.generate(REFINE, **SMALL)
    assert made("None").pixels == plain.pixels
    nearest, lanczos = made("Nearest"), made("Lanczos")
    assert "HiRes upscaler: Nearest" in nearest.info and "HiRes upscaler: Lanczos" in lanczos.info
    assert len({plain.pixels[0], nearest.pixels[0], lanczos.pixels[0]}) == 3
    smooth, coarse = (mean_distance(each.images[0], plain.images[0]) for each in (lanczos, nearest))
    assert 0 < smooth < coarse
    gone = made("4x-Gone")
    assert gone.pixels == plain.pixels and "HiRes upscaler" not in gone.info


@shows("refinement from the WebUI's own upscalers")
def test_stages_start_from_a_learned_upscaler(webui):
    """A tiny ESRGAN of random weights, from the WebUI's folder of them."""
    bicubic = webui.generate(REFINE, **SMALL)
    lanczos, made = (
        webui.generate(REFINE, options={"hires_guidance_upscaler": name}, **SMALL)
        for name in ("Lanczos", "tiny-4x")
    )
    assert made.sizes == bicubic.sizes and "note" not in made.info
    assert "HiRes upscaler: tiny-4x" in made.info
    alike, other = (mean_distance(each.images[0], bicubic.images[0]) for each in (lanczos, made))
    assert other > 3 * alike > 0, (other, alike)
    assert webui.generate(REFINE, **SMALL).pixels == bicubic.pixels


@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "PLMS", "UniPC"])
def test_a_stage_takes_its_share_of_the_steps(webui, sampler):
    """0.5 of 10 steps: DDIM and PLMS take one step less of the host than is asked for, and PLMS
    evaluates once more in its first."""
    request = SMALL | {"steps": 10, "sampler_name": sampler, "fault": RECORD}
    webui.generate(REFINE, **request)
    evaluated = [size for size, _ in webui.evaluations()]
    whole = {"Euler": 10, "DDIM": 9, "PLMS": 10, "UniPC": 10}[sampler]
    stage = {"Euler": 5, "DDIM": 4, "PLMS": 5, "UniPC": 5}[sampler]
    assert evaluated == [(16, 16)] * whole + [(24, 24)] * stage


def test_every_stage_is_kept(webui):
    keep = REFINE | {"refine_eta2": "0.5, 0.5", "refine_keep_stages": True}
    plain = webui.generate(**SMALL)
    final = webui.generate(keep | {"refine_keep_stages": False}, **SMALL)

    def saved():
        return {path.name for path in webui.log.parent.glob("outputs/txt2img-images/*/*.png")}

    before = saved()
    made = webui.generate(keep, n_iter=2, save_images=True, **SMALL)
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
    made = webui.generate(settings, **webui.plot(("Steps", "4, 5")), **SMALL)
    assert made.sizes[1:] == [(192, 192)] * 2


@pytest.mark.usefixtures("any_shape")
def test_windows_in_the_stages(webui):
    request = SMALL | {"options": NATIVE}
    whole = webui.generate(UG | REFINE, **request)
    made = webui.generate(WINDOWS | REFINE, **request)
    assert "note" not in made.info
    assert made.sizes == whole.sizes
    assert made.pixels[0] != whole.pixels[0]


def test_a_lora_with_guidance_and_stages(webui):
    settings, request = UG | REFINE, SMALL | {"options": NATIVE}
    prompt = "a red circle on grass <lora:tiny:1>"
    plain = webui.generate(settings, **request)
    made = webui.generate(settings, prompt=prompt, **request)
    assert made.sizes == [(192, 192)]
    assert "note" not in made.info
    assert made.pixels != plain.pixels
    assert webui.generate(settings, prompt=prompt, **request).pixels == made.pixels
    assert webui.generate(settings, **request).pixels == plain.pixels
