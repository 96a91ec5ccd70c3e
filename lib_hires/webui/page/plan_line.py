"""The plan below the techniques: one line and a drawing, and the events that keep both true.

Every change calls `hiresGuidanceChanged` (javascript/plan_line.js), which a moment after the last
one presses a hidden button, so that a slider's drag computes one plan. The response carries the
line and the numbers that javascript/hires_guidance.js draws.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from lib_hires.run import drawing
from lib_hires.settings import SettingsError
from lib_hires.webui.hosts.model import is_flow, is_supported, loaded_model
from lib_hires.webui.page.planning import native_side, page_drawing, page_plan
from lib_hires.webui.page.tab import Tab
from lib_hires.webui.surfaces.arguments import read_arguments

UNQUEUED = {"queue": False, "show_progress": False, "api_name": False}
KEEPS_LAST = int(getattr(gr, "__version__", "3").partition(".")[0]) >= 4
"""Whether Gradio can keep the last press of those made while a response is awaited; for Gradio 3
javascript/plan_line.js presses again."""


class PlanLine:
    """The line, the drawing's element, and the hidden button that computes both anew."""

    def __init__(self, tab_name: str, element_id: Callable[[str], str]) -> None:
        self._tab_name = tab_name
        self._line = gr.HTML("", elem_id=element_id("plan"), elem_classes=["hires-guidance-plan"])
        self._drawing = gr.HTML("", elem_id=element_id("drawing"))
        self._update = gr.Button(
            "Update the plan", visible=False, elem_id=element_id("plan_update")
        )
        self._update.do_not_save_to_config = True
        self._host_names: list[str] = []

    def connect(self, tab: Tab) -> None:
        """Follow our controls and the host's."""
        self._host_names = list(tab.host)
        followed = [*tab.host.values(), *tab.controls.values()]
        changed = f'() => hiresGuidanceChanged("{self._tab_name}")'
        for component in followed:
            component.change(fn=None, _js=changed, show_progress=False)
        sizes = f'hiresGuidanceSizes("{self._tab_name}", {self._host_names}, values)'
        self._update.click(
            fn=self._plan,
            _js=f"(...values) => {sizes}",
            inputs=followed,
            outputs=[self._line, self._drawing],
            **UNQUEUED,
            **({"trigger_mode": "always_last"} if KEEPS_LAST else {}),
        )

    def _plan(self, *values: Any) -> tuple[str, str]:
        """The line and the drawing's element for the components' values."""
        count = len(self._host_names)
        host = dict(zip(self._host_names, values[:count], strict=True))
        message, plan = planned(host, values[count:])
        return status(message), drawing.element(plan, page_facts(self._tab_name))


def status(message: str) -> str:
    """A message as HTML that screen readers read out when it changes."""
    return f"<p role='status'>{html.escape(message)}</p>" if message else ""


def planned(
    host: Mapping[str, Any], arguments: Sequence[object]
) -> tuple[str, dict[str, Any] | None]:
    """What a run with the host's values and our arguments will do: the line, and the drawing's
    numbers or None. The line is empty where all is off."""
    try:
        settings = read_arguments(arguments)
        if not any((settings.ug.enabled, settings.pfsa.enabled, settings.refine.enabled)):
            return "", None
        model = loaded_model()
        if model is None:
            return "The sizes are known once a model is loaded.", None
        if None in host.values():  # a number is being typed
            return "", None
        if not is_supported(model):
            return "This model is not supported yet; HiRes Guidance will be left out.", None
        if is_flow(model):
            return "The plan of a run with a flow model is not computed yet.", None
        plan = page_plan(settings, host, model)
        return plan.summary(), page_drawing(plan, settings, host, model)
    except SettingsError as error:
        return f"{error}.", None


def page_facts(tab: str) -> dict[str, Any]:
    """What the scripts must know of the page. native: the loaded model's side in pixels, 0 for
    none, by which javascript/plan_line.js notices another kind of model."""
    info = getattr(loaded_model(), "sd_checkpoint_info", None)
    return {
        "model": getattr(info, "title", ""),
        "native": native_side(),
        "generate": f"{tab}_generate",
        "stop": f"{tab}_interrupt {tab}_interrupting {tab}_skip",
        "time": f"html_log_{tab}",
    }
