import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_hires import settings as declared
from lib_hires.controls import control
from lib_hires.settings import (
    GROUPS,
    AttentiveGuidance,
    ProgressiveRefinement,
    Settings,
    SettingsError,
    UpsampleGuidance,
    as_kept,
    declarations,
    label_of,
    markdown_table,
)

# Positions are part of the WebUI's API: append only.
NAMES = [
    "ug",
    "ug_theta",
    "ug_eta",
    "ug_edge",
    "ug_scale",
    "ug_cadence",
    "ug_shifted_start",
    "ug_enlargement",
    "ug_windows",
    "ug_overlap",
    "ug_passes",
    "ug_controlnet",
    "pfsa",
    "pfsa_gamma",
    "pfsa_beta",
    "pfsa_eta1",
    "pfsa_lambda",
    "pfsa_space",
    "pfsa_passes",
    "refine",
    "refine_factor",
    "refine_width",
    "refine_height",
    "refine_method",
    "refine_eta2",
    "refine_pivot",
    "refine_enlargement",
    "refine_guided",
    "refine_colour_match",
    "refine_tile",
    "refine_keep_stages",
    "refine_upsampler",
    "refine_steps",
]
CLIPS = "ug_frames"  # which the command line alone has
ALL = [*NAMES[:-1], CLIPS, *NAMES[-1:]]


def test_positional_order_is_pinned():
    assert [row.name for row in declarations()][: len(NAMES)] == NAMES
    assert len(declarations()) == len(NAMES), "append the new control to NAMES"
    assert [row.name for row in declarations(clips=True)] == ALL


def test_a_later_control_has_the_last_position_whatever_its_group(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Later(UpsampleGuidance):
        fresh: float = control(0.5, "Fresh", "A new one.", minimum=0, maximum=1, since=99)

    monkeypatch.setitem(declared._GROUP_TYPES, "ug", Later)
    assert [name for name, *_ in declared._rows()] == [*ALL, "ug_fresh"]


def test_every_field_appears_on_every_surface():
    fields = [
        f"{group.prefix}_{item.name.rstrip('_')}" if item.name != "enabled" else group.prefix
        for group in (UpsampleGuidance, AttentiveGuidance, ProgressiveRefinement)
        for item in dataclasses.fields(group)
    ]
    assert sorted(fields) == sorted(ALL)
    assert list(Settings().values()) == ALL
    rows = markdown_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == fields, "the table goes group by group"
    assert all(row.count("|") == 7 for row in rows)


def test_every_declaration_is_complete_and_its_default_is_taken():
    for row in declarations():
        assert row.group in GROUPS
        assert 0 < len(row.control.title) <= 32 and row.control.help.endswith(".")
        assert row.kind in (bool, int, float, str, tuple)
        if row.kind in (int, float):
            assert row.control.minimum < row.control.maximum < math.inf
        assert Settings.from_values({row.name: row.default}) == Settings()


def test_titles_differ_for_a_host_keeps_defaults_by_them():
    titles = [row.control.title for row in declarations() if row.name not in GROUPS]
    assert len(set(titles)) == len(titles)
    assert label_of("refine_eta2") == "Denoising strengths"


def test_defaults_are_the_papers():
    values = Settings().values()
    expected = {
        "ug": False,
        "pfsa": False,
        "refine": False,
        "ug_theta": 1,
        "pfsa_gamma": 0.004,
        "pfsa_beta": 3,
        "pfsa_eta1": 0.06,
        "refine_eta2": "0.2",
        "refine_pivot": 700,
    }
    assert {name: values[name] for name in expected} == expected


def test_settings_are_frozen():
    chosen = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.ug = UpsampleGuidance()
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.ug.theta = 0.5
    assert hash(chosen) == hash(Settings())


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("ug", [False, "False", "false", " OFF ", "no", "0", 0]),
        ("ug", [True, "True", "on", "yes", "1", 1]),
        ("ug_theta", [0.5, "0.5", " 0.5 ", "5e-1"]),
        ("ug_theta", [1, 1.0, "1", "1.0"]),
        ("ug_cadence", [2, 2.0, "2", "2.0"]),
        ("refine_method", ["Pivot", "pivot", " PIVOT "]),
        ("refine_eta2", [0.25, "0.25", [0.25], (0.25,), ["0.25"]]),
        ("refine_eta2", ["0.1, 0.2", "0.1;0.2", [0.1, 0.2], (0.1, "0.2")]),
        ("pfsa_lambda", [0, "0", 0.0]),
    ],
)
def test_strings_numbers_and_lists_read_alike(name, spellings):
    read = [Settings.from_values({name: spelling}) for spelling in spellings]
    assert all(one == read[0] for one in read)
    types = [{key: type(value) for key, value in one.values().items()} for one in read]
    assert all(one == types[0] for one in types)


