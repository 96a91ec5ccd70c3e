"""One description makes the classes of both of the host's APIs."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib_hires.comfy.nodes import NODES, UPSAMPLE_GUIDANCE
from lib_hires.comfy.register import classic, registration, schema_node
from lib_hires.settings import declarations

ROOT = Path(__file__).parents[2]


class Type:
    """One of the host's types: Input and Output keep what they are given."""

    def __init__(self, name):
        self.Input = lambda id, **options: (name, id, options)
        self.Output = lambda **options: (name, options)


class Io:
    Hidden = SimpleNamespace(prompt="prompt", extra_pnginfo="extra_pnginfo")
    Schema = staticmethod(lambda **parts: SimpleNamespace(**parts))
    NodeOutput = staticmethod(lambda *values: values)
    ComfyNode = type("ComfyNode", (), {})

    def __getattr__(self, name):
        return Type(name)


def test_without_the_hosts_schema_the_classic_mappings_are_there():
    names = registration()
    assert set(names) == {"NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"}
    assert set(names["NODE_CLASS_MAPPINGS"]) == {node.id for node in NODES}


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.id)
def test_both_apis_have_the_same_inputs_and_outputs(node):
    old, new = classic(node), schema_node(node, Io()).define_schema()
    types = old.INPUT_TYPES()
    inputs = types["required"] | types["optional"]
    assert list(inputs) == [id for _, id, _ in new.inputs]
    assert list(types["optional"]) == [id for _, id, o in new.inputs if o.pop("optional", False)]
    assert ("hidden" in types, old.OUTPUT_NODE) == (bool(new.hidden), new.is_output_node)
    for (kind, options), (name, _, given) in zip(inputs.values(), new.inputs, strict=True):
        wanted = {**options, "options": kind} if isinstance(kind, list) else options
        assert given == wanted
        assert name.upper() == ("COMBO" if isinstance(kind, list) else kind)
    assert [output["is_output_list"] for _, output in new.outputs] == list(old.OUTPUT_IS_LIST)


def test_a_widget_is_its_controls_declaration():
    widgets = classic(UPSAMPLE_GUIDANCE).INPUT_TYPES()["required"]
    row = next(row for row in declarations() if row.name == "ug_theta")
    kind, options = widgets["theta"]
    assert kind == "FLOAT"
    assert options == {
        "default": row.default,
        "min": row.control.minimum,
        "max": row.control.maximum,
        "step": row.control.step,
        "tooltip": row.control.help,
        "display_name": row.control.title,
    }
    assert widgets["enlargement"][0] == ["nearest", "bicubic"]
    assert not {"passes", "controlnet", "enabled"} & set(widgets)


@pytest.mark.parametrize("host", [False, True])
def test_the_root_is_comfyuis_entry_and_nothing_elsewhere(host):
    """Imported by its path, as the host does, where the engine is not to be found by name."""
    script = f"""
import importlib.util, sys
if {host}:
    sys.path.insert(0, {str(ROOT / "tests" / "fakes" / "comfyui")!r})
    import comfy.samplers
entry = {str(ROOT / "__init__.py")!r}
spec = importlib.util.spec_from_file_location("/a_x_b/hires-guidance", entry)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert hasattr(module, "NODE_CLASS_MAPPINGS") == {host}
assert ("lib_hires" in sys.modules) == {host}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
