"""Feature upsamplers in a real WebUI."""

from __future__ import annotations

import re

import pytest
from images_of_hosts import distance

pytestmark = pytest.mark.host

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end


@pytest.fixture
def webui(host):
    return host


WINDOWS = UG | {"ug_windows": "Hann"}
UPSAMPLED = {"refine": True, "refine_eta2": "0.5", "refine_upsampler": "mine"}
NATIVE_SIDES = {"width": 128, "height": 128}


@pytest.mark.usefixtures("any_shape")
def test_a_feature_upsampler_wants_the_whole_image(webui):
    made = webui.generate(UPSAMPLED | WINDOWS, **NATIVE_SIDES)
    assert "the feature upsampler was left out. mine works at full size only" in made.info
    without = webui.generate(UPSAMPLED | WINDOWS | {"refine_upsampler": "None"}, **NATIVE_SIDES)
    assert made.pixels == without.pixels


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "Heun", "DDIM", "UniPC"])
def test_a_feature_upsampler_changes_the_stage_alone(webui, sampler):
    before = webui.state()
    plain = webui.generate(
        UPSAMPLED | {"refine_upsampler": "None"}, sampler_name=sampler, **NATIVE_SIDES
    )
    made = webui.generate(UPSAMPLED, sampler_name=sampler, **NATIVE_SIDES)
    assert made.sizes == plain.sizes == [(256, 256)]
    assert made.pixels != plain.pixels
    assert "note" not in made.info
    assert re.search(r"HiRes refine upsampler: mine \[[0-9a-f]{10}\]", made.info)
    again = webui.generate(
        UPSAMPLED | {"refine_upsampler": "None"}, sampler_name=sampler, **NATIVE_SIDES
    )
    assert again.pixels == plain.pixels
    assert webui.state() == before


@pytest.mark.usefixtures("any_shape")
def test_a_feature_upsampler_with_everything_else(webui):
    """UG, prompts of several parts, a batch, and conds evaluated one after another."""
    settings = UPSAMPLED | UG
    request = {"prompt": "a red circle AND a blue sky :0.4", "batch_size": 2, **NATIVE_SIDES}
    together = webui.generate(settings, **request)
    apart = webui.generate(settings, options={"batch_cond_uncond": False}, **request)
    assert "note" not in together.info + apart.info
    for one, other in zip(together.images, apart.images, strict=True):
        assert distance(one, other) <= 2


@pytest.mark.usefixtures("any_shape")
def test_a_feature_upsamplers_small_image_is_evaluated(webui):
    webui.generate(UPSAMPLED, fault=("record", 0), **NATIVE_SIDES)
    sizes = [size for size, _ in webui.evaluations()]
    assert sizes == [(16, 16)] * 6 + [(16, 16)] + [(32, 32)] * 3


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("for xl", "the feature upsampler was left out. for xl was trained on tiny (sdxl"),
        ("../mine", "the image was made without it. refine_upsampler: expected the name"),
    ],
)
def test_a_feature_upsampler_that_cannot_serve_is_a_message(webui, name, message):
    made = webui.generate(UPSAMPLED | {"refine_upsampler": name}, **NATIVE_SIDES)
    assert message in made.info


def test_the_schema_lists_the_feature_upsamplers(webui):
    rows = webui.request("/hires-guidance/schema")["controls"]
    (row,) = [row for row in rows if row["name"] == "refine_upsampler"]
    assert row["choices"] == ["None", "for xl", "mine", "untrained"]
