"""One tab of the page as the stand-in host makes it, and a user who presses buttons there."""

from __future__ import annotations

import re

import gradio as gr
import pytest
from host import load_extension

from lib_hires.webui.page.tab import HOST_CONTROLS


class Tab:
    """One tab of the page, made in the host's order."""

    def __init__(self, name):
        self.name, self.made = name, []
        script = load_extension().HiResGuidance()
        script.is_img2img = name == "img2img"
        values = {"width": 128, "height": 128, "steps": 20, "sampling": "Euler"}
        values |= {"scheduler": "Automatic"}
        values |= {"denoising_strength": 0.5, "hr-checkbox": False, "hr_scale": 2.0}
        values |= {"hr_sampler": "Use same sampler", "hr_scheduler": "Use same scheduler"}
        with gr.Blocks():
            for control, element in HOST_CONTROLS[name].items():
                component = gr.Slider(values.get(control, 0), elem_id=element)
                self._make(script, component)
            made = gr.Component.__init__
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gr.Component, "__init__", self._remembering(made))
                self.arguments = script.ui(script.is_img2img)
            self._make(script, gr.HTML("", elem_id=f"generation_info_{name}"))

    def _remembering(self, made):
        def init(component, *args, **kwargs):
            made(component, *args, **kwargs)
            self.made.append(component)

        return init

    def _make(self, script, component):
        self.made.append(component)
        script.after_component(component)

    def __getitem__(self, item):
        """A component by the end of its id."""
        (found,) = [
            component
            for component in self.made
            if component.elem_id in (f"{self.name}_{item}", self.prefix + item, item)
        ]
        return found

    @property
    def prefix(self):
        return f"script_{self.name}_hires_guidance_"

    def press(self, button):
        """As the page does it: the inputs' values go in, the outputs take what comes back."""
        event = self[button].events["click"]
        made = event["fn"](*(component.value for component in event.get("inputs", [])))
        outputs = event["outputs"]
        values = [made] if len(outputs) == 1 else made
        for component, new in zip(outputs, values, strict=True):
            new = new if isinstance(new, dict) else {"value": new}
            vars(component).update(new)

    def line(self):
        self.press("plan_update")
        return re.sub("<.*?>", "", self["plan"].value)
