import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_hires.presets import (
    BUILT_IN,
    LONGEST_NAME,
    PURPOSES,
    Preset,
    PresetError,
    PresetFile,
    counterpart,
    offered,
    preset_for,
)
from lib_hires.run.plan import run_plan
from lib_hires.run.schedules import Model, Sampling
from lib_hires.settings import Settings

MINE = Settings.from_values({"ug": True, "ug_theta": 0.8, "refine_eta2": "0.2, 0.4"})


@pytest.fixture
def file(tmp_path):
    return PresetFile(tmp_path / "folder" / "presets.json")


@pytest.mark.parametrize("preset", BUILT_IN, ids=lambda preset: preset.name)
def test_a_built_in_preset_reaches_its_target(preset):
    settings = preset.settings()
    first = preset.first_size((512, 512))
    model = Model((0.03, 0.5, 14.0), (preset.native, preset.native))
    plan = run_plan(settings, Sampling(first, steps=20), model)
    wanted = preset.native * (4 if "4x" in preset.name else 2)
    assert plan.passes[-1].size == (wanted, wanted)
    assert not plan.idle
    assert bool(plan.passes[-1].small) == settings.ug.enabled
    assert str(preset.native) in preset.name


def test_names_are_unique_and_every_family_has_both_targets():
    assert len({preset.name for preset in BUILT_IN}) == len(BUILT_IN)
    for native in (256, 512, 768, 1024):
        names = [preset.name for preset in BUILT_IN if preset.native == native]
        assert any("2x" in name for name in names)
        assert any("4x" in name for name in names)


@pytest.mark.parametrize("native", [256, 512, 768, 1024])
def test_the_list_begins_with_those_for_the_model(native):
    listed = offered(native)
    assert [preset.native == native for preset in listed] == [True] * 5 + [False] * 15
    assert sorted(listed, key=BUILT_IN.index) == list(BUILT_IN)


def test_for_a_model_of_another_side_the_list_is_as_it_was():
    assert offered(0) == offered(640) == BUILT_IN


@pytest.mark.parametrize(
    ("name", "native", "wanted"),
    [
        ("SD 1.5 (512) 4x, refinement with UG", 1024, "SDXL (1024) 4x, refinement with UG"),
        ("SDXL (1024) 2x, UG alone", 256, "Bundled demo (256) 2x, UG alone"),
        ("SD 2 (768) 2x, UG alone", 768, "SD 2 (768) 2x, UG alone"),
        ("SDXL (1024) 2x, UG alone", 0, "SDXL (1024) 2x, UG alone"),
        ("SDXL (1024) 2x, UG alone", 640, "SDXL (1024) 2x, UG alone"),
        ("my own", 1024, "my own"),
        (None, 1024, ""),
    ],
)
def test_a_preset_has_a_counterpart_for_another_model(name, native, wanted):
    assert counterpart(name, native) == wanted


def test_the_first_image_keeps_its_shape():
    assert BUILT_IN[0].first_size((768, 512)) == (640, 448)


def test_a_first_image_of_native_size_is_left_to_the_model():
    native = (200, 800)  # an area of 400 x 400
    for purpose in PURPOSES:
        wanted = (400, 1600) if purpose == "2x, UG alone" else (0, 0)
        assert preset_for(purpose, native).size_for(native, 8) == wanted
    assert Preset("my own", {}).size_for(native, 8) == (0, 0)


@pytest.mark.parametrize("current", [(0, 512), (512, 0)])
def test_without_a_shape_there_is_a_message(current):
    with pytest.raises(PresetError, match="give a width and height first"):
        BUILT_IN[0].first_size(current)


def test_ones_own_presets_come_back(file):
    assert file.values() == {}
    assert file.save("  My \n preset ", MINE) == "My preset"
    file.save("ünïcode \U0001f600", Settings())
    assert list(PresetFile(file.path).values()) == ["My preset", "ünïcode \U0001f600"]
    assert file.find("My preset").settings() == MINE
    assert file.find("My preset").values == {
        "ug": True, "ug_theta": 0.8, "ug_eta": 0, "ug_cadence": 0, "refine_eta2": "0.2, 0.4"
    }  # fmt: skip
    assert file.find("My preset").first_size((512, 768)) == (512, 768)
    file.delete("My preset")
    assert list(file.values()) == ["ünïcode \U0001f600"]
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


@pytest.mark.parametrize("name", ["", "  ", "\n", None, "x" * (LONGEST_NAME + 1), BUILT_IN[0].name])
def test_names_that_are_refused(file, name):
    with pytest.raises(PresetError):
        file.save(name, MINE)
    assert not file.path.exists()


@given(st.text())
def test_any_name_is_kept_printable_or_refused(tmp_path_factory, name):
    file = PresetFile(tmp_path_factory.mktemp("presets") / "presets.json")
    try:
        kept = file.save(name, MINE)
    except PresetError:
        return
    assert kept.isprintable()
    assert file.find(kept).settings() == MINE


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '{"a": 3}', "[" * 100_000, b"\xff\xfe".decode("latin1"),
        '{"a": {"ug_theta": NaN}}', '{"a": {"ug_theta": -Infinity}}', '{"a": {"ug_theta": 1e999}}',
        '{"\\ud800": {}}',
    ],
)  # fmt: skip
def test_a_damaged_file_gives_a_message_and_stays_as_it_is(file, text):
    file.path.parent.mkdir()
    file.path.write_text(text, "latin1")
    for act in (file.values, lambda: file.find("a"), lambda: file.save("a", MINE)):
        with pytest.raises(PresetError, match="cannot be read"):
            act()
    assert file.path.read_text("latin1") == text
    assert file.find(BUILT_IN[0].name) == BUILT_IN[0]


def test_a_file_that_an_editor_has_saved_with_a_mark_is_read(file):
    file.save("mine", MINE)
    file.path.write_bytes(b"\xef\xbb\xbf" + file.path.read_bytes())
    assert file.find("mine").settings() == MINE


@pytest.mark.parametrize("values", [{"ug_teta": 1}, {"ug_theta": "much"}, {"ug_theta": None}])
def test_a_preset_of_bad_values_gives_a_message(file, values):
    file.path.parent.mkdir()
    file.path.write_text(json.dumps({"bad": values, "good": {}}))
    with pytest.raises(PresetError, match='the preset "bad" cannot be used'):
        file.find("bad")
    assert file.find("good").settings() == Settings.from_values({"ug_eta": 1, "ug_cadence": 1})
    file.delete("bad")
    assert list(file.values()) == ["good"]


def test_a_preset_of_an_earlier_version_means_what_it_meant(file):
    """Its defaults of eta and cadence were others, and it does not state them."""
    file.path.parent.mkdir()
    file.path.write_text(json.dumps({"old": {"ug": True, "ug_theta": 0.8}}))
    old = {"ug": True, "ug_theta": 0.8, "ug_eta": 1, "ug_cadence": 1}
    assert file.find("old").settings() == Settings.from_values(old)
    file.save("new", MINE)
    assert file.find("old").settings() == Settings.from_values(old)


def test_presets_that_are_not_there(file):
    for act in (file.find, file.delete):
        with pytest.raises(PresetError, match="nothing"):
            act("nothing")


def test_a_folder_that_cannot_be_written_gives_a_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PresetError, match="cannot be"):
        PresetFile(tmp_path / "file" / "presets.json").save("a", MINE)
