"""What a run will do, before it starts: every pass and step, their questions and their cost.

`run_plan` serves every host. `RunPlan.sentence` is the line that users see, and the live drawing
(lib_hires/run/drawing.py) shows the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from lib_hires.attentive_guidance import gamma_at
from lib_hires.noise import NoiseFamily, VarianceExploding, VariancePreserving
from lib_hires.refinement import Stage, plan
from lib_hires.resample import Reduction
from lib_hires.run.passes import (
    Kind,
    guided_at,
    guides,
    idle_reason,
    in_windows,
    mixes,
    pass_name,
)
from lib_hires.run.schedules import Model, Sampler, Sampling, schedule_times
from lib_hires.settings import Settings
from lib_hires.sizes import Size, count, shown
from lib_hires.upsample_guidance import guidance_weight, shifted_schedule
from lib_hires.windows import corners


@dataclass(frozen=True)
class TailPass:
    """A pass over an image: the last `steps` of a schedule of `of` steps."""

    size: Size
    steps: int
    of: int
    sampler: Sampler | None = None  # of its own
    schedule: str | None = None  # of its own


@dataclass(frozen=True)
class PlannedPass:
    """One pass or stage; the lists have one entry for each step."""

    kind: Kind
    number: int  # of a stage, counted from 1; 0 for a pass that the host makes by itself
    size: Size
    strength: float  # the share of the schedule that it denoises
    small: Size | None  # of the native-size question; None where there is none to ask
    timesteps: tuple[float, ...]  # at which the steps begin
    weights: tuple[float, ...]  # w_t there
    asked: tuple[bool, ...]  # whether the step asks the native-size question
    gammas: tuple[float, ...]  # gamma_t of the mixing after the step
    evaluations: int  # of the model, those of the native-size question included
    small_evaluations: int
    windows: int  # of the small size, in which an evaluation of the image is made; 1: whole

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def guided_steps(self) -> int:
        return sum(weight > 0 for weight in self.weights)

    @property
    def mixed_steps(self) -> int:
        return sum(gamma > 0 for gamma in self.gammas)

    @property
    def pixels(self) -> int:
        """The evaluations, each counted as the pixels that it sees."""
        small = math.prod(self.small or (0,))
        large = math.prod(self.size) if self.windows == 1 else self.windows * small
        return (self.evaluations - self.small_evaluations) * large + self.small_evaluations * small

    def sentence(self) -> str:
        name = pass_name(self.kind, self.number)
        text = f"{name} {shown(self.size)} in {count(self.steps, 'step')}"
        guided = f"{self.guided_steps} guided at {shown(self.small)}" if self.small else ""
        windows = f"in {self.windows} windows" if self.windows > 1 else ""
        mixed = f"{self.mixed_steps} mixed" if self.mixed_steps else ""
        inside = ", ".join(filter(None, [guided, windows, mixed]))
        return f"{text} ({inside})" if inside else text


@dataclass(frozen=True)
class RunPlan:
    """The passes in their order. The plain run is what the host would do without us.

    Numbers relative to it are 0 where it evaluates nothing. The one small evaluation of a stage
    that a feature upsampler serves is not counted.
    """

    passes: tuple[PlannedPass, ...]
    plain_evaluations: int
    plain_pixels: int
    idle: str  # why Upsample Guidance, though on, guides nothing

    @property
    def evaluations(self) -> int:
        return sum(part.evaluations for part in self.passes)

    @property
    def relative_evaluations(self) -> float:
        return self.evaluations / self.plain_evaluations if self.plain_evaluations else 0.0

    @property
    def relative_pixels(self) -> float:
        """The evaluations, each counted as the pixels that it sees, beside the plain run's."""
        pixels = sum(part.pixels for part in self.passes)
        return pixels / self.plain_pixels if self.plain_pixels else 0.0

    def sentence(self) -> str:
        """The line before the run."""
        passes = ", then ".join(part.sentence() for part in self.passes)
        cost = count(self.evaluations, "model evaluation")
        if self.evaluations == self.plain_evaluations:
            cost += ", as in the plain run"
        elif self.plain_evaluations:
            cost += f", {_short(self.relative_evaluations)} times the plain run's"
            cost += f" ({_short(self.relative_pixels)} times by pixels)"
        idle = f" Upsample Guidance does nothing here, because {self.idle}." if self.idle else ""
        return f"{passes[0].upper()}{passes[1:]}: {cost}.{idle}"


def run_plan(
    settings: Settings, sampling: Sampling, model: Model, second: TailPass | None = None
) -> RunPlan:
    """Plan a run; second: that of Hires. fix. Raises SettingsError where it would be refused."""
    planner = _Planner(settings, sampling, model)
    host = [planner.first_pass(), *([planner.second_pass(second)] if second else [])]
    stages: tuple[Stage, ...] = ()
    if settings.refine.enabled:
        stages = plan(settings.refine, host[-1].size, multiple=model.multiple, factor=model.factor)
    passes = (*host, *map(planner.stage_pass, stages))
    plain = [part.evaluations - part.small_evaluations for part in host]
    plain_pixels = sum(n * math.prod(part.size) for n, part in zip(plain, host, strict=True))
    return RunPlan(passes, sum(plain), plain_pixels, planner.idle(passes))


