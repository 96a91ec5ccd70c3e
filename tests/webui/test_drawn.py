"""The drawing's numbers in the response to a change on the WebUI's page."""

from __future__ import annotations

import html
import json
import re
from types import SimpleNamespace

import pytest
from host_page import Tab


def drawn(tab):
    """The plan and the facts of the page, as the pressed button brings them."""
    tab.press("plan_update")
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', tab["drawing"].value))
    return tuple(json.loads(html.unescape(found[name])) for name in ("plan", "page"))


@pytest.fixture(params=["txt2img", "img2img"])
def tab(request, host, data):
    return Tab(request.param)


def test_the_response_carries_the_plan_and_the_page(tab):
    from modules import shared

    shared.loaded.sd_model.sd_checkpoint_info = SimpleNamespace(title="mine [0123]")
    tab["ug"].value, tab["ug_eta"].value, tab["steps"].value = True, 1, 10
    tab["batch_size"].value, tab["batch_count"].value = 2, 3
    plan, page = drawn(tab)
    steps = 10 if tab.name == "txt2img" else 6
    (first,) = plan["passes"]
    assert first["native"] == [64, 64]
    assert first["weights"] == [1] * steps
    assert plan["plain_pixels"] == 2 * 3 * steps * 128**2
    assert page == {
        "model": "mine [0123]",
        "native": 64,
        "generate": f"{tab.name}_generate",
        "stop": f"{tab.name}_interrupt {tab.name}_interrupting {tab.name}_skip",
        "time": f"html_log_{tab.name}",
    }


def test_hires_fix_is_drawn(host, data):
    tab = Tab("txt2img")
    tab["ug"].value = tab["refine"].value = tab["hr-checkbox"].value = True
    plan, _ = drawn(tab)
    assert [part["name"] for part in plan["passes"]] == ["first pass", "Hires. fix", "stage 1"]
    assert [part["size"] for part in plan["passes"]] == [[n, n] for n in (128, 256, 512)]


def test_nothing_is_drawn_where_there_is_nothing_to_draw(tab):
    from modules import shared

    assert drawn(tab)[0] is None
    tab["refine"].value, tab["refine_eta2"].value = True, "0.1, x"
    assert drawn(tab)[0] is None
    tab["refine_eta2"].value = "0.1"
    assert drawn(tab)[0] is not None
    shared.loaded.sd_model = None
    plan, page = drawn(tab)
    assert plan is None and page["native"] == 0


def test_what_the_plan_leaves_out_is_noted(tab):
    tab["ug"].value = True
    assert drawn(tab)[0]["notes"] == []
    tab["sampling"].value, tab["scheduler"].value = "DPM adaptive", "Beta"
    assert drawn(tab)[0]["notes"] == [
        "DPM adaptive takes steps of its own; drawn are the schedule's",
        "the schedule Beta is drawn as Uniform",
    ]
