"""Controls, arguments, PNG info and axes: all of them the declaration, nothing beside it."""

from __future__ import annotations

import copy
import json

import pytest

from lib_hires.settings import GROUPS, declarations

EXAMPLES = {
    "ug": True, "ug_eta": 0.5, "ug_cadence": 3, "ug_enlargement": "nearest",
    "ug_shifted_start": False,
    "pfsa": True, "pfsa_gamma": 0.1, "pfsa_space": "VP",
    "refine": True, "refine_eta2": "0.2, 0.4", "refine_factor": 1.5,
}  # fmt: skip


@pytest.mark.parametrize("tab", [False, True])
def test_there_is_a_component_for_every_control_in_order(host, tab):
    runner = host.runners[tab]
    components = host.runners[tab].inputs[1:]
    prefix = f"script_{'img2img' if tab else 'txt2img'}_hires_guidance_"
    assert [c.elem_id for c in components] == [prefix + row.name for row in declarations()]
    assert [component for component, _ in runner.infotext_fields] == components
    for component, row in zip(components, declarations(), strict=True):
        assert component.value == row.default
        assert type(component.value) is type(row.default)
        if row.name in GROUPS:
            assert component.label == GROUPS[row.group]
        else:
            assert component.info == row.control.help


def test_labels_are_unique_for_the_host_saves_defaults_by_them(host):
    labels = [component.label for component in host.runners[0].inputs[1:]]
    assert len(set(labels)) == len(labels)


def test_sliders_reach_every_value_and_nothing_is_only_automatic(host):
    for component, row in zip(host.runners[0].inputs[1:], declarations(), strict=True):
        if type(component).__name__ == "Slider":
            assert component.maximum == row.control.maximum
            assert component.minimum <= row.default <= component.maximum


def test_defaults_are_off(host):
    made = host.generate()
    assert made.parameters == {}
    assert made.messages == []


def test_positions_names_and_text_are_the_same(host):
    by_name = host.generate(EXAMPLES)
    positions = [EXAMPLES.get(row.name) for row in declarations()]
    assert json.loads(json.dumps(positions)) == positions
    by_position = host.generate(args=positions)
    by_text = host.generate(infotext=by_name.parameters)
    for other in (by_position, by_text):
        assert other.parameters == by_name.parameters
        assert other.images[0].equal(by_name.images[0])


def test_png_info_is_flat_under_one_prefix(host):
    parameters = host.generate(EXAMPLES).parameters
    assert set(parameters) == {"HiRes " + name.replace("_", " ") for name in EXAMPLES}
    assert all(isinstance(value, (bool, int, float, str)) for value in parameters.values())


def test_the_text_of_an_earlier_version_means_what_it_meant(host):
    """Its defaults of eta and cadence were others, and it does not state them."""
    old = host.generate(infotext={"HiRes ug": True, "HiRes ug theta": 0.5}, steps=12)
    meant = {"ug": True, "ug_theta": 0.5, "ug_eta": 1, "ug_cadence": 1}
    assert old.images[0].equal(host.generate(meant, steps=12).images[0])
    new = host.generate({"ug": True, "ug_theta": 0.5}, steps=12)
    assert not new.images[0].equal(old.images[0])
    assert host.generate(infotext=new.parameters, steps=12).images[0].equal(new.images[0])


def test_options_of_the_engine_alone_are_not_shown(host):
    for component, row in zip(host.runners[0].inputs[1:], declarations(), strict=True):
        assert getattr(component, "visible", True) == row.control.on_page
    hidden = {row.name for row in declarations() if not row.control.on_page}
    assert hidden == {"ug_edge", "ug_shifted_start", "ug_enlargement"}


def test_pasting_a_plain_text_switches_off(host):
    fields = dict(
        zip(
            [row.name for row in declarations()],
            [read for _, read in host.runners[0].infotext_fields],
            strict=True,
        )
    )
    values = {name: read({"Steps": "20"}) for name, read in fields.items()}
    assert all(values[group] is False for group in GROUPS)
    assert all(value is None for name, value in values.items() if name not in GROUPS)


