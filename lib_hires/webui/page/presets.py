"""The row of presets above the techniques. Its components are no script arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from lib_hires.presets import BUILT_IN, PresetError, counterpart, offered
from lib_hires.settings import SettingsError, declarations
from lib_hires.webui.page.plan_line import UNQUEUED, status
from lib_hires.webui.page.planning import native_side
from lib_hires.webui.page.tab import Tab
from lib_hires.webui.surfaces.arguments import read_arguments
from lib_hires.webui.surfaces.user_files import preset_file


class PresetRow:
    """A list to choose or type a name in, and what can be done with it."""

    def __init__(self, element_id: Callable[[str], str]) -> None:
        with gr.Row(elem_id=element_id("presets"), elem_classes=["hires-guidance-presets"]):
            self._name = gr.Dropdown(
                built_in(),
                value=counterpart(BUILT_IN[0].name, native_side()),
                label="Preset",
                allow_custom_value=True,
                elem_id=element_id("preset"),
            )
            buttons = [
                gr.Button(text, size="sm", min_width=0, elem_id=element_id(f"preset_{action}"))
                for text, action in (("Apply", "apply"), ("Save as", "save"), ("Delete", "delete"))
            ]
        self._apply, self._save, self._delete = buttons
        self._message = gr.HTML(
            "", elem_id=element_id("preset_message"), elem_classes=["hires-guidance-plan"]
        )
        self._refresh = gr.Button(
            "Refresh the presets", visible=False, elem_id=element_id("preset_refresh")
        )
        for component in (self._name, *buttons, self._refresh):
            component.do_not_save_to_config = True

    def connect(self, tab: Tab) -> None:
        """Attach the buttons' events."""
        listed = [self._name, self._message]
        sides, controls = [tab.host["width"], tab.host["height"]], tab.controls.values()
        self._refresh.click(offer, inputs=[self._name], outputs=listed, **UNQUEUED)
        self._apply.click(
            apply,
            inputs=[self._name, *sides],
            outputs=[self._message, *sides, *controls],
            **UNQUEUED,
        )
        self._save.click(save, inputs=[self._name, *controls], outputs=listed, **UNQUEUED)
        self._delete.click(
            delete, _js="hiresGuidanceConfirmed", inputs=[self._name], outputs=listed, **UNQUEUED
        )


def built_in() -> list[str]:
    """The built-in presets' names, those for the loaded model first."""
    return [preset.name for preset in offered(native_side())]


def offer(name: object) -> tuple[Any, str]:
    """The list for the loaded model, and of the chosen preset its counterpart."""
    return _listed(counterpart(name, native_side()))


def apply(name: str, width: float | None, height: float | None) -> list[Any]:
    """Message, width, height and every control's value. A side is None while it is being typed."""
    try:
        preset = preset_file().find(name)
        size = preset.first_size((int(height or 0), int(width or 0)))
        values = preset.settings().values()
    except PresetError as error:
        unchanged = [gr.update()] * (2 + len(declarations()))
        return [status(f"{error}."), *unchanged]
    return ["", size[1], size[0], *(values[row.name] for row in declarations())]


def save(name: str, *arguments: object) -> tuple[Any, str]:
    try:
        kept = preset_file().save(name, read_arguments(arguments))
    except (PresetError, SettingsError) as error:
        return gr.update(), status(f"Not saved: {error}.")
    return _listed(kept, f'Saved as "{kept}".')


def delete(name: str | None) -> tuple[Any, str]:
    """name: None where the user has not confirmed."""
    if name is None:
        return gr.update(), ""
    try:
        preset_file().delete(name)
    except PresetError as error:
        return gr.update(), status(f"Not deleted: {error}.")
    return _listed(built_in()[0], f'Deleted "{name}".')


def _listed(chosen: str, message: str = "") -> tuple[Any, str]:
    """All presets, the built-in ones first."""
    names = built_in()
    try:
        names += preset_file().values()
    except PresetError as error:
        message = f"Your own presets: {error}."
    return gr.update(choices=names, value=chosen), status(message)
