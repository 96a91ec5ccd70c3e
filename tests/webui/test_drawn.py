"""The live drawing's element on the WebUI's page."""

from __future__ import annotations

import html
import json
import re

import pytest

from lib_hires.run.drawing import tables
from lib_hires.run.schedules import Model, Sampler, Sampling
from lib_hires.settings import Settings, declarations


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_drawing_knows_the_model_the_samplers_and_every_control_of_its_tab(host, tab):
    import gradio as gr
    from host import load_extension
    from modules import sd_samplers

    from lib_hires.webui.page.drawing import Drawing

    script = load_extension().HiResGuidance()
    script.is_img2img = tab == "img2img"
    with gr.Blocks():
        components = script.ui(script.is_img2img)
        text = Drawing(tab, script.elem_id).element()
    facts = json.loads(html.unescape(re.search(r'data-facts="([^"]*)"', text)[1]))

    assert list(facts["controls"]) == [row.name for row in declarations()]
    assert list(facts["controls"].values()) == [component.elem_id for component in components]
    assert set(facts["samplers"]) == set(sd_samplers.all_samplers_map)
    assert ("strength" in facts["host"]) == (tab == "img2img")
    known = facts["model"]
    model = Model(**known | {"native": tuple(known["native"])})
    sampler = Sampler(**facts["samplers"]["DPM++ 2M"])
    twice = (2 * model.native[0], 2 * model.native[1])
    made = tables(Settings.from_values({"ug": True}), Sampling(twice, 20, sampler), model)
    assert made["native_evaluations"] == 20


def test_no_model_means_no_drawing(host, monkeypatch):
    import gradio as gr
    from modules import shared

    from lib_hires.webui.page.drawing import Drawing

    monkeypatch.setattr(shared.loaded, "sd_model", None)
    with gr.Blocks():
        assert Drawing("txt2img", str).element() == ""
