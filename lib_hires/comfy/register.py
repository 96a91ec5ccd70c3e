"""The nodes as the host's classes: its V3 schema where it has one, else the classic mappings."""

from __future__ import annotations

from typing import Any

import nodes

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


WORKFLOW = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
"""What the host writes into images, by the names of its Save Image."""


def classic(node: Node) -> type:
    """A node's class in the classic API."""

    def input_types(cls: type) -> dict[str, Any]:
        made: dict[str, Any] = {"required": {}, "optional": {}}
        for part in node.inputs:
            made["optional" if part.optional else "required"][part.name] = _classic_input(part)
        return made | ({"hidden": WORKFLOW} if node.with_workflow else {})

    def run(self: Any, **values: Any) -> Any:
        if node.with_workflow:
            values["workflow"] = {name: values.pop(name, None) for name in WORKFLOW}
        result = node.run(**values)
        shown = preview(node.shown_of(result))
        return {"ui": shown, "result": result} if shown else result

    return type(
        node.id,
        (),
        {
            "__doc__": node.help,
            "INPUT_TYPES": classmethod(input_types),
            "RETURN_TYPES": tuple(output.type for output in node.outputs),
            "RETURN_NAMES": tuple(output.name for output in node.outputs),
            "OUTPUT_TOOLTIPS": tuple(output.help for output in node.outputs),
            "OUTPUT_IS_LIST": tuple(output.many for output in node.outputs),
            "OUTPUT_NODE": bool(node.shown),
            "FUNCTION": "run",
            "CATEGORY": CATEGORY,
            "DESCRIPTION": node.help,
            "run": run,
        },
    )


def _classic_input(part: Input) -> tuple[Any, dict[str, Any]]:
    options = part.widget_options()
    kind: Any = options.pop("options") if part.type == "COMBO" else part.type
    if part.label:
        options["display_name"] = part.label
    return kind, {**options, "tooltip": part.help}


def preview(images: Any) -> dict[str, Any] | None:
    """What a node returns for the page to show images (b, h, w, 3); None for None."""
    if images is None:
        return None
    saved: dict[str, Any] = nodes.PreviewImage().save_images(images)["ui"]
    return saved


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
            hidden=[getattr(io.Hidden, name) for name in WORKFLOW] if node.with_workflow else [],
            is_output_node=bool(node.shown),
        )

    def execute(cls: Any, **values: Any) -> Any:
        if node.with_workflow:
            values["workflow"] = {name: getattr(cls.hidden, name, None) for name in WORKFLOW}
        result = node.run(**values)
        return io.NodeOutput(*result, ui=preview(node.shown_of(result)))

    methods = {"define_schema": classmethod(define_schema), "execute": classmethod(execute)}
    return type(node.id, (io.ComfyNode,), {"__doc__": node.help, **methods})


def _schema_input(part: Input, io: Any) -> Any:
    more: dict[str, Any] = {"display_name": part.label} if part.label else {}
    if part.optional:
        more["optional"] = True
    return _type(part.type, io).Input(part.name, tooltip=part.help, **more, **part.widget_options())


def _type(name: str, io: Any) -> Any:
    """The host's type of a name: io.Model of MODEL."""
    return getattr(io, name.capitalize())
