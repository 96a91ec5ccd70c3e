"""The numbers behind the live drawing: what every step of a run will do, before it runs.

`tables` says what the engine would do. The browser computes the same numbers by itself, in
`javascript/hires_guidance.js`, from `facts`; `tests/drawing_tables.json` holds both to the same.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from lib_hires.attentive_guidance import gamma_at
from lib_hires.noise import NoiseFamily, VarianceExploding, VariancePreserving
from lib_hires.refinement import Stage, plan
from lib_hires.resample import Reduction
from lib_hires.schedules import Model, Sampler, Sampling, schedule_times
from lib_hires.settings import PASSES, Settings, declarations
from lib_hires.sizes import SMALLEST_SCALE, Size, small_size
from lib_hires.upsample_guidance import guidance_weight, shifted_schedule

BYTES = 4  # of one value of a latent, float32


@dataclass(frozen=True)
class Pass:
    """The first picture's sampling or one stage's; the lists have one entry for each step."""

    size: Size
    strength: float
    small: Size | None  # of the native-size question; None where there is none to ask
    timesteps: tuple[float, ...]  # at which the steps begin
    weights: tuple[float, ...]  # w_t there
    asked: tuple[bool, ...]  # whether the step asks the native-size question
    gammas: tuple[float, ...]  # gamma_t of the mixing after the step
    evaluations: int  # of the model, those of the native-size question included
    small_evaluations: int

    def work(self) -> float:
        """The evaluations, each counted as the pixels that it sees."""
        large = (self.evaluations - self.small_evaluations) * math.prod(self.size)
        return large + self.small_evaluations * math.prod(self.small or (0,))


def tables(settings: Settings, sampling: Sampling, model: Model) -> dict[str, Any]:
    """What the drawing shows, as plain values. Raises SettingsError where the run would.

    passes: the fields of each `Pass`. edge: the timestep and the step of the first pass at which
    its guidance ends, None where it lasts to the end. work: the evaluations counted by the pixels
    that they see, beside those of the run without us. latent_bytes: of one picture's largest
    latent.
    """
    outline = _Outline(settings, sampling, model)
    stages: tuple[Stage, ...] = ()
    if settings.refine.enabled:
        sizes = {"multiple": model.multiple, "factor": model.factor}
        stages = plan(settings.refine, sampling.first, **sizes)
    passes = [outline.first_pass(), *map(outline.stage_pass, stages)]
    plain = (len(passes[0].timesteps) - 1) * sampling.sampler.evaluations + 1
    return {
        "passes": [asdict(part) for part in passes],
        "edge": outline.edge(passes[0]),
        "evaluations": sum(part.evaluations for part in passes),
        "small_evaluations": sum(part.small_evaluations for part in passes),
        "plain_evaluations": plain,
        "work": sum(part.work() for part in passes) / (plain * math.prod(sampling.first)),
        "latent_bytes": math.prod(model.latent(passes[-1].size)) * model.channels * BYTES,
    }


@dataclass(frozen=True)
class _Outline:
    """Makes the passes of one run."""

    settings: Settings
    sampling: Sampling
    model: Model

    @cached_property
    def whole(self) -> list[float]:
        """The sampler's whole schedule, decreasing, the final time included."""
        return schedule_times(self.sampling, self.model)

    @cached_property
    def family(self) -> NoiseFamily:
        table = self.model.table
        if self.sampling.sampler.timesteps:
            return VariancePreserving(1 / (1 + table**2))
        return VarianceExploding(table)

    def first_pass(self) -> Pass:
        sampling = self.sampling
        kind = "first pass" if sampling.strength is None else "img2img"
        small = self._small(sampling.first, is_chosen(self.settings.ug.passes, kind))
        times, steps, strength = self.whole, sampling.steps, sampling.strength
        if strength is not None:
            steps = int(min(strength, 0.999) * steps) + 1
            times = times[-max(2, steps - 1 if sampling.sampler.timesteps else steps + 1) :]
        elif small and self.settings.ug.shifted_start and not sampling.sampler.timesteps:
            sizes = self.model.latent(sampling.first), self.model.latent(small)
            gain = Reduction.between(*sizes).noise_gain
            times = shifted_schedule(torch.tensor(times, dtype=torch.float64), gain).tolist()
        pfsa = self.settings.pfsa
        mixes = pfsa.enabled and is_chosen(pfsa.passes, kind)
        gammas = tuple(
            gamma_at(max(steps - done, 0), steps, pfsa) if mixes else 0.0
            for done in range(1, len(times))
        )
        return self._pass(times, sampling.first, small, 1 if strength is None else strength, gammas)

    def stage_pass(self, stage: Stage) -> Pass:
        times = stage.times(self.whole, self._time_at)
        small = self._small(stage.size, self.settings.refine.guided)
        return self._pass(times, stage.size, small, stage.strength, (0.0,) * (len(times) - 1))

    def edge(self, first: Pass) -> dict[str, float] | None:
        """Where the guidance of the first pass ends, if inside it."""
        if first.small is None or all(first.weights):
            return None
        end = (1 - self.settings.ug.eta) * len(self.model.sigmas)
        return {"timestep": end, "step": sum(weight > 0 for weight in first.weights)}

    def _pass(
        self,
        times: Sequence[float],
        size: Size,
        small: Size | None,
        strength: float,
        gammas: tuple[float, ...],
    ) -> Pass:
        timesteps = self.family.timestep(torch.tensor(times[:-1], dtype=torch.float64))
        weights = torch.zeros_like(timesteps)
        if small:
            weights = guidance_weight(
                timesteps,
                self.settings.ug,
                training_steps=len(self.model.sigmas),
                steps=len(self.whole) - 1,
            )
        asked = _asked(weights.tolist(), self.settings.ug.cadence)
        each = [self.sampling.sampler.evaluations] * (len(timesteps) - 1) + [1]
        every_time = self.settings.ug.cadence == 1  # also in the second evaluation of a step
        small_calls = sum(
            n if every_time else 1 for n, asks in zip(each, asked, strict=True) if asks
        )
        return Pass(
            size,
            strength,
            small,
            tuple(timesteps.tolist()),
            tuple(weights.tolist()),
            asked,
            gammas,
            sum(each) + small_calls,
            small_calls,
        )

    def _small(self, size: Size, guided: bool) -> Size | None:
        """The size, in pixels, of the native-size question about a picture of `size`."""
        ug, model = self.settings.ug, self.model
        if not (ug.enabled and ug.theta and guided):
            return None
        multiple = model.multiple // model.factor
        small = small_size(model.latent(size), model.latent(model.native), ug.scale, multiple)
        return small and (small[0] * model.factor, small[1] * model.factor)

    def _time_at(self, timestep: float) -> float:
        """The sampler's time of a training timestep, counted as if there were 1000."""
        if self.sampling.sampler.timesteps:
            return timestep
        timestep *= len(self.model.sigmas) / 1000
        return float(self.model.sigma_at(torch.tensor(timestep, dtype=torch.float64)))


