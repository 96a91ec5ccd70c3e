"""Samplers' schedules before any run: the noise levels that a host's sampler will use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lib_hires.sizes import Size


@dataclass(frozen=True)
class Model:
    """What a plan needs of a model. Sizes are (height, width) in pixels."""

    sigmas: tuple[float, ...]  # of the training timesteps, increasing
    native: Size
    factor: int = 8  # pixels per latent position
    multiple: int = 64  # what sizes are rounded to
    channels: int = 4  # of a latent
    native_frames: int = 1  # of the motion module

    @cached_property
    def table(self) -> Tensor:
        """The training sigmas, (T,) float64."""
        return torch.tensor(self.sigmas, dtype=torch.float64)

    def sigma_at(self, timestep: Tensor) -> Tensor:
        """sigma of fractional training timesteps of any shape, linear in log sigma between."""
        logs = self.table.log()
        below = timestep.long().clamp(0, len(logs) - 2)
        return logs[below].lerp(logs[below + 1], timestep - below).exp()

    def latent(self, size: Size) -> Size:
        """An image's size in latent positions."""
        return size[0] // self.factor, size[1] // self.factor


def sigmas_of(alphas_cumprod: Tensor) -> tuple[float, ...]:
    """The training sigmas of DDPM's products abar (T,), to seven digits, short enough for JSON."""
    abar = alphas_cumprod.double()
    return tuple(float(f"{sigma:.7g}") for sigma in ((1 - abar) / abar).sqrt().tolist())


@dataclass(frozen=True)
class Sampler:
    """What a plan needs of a sampler."""

    evaluations: int = 1  # of the model in every step but the last
    opening: int = 0  # additional evaluations in the first step (PLMS)
    schedule: str = "Uniform"  # what "Automatic" stands for
    drops_penultimate: bool = False  # takes one more sigma and leaves out the last but one
    timesteps: bool = False  # steps along training timesteps (DDIM), not along sigmas
    ends_at_zero: bool = False  # of those: evaluates at the lowest timestep too (UniPC)
    own_steps: bool = False  # chooses steps of its own; the plan counts the schedule's


@dataclass(frozen=True)
class Sampling:
    """One run as a host would start it."""

    first: Size  # of the first image, in pixels
    steps: int
    sampler: Sampler = Sampler()
    schedule: str = "Automatic"
    strength: float | None = None  # of the WebUI's img2img; None starts from noise
    fixed_steps: bool = False  # img2img takes all steps, and stretches the schedule instead
    frames: int = 1  # of a clip


def schedule_times(sampling: Sampling, model: Model) -> list[float]:
    """The sampler's schedule, decreasing, the final time included: sigmas, or timesteps."""
    sampler, total = sampling.sampler, len(model.sigmas)
    if sampler.timesteps:
        rising = range(0, total, max(1, total // sampling.steps))
        times = [float(min(timestep + 1, total - 1)) for timestep in reversed(rising)]
        return [*times, 0.0] if sampler.ends_at_zero else times
    name = sampler.schedule if sampling.schedule == "Automatic" else sampling.schedule
    make = SCHEDULES.get(name, uniform)
    sigmas = make(sampling.steps + sampler.drops_penultimate, model).tolist()
    return [*sigmas[:-2], sigmas[-1]] if sampler.drops_penultimate else sigmas


def karras(steps: int, model: Model) -> Tensor:
    """Karras et al. 2022, eq. 5, rho 7, and 0."""
    first, last = model.table[-1] ** (1 / 7), model.table[0] ** (1 / 7)
    return _ended((first + _ramp(steps) * (last - first)) ** 7)


def exponential(steps: int, model: Model) -> Tensor:
    """Even in log sigma, and 0."""
    first, last = model.table[-1].log(), model.table[0].log()
    return _ended((first + _ramp(steps) * (last - first)).exp())


def uniform(steps: int, model: Model) -> Tensor:
    """Even in training timesteps, and 0."""
    return _ended(model.sigma_at((1 - _ramp(steps)) * (len(model.table) - 1)))


def sgm_uniform(steps: int, model: Model) -> Tensor:
    """Even in training timesteps, the smallest sigma left out, and 0."""
    return _ended(model.sigma_at((1 - _ramp(steps + 1)[:-1]) * (len(model.table) - 1)))


def simple(steps: int, model: Model) -> Tensor:
    """Every (T/steps)-th training sigma from the largest, and 0."""
    total = len(model.table)
    return _ended(torch.stack([model.table[-1 - int(i * (total / steps))] for i in range(steps)]))


def ddim(steps: int, model: Model) -> Tensor:
    """Every (T/steps)-th training sigma, counted from the second smallest, and 0."""
    return _ended(model.table[1 :: max(len(model.table) // steps, 1)].flip(0))


def kl_optimal(steps: int, model: Model) -> Tensor:
    """Even in the arc tangent of sigma; ends at the smallest sigma instead of 0."""
    first, last = model.table[-1].atan(), model.table[0].atan()
    return (first + _ramp(steps + 1) * (last - first)).tan()


SCHEDULES: Mapping[str, Callable[[int, Model], Tensor]] = {
    "Karras": karras,
    "Exponential": exponential,
    "Polyexponential": exponential,  # with the hosts' rho of 1
    "Uniform": uniform,
    "Normal": uniform,
    "SGM Uniform": sgm_uniform,
    "Simple": simple,
    "DDIM": ddim,
    "KL Optimal": kl_optimal,
}
"""By the names of the hosts; any other counts as Uniform."""


def _ramp(count: int) -> Tensor:
    """`count` numbers from 0 to 1, float64."""
    return torch.arange(count, dtype=torch.float64) / max(1, count - 1)


def _ended(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
