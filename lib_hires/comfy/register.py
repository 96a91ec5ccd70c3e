"""The nodes as the host's classes: its V3 schema where it has one, else the classic mappings."""

from __future__ import annotations

from typing import Any

from lib_hires.comfy.description import CATEGORY, Input, Node
from lib_hires.comfy.nodes import NODES


def registration() -> dict[str, Any]:
    """The names that the host looks for in the module of a folder of custom_nodes."""
    try:
        from comfy_api.latest import ComfyExtension, io
    except ImportError:
        return {
            "NODE_CLASS_MAPPINGS": {node.id: classic(node) for node in NODES},
            "NODE_DISPLAY_NAME_MAPPINGS": {node.id: node.title for node in NODES},
        }

    class Extension(ComfyExtension):  # type: ignore[misc]
        async def get_node_list(self) -> list[type]:
            return [schema_node(node, io) for node in NODES]

    async def comfy_entrypoint() -> Any:
        return Extension()

    return {"comfy_entrypoint": comfy_entrypoint}


def classic(node: Node) -> type:
    """A node's class in the classic API."""
    inputs = {part.name: _classic_input(part) for part in node.inputs}

    def run(self: Any, **values: Any) -> tuple[Any, ...]:
        return node.run(**values)

    return type(
        node.id,
        (),
        {
            "__doc__": node.help,
            "INPUT_TYPES": classmethod(lambda cls: {"required": inputs}),
            "RETURN_TYPES": tuple(output.type for output in node.outputs),
            "RETURN_NAMES": tuple(output.name for output in node.outputs),
            "OUTPUT_TOOLTIPS": tuple(output.help for output in node.outputs),
            "OUTPUT_IS_LIST": tuple(output.many for output in node.outputs),
            "FUNCTION": "run",
            "CATEGORY": CATEGORY,
            "DESCRIPTION": node.help,
            "run": run,
        },
    )


def _classic_input(part: Input) -> tuple[Any, dict[str, Any]]:
    options = dict(part.options)
    kind: Any = options.pop("options") if part.type == "COMBO" else part.type
    if part.label:
        options["display_name"] = part.label
    return kind, {**options, "tooltip": part.help}


def schema_node(node: Node, io: Any) -> type:
    """A node's class in the V3 API. io: the host's module of types."""

    def define_schema(cls: type) -> Any:
        return io.Schema(
            node_id=node.id,
            display_name=node.title,
            category=CATEGORY,
            description=node.help,
            inputs=[_schema_input(part, io) for part in node.inputs],
            outputs=[
                _type(output.type, io).Output(
                    display_name=output.name, tooltip=output.help, is_output_list=output.many
                )
                for output in node.outputs
            ],
        )

    def execute(cls: type, **values: Any) -> Any:
        return io.NodeOutput(*node.run(**values))

    methods = {"define_schema": classmethod(define_schema), "execute": classmethod(execute)}
    return type(node.id, (io.ComfyNode,), {"__doc__": node.help, **methods})


def _schema_input(part: Input, io: Any) -> Any:
    label = {"display_name": part.label} if part.label else {}
    return _type(part.type, io).Input(part.name, tooltip=part.help, **label, **dict(part.options))


def _type(name: str, io: Any) -> Any:
    """The host's type of a name: io.Model of MODEL."""
    return getattr(io, name.capitalize())