def test_the_word_false_is_false():
    assert Settings.from_values({"ug": "False"}).ug.enabled is False
    assert Settings.from_values({"ug": "True"}).ug.enabled is True


HUGE = 10**400  # JSON may hold it, a float cannot
NUMBERS = [row for row in declarations() if row.kind in (int, float)]


@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row.name)
@pytest.mark.parametrize(
    "bad",
    ["nan", "inf", math.nan, math.inf, -math.inf, True, False, None, "x", "", [], {}, HUGE],
    ids=lambda bad: repr(bad)[:8],
)
def test_what_is_not_a_number_is_refused(row, bad):
    with pytest.raises(SettingsError) as caught:
        Settings.from_values({row.name: bad})
    message = str(caught.value)
    assert message.startswith(f"{row.name}: expected a ")
    assert "number" in message and message.endswith(f", got {bad!r}")
    assert f"{row.control.minimum:g}" in message and f"{row.control.maximum:g}" in message


@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row.name)
def test_bounds_are_inclusive(row):
    low, high = row.control.minimum, row.control.maximum
    for inside in (low, high):
        assert Settings.from_values({row.name: inside}).values()[row.name] == inside
    for outside in (low - 0.5, high + 0.5):
        if not (row.control.automatic and outside == 0):
            with pytest.raises(SettingsError, match=f"^{row.name}: "):
                Settings.from_values({row.name: outside})


def test_whole_numbers_are_whole():
    with pytest.raises(SettingsError, match=r"ug_cadence: expected a whole number .* got 1\.5"):
        Settings.from_values({"ug_cadence": 1.5})
    assert type(Settings.from_values({"ug_cadence": "3"}).ug.cadence) is int


BAD_ETA2 = ["0.1, x", "", ",", "0.1,", "0", "1.1", "-0.1", "nan", "inf", [], [0.1, None], [[0.1]]]


@pytest.mark.parametrize(
    "bad",
    [*BAD_ETA2, None, True, [True], {"a": 1}, math.nan, 2, 0, HUGE, [HUGE]],
    ids=lambda bad: repr(bad)[:12],
)
def test_bad_strengths(bad):
    with pytest.raises(SettingsError) as caught:
        Settings.from_values({"refine_eta2": bad})
    assert str(caught.value) == f"refine_eta2: expected numbers in (0, 1], got {bad!r}"


@pytest.mark.parametrize("bad", ["maybe", 2, -1, None, [], [True], {}, math.nan])
def test_bad_switches(bad):
    with pytest.raises(SettingsError) as caught:
        Settings.from_values({"ug_shifted_start": bad})
    assert str(caught.value) == f"ug_shifted_start: expected true or false, got {bad!r}"


@pytest.mark.parametrize("bad", ["AP", "", 1, None, True, ["Pivot"]])
def test_bad_choices(bad):
    with pytest.raises(SettingsError) as caught:
        Settings.from_values({"refine_method": bad})
    assert str(caught.value) == f"refine_method: expected one of AP-LDM, Pivot, got {bad!r}"


def test_unknown_names_come_with_a_suggestion():
    for name in ("UG", "ug-theta", "Ug Theta"):
        with pytest.raises(SettingsError, match=r"did you mean ug(_theta)?\?"):
            Settings.from_values({name: 1})
    with pytest.raises(SettingsError, match=r"ug_tetha: .*did you mean ug_theta\?"):
        Settings.from_values({"ug_tetha": 1})
    with pytest.raises(SettingsError, match=r"^zzz: there is no such setting$"):
        Settings.from_values({"zzz": 1})


