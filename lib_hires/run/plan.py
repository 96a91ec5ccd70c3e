"""What a run will do, before it starts: every pass and step, its evaluations and its cost.

`run_plan` serves every host. `RunPlan.summary` is the line that users see, and the page draws the
same plan (lib_hires/run/drawing.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lib_hires.attentive_guidance import gamma_at
from lib_hires.detail.unfinished import left_at, level_before
from lib_hires.noise import NoiseFamily, VarianceExploding, VariancePreserving
from lib_hires.refinement import plan
from lib_hires.resample import Reduction
from lib_hires.run.evaluations import count_evaluations, evaluations_of_steps, native_steps
from lib_hires.run.passes import (
    Kind,
    clip_guided_at,
    guides,
    idle_reason,
    in_windows,
    mixes,
    pass_name,
)
from lib_hires.run.schedules import Model, Sampler, Sampling, schedule_times
from lib_hires.settings import Settings, UpsampleGuidance
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
    small: Size | None  # of its native evaluations; None where it is not guided
    timesteps: tuple[float, ...]  # at which the steps begin
    weights: tuple[float, ...]  # w_t there
    evaluates_native: tuple[bool, ...]  # whether the step makes a native evaluation
    gammas: tuple[float, ...]  # gamma_t of the mixing after the step
    evaluations: int  # of the model, native evaluations included
    native_evaluations: int
    windows: int  # of the size `small`, for each evaluation of the image; 1: at full size
    frames: int = 1  # of a clip
    small_frames: int = 1  # of its native evaluations
    whole_steps: int = 0  # that it would take if it were finished; 0: it is
    guided_share: float = 0.0  # eta, where it is guided

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
        full = (self.evaluations - self.native_evaluations) * large * self.frames
        return full + self.native_evaluations * small * self.small_frames

    def summary(self) -> str:
        name = pass_name(self.kind, self.number)
        steps = count(self.steps, "step")
        if self.whole_steps:
            steps = f"{self.steps} of {count(self.whole_steps, 'step')}"
        text = f"{name} {_shown(self.size, self.frames)} in {steps}"
        guided = ""
        if self.small:
            native = _shown(self.small, self.small_frames if self.frames > 1 else 1)
            guided = f"{self.guided_steps} guided at {native}"
        windows = f"in {self.windows} windows" if self.windows > 1 else ""
        mixed = f"{self.mixed_steps} mixed" if self.mixed_steps else ""
        inside = ", ".join(filter(None, [guided, windows, mixed]))
        return f"{text} ({inside})" if inside else text


@dataclass(frozen=True)
class RunPlan:
    """The passes in their order. The plain run is what the host would do without us.

    Numbers relative to it are 0 where it evaluates nothing. The one evaluation that captures the
    features for a feature upsampler is not counted.
    """

    passes: tuple[PlannedPass, ...]
    plain_evaluations: int
    plain_pixels: int
    idle: str  # why Upsample Guidance guides nothing although it is on

    @property
    def evaluations(self) -> int:
        return sum(part.evaluations for part in self.passes)

    @property
    def relative_evaluations(self) -> float:
        return self.evaluations / self.plain_evaluations if self.plain_evaluations else 0.0

    @property
    def relative_pixels(self) -> float:
        """The evaluations, each counted as the pixels that it sees, relative to the plain run's."""
        pixels = sum(part.pixels for part in self.passes)
        return pixels / self.plain_pixels if self.plain_pixels else 0.0

    def summary(self) -> str:
        """The line before the run."""
        passes = ", then ".join(part.summary() for part in self.passes)
        cost = count(self.evaluations, "model evaluation")
        if self.evaluations == self.plain_evaluations:
            cost += ", as in the plain run"
        elif self.plain_evaluations:
            cost += f", {_short(self.relative_evaluations)} times the plain run's"
            cost += f" ({_short(self.relative_pixels)} times by pixels)"
        idle = f" Upsample Guidance does nothing here, because {self.idle}." if self.idle else ""
        return f"{passes[0].upper()}{passes[1:]}: {cost}.{idle}"


