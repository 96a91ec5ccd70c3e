"""The plan beside the page's controls: its line, and the numbers of its drawing."""

from __future__ import annotations

import html

from lib_hires.run import drawing
from lib_hires.run.plan import run_plan
from lib_hires.run.schedules import Sampler, Sampling
from lib_hires.settings import Settings
from lib_hires.standalone.app.controls import element_id
from lib_hires.standalone.app.models import Known
from lib_hires.standalone.pipeline.generate import clip_length, first_size
from lib_hires.standalone.pipeline.request import SAMPLERS, Request


def plan_markup(name: str, known: Known, request: Request, settings: Settings) -> str:
    """The HTML of a run's plan; name: of the model. Raises SettingsError."""
    model = known.planned
    sampling = Sampling(
        first_size(request, settings, model),
        request.steps,
        Sampler(SAMPLERS[request.sampler].evaluations),
        request.schedule,
        frames=clip_length(request, known.motion)[0],
    )
    plan = run_plan(settings, sampling, model)
    numbers = drawing.drawing(plan, settings, model, batch=request.batch)
    return plan_line(plan.summary()) + drawing.element(numbers, page_facts(name))


def plan_line(message: str) -> str:
    """The line as HTML that screen readers read out when it changes."""
    return f'<p role="status" class="hires-guidance-plan">{html.escape(message)}</p>'


def page_facts(name: str) -> dict[str, str]:
    """What the page's script must know of the page; name: of the model."""
    elements = {"generate": "generate", "stop": "stop", "time": "status"}
    return {"model": name} | {key: element_id(part) for key, part in elements.items()}
