"""The host's schedules as the engine knows them, and back."""

from __future__ import annotations

from typing import Any

import torch
from modules import devices, shared
from torch import Tensor

from lib_hires.noise import Flow
from lib_hires.refinement import Stage
from lib_hires.webui.hosts.noise import is_flow


def whole_schedule(sampler: Any, made: Tensor) -> list[float]:
    """What the sampler has made for itself, decreasing, the final time included.

    Sigmas end in 0. DDIM and PLMS stop at their lowest timestep; UniPC along timesteps evaluates
    there too.
    """
    times: list[float] = sorted(made.tolist(), reverse=True)
    along_sigmas = hasattr(sampler, "get_sigmas")
    return [*times, 0.0] if sampler.config.name == "UniPC" and not along_sigmas else times


def stage_times(sampler: Any, run: Any, stage: Stage) -> tuple[list[float], list[float]]:
    """The sampler's whole schedule and the stage's part of it, both decreasing."""
    if hasattr(sampler, "get_sigmas"):
        whole = whole_schedule(sampler, sampler.get_sigmas(run, run.steps))

        def sigma_at(timestep: float) -> float:
            if is_flow(sampler.model_wrap.sigmas):
                return timestep / Flow().training_steps
            return float(sampler.model_wrap.t_to_sigma(torch.tensor(float(timestep))))

        return whole, stage.times(whole, sigma_at)
    whole = whole_schedule(sampler, sampler.get_timesteps(run, run.steps))
    times = stage.times(whole, lambda timestep: timestep)
    least = shared.opts.uni_pc_order + 1 if sampler.config.name == "UniPC" else 2
    if len(times) < least:  # UniPC refuses fewer steps than its order
        times = torch.linspace(times[0], times[-1], least).round().tolist()
    return whole, times


def host_schedule(sampler: Any, times: list[float]) -> tuple[str, Tensor, int]:
    """How to make `sample_img2img` sample exactly `times`.

    Returns the name of the method to replace, what it is to return, and the steps to ask for. At
    strength 1 k-diffusion's samplers take the sigmas as they are. Timestep samplers want them
    increasing and renoise to the one behind the last that they are given: here the last once more.
    UniPC knows its final time itself.
    """
    if hasattr(sampler, "get_sigmas"):
        return "get_sigmas", torch.tensor(times), len(times) - 1
    given = times[:-1] if sampler.config.name == "UniPC" else times
    increasing = torch.tensor([*given[::-1], given[0]], device=devices.device).long()
    return "get_timesteps", increasing, len(given) + 1
