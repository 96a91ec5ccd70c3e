"""What a run will do, before it starts: sizes after rounding, steps, model evaluations.

One function, `run_plan`, for every host; `RunPlan.sentence` is the line that users see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lib_hires.attentive_guidance import gamma_at
from lib_hires.passes import Kind, guides, mixes
from lib_hires.refinement import Stage, plan
from lib_hires.settings import Settings
from lib_hires.sizes import Size, small_size
from lib_hires.upsample_guidance import guidance_weight

_NAMES: dict[Kind, str] = {"text": "first pass", "image": "img2img", "hires": "Hires. fix"}


@dataclass(frozen=True)
class Sizes:
    """What a model takes, in pixels."""

    native: Size  # (height, width)
    multiple: int  # of which sides should be multiples
    factor: int = 8  # pixels per latent position


@dataclass(frozen=True)
class HostPass:
    """A pass that the host makes with or without us.

    times: the shares of the training timesteps at which its steps begin, decreasing from 1, and a
    last 0. steps: how many of them, counted from the end, the pass denoises; 0 for all.
    """

    kind: Kind
    size: Size
    times: tuple[float, ...]
    steps: int = 0

    @classmethod
    def even(cls, kind: Kind, size: Size, steps: int, of: int = 0) -> HostPass:
        """The last `steps` of `of` steps (0: of as many), evenly spaced, as near as one knows
        where a sampler's own schedule is not at hand."""
        of = max(of, steps)
        return cls(kind, size, tuple(1 - step / of for step in range(of + 1)), steps)


@dataclass(frozen=True)
class PlannedPass:
    """One pass or stage. small: the size, in pixels, of the native-size question; None: unguided.

    evaluations: of the model, where the pair for classifier-free guidance counts as one; the small
    questions are among them.
    """

    name: str
    size: Size
    strength: float  # the share of the schedule's steps that it denoises
    steps: int
    small: Size | None
    guided_steps: int
    mixed_steps: int
    evaluations: int
    small_evaluations: int

    @property
    def pixels(self) -> int:
        """The evaluations, each counted by the pixels that it sees."""
        large = (self.evaluations - self.small_evaluations) * math.prod(self.size)
        return large + (self.small_evaluations * math.prod(self.small) if self.small else 0)

    def sentence(self) -> str:
        text = f"{self.name} {_shown(self.size)} in {_count(self.steps, 'step')}"
        guided = f"{self.guided_steps} guided at {_shown(self.small)}" if self.small else ""
        mixed = f"{self.mixed_steps} mixed" if self.mixed_steps else ""
        inside = ", ".join(filter(None, [guided, mixed]))
        return f"{text} ({inside})" if inside else text


@dataclass(frozen=True)
class RunPlan:
    """The passes in their order; plain is what the host would do without us."""

    passes: tuple[PlannedPass, ...]
    native: Size
    plain_evaluations: int
    plain_pixels: int
    idle: bool  # Upsample Guidance is on and guides nothing

    @property
    def final(self) -> Size:
        return self.passes[-1].size

    @property
    def evaluations(self) -> int:
        return sum(part.evaluations for part in self.passes)

    @property
    def relative_evaluations(self) -> float:
        return self.evaluations / self.plain_evaluations

    @property
    def relative_pixels(self) -> float:
        """The evaluations counted by their pixels, beside the plain run's."""
        return sum(part.pixels for part in self.passes) / self.plain_pixels

    def sentence(self) -> str:
        """The line before the run."""
        passes = ", then ".join(part.sentence() for part in self.passes)
        cost = _count(self.evaluations, "model evaluation")
        if self.evaluations == self.plain_evaluations:
            cost += ", as in the plain run"
        else:
            cost += f", {_short(self.relative_evaluations)} times the plain run's"
            cost += f" ({_short(self.relative_pixels)} times by pixels)"
        text = f"{passes[0].upper()}{passes[1:]}: {cost}."
        if self.idle:
            text += (
                " Upsample Guidance does nothing here: no guided pass is clearly above the native "
                f"{_shown(self.native)}."
            )
        return text


