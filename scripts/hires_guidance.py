"""HiRes Guidance: the WebUI's entry. Each lifecycle method hands over to lib_hires.webui."""

from __future__ import annotations

import gradio as gr
from modules import script_callbacks, scripts

from lib_hires.webui import lifecycle as run
from lib_hires.webui.page.controls import add_options, make_controls, paste_fields
from lib_hires.webui.page.plan_line import PlanLine
from lib_hires.webui.page.presets import PresetRow
from lib_hires.webui.page.tab import Tab
from lib_hires.webui.surfaces.api import add_routes
from lib_hires.webui.surfaces.axes import add_axes


class HiResGuidance(scripts.Script):
    """Upsample Guidance, Attentive Guidance and Progressive Refinement for txt2img and img2img."""

    def __init__(self):
        self.tab = Tab()

    def title(self):
        return "HiRes Guidance"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        with gr.Accordion(self.title(), open=False, elem_id=self.elem_id("accordion")):
            presets = PresetRow(self.elem_id)
            controls = make_controls(self.elem_id)
            plan = PlanLine("img2img" if is_img2img else "txt2img", self.elem_id)
        self.tab.add(controls, presets, plan)
        self.infotext_fields = paste_fields(controls)
        return list(controls.values())

    def after_component(self, component, **kwargs):
        self.tab.notice(component)

    def process(self, p, *args):  # before_process comes before a request's own options
        run.begin(p, args)

    def process_before_every_sampling(self, p, *args, **kwargs):
        run.before_sampling(p)

    def post_sample(self, p, ps, *args):
        ps.samples = run.after_sampling(p, ps.samples)

    def postprocess(self, p, processed, *args):
        run.end(p, processed)


script_callbacks.on_before_ui(add_axes)
script_callbacks.on_ui_settings(add_options)
script_callbacks.on_app_started(add_routes)
