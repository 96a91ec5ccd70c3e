"""The row of presets, the line before the run, the sliders' values and the schema route."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from host_page import Tab

from lib_hires.presets import BUILT_IN
from lib_hires.settings import GROUPS, Settings, declarations

NATIVE = 64  # the stand-in's model


@pytest.fixture(params=["txt2img", "img2img"])
def tab(request, host, data):
    return Tab(request.param)


def test_the_page_parts_are_no_arguments(tab):
    ids = [component.elem_id.removeprefix(tab.prefix) for component in tab.arguments]
    assert ids == [row.name for row in declarations()]
    assert len(tab.made) > len(tab.arguments) + 10


def test_everything_is_in_one_accordion(tab):
    ours = [each for each in tab.made if str(each.elem_id).startswith(tab.prefix)]
    assert len(ours) > len(tab.arguments)
    assert {component.inside for component in ours} == {("HiRes Guidance",)}
    ends = [str(each.elem_id).removeprefix(tab.prefix) for each in ours]
    order = [ends.index(name) for name in ("preset", "ug", "pfsa", "refine", "plan", "drawing")]
    assert order == sorted(order)


def test_the_host_does_not_keep_the_row_in_its_defaults(tab):
    for name in ("preset", "preset_apply", "preset_save", "preset_delete", "plan_update"):
        assert tab[name].do_not_save_to_config


def test_a_preset_fills_every_control_and_the_size(tab):
    preset = next(preset for preset in BUILT_IN if "4x, refinement" in preset.name)
    tab["ug_theta"].value = 0.3
    tab["width"].value, tab["height"].value = 600, 900
    tab["preset"].value = preset.name
    tab.press("preset_apply")
    assert (tab["height"].value, tab["width"].value) == preset.first_size((900, 600))
    values = {row.name: tab[row.name].value for row in declarations()}
    wanted = preset.settings().values()
    assert values == {row.name: wanted[row.name] for row in declarations()}
    assert tab["preset_message"].value == ""


@pytest.mark.parametrize(("width", "height"), [(None, 512), (512, None), (512, 0)])
def test_a_preset_without_a_size_to_start_from_is_a_message(tab, width, height):
    tab["width"].value, tab["height"].value = width, height
    tab.press("preset_apply")
    assert "give a width and height first." in tab["preset_message"].value
    assert (tab["width"].value, tab["height"].value) == (width, height)
    assert tab["ug"].value is False


def test_ones_own_preset_goes_round(tab):
    tab["ug"].value, tab["ug_theta"].value = True, 0.8
    tab["preset"].value = "  mine "
    tab.press("preset_save")
    assert tab["preset"].value == "mine"
    assert tab["preset"].choices == [*(preset.name for preset in BUILT_IN), "mine"]
    tab["ug"].value, tab["ug_theta"].value, tab["width"].value = False, 1.0, 640
    tab.press("preset_apply")
    assert (tab["ug"].value, tab["ug_theta"].value, tab["width"].value) == (True, 0.8, 640)
    tab.press("preset_delete")
    assert "mine" not in tab["preset"].choices
    tab["preset"].value = None
    tab.press("preset_delete")
    assert tab["preset_message"].value == ""


def test_what_goes_wrong_with_presets_is_a_message(tab, data):
    tab["preset"].value = BUILT_IN[0].name
    tab.press("preset_save")
    assert "Not saved: " in tab["preset_message"].value
    tab.press("preset_delete")
    assert "Not deleted: " in tab["preset_message"].value
    tab["preset"].value = "<b>?</b>"
    before = [component.value for component in tab.arguments]
    tab.press("preset_apply")
    assert "there is no preset &quot;&lt;b&gt;?&lt;/b&gt;&quot;." in tab["preset_message"].value
    assert [component.value for component in tab.arguments] == before
    (data / "hires-guidance-presets.json").write_text("{")
    tab.press("preset_refresh")
    assert "cannot be read" in tab["preset_message"].value
    tab["preset"].value = BUILT_IN[0].name
    tab.press("preset_apply")
    assert tab["refine"].value is True


NATIVE_SIDES = {512: "SD 1.5 (512) ", 768: "SD 2 (768) ", 1024: "SDXL (1024) ", 256: "Bundled"}


@pytest.mark.parametrize("native", NATIVE_SIDES)
def test_the_list_begins_with_the_presets_of_the_models_kind(tab, native):
    from modules import shared

    tab["preset"].value = "SD 2 (768) 4x, refinement with UG"
    shared.opts.hires_guidance_native_size = native
    tab.press("preset_refresh")
    assert tab["preset"].value.startswith(NATIVE_SIDES[native])
    assert tab["preset"].value.endswith(") 4x, refinement with UG")
    assert all(name.startswith(NATIVE_SIDES[native]) for name in tab["preset"].choices[:5])
    assert sorted(tab["preset"].choices) == sorted(preset.name for preset in BUILT_IN)


def test_a_page_that_is_made_with_a_loaded_model_begins_with_its_presets(host, data):
    from modules import shared

    shared.opts.hires_guidance_native_size = 1024
    tab = Tab("txt2img")
    assert tab["preset"].value == tab["preset"].choices[0] == "SDXL (1024) 2x, refinement with UG"


def test_without_a_model_the_list_and_the_choice_stay(tab):
    from modules import shared

    shared.loaded.sd_model = None
    tab["preset"].value = "SDXL (1024) 2x, UG alone"
    tab.press("preset_refresh")
    assert tab["preset"].value == "SDXL (1024) 2x, UG alone"
    assert tab["preset"].choices == [preset.name for preset in BUILT_IN]


def test_before_the_first_image_forges_ui_list_tells_the_kind(tab):
    from modules import shared

    shared.loaded.sd_model, shared.opts.forge_preset = None, "xl"
    tab.press("preset_refresh")
    assert tab["preset"].value.startswith("SDXL")
    shared.opts.forge_preset = "flux"
    tab.press("preset_refresh")
    assert tab["preset"].value.startswith("SDXL")


def test_the_line_follows_every_control_and_the_hosts(tab):
    followed = [*tab.arguments, tab["width"], tab["height"], tab["steps"], tab["sampling"]]
    for component in followed:
        assert component.events["change"]["_js"] == f'() => hiresGuidanceChanged("{tab.name}")'
    assert tab.line() == ""
    tab["refine"].value = True
    first, steps = ("First pass", 20) if tab.name == "txt2img" else ("Img2img", 11)
    total = steps + 4
    assert tab.line() == (
        f"{first} 128x128 in {steps} steps, then stage 1 256x256 in 4 steps: {total} model "
        f"evaluations, {total / steps:.2f} times the plain run&#x27;s "
        f"({1 + 16 / steps:.2f} times by pixels)."
    ).replace("1.20", "1.2").replace("1.80", "1.8")
    tab["sampling"].value = "Heun"
    assert f"{2 * total - 2} model" in tab.line()
    tab["width"].value = tab["height"].value = 200
    assert "400x400" in tab.line()


def test_the_line_says_what_the_run_would_say(tab):
    tab["ug"].value = True
    tab["width"].value = tab["height"].value = NATIVE
    assert "Upsample Guidance does nothing here" in tab.line()
    tab["refine_eta2"].value = "0.1, x"
    assert "Upsample Guidance does nothing here" in tab.line(), "its group is off"
    tab["refine"].value = True
    assert tab.line() == "refine_eta2: expected numbers in (0, 1], got &#x27;0.1, x&#x27;."


def test_an_empty_number_is_no_error(tab):
    tab["ug"].value, tab["width"].value = True, None
    assert tab.line() == ""


def test_the_line_does_not_load_a_model(tab):
    from modules import shared

    shared.loaded.sd_model = None
    tab["ug"].value = True
    assert tab.line() == "The sizes are known once a model is loaded."


def test_the_pass_of_hires_fix_is_in_the_line(host, data):
    tab = Tab("txt2img")
    tab["pfsa"].value = tab["hr-checkbox"].value = True
    tab["hires_steps"].value = 10
    assert "then Hires. fix 256x256 in 10 steps" in tab.line()
    assert "30 model evaluations" in tab.line()
    tab["hr_sampler"].value = "Heun"
    assert "39 model evaluations" in tab.line()


def test_the_line_is_what_happens(host, data):
    """The stand-in's model counts its evaluations."""
    from modules import shared

    tab = Tab("txt2img")
    tab["steps"].value = 5
    settings = {"ug": True, "refine": True, "refine_eta2": "0.4, 0.6", "ug_cadence": 2}
    for sampler in ("Euler", "Heun", "DPM++ 2M"):
        tab["sampling"].value = sampler
        for name, value in settings.items():
            tab[name].value = value
        count = int(re.search(r"(\d+) model eval", tab.line())[1])
        host.generate(settings, sampler_name=sampler, steps=5)
        assert len(shared.loaded.sd_model.evaluated) == count


