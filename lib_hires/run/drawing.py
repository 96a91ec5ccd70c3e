"""The numbers behind the live drawing: what every step of a run will do, before it runs.

`tables` says what the engine would do. The browser computes the same numbers by itself, in
`javascript/hires_guidance.js`, from `facts`; `tests/drawing_tables.json` holds both to the same.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from lib_hires.run.passes import is_chosen
from lib_hires.run.plan import PlannedPass, run_plan
from lib_hires.run.schedules import Model, Sampler, Sampling
from lib_hires.settings import PASSES, Settings, declarations
from lib_hires.sizes import SMALLEST_SCALE

BYTES = 4  # of one value of a latent, float32


def tables(settings: Settings, sampling: Sampling, model: Model) -> dict[str, Any]:
    """What the drawing shows, as plain values. Raises SettingsError where the run would.

    passes: the fields of each `PlannedPass`. edge: the timestep and the step of the first pass at
    which its guidance ends, None where it lasts to the end. work: the evaluations counted by the
    pixels that they see, beside those of the run without us. latent_bytes: of one image's
    largest latent.
    """
    made = run_plan(settings, sampling, model)
    final = made.passes[-1].size
    return {
        "passes": [_drawn(part) for part in made.passes],
        "edge": _edge(made.passes[0], settings, model),
        "evaluations": made.evaluations,
        "native_evaluations": sum(part.native_evaluations for part in made.passes),
        "plain_evaluations": made.plain_evaluations,
        "work": made.relative_pixels,
        "latent_bytes": math.prod(model.latent(final)) * model.channels * BYTES,
    }


def _drawn(part: PlannedPass) -> dict[str, Any]:
    """What the script computes of a pass too."""
    return {key: value for key, value in asdict(part).items() if key not in ("kind", "number")}


def _edge(first: PlannedPass, settings: Settings, model: Model) -> dict[str, float] | None:
    """Where the guidance of the first pass ends, if inside it."""
    if first.small is None or all(first.weights):
        return None
    return {
        "timestep": (1 - settings.ug.eta) * len(model.sigmas),
        "step": first.guided_steps,
    }


def facts(
    model: Model,
    samplers: Mapping[str, Sampler],
    *,
    element_id: Callable[[str], str],
    host: Mapping[str, str],
    first_multiple: int = 1,
) -> dict[str, Any]:
    """What the page's script needs to draw by itself.

    element_id: of a control, by its name. host: the ids of the elements that hold width, height,
    steps, sampler, schedule, strength, batch and more, as far as the host has them.
    first_multiple: what the first image's sides are rounded to.
    """
    rows = declarations()
    return {
        "model": asdict(model),
        "samplers": {name: asdict(sampler) for name, sampler in samplers.items()},
        "controls": {row.name: element_id(row.name) for row in rows},
        "defaults": {row.name: row.default for row in rows},
        "least": {row.name: row.control.minimum for row in rows if row.control.automatic},
        "host": dict(host),
        "first_multiple": first_multiple,
        "chosen": {
            "first pass": [choice for choice in PASSES if is_chosen(choice, "text")],
            "img2img": [choice for choice in PASSES if is_chosen(choice, "image")],
        },
        "smallest_scale": SMALLEST_SCALE,
        "bytes": BYTES,
    }


def element(facts: Mapping[str, Any]) -> str:
    """The HTML element that the page's script fills with the drawing."""
    data = html.escape(json.dumps(facts, ensure_ascii=False), quote=True)
    return f'<div class="hires-guidance" data-facts="{data}"></div>'