def run_plan(
    settings: Settings,
    sampling: Sampling,
    model: Model,
    second: TailPass | None = None,
    *,
    unfinished: str = "no",
) -> RunPlan:
    """Plan a run; second: that of Hires. fix. Raises SettingsError where the run would.

    unfinished: as `Detail` has it, for samplers that step along sigmas.
    """
    courses = [_first_course(settings, sampling, model)]
    if second:
        courses.append(_second_course(second, sampling, model))
    host = len(courses)
    if settings.refine.enabled:
        courses += _stage_courses(settings, sampling, model, before=courses[-1].size)
    plain = [sum(evaluations_of_steps(c.sampler, len(c.times) - 1)) for c in courses[:host]]
    plain_pixels = sum(n * math.prod(c.size) for n, c in zip(plain, courses, strict=False))
    plain_pixels *= sampling.frames
    if unfinished != "no" and not sampling.sampler.timesteps:
        courses = _left(courses, host, matched=unfinished == "matched")
    passes = tuple(_planned(course, settings, model, sampling.frames) for course in courses)
    return RunPlan(passes, sum(plain), plain_pixels, _idle(settings, passes, model))


# --- the passes as the sampler walks them ---------------------------------------------------------


@dataclass(frozen=True)
class _Course:
    """A pass before the techniques act on it: its image, its sampler and its times."""

    kind: Kind
    size: Size
    sampler: Sampler
    times: Sequence[float]  # decreasing, the final time included
    whole_steps: int  # of the whole schedule, by which the soft end of the guidance is measured
    strength: float = 1.0
    mixing_steps: int = 0  # T0, the steps that gamma_t counts
    number: int = 0
    left_early: int = 0  # steps that it would take if it were finished; 0: it is


def _first_course(settings: Settings, sampling: Sampling, model: Model) -> _Course:
    """The first pass, or img2img."""
    if sampling.strength is not None:
        return _image_course(min(sampling.strength, 0.999), sampling, model)
    times = schedule_times(sampling, model)
    whole_steps = len(times) - 1
    native = _native("text", sampling.first, sampling.frames, settings, model)
    if native and settings.ug.shifted_start and not sampling.sampler.timesteps:
        large = sampling.frames, *model.latent(sampling.first)
        gain = Reduction.between(large, (native[0], *model.latent(native[1]))).noise_gain
        times = shifted_schedule(torch.tensor(times, dtype=torch.float64), gain).tolist()
    return _Course(
        "text", sampling.first, sampling.sampler, times, whole_steps, mixing_steps=sampling.steps
    )


def _image_course(strength: float, sampling: Sampling, model: Model) -> _Course:
    if sampling.fixed_steps:
        steps, of = sampling.steps, int(sampling.steps / max(strength, 0.01))
    else:
        steps, of = int(strength * sampling.steps) + 1, sampling.steps
    return _tail_course("image", TailPass(sampling.first, steps, of), strength, sampling, model)


def _second_course(second: TailPass, sampling: Sampling, model: Model) -> _Course:
    own = replace(
        sampling,
        sampler=second.sampler or sampling.sampler,
        schedule=second.schedule or sampling.schedule,
    )
    return _tail_course("hires", second, second.steps / second.of, own, model)


def _tail_course(
    kind: Kind, part: TailPass, strength: float, sampling: Sampling, model: Model
) -> _Course:
    """Timestep samplers begin one step later."""
    times = schedule_times(replace(sampling, steps=part.of), model)
    count = part.steps - 1 if sampling.sampler.timesteps else part.steps + 1
    return _Course(
        kind, part.size, sampling.sampler, times[-max(2, count) :], part.of, strength, part.steps
    )


def _stage_courses(
    settings: Settings, sampling: Sampling, model: Model, *, before: Size
) -> list[_Course]:
    """before: the size of the image that the stages begin with."""
    steps = settings.refine.steps_of_stages(sampling.steps)
    whole = schedule_times(replace(sampling, steps=steps), model)
    time_at = partial(_time_at, sampler=sampling.sampler, model=model)
    stages = plan(settings.refine, before, multiple=model.multiple, factor=model.factor)
    return [
        _Course(
            "stage",
            stage.size,
            sampling.sampler,
            stage.times(whole, time_at),
            len(whole) - 1,
            stage.strength,
            number=stage.number,
        )
        for stage in stages
    ]


