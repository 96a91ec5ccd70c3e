"""The contact sheet and the report of the demo, and the techniques that it shows."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lib_hires.detail import Detail
from lib_hires.presets import PURPOSES, preset_for
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.benchmarks.demo import CELL, LABEL, SHOWN, Row, contact_sheet, demo
from lib_hires.standalone.benchmarks.techniques import (
    NAIVE,
    NATIVE,
    NATIVE_PFSA,
    RECIPES,
    UG,
    UG_REFINE,
    chosen,
    every,
    make,
    varied,
)
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.outputs import read_about
from lib_hires.standalone.pipeline.request import Request


def test_every_technique_has_settings_of_its_own() -> None:
    for scale in (2, 4):
        techniques = [NATIVE, NATIVE_PFSA, *every(scale)]
        assert len({technique.name for technique in techniques}) == len(techniques)
        for technique in techniques:
            settings = technique.settings_at(scale)
            assert settings.refine.factor == (scale if settings.refine.enabled else 2)
    assert NATIVE.settings_at(2) == Settings()


def test_contact_sheet_shows_every_image_and_its_most_detailed_part_beside_lanczos() -> None:
    native = Image.new("RGB", (300, 300), "red")
    ImageDraw.Draw(native).rectangle((200, 200, 299, 299), "white", "black")
    blue, green = (Image.new("RGB", (600, 600), colour) for colour in ("blue", "green"))
    entries = [{"objects": 1, "seconds": 1.0}, {"objects": 2, "seconds": 3.0}]
    rows = [Row(UG, 2, [blue, green], entries), Row(NATIVE, 1, [native], entries[:1])]
    sheet = contact_sheet(rows, ["one", "two"])
    assert sheet.size == (LABEL + 4 * CELL, 24 + 2 * CELL)
    cells = [
        [sheet.crop((x, y, x + CELL - 4, y + CELL - 4)) for x in range(LABEL, sheet.width, CELL)]
        for y in (24, 24 + CELL)
    ]
    middles = [[cell.getpixel((80, 80)) for cell in row] for row in cells]
    blue_, green_, red_, white_ = (0, 0, 255), (0, 128, 0), (255, 0, 0), (255, 255, 255)
    assert middles == [[blue_, green_, blue_, white_], [red_, white_, white_, white_]]
    assert (np.asarray(cells[0][3]) < 64).any()  # the rectangle's edge, where the detail is
    assert (np.asarray(sheet)[:, :LABEL] < 128).any()  # the labels


def test_demo_writes_the_sheet_the_images_and_the_report(
    tmp_path: Path, tiny_model: LatentModel
) -> None:
    sampling = Request(steps=4)
    output = demo(tmp_path, {1: 1, 2: 1, 4: 0}, sampling=sampling, model=tiny_model)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {entry["technique"] for entry in report} == {
        technique.name for scale in (1, 2) for technique in SHOWN[scale]
    }
    for entry in report:
        with Image.open(tmp_path / entry["file"]) as image:
            side = tiny_model.native[0] * entry["scale"]
            assert image.size == (entry["width"], entry["height"]) == (side, side)
        assert read_about(tmp_path / entry["file"])["demo"]["settings"] == entry["settings"]
        assert entry["seconds"] > 0
        assert entry["model_evaluations"] >= 4
        assert entry["made_with"]["dtype"] == "float32"
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.size == (LABEL + 3 * CELL, 24 + len(report) * CELL)
    assert output.endswith(f"sheet: {tmp_path / 'demo.png'}")


def test_techniques_are_chosen_by_name() -> None:
    assert chosen(["ug", "naive"], 2, Request()) == (UG, NAIVE)
    with pytest.raises(SettingsError, match="expected some of naive, lanczos, .*, got 'ugg'"):
        chosen(["ug", "ugg"], 2, Request())


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "Euler", "LCM"])
def test_no_two_of_every_technique_make_the_same_images(sampler: str) -> None:
    """With DPM++ 2M and Euler the row with an eta of 0.6 is one of those with a soft end."""
    for scale in (2, 4):
        base = Request(sampler=sampler)
        made = chosen(["every"], scale, base)
        kinds = [
            (t.starts_large, t.lanczos, t.sampled(base), t.settings_at(scale), t.detail_at(scale))
            for t in made
        ]
        assert len(set(kinds)) == len(kinds)
        left_out = {each.name for each in every(scale)} - {each.name for each in made}
        assert left_out == (set() if sampler == "LCM" else {"ug_eta=0.6"})


def test_every_preset_is_a_row_of_its_own() -> None:
    for purpose in PURPOSES:
        scale = int(purpose[0])
        settings = preset_for(purpose).settings()
        assert settings in [technique.settings_at(scale) for technique in every(scale)]


def test_the_recipes_take_the_steps_of_their_papers(tiny_model: LatentModel) -> None:
    """RectifiedHR 30 + 20 and 40 + 7 + 3; FreCaS's last sizes 10, and 5 and 15."""
    steps = {}
    for scale in (2, 4):
        for technique in RECIPES:
            request = technique.request(Request(prompt="x"), scale, tiny_model)
            settings, detail = technique.settings_at(scale), technique.detail_at(scale)
            run = Run(tiny_model, request, settings, detail=detail)
            steps[technique.name.partition("_")[0], scale] = run.steps
    assert steps["rectified", 2] == [30, 20] and steps["rectified", 4] == [40, 7, 3]
    assert steps["frecas", 2][1:] == [10] and steps["frecas", 4][2] == 15
    assert 40 <= steps["frecas", 2][0] < 50 and 30 <= steps["frecas", 4][0] < 50


