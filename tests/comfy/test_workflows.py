"""The example workflows name nodes, inputs and values that exist."""

import json
from pathlib import Path

import pytest

from lib_hires.comfy.nodes import NODES
from lib_hires.comfy.register import classic

DOCS = Path(__file__).parents[2] / "docs"
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
        required = classic(OURS[part["class_type"]]).INPUT_TYPES()["required"]
        assert set(part["inputs"]) == set(required)
        for name, value in part["inputs"].items():
            kind, options = required[name]
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"], name
    links = [v for part in workflow.values() for v in part["inputs"].values() if type(v) is list]
    assert all(source in workflow for source, _ in links)


def test_the_page_names_every_node():
    page = (DOCS / "comfy.md").read_text()
    assert all(f"| {node.title} |" in page for node in NODES)
