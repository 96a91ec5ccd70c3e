"""The shifted start: a pipeline's schedule raised when it prepares its first noise."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from lib_hires.diffusers.hook import GuidanceHook
from lib_hires.diffusers.levels import has_sigmas, is_flow
from lib_hires.run.passes import guides
from lib_hires.upsample_guidance import shifted_schedule

log = logging.getLogger("hires_guidance")

SCHEDULERS = (  # which sample along their `sigmas`, and along nothing else
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)


class ShiftedStart:
    """Stands in for a pipeline's `prepare_latents`, which makes the noise after the schedule."""

    def __init__(self, prepare: Callable[..., Any], hook: GuidanceHook) -> None:
        self._prepare, self._hook = prepare, hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's latents, at the raised schedule's first noise level."""
        latents = self._prepare(*args, **kwargs)
        hook, scheduler = self._hook, self._hook.pipe.scheduler
        hook.shifted = None
        if not guides(hook.settings, hook.kind) or not hasattr(latents, "shape"):
            return latents
        reduction = hook.reduction(tuple(latents.shape[-2:]))
        if reduction is None or latents.ndim < 4 or is_flow(scheduler):
            return latents
        if type(scheduler).__name__ not in SCHEDULERS or not has_sigmas(scheduler):
            log.info("no higher starting noise with %s", type(scheduler).__name__)
            return latents
        before = float(scheduler.init_noise_sigma)
        sigmas = shifted_schedule(scheduler.sigmas, reduction.noise_gain)
        scheduler.sigmas = hook.shifted = sigmas
        return latents * (float(scheduler.init_noise_sigma) / before)


def shift_start(pipe: Any, hook: GuidanceHook) -> None:
    """Raise the schedule of each run of `pipe` that starts from noise alone."""
    prepare = getattr(pipe, "prepare_latents", None)
    if not hook.settings.ug.shifted_start or prepare is None:
        return
    starts_elsewhere = {"image", "timestep", "video"} & set(inspect.signature(prepare).parameters)
    if starts_elsewhere or getattr(pipe, "controlnet", None) is not None:
        log.info("no higher starting noise with %s", type(pipe).__name__)
        return
    pipe.prepare_latents = ShiftedStart(prepare, hook)


def unshift_start(pipe: Any) -> None:
    """Undo `shift_start`."""
    if isinstance(vars(pipe).get("prepare_latents"), ShiftedStart):
        del pipe.prepare_latents