@pytest.mark.parametrize(
    "detail",
    [
        "cfg_high=15",
        "mixing=on",
        "sharper=0.1",
        "sharpen=1",
        "unfinished=same",
        "unfinished=matched",
    ],
)
def test_detail_of_a_variant_acts_in_its_images(tiny_model: LatentModel, detail: str) -> None:
    plain, detailed = (
        make(each, tiny_model, Request(prompt="x", steps=10), 2)
        for each in (UG_REFINE, varied(["ug_refine", detail], 2))
    )
    assert detailed.about["detail"] and "detail" not in plain.about
    assert not np.array_equal(np.asarray(detailed.images[0]), np.asarray(plain.images[0]))


def test_a_variant_may_have_settings_and_details() -> None:
    made = varied(["ug_refine", "ug_theta=1", "unfinished=same", "sharpen=1"], 2)
    assert made.name == "ug_refine_theta=1.0_sharpen=1.0_unfinished=same"
    assert made.detail_at(2) == Detail(sharpen=1, unfinished="same") and made.detail_4x is None
    assert made.settings_at(2).ug.theta == 1
    scaled = varied(["rectified_hr_recipe", "cfg_low=12"], 4)
    assert scaled.detail_at(4) == scaled.detail_at(2) == Detail(cfg_low=12, unfinished="same")


def test_techniques_can_be_sent_to_other_processes() -> None:
    for scale in (2, 4):
        assert pickle.loads(pickle.dumps(every(scale))) == every(scale)


def test_a_variant_has_other_settings_and_their_names() -> None:
    made = varied(["ug_refine", "refine_eta2=0.2, 0.4", "refine_colour_match=on"], 4)
    assert made.name == "ug_refine_eta2=0.2+0.4_colour_match=True"
    assert made.label == "UG in refinement, eta2 0.2, 0.4, colour_match True"
    for scale in (2, 4):
        plain = next(each for each in every(scale) if each.name == "ug_refine")
        values = {"refine_eta2": "0.2, 0.4", "refine_colour_match": True}
        expected = plain.settings_at(scale).updated(values)
        assert made.settings_at(scale) == expected
    assert varied(["ug", "ug_theta=0.5"], 2).settings_at(2).ug.theta == 0.5
    both = ["ug_refine", "ug_enlargement=nearest", "refine_enlargement=latent"]
    assert varied(both, 2).name == "ug_refine_ug_enlargement=nearest_refine_enlargement=latent"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ug"], "--variant: expected NAME SETTING=VALUE, each setting once, got 'ug'"),
        (["ug", "ug_theta"], "each setting once, got 'ug ug_theta'"),
        (["ug", "ug_theta=1", "ug_theta=2"], "each setting once, got 'ug ug_theta=1 ug_theta=2'"),
        (["ugg", "ug_theta=0.5"], "--variant ugg ug_theta=0.5: there is no technique 'ugg'"),
        (["every", "ug_theta=0.5"], "there is no technique 'every'"),
        (["ug", "ug_thet=1"], "ug_thet: there is no such setting"),
        (["ug", "ug_theta=many"], "--variant ug ug_theta=many: ug_theta: expected a number"),
        (["refine", "refine_factor=3"], "refine_factor: the images' size is --scale"),
        (["ug", "refine=on"], "refine: ug starts at the final size"),
        (["ug", "ug_passes=both"], "ug_passes: is for the WebUI alone"),
        (["ug", "ug_theta=1"], "makes the same images"),
        (["refine", "ug_theta=0.5"], "makes the same images"),
    ],
)
def test_bad_variants_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        varied(words, 2)