def test_a_group_built_directly_is_checked_too():
    with pytest.raises(SettingsError, match=r"^ug_theta: "):
        UpsampleGuidance(theta=3)
    assert ProgressiveRefinement(eta2="0.1, 0.2").eta2 == (0.1, 0.2)


def test_updated_changes_what_is_named_and_nothing_else():
    base = Settings.from_values({"ug_theta": 0.5, "pfsa": True})
    new = base.updated({"ug_eta": 0.6})
    assert new.values() == {**base.values(), "ug_eta": 0.6}
    assert base.ug.eta == 0


def test_changed_names_the_enabled_groups_changes():
    chosen = Settings.from_values({"ug": True, "ug_theta": 0.5, "pfsa_gamma": 0.1})
    default = {"ug_eta": 0, "ug_cadence": 0}  # stated, for earlier versions had other defaults
    assert chosen.changed() == {"ug": True, "ug_theta": 0.5, **default}
    assert Settings.from_values(chosen.changed()).ug == chosen.ug


def from_kept(values):
    return Settings.from_values(as_kept(values))


def test_what_an_earlier_version_has_left_out_is_at_the_default_of_then():
    old = from_kept({"ug": True, "ug_theta": 0.5})
    assert (old.ug.theta, old.ug.eta, old.ug.cadence) == (0.5, 1, 1)
    for chosen in (Settings(), Settings.from_values({"ug": True, "refine": True})):
        assert from_kept(chosen.stated()) == chosen
    assert from_kept(old.stated()) == old
    assert not from_kept({}).changed()


@pytest.mark.parametrize(("start", "eta"), [(1.2, 0.8), (0.7, 0.8), (0.6, 1), (0.2, 1)])
def test_an_automatic_share_is_that_of_the_pass(start, eta):
    assert UpsampleGuidance().decided(20, start).eta == eta
    assert UpsampleGuidance(eta=0.7).decided(20, start).eta == 0.7


@pytest.mark.parametrize(
    ("steps", "eta", "cadence"),
    [(1, 1, 1), (4, 1, 1), (9, 1, 1), (10, 0.8, 2), (17, 0.8, 2), (18, 0.8, 3), (50, 0.8, 3)],
)
def test_automatic_settings_follow_the_steps(steps, eta, cadence):
    decided = UpsampleGuidance(theta=0.5).decided(steps)
    assert decided == UpsampleGuidance(theta=0.5, eta=eta, cadence=cadence)
    chosen = UpsampleGuidance(eta=0.7, cadence=4)
    assert chosen.decided(steps) == chosen


def one_value(row):
    if row.kind is bool:
        return st.booleans()
    if row.kind is str:
        return st.sampled_from(row.control.choices) if row.control.choices else st.text()
    if row.kind is tuple:
        share = st.floats(0, 1, exclude_min=True)
        return st.lists(share, min_size=1, max_size=4)
    low, high = row.control.minimum, row.control.maximum
    if row.kind is int:
        return st.integers(int(low), int(high))
    return st.floats(low, high)


@given(st.fixed_dictionaries({row.name: one_value(row) for row in declarations()}))
def test_values_make_the_same_settings_again(values):
    chosen = Settings.from_values(values)
    assert Settings.from_values(chosen.values()) == chosen
    assert Settings.from_values(json.loads(json.dumps(chosen.values()))) == chosen
    as_text = {name: str(value) for name, value in chosen.values().items()}
    assert Settings.from_values(as_text) == chosen


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-HUGE, HUGE)
    | st.floats()
    | st.text()
    | st.sampled_from(["0.1, 0.2", "1e999", "1_0", "\ud800", "٣", "1e-400", "-0.0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), JSON, max_size=4))
def test_any_json_is_read_or_refused_with_a_message(values):
    try:
        chosen = Settings.from_values(values)
    except SettingsError as error:
        assert isinstance(error, ValueError)
        assert any(name in str(error) for name in values)
    else:
        assert Settings.from_values(chosen.values()) == chosen