def is_chosen(choice: str, kind: str) -> bool:
    """Whether a choice of passes has the first one in it, "first pass" or "img2img"."""
    return choice in ("automatic", kind) or (choice == "both" and kind == "first pass")


def _asked(weights: Sequence[float], cadence: int) -> tuple[bool, ...]:
    """Which steps ask: of those with guidance the first, and every n-th step after it."""
    asked: list[bool] = []
    last = -cadence
    for step, weight in enumerate(weights):
        asked.append(weight > 0 and step >= last + cadence)
        last = step if asked[-1] else last
    return tuple(asked)


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
    first_multiple: what the first picture's sides are rounded to.
    """
    rows = declarations()
    return {
        "model": asdict(model),
        "samplers": {name: asdict(sampler) for name, sampler in samplers.items()},
        "controls": {row.name: element_id(row.name) for row in rows},
        "defaults": {row.name: row.default for row in rows},
        "host": dict(host),
        "first_multiple": first_multiple,
        "chosen": {
            kind: [choice for choice in PASSES if is_chosen(choice, kind)]
            for kind in ("first pass", "img2img")
        },
        "smallest_scale": SMALLEST_SCALE,
        "bytes": BYTES,
    }


def element(facts: Mapping[str, Any]) -> str:
    """The HTML element that the page's script fills with the drawing."""
    data = html.escape(json.dumps(facts, ensure_ascii=False), quote=True)
    return f'<div class="hires-guidance" data-facts="{data}"></div>'
