"""The line below the accordions that says what the run will do, and the events that keep it true.

Every change calls `hiresGuidanceChanged` (javascript/plan_line.js), which a moment after the last
one presses a hidden button, so that a slider's drag asks once.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from lib_hires.settings import SettingsError
from lib_hires.webui.hosts.model import is_flow, is_supported, loaded_model
from lib_hires.webui.page.planning import page_plan
from lib_hires.webui.page.tab import Tab
from lib_hires.webui.surfaces.arguments import read_arguments

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
            return status(plan_sentence(host, values[len(names) :]))

        for component in followed:
            component.change(fn=None, _js=changed, show_progress=False)
        self._update.click(
            fn=line,
            _js=f'(...values) => hiresGuidanceSizes("{self._tab_name}", {names}, values)',
            inputs=followed,
            outputs=[self._line],
            **UNQUEUED,
        )


def status(sentence: str) -> str:
    """A sentence as HTML that screen readers read out when it changes."""
    return f"<p role='status'>{html.escape(sentence)}</p>" if sentence else ""


def plan_sentence(host: Mapping[str, Any], arguments: Sequence[object]) -> str:
    """What a run with the host's values and our arguments will do; nothing where all is off."""
    try:
        settings = read_arguments(arguments)
        if not any((settings.ug.enabled, settings.pfsa.enabled, settings.refine.enabled)):
            return ""
        model = loaded_model()
        if model is None:
            return "The sizes are known once a model is loaded."
        if None in host.values():  # a number is being typed
            return ""
        if not is_supported(model):
            return "This model is not supported yet; the image is made without HiRes Guidance."
        if is_flow(model):
            return "What a flow model's run will do is not computed yet."
        return page_plan(settings, host, model).summary()
    except SettingsError as error:
        return f"{error}."
