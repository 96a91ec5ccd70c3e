"""The example workflows name nodes, inputs and values that exist."""

import json
from pathlib import Path

import pytest

from lib_hires.comfy.nodes import NODES
from lib_hires.comfy.register import classic

ROOT = Path(__file__).parents[2]
DOCS, TEMPLATES = ROOT / "docs", ROOT / "example_workflows"  # the host looks for the second name
WORKFLOWS = sorted((DOCS / "comfy").glob("*.json"))
OURS = {node.id: node for node in NODES}


def test_there_are_workflows():
    assert len(WORKFLOWS) >= 3


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_fits_the_nodes(path):
    workflow = json.loads(path.read_text())
    ours = [part for part in workflow.values() if part["class_type"] in OURS]
    assert ours
    for part in ours:
        types = classic(OURS[part["class_type"]]).INPUT_TYPES()
        widgets = {name for name, (_, options) in types["optional"].items() if "default" in options}
        assert set(part["inputs"]) == set(types["required"]) | widgets  # what the page sends
        for name, value in part["inputs"].items():
            kind, options = (types["required"] | types["optional"])[name]
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"], name
    links = [v for part in workflow.values() for v in part["inputs"].values() if type(v) is list]
    assert all(source in workflow for source, _ in links)


def links_of(page):
    """(source, output, target, input's name) of each link of a workflow in the page's form."""
    names = {node["id"]: [part["name"] for part in node["inputs"]] for node in page["nodes"]}
    return {
        (str(source), output, str(target), names[target][place])
        for _, source, output, target, place, _ in page["links"]
    }


def values_of(node):
    """The widgets' values of a node in the page's form, in their order."""
    inputs = [part["name"] for part in node["inputs"] if "widget" in part]
    values = list(node.get("widgets_values", ()))
    if "seed" in inputs:
        values.pop(inputs.index("seed") + 1)  # what becomes of it after a run
    return dict(zip(inputs, values, strict=False))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_pages_form_of_a_workflow_is_the_apis(path):
    workflow = json.loads(path.read_text())
    page = json.loads((TEMPLATES / path.name).read_text())
    assert {str(node["id"]): node["type"] for node in page["nodes"]} == {
        key: part["class_type"] for key, part in workflow.items()
    }
    assert links_of(page) == {
        (*value, key, name)
        for key, part in workflow.items()
        for name, value in part["inputs"].items()
        if type(value) is list
    }
    for node in page["nodes"]:
        inputs = workflow[str(node["id"])]["inputs"]
        plain = {name: value for name, value in inputs.items() if type(value) is not list}
        shown = values_of(node)
        assert {name: shown[name] for name in plain} == plain


def test_a_template_has_a_picture():
    for path in TEMPLATES.glob("*.json"):
        assert path.with_suffix(".jpg").stat().st_size < 60_000


def test_the_page_names_every_node():
    page = (DOCS / "comfy.md").read_text()
    assert all(f"| {node.title} |" in page for node in NODES)
