"""The page's controls, made from the engine's declaration and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules import shared
from modules.ui_common import create_refresh_button
from modules.ui_components import InputAccordion

from lib_hires.settings import GROUPS, NOTHING, Declaration, declarations
from lib_hires.webui.surfaces import infotext
from lib_hires.webui.surfaces import user_files as upsamplers
from lib_hires.webui.surfaces.host_options import NATIVE, UPSCALER, upscalers


def make_controls(element_id: Callable[[str], str]) -> dict[str, Any]:
    """Three accordions; the components by control name, in the order of the script's arguments.

    An accordion is itself the switch of its group: open is on.
    """
    made: dict[str, Any] = {}
    for group, title in GROUPS.items():
        rows = [row for row in declarations() if row.group == group]
        with InputAccordion(False, label=title, elem_id=element_id(group)) as made[group]:
            for row in rows:
                if row.name != group:
                    made[row.name] = _component(row, element_id(row.name))
    return {row.name: made[row.name] for row in declarations()}


def paste_fields(components: dict[str, Any]) -> list[tuple[Any, Any]]:
    """What the host needs to read pasted PNG info into the components."""
    return [(component, infotext.reader(name)) for name, component in components.items()]


def _list(common: dict[str, Any]) -> Any:
    """A list of files, read again by the button beside it."""
    with gr.Row(elem_classes=["hires-guidance-list"]):
        component = gr.Dropdown(choices=upsamplers.names(), **common)
        create_refresh_button(
            component,
            lambda: None,
            lambda: {"choices": _as_kept(upsamplers.names(), component.choices)},
            f"{common['elem_id']}_refresh",
        )
    return component


def _as_kept(names: list[str], choices: list[Any]) -> list[Any]:
    """In the form of a dropdown's `choices`, which the host's button writes: Gradio 4 has pairs."""
    return [(name, name) for name in names] if isinstance(choices[0], tuple) else names


def _component(row: Declaration, element_id: str) -> Any:
    control = row.control
    common = {
        "label": control.title,
        "info": control.help,
        "value": row.default,
        "elem_id": element_id,
        "interactive": True,
        "visible": control.on_page,
    }
    if row.kind is bool:
        return gr.Checkbox(**common)
    if control.listed:
        return _list(common)
    if control.choices:
        return gr.Radio(choices=list(control.choices), **common)
    if row.kind in (int, float):
        lowest = 0 if control.automatic else control.minimum
        return gr.Slider(minimum=lowest, maximum=control.maximum, step=control.step, **common)
    return gr.Textbox(**common)


def add_options() -> None:
    """The native size, for models that state a wrong one, and the stages' upscaler."""
    section = ("hires_guidance", "HiRes Guidance")
    option = shared.OptionInfo(
        NATIVE.default,
        "Native size of the model in pixels, 0 for the model's own",
        gr.Slider,
        {"minimum": 0, "maximum": 4096, "step": 64},
        section=section,
        infotext=infotext.key(NATIVE.key),
    )
    shared.opts.add_option(NATIVE.name, option)
    option = shared.OptionInfo(
        UPSCALER.default,
        f"Upscaler of Progressive Refinement, before a stage is encoded; {NOTHING}: bicubic",
        gr.Dropdown,
        lambda: {"choices": upscalers()},
        section=section,
        infotext=infotext.key(UPSCALER.key),
    )
    shared.opts.add_option(UPSCALER.name, option)
