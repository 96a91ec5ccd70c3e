"""The line below the accordions that says what the run will do, and the events that keep it true.

Every change calls `hiresGuidanceChanged` (javascript/plan_line.js), which a moment after the last
one presses a hidden button, so that a slider's drag asks once.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import gradio as gr
from modules import sd_models, sd_samplers
from modules.processing import StableDiffusionProcessingTxt2Img
from modules.sd_samplers_common import setup_img2img_steps

from lib_hires.run_plan import HostPass, Sizes, run_plan
from lib_hires.settings import SettingsError
from lib_hires.sizes import Size
from lib_hires.webui.arguments import read_arguments
from lib_hires.webui.model import FACTOR, ModelSizes, is_supported
from lib_hires.webui.tab import Tab

UNQUEUED = {"queue": False, "show_progress": False, "api_name": False}


class PlanLine:
    """The line's component, and the hidden button that computes it anew."""

    def __init__(self, tab_name: str, element_id: Callable[[str], str]) -> None:
        self._tab_name = tab_name
        self._line = gr.HTML("", elem_id=element_id("plan"), elem_classes=["hires-guidance-plan"])
        self._update = gr.Button(
            "Update the plan", visible=False, elem_id=element_id("plan_update")
        )
        self._update.do_not_save_to_config = True

    def connect(self, tab: Tab) -> None:
        """Follow our controls and the host's."""
        followed = [*tab.host.values(), *tab.controls.values()]
        names, changed = list(tab.host), f'() => hiresGuidanceChanged("{self._tab_name}")'

        def line(*values: Any) -> str:
            host = dict(zip(names, values, strict=False))
            return f"<p role='status'>{html.escape(plan_sentence(host, values[len(names) :]))}</p>"

        for component in followed:
            component.change(fn=None, _js=changed, show_progress=False)
        self._update.click(
            fn=line,
            _js=f'(...values) => hiresGuidanceSizes("{self._tab_name}", {names}, values)',
            inputs=followed,
            outputs=[self._line],
            **UNQUEUED,
        )


def plan_sentence(host: Mapping[str, Any], arguments: Sequence[object]) -> str:
    """What a run with the host's controls and our arguments will do; nothing where all is off."""
    try:
        settings = read_arguments(arguments)
        if not any((settings.ug.enabled, settings.pfsa.enabled, settings.refine.enabled)):
            return ""
        model = sd_models.model_data.sd_model  # shared.sd_model would load one
        if model is None:
            return "The sizes are known once a model is loaded."
        if not is_supported(model):
            return "This model is not supported yet; the picture is made without HiRes Guidance."
        sizes = ModelSizes.of(model)
        plan = run_plan(
            settings,
            host_passes(host),
            Sizes((sizes.native, sizes.native), sizes.multiple, FACTOR),
            evaluations_per_step=_evaluations_per_step(host["sampling"]),
        )
    except SettingsError as error:
        return f"{error}."
    return plan.sentence()


def host_passes(host: Mapping[str, Any]) -> list[HostPass]:
    """The passes that the host makes, by the values of HOST_CONTROLS."""
    size, steps = _size(host["width"], host["height"]), int(host["steps"])
    if "hr-checkbox" not in host:
        run = SimpleNamespace(steps=steps, denoising_strength=host["denoising_strength"])
        whole, last = setup_img2img_steps(run)
        return [HostPass.even("image", size, min(last + 1, whole) or 1, of=whole)]
    first = HostPass.even("text", size, steps)
    return [first, _hires_pass(host, steps)] if host["hr-checkbox"] else [first]


def _hires_pass(host: Mapping[str, Any], steps: int) -> HostPass:
    """The second pass, its size as the host computes it."""
    run = StableDiffusionProcessingTxt2Img(
        width=int(host["width"]),
        height=int(host["height"]),
        enable_hr=True,
        denoising_strength=host["denoising_strength"],
        hr_scale=host["hr_scale"],
        hr_resize_x=int(host["hr_resize_x"]),
        hr_resize_y=int(host["hr_resize_y"]),
    )
    run.calculate_target_resolution()
    width = run.hr_upscale_to_x - run.truncate_x * FACTOR
    height = run.hr_upscale_to_y - run.truncate_y * FACTOR
    whole, last = setup_img2img_steps(run, int(host["hires_steps"]) or steps)
    return HostPass.even("hires", _size(width, height), last + 1, of=whole)


def _size(width: float, height: float) -> Size:
    """(height, width) as the host rounds it."""
    return int(height) // FACTOR * FACTOR, int(width) // FACTOR * FACTOR


def _evaluations_per_step(sampler: str) -> int:
    config = sd_samplers.all_samplers_map.get(sampler)
    return 2 if config and config.options.get("second_order") else 1
