"""The surfaces of the settings in a real WebUI: arguments, PNG info, plot, page."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.host

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_factor": 1.5, "refine_eta2": "0.5"}
THETA = "[HiRes] Upsample Guidance: Strength (θ)"


@pytest.fixture
def webui(host):
    return host


def test_the_plot_has_an_axis_for_every_control(webui):
    from lib_hires.settings import declarations

    assert sum(name.startswith("[HiRes]") for name in webui.plot_axes()) == len(declarations())
    plot = webui.plot((THETA, "0, 0.5, 1"), ("Steps", "4, 5"))
    made = webui.generate(UG, **plot)
    settings = [(steps, theta) for steps in (4, 5) for theta in (0, 0.5, 1)]
    for cell, (steps, theta) in zip(made.pixels[1:], settings, strict=True):
        assert cell == webui.generate(UG | {"ug_theta": theta}, steps=steps).pixels[0]


def test_positions_and_names_are_the_same(webui):
    by_position = webui.generate([True, 0.8, 0.6])
    by_name = webui.generate({"ug": True, "ug_theta": 0.8, "ug_eta": 0.6})
    assert by_position.pixels == by_name.pixels
    assert by_position.info == by_name.info


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ug_teta": 1}, "did you mean ug_theta"),
        ({"ug": True, "ug_theta": "much"}, "expected a number from 0 to 2"),
        ([True, None, 7], "expected a number from 0.05 to 1 (0: automatic)"),
        ({"refine": True, "refine_width": 32}, "expected a whole number from 64"),
        ({"refine": True, "refine_width": 64, "refine_height": 64}, "is smaller than the first"),
    ],
)
def test_bad_values_are_refused_with_a_message(webui, settings, message):
    size = {"width": 128, "height": 128}
    image = webui.generate(settings, **size)
    assert message in image.info
    assert image.pixels == webui.generate(**size).pixels


def test_png_info_makes_the_same_image(webui):
    settings = {**UG, "ug_eta": 0.5, **PFSA, **REFINE, "refine_eta2": "0.3, 0.5"}
    first = webui.generate(settings)
    keys = [part.split(":")[0] for part in first.info.split(", ") if part.startswith("HiRes")]
    assert keys == [
        "HiRes ug", "HiRes ug eta", "HiRes ug cadence", "HiRes pfsa", "HiRes pfsa gamma",
        "HiRes refine", "HiRes refine factor", "HiRes refine eta2", "HiRes native size",
    ]  # fmt: skip
    text = "a red circle on grass\nNegative prompt: blue\n" + first.info
    again = webui.generate(infotext=text, styles=[])  # Forge's API fails to read those of a text
    assert again.pixels == first.pixels


def test_png_info_of_an_earlier_version_makes_its_image(webui):
    """Its defaults of eta and cadence were others, and it does not state them."""
    old = webui.generate(UG, steps=12)
    text = "a red circle on grass\nNegative prompt: blue\n"
    text += old.info.replace("HiRes ug eta: 1.0, ", "").replace("HiRes ug cadence: 1, ", "")
    assert "HiRes ug" in text and "HiRes ug eta" not in text and "HiRes ug cadence" not in text
    assert webui.generate(infotext=text, styles=[], steps=12).pixels == old.pixels
    new = webui.generate({"ug": True}, steps=12)
    assert new.pixels != old.pixels
    assert "HiRes ug eta: 0.0, HiRes ug cadence: 0" in new.info


def test_png_info_of_a_plain_image_has_nothing_of_ours(webui):
    off = webui.generate({"ug_theta": 0.5}, options={"hires_guidance_native_size": 0})
    assert "HiRes" not in off.info


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