@dataclass(frozen=True)
class _Planner:
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

    def first_pass(self) -> PlannedPass:
        sampling, times = self.sampling, self.whole
        if sampling.strength is not None:
            return self._from_image(min(sampling.strength, 0.999))
        small = self._small("text", sampling.first)
        if small and self.settings.ug.shifted_start and not sampling.sampler.timesteps:
            sizes = self.model.latent(sampling.first), self.model.latent(small)
            gain = Reduction.between(*sizes).noise_gain
            times = shifted_schedule(torch.tensor(times, dtype=torch.float64), gain).tolist()
        return self._pass("text", sampling.first, times, 1.0, mixed_of=sampling.steps)

    def second_pass(self, second: TailPass) -> PlannedPass:
        own = replace(
            self.sampling,
            sampler=second.sampler or self.sampling.sampler,
            schedule=second.schedule or self.sampling.schedule,
        )
        planner = replace(self, sampling=own)
        return planner._tail_pass("hires", second, second.steps / second.of)

    def _from_image(self, strength: float) -> PlannedPass:
        sampling = self.sampling
        if sampling.fixed_steps:
            steps, of = sampling.steps, int(sampling.steps / max(strength, 0.01))
        else:
            steps, of = int(strength * sampling.steps) + 1, sampling.steps
        return self._tail_pass("image", TailPass(sampling.first, steps, of), strength)

    def stage_pass(self, stage: Stage) -> PlannedPass:
        times = stage.times(self.whole, self._time_at)
        return self._pass("stage", stage.size, times, stage.strength, number=stage.number)

    def idle(self, passes: Sequence[PlannedPass]) -> str:
        """Why no pass is guided although Upsample Guidance is on."""
        ug = self.settings.ug
        if not (ug.enabled and ug.theta) or any(part.small for part in passes):
            return ""
        sizes = [part.size for part in passes if guides(self.settings, part.kind)]
        return idle_reason(ug.passes, sizes, self.model.native)

    def _tail_pass(self, kind: Kind, part: TailPass, strength: float) -> PlannedPass:
        """Timestep samplers begin one step later."""
        times = schedule_times(replace(self.sampling, steps=part.of), self.model)
        count = part.steps - 1 if self.sampling.sampler.timesteps else part.steps + 1
        return self._pass(kind, part.size, times[-max(2, count) :], strength, part.of, part.steps)

    def _pass(
        self,
        kind: Kind,
        size: Size,
        times: Sequence[float],
        strength: float,
        of: int = 0,
        mixed_of: int = 0,
        number: int = 0,
    ) -> PlannedPass:
        """of: the steps of the whole schedule; mixed_of: the steps that gamma_t counts."""
        small = self._small(kind, size)
        timesteps = self.family.timestep(torch.tensor(times[:-1], dtype=torch.float64))
        weights = torch.zeros_like(timesteps)
        if small:
            weights = guidance_weight(
                timesteps,
                self.settings.ug,
                training_steps=len(self.model.sigmas),
                steps=of or len(self.whole) - 1,
            )
        asked = _asked(weights.tolist(), self.settings.ug.cadence)
        steps = len(timesteps)  # none where DDIM or PLMS is to make one
        sampler = self.sampling.sampler
        each = ([sampler.evaluations] * (steps - 1) + [1])[:steps]
        each[:1] = [n + sampler.opening for n in each[:1]]
        every_time = self.settings.ug.cadence == 1  # also in the second evaluation of a step
        small_calls = sum(
            n if every_time else 1 for n, asks in zip(each, asked, strict=True) if asks
        )
        return PlannedPass(
            kind,
            number,
            size,
            strength,
            small,
            tuple(timesteps.tolist()),
            tuple(weights.tolist()),
            asked,
            self._gammas(kind, mixed_of, steps),
            sum(each) + small_calls,
            small_calls,
            self._windows(kind, size, small),
        )

    def _windows(self, kind: Kind, size: Size, small: Size | None) -> int:
        """In how many windows of the small size an image of `size`, both in pixels, is asked."""
        if small is None or not in_windows(self.settings, kind):
            return 1
        sizes = self.model.latent(size), self.model.latent(small)
        return len(corners(*sizes, self.settings.ug.overlap))

    def _gammas(self, kind: Kind, of: int, steps: int) -> tuple[float, ...]:
        if not mixes(self.settings, kind):
            return (0.0,) * steps
        pfsa = self.settings.pfsa
        gammas = (gamma_at(done, of, pfsa) for done in range(1, steps))
        return (*gammas, *[0.0] * min(steps, 1))  # the last state is the finished image

    def _small(self, kind: Kind, size: Size) -> Size | None:
        """The size, in pixels, of the native-size question about an image of `size`."""
        model = self.model
        small = guided_at(
            self.settings,
            kind,
            model.latent(size),
            native=model.latent(model.native),
            multiple=model.multiple // model.factor,
        )
        return small and (small[0] * model.factor, small[1] * model.factor)

    def _time_at(self, timestep: float) -> float:
        """The sampler's time of a training timestep, counted as if there were 1000."""
        if self.sampling.sampler.timesteps:
            return timestep
        timestep *= len(self.model.sigmas) / 1000
        return float(self.model.sigma_at(torch.tensor(timestep, dtype=torch.float64)))


def _asked(weights: Sequence[float], cadence: int) -> tuple[bool, ...]:
    """Which steps ask: of those with guidance the first, and every n-th step after it."""
    asked: list[bool] = []
    last = -cadence
    for step, weight in enumerate(weights):
        asked.append(weight > 0 and step >= last + cadence)
        last = step if asked[-1] else last
    return tuple(asked)


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