def values_of(slider):
    """Every value that a slider can be moved to."""
    count = round((slider.maximum - slider.minimum) / slider.step)
    return [slider.minimum + slider.step * k for k in range(count + 1)]


@pytest.mark.parametrize("row", declarations(), ids=lambda row: row.name)
def test_no_value_of_a_slider_is_refused(host, row):
    from lib_hires.webui.surfaces.arguments import read_arguments

    rows = declarations()
    slider = host.runners[0].inputs[1 + rows.index(row)]
    if type(slider).__name__ != "Slider":
        return
    for value in values_of(slider):
        arguments = [other.name == row.group or other.default for other in rows]
        arguments[rows.index(row)] = row.kind(value)
        settings = read_arguments(arguments)
        assert isinstance(settings, Settings)
        shown = settings.values()[row.name]
        assert shown == pytest.approx(value) or (shown == 0 and value < row.control.minimum)


def test_by_name_such_values_are_refused(host):
    from lib_hires.settings import SettingsError
    from lib_hires.webui.surfaces.arguments import read_arguments

    with pytest.raises(SettingsError, match="ug_scale"):
        read_arguments([{"ug_scale": 0.5}])


@pytest.fixture
def fetch_schema(host, data):
    """The route's function, as the host's server calls it."""
    from lib_hires.webui.surfaces.api import add_routes

    routes = {}
    app = SimpleNamespace(get=lambda path: lambda route: routes.setdefault(path, route))
    add_routes(None, app)
    return lambda: json.loads(json.dumps(routes["/hires-guidance/schema"](), allow_nan=False))