def _left(courses: Sequence[_Course], host: int, *, matched: bool) -> list[_Course]:
    """Each pass that a stage follows, left where that stage begins.

    host: how many passes are none of the stages; of them only the last is left.
    """
    left = list(courses)
    for place in range(host - 1, len(courses) - 1):
        course, after = courses[place], courses[place + 1]
        level = level_before(after.times[0], course.size, after.size, matched)
        times, steps = left_at(course.times, level), len(course.times) - 1
        early = steps if len(times) - 1 < steps else 0
        mixing = min(course.mixing_steps, len(times) - 1)
        left[place] = replace(course, times=times, mixing_steps=mixing, left_early=early)
    return left


def _time_at(timestep: float, *, sampler: Sampler, model: Model) -> float:
    """The sampler's time of a training timestep, counted as if there were 1000."""
    if sampler.timesteps:
        return timestep
    timestep *= len(model.sigmas) / 1000
    return float(model.sigma_at(torch.tensor(timestep, dtype=torch.float64)))


# --- what the techniques make of them -------------------------------------------------------------


def _planned(course: _Course, settings: Settings, model: Model, frames: int) -> PlannedPass:
    native_frames, small = _native(course.kind, course.size, frames, settings, model) or (1, None)
    timesteps = _timesteps(course, model)
    start = max(timesteps.tolist(), default=0.0) / len(model.sigmas)
    ug = settings.ug.decided(course.whole_steps, start)
    weights = _weights(timesteps, course, ug, model) if small else [0.0] * len(timesteps)
    native = native_steps(weights, ug.cadence)
    evaluations = count_evaluations(course.sampler, native, ug.cadence)
    return PlannedPass(
        kind=course.kind,
        number=course.number,
        size=course.size,
        strength=course.strength,
        small=small,
        timesteps=tuple(timesteps.tolist()),
        weights=tuple(weights),
        evaluates_native=native,
        gammas=_gammas(course, len(timesteps), settings),
        evaluations=evaluations.total,
        native_evaluations=evaluations.native,
        windows=_windows(course, small, settings, model),
        frames=frames,
        small_frames=native_frames,
        whole_steps=course.left_early,
        guided_share=ug.eta if small else 0.0,
    )


def _timesteps(course: _Course, model: Model) -> Tensor:
    """The training timesteps at which the steps begin; none where DDIM or PLMS is to make one."""
    family: NoiseFamily = VarianceExploding(model.table)
    if course.sampler.timesteps:
        family = VariancePreserving(1 / (1 + model.table**2))
    return family.timestep(torch.tensor(course.times[:-1], dtype=torch.float64))


def _weights(timesteps: Tensor, course: _Course, ug: UpsampleGuidance, model: Model) -> list[float]:
    """w_t of each step of a guided pass."""
    weights: list[float] = guidance_weight(
        timesteps, ug, training_steps=len(model.sigmas), steps=course.whole_steps
    ).tolist()
    return weights


def _gammas(course: _Course, steps: int, settings: Settings) -> tuple[float, ...]:
    """gamma_t after each step; the last state is the finished image."""
    if not mixes(settings, course.kind):
        return (0.0,) * steps
    gammas = (gamma_at(done, course.mixing_steps, settings.pfsa) for done in range(1, steps))
    return (*gammas, *[0.0] * min(steps, 1))


def _windows(course: _Course, small: Size | None, settings: Settings, model: Model) -> int:
    """In how many windows of the size `small`, in pixels, each evaluation of the image is made."""
    if small is None or not in_windows(settings, course.kind):
        return 1
    sizes = model.latent(course.size), model.latent(small)
    return len(corners(*sizes, settings.ug.overlap))


def _native(
    kind: Kind, size: Size, frames: int, settings: Settings, model: Model
) -> tuple[int, Size] | None:
    """The frames and the size, in pixels, of the native evaluations of an image of `size`."""
    found = clip_guided_at(
        settings,
        kind,
        model.latent(size),
        frames,
        native=model.latent(model.native),
        native_frames=model.native_frames,
        multiple=model.multiple // model.factor,
    )
    return found and (found[0], (found[1][0] * model.factor, found[1][1] * model.factor))


def _idle(settings: Settings, passes: Sequence[PlannedPass], model: Model) -> str:
    """Why no pass is guided although Upsample Guidance is on."""
    ug = settings.ug
    if not (ug.enabled and ug.theta) or any(part.small for part in passes):
        return ""
    sizes = [part.size for part in passes if guides(settings, part.kind)]
    return idle_reason(ug, sizes, model.native)


def _shown(size: Size, frames: int) -> str:
    return shown(size) if frames == 1 else f"{shown(size)} of {frames} frames"


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
