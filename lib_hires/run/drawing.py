"""A plan as the plain numbers that a page draws (javascript/hires_guidance.js)."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lib_hires.run.passes import pass_name
from lib_hires.run.plan import PlannedPass, RunPlan
from lib_hires.run.schedules import Model
from lib_hires.settings import Settings

BYTES = 4  # of one value of a latent, float32
DIGITS = 4  # of weights after the point; a pixel of the drawing is more


def drawing(
    plan: RunPlan,
    settings: Settings,
    model: Model,
    *,
    batch: int = 1,
    batches: int = 1,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What the script draws, as JSON takes it.

    batch: images at once; batches: how often. notes: what the numbers leave out.

    passes: of each pass its name, size and native size (height, width), the frames of both (1 of
    an image), strength, the steps that it would take if it were finished (0: it is), and one entry
    for each step: the guidance weights, whether the step has a native evaluation, the mixing's
    gammas. edge: the timestep and the step of the first pass at which its guidance ends, None
    where it lasts to the end. pixels: of all evaluations, each counted as the pixels that it sees;
    plain_pixels: of the run without us. latent_bytes: of the largest latent.
    """
    final = model.latent(plan.passes[-1].size)
    return {
        "passes": [_drawn(part) for part in plan.passes],
        "edge": _edge(plan.passes[0], model),
        "theta": settings.ug.theta,
        "gamma": settings.pfsa.gamma,
        "native_evaluations": sum(part.native_evaluations for part in plan.passes),
        "pixels": sum(part.pixels for part in plan.passes) * batch * batches,
        "plain_pixels": plan.plain_pixels * batch * batches,
        "latent_bytes": math.prod(final) * plan.passes[-1].frames * model.channels * BYTES * batch,
        "notes": list(notes),
    }


def _drawn(part: PlannedPass) -> dict[str, Any]:
    return {
        "name": pass_name(part.kind, part.number),
        "message": part.summary(),
        "size": part.size,
        "native": part.small,
        "frames": part.frames,
        "native_frames": part.small_frames,
        "strength": part.strength,
        "whole_steps": part.whole_steps,
        "weights": [round(weight, DIGITS) for weight in part.weights],
        "evaluated": part.evaluates_native,
        "gammas": [round(gamma, DIGITS) for gamma in part.gammas],
    }


def _edge(first: PlannedPass, model: Model) -> dict[str, float] | None:
    """Where the guidance of the first pass ends, if inside it."""
    if first.small is None or all(first.weights):
        return None
    return {
        "timestep": (1 - first.guided_share) * len(model.sigmas),
        "step": first.guided_steps,
    }


def element(plan: Mapping[str, Any] | None, page: Mapping[str, object]) -> str:
    """The HTML element that the page's script fills with the drawing.

    plan: of `drawing`; None where there is nothing to draw. page: what the script must know of
    the page besides: `model`, by whose name it remembers seconds, and the ids of the elements
    `generate`, `stop` (more than one with spaces between them) and `time`.
    """
    data = {"page": page, "plan": plan}
    attributes = " ".join(f'data-{name}="{_attribute(value)}"' for name, value in data.items())
    return f'<div class="hires-guidance" {attributes}></div>'


def _attribute(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return html.escape(text, quote=True)