def test_null_stands_for_a_default_by_name_as_by_position(host):
    given = {"ug": True, "ug_theta": None, "refine": None, "refine_upsampler": None}
    made, plain = host.generate(given), host.generate({"ug": True})
    assert made.images[0].equal(plain.images[0]) and made.parameters == plain.parameters
    assert made.messages == []


def test_names_that_are_no_text_are_refused_with_a_message(host):
    made = host.generate(args=[{1: 2}])
    assert "1: there is no such setting" in made.messages[0]


@pytest.mark.parametrize("text", ["False", "maybe", "", "nan", "1e999", "[1, 2", "0.5; drop"])
def test_readers_never_raise(host, text):
    for row in declarations():
        for _, read in host.runners[0].infotext_fields:
            read({f"HiRes {row.name.replace('_', ' ')}": text, f"HiRes {row.group}": "True"})


def test_false_in_a_text_is_off(host):
    assert host.generate(infotext={"HiRes ug": "False"}).parameters == {}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([{"ug_teta": 1}], "did you mean ug_theta?"),
        ([{"ug": "perhaps"}], "expected true or false"),
        ([True, "much"], "expected a number from 0 to 2"),
        ([None] * 99, "expected at most"),
        ([{"refine": True, "refine_width": 32}], "expected a whole number from 64"),
        ([{"refine": True, "refine_width": 512, "refine_height": 256}], "another shape"),
    ],
)
def test_bad_arguments_leave_an_image_and_a_message(host, args, message):
    p_args = [*args]
    if len(p_args) > len(declarations()):
        from lib_hires.settings import SettingsError
        from lib_hires.webui.surfaces.arguments import read_arguments

        with pytest.raises(SettingsError, match=message):
            read_arguments(p_args)
        return
    made = host.generate(args=p_args)
    assert message in made.messages[0]
    assert message in made.parameters["HiRes note"]
    assert made.images[0].equal(host.generate().images[0])


def test_a_bad_value_in_a_group_that_is_off_does_not_count(host):
    """A field that the user has emptied and folded away."""
    place = [row.name for row in declarations()].index("refine_eta2")

    def page(**values):
        given = [values.get(row.name, row.default) for row in declarations()]
        given[place] = ""
        return given

    assert host.generate(args=page()).messages == []
    made = host.generate(args=page(ug=True))
    assert made.messages == [] and made.images[0].equal(host.generate({"ug": True}).images[0])
    assert "refine_eta2: expected" in host.generate(args=page(refine=True)).messages[0]


def test_every_control_has_an_axis(host):
    assert len(host.axes) == len(declarations())
    assert len({axis.label for axis in host.axes}) == len(host.axes)
    from lib_hires.webui.surfaces.axes import add_axes

    add_axes()  # as "Reload UI" does
    assert len(host.axes) == len(declarations())


def test_axes_act_on_their_cell_alone(host):
    from modules.processing import StableDiffusionProcessingTxt2Img

    axis = next(axis for axis in host.axes if "θ" in axis.label)
    apply = axis.a[2]
    shared = StableDiffusionProcessingTxt2Img()
    expected = [host.generate({"ug": True, "ug_theta": value}) for value in (0.5, 1.0)]
    for value, wanted in zip((0.5, 1.0), expected, strict=True):
        cell = copy.copy(shared)
        apply(cell, value, (0.5, 1.0))
        made = host.generate({"ug": True}, p=cell)
        assert made.images[0].equal(wanted.images[0])
        assert made.parameters == wanted.parameters
    assert "hires_guidance_axis_values" not in vars(shared)


def test_an_axis_refuses_bad_values_before_the_first_cell(host):
    axis = next(axis for axis in host.axes if "θ" in axis.label)
    axis.confirm(None, [0.5, 1.0])
    with pytest.raises(RuntimeError, match="expected a number from 0 to 2"):
        axis.confirm(None, [0.5, 7.0])