def run_plan(
    settings: Settings, host: Sequence[HostPass], sizes: Sizes, *, evaluations_per_step: int = 1
) -> RunPlan:
    """Plan a run from the passes that the host makes, the first picture's first.

    Refinement's stages denoise the tail of the first of them's schedule. Raises SettingsError where
    the run would be refused.
    """
    made = [_planned(settings, part, sizes, evaluations_per_step) for part in host]
    plain = [part.evaluations - part.small_evaluations for part in made]
    if settings.refine.enabled:
        stages = plan(settings.refine, host[-1].size, multiple=sizes.multiple, factor=sizes.factor)
        for stage in stages:
            part = _stage_pass(stage, host[0].times)
            made.append(_planned(settings, part, sizes, evaluations_per_step, stage))
    ug = settings.ug
    return RunPlan(
        tuple(made),
        sizes.native,
        sum(plain),
        sum(count * math.prod(part.size) for count, part in zip(plain, host, strict=True)),
        idle=ug.enabled and ug.theta > 0 and all(part.small is None for part in made),
    )


def _stage_pass(stage: Stage, times: tuple[float, ...]) -> HostPass:
    part = stage.times(times, lambda timestep: timestep / 1000)
    return HostPass("stage", stage.size, times, len(part) - 1)


def _planned(
    settings: Settings, part: HostPass, sizes: Sizes, per_step: int, stage: Stage | None = None
) -> PlannedPass:
    begins, whole = _tail(part), len(part.times) - 1
    small = _small(settings, part, sizes)
    guided = _guided_steps(settings, begins, whole) if small else []
    cadence, last = settings.ug.cadence, len(begins) - 1
    if cadence == 1:
        small_evaluations = _evaluations(guided, last, per_step)
    else:
        small_evaluations = math.ceil(len(guided) / cadence)
    return PlannedPass(
        name=f"stage {stage.number}" if stage else _NAMES[part.kind],
        size=part.size,
        strength=len(begins) / whole,
        steps=len(begins),
        small=small if guided else None,
        guided_steps=len(guided),
        mixed_steps=_mixed_steps(settings, part.kind, len(begins)),
        evaluations=_evaluations(range(len(begins)), last, per_step) + small_evaluations,
        small_evaluations=small_evaluations,
    )


def _evaluations(steps: Sequence[int], last: int, per_step: int) -> int:
    """Of the model in these steps; samplers with two a step make one in their last."""
    return len(steps) * per_step - (per_step - 1) * (last in steps)


def _tail(part: HostPass) -> tuple[float, ...]:
    """The times at which the pass's steps begin."""
    return part.times[:-1][-part.steps :] if part.steps else part.times[:-1]


def _small(settings: Settings, part: HostPass, sizes: Sizes) -> Size | None:
    """The size of the native-size question in pixels; None where the pass is not guided."""
    if not guides(settings, part.kind):
        return None
    ug, factor = settings.ug, sizes.factor
    latent = part.size[0] // factor, part.size[1] // factor
    native = sizes.native[0] // factor, sizes.native[1] // factor
    small = small_size(latent, native, ug.scale, sizes.multiple // factor)
    return small and (small[0] * factor, small[1] * factor)


def _guided_steps(settings: Settings, begins: Sequence[float], whole: int) -> list[int]:
    """The numbers of the steps in which w_t is not 0."""
    weights = guidance_weight(torch.tensor(begins), settings.ug, training_steps=1, steps=whole)
    return weights.nonzero().flatten().tolist()


def _mixed_steps(settings: Settings, kind: Kind, steps: int) -> int:
    """The steps after which Attentive Guidance mixes; the last one's picture is left as it is."""
    if not mixes(settings, kind):
        return 0
    return sum(gamma_at(steps - done, steps, settings.pfsa) > 0 for done in range(1, steps))


def _shown(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