def test_the_schema_is_the_declaration(fetch_schema):
    schema = fetch_schema()
    assert schema["groups"] == GROUPS
    assert [control["name"] for control in schema["controls"]] == [r.name for r in declarations()]
    by_name = {control["name"]: control for control in schema["controls"]}
    assert by_name["ug_theta"] == {
        "name": "ug_theta",
        "group": "ug",
        "label": "Strength",
        "help": by_name["ug_theta"]["help"],
        "symbol": "θ",
        "type": "number",
        "default": 1.0,
        "minimum": 0,
        "maximum": 2,
        "step": 0.05,
        "automatic_at_0": False,
    }
    assert by_name["refine_method"]["choices"] == ["AP-LDM", "Pivot"]
    for preset in schema["presets"]:
        Settings.from_values(preset["values"])
    assert len(schema["presets"]) == len(BUILT_IN)


def test_ones_own_presets_are_in_the_schema(fetch_schema, data):
    from lib_hires.webui.page.presets import preset_file

    preset_file().save("mine", Settings.from_values({"ug": True}))
    schema = fetch_schema()
    assert schema["own_presets"] == {"mine": {"ug": True, "ug_eta": 0, "ug_cadence": 0}}
    assert schema["own_presets_error"] == ""
    for damaged in ("{", '{"mine": {"ug_theta": NaN}}'):
        (data / "hires-guidance-presets.json").write_text(damaged)
        schema = fetch_schema()
        assert schema["own_presets"] == {}
        assert "cannot be read" in schema["own_presets_error"]


def test_ones_own_presets_stay_behind_the_hosts_password(fetch_schema, monkeypatch):
    from modules import shared

    from lib_hires.webui.page.presets import preset_file

    preset_file().save("mine", Settings.from_values({"ug": True}))
    monkeypatch.setattr(shared.cmd_opts, "api_auth", "user:password")
    schema = fetch_schema()
    assert "own_presets" not in schema
    assert len(schema["presets"]) == len(BUILT_IN)
