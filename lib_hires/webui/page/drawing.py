"""The live drawing below the accordions: its element, and the facts that it draws from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules import sd_samplers

from lib_hires.run import drawing
from lib_hires.webui.hosts.model import is_flow, is_supported, loaded_model
from lib_hires.webui.page.plan_line import UNQUEUED
from lib_hires.webui.page.planning import model_of, sampler_of
from lib_hires.webui.page.tab import Tab


class Drawing:
    """Draws by itself (javascript/hires_guidance.js) once it has the facts of a loaded model.

    javascript/plan_line.js presses a hidden button for them, where the model may be another one.
    """

    def __init__(self, tab_name: str, element_id: Callable[[str], str]) -> None:
        self._tab_name, self._element_id = tab_name, element_id
        self._html = gr.HTML(self.element(), elem_id=element_id("drawing"))
        self._update = gr.Button(
            "Update the drawing", visible=False, elem_id=element_id("drawing_update")
        )
        self._update.do_not_save_to_config = True

    def connect(self, tab: Tab) -> None:
        """Part of `Tab`: bring the facts of the model that is loaded now."""
        self._update.click(fn=self.element, inputs=[], outputs=[self._html], **UNQUEUED)

    def element(self) -> str:
        """The element with its facts; nothing where no model is loaded, or none of ours."""
        model = loaded_model()
        if model is None or not is_supported(model) or is_flow(model):
            return ""
        samplers = {name: sampler_of(name) for name in sd_samplers.all_samplers_map}
        facts = drawing.facts(
            model_of(model),
            samplers,
            element_id=self._element_id,
            host=host_elements(self._tab_name),
        )
        return drawing.element(facts)


def host_elements(tab: str) -> dict[str, Any]:
    """The host's elements that the drawing reads, by what they mean to it."""
    ids = {
        "width": f"{tab}_width",
        "height": f"{tab}_height",
        "steps": f"{tab}_steps",
        "sampler": f"{tab}_sampling",
        "schedule": f"{tab}_scheduler",
        "batch": f"{tab}_batch_size",
        "count": f"{tab}_batch_count",
        "model": "setting_sd_model_checkpoint",
        "generate": f"{tab}_generate",
        "stop": f"{tab}_interrupt {tab}_interrupting {tab}_skip",
        "time": f"html_log_{tab}",
    }
    if tab == "img2img":
        strength = {"strength": "img2img_denoising_strength"}
        return ids | strength | {"resized": "img2img_scale_resolution_preview"}
    return ids | {"hires": "txt2img_hr"}
