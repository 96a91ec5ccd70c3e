"""The scope around one sampling in which a host's sampler is guided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lib_hires.resample import Reduction
from lib_hires.run.passes import Kind, guided_at, mixes
from lib_hires.run.record import RunRecord
from lib_hires.settings import Settings
from lib_hires.sizes import Size
from lib_hires.upsample_guidance import shifted_schedule
from lib_hires.webui.hosts import guiding, host_of
from lib_hires.webui.hosts.model import ModelSizes
from lib_hires.webui.hosts.noise import is_flow
from lib_hires.webui.hosts.protocol import CONTROLNET_SEES_WHOLE, FACTOR, GuidedPass
from lib_hires.webui.messages import Warn
from lib_hires.webui.patching import replaced
from lib_hires.webui.sampling.attentive import WITHOUT_STEPS, mixing, reason_not_to_mix
from lib_hires.webui.sampling.controlnet import ControlNet
from lib_hires.webui.sampling.recording import counting
from lib_hires.webui.sampling.schedules import whole_schedule


@dataclass(frozen=True)
class Guidance:
    """How one sampling is to be guided."""

    settings: Settings
    sizes: ModelSizes
    kind: Kind
    warn: Warn
    record: RunRecord
    controlnet: ControlNet | None = None  # where the run has units of it

    def reduction(self, large: Size) -> Reduction | None:
        """D and U for a latent of size (height, width); None where UG has nothing to do."""
        small = guided_at(
            self.settings,
            self.kind,
            large,
            native=self.sizes.native_latent,
            multiple=self.sizes.multiple // FACTOR,
        )
        smooth = self.settings.ug.enlargement == "bicubic"
        return small and Reduction.between(large, small, smooth)


@contextmanager
def guided(
    sampler: Any, x: Tensor, guidance: Guidance, times: Sequence[float] | None = None
) -> Iterator[None]:
    """Guide what `sampler` samples inside the block; afterwards it is as before, whatever happens.

    x: a latent of the pass's size. times: the whole schedule, where the sampler is given a part.
    """
    size = x.shape[-2], x.shape[-1]
    reduction = guidance.reduction(size)
    with ExitStack() as stack:
        stack.enter_context(counting(sampler, guidance.record.current))
        if guidance.controlnet is not None:
            small = reduction and reduction.small
            asked = guidance.settings.ug.controlnet
            fitting = guidance.controlnet.fitting(guidance.kind, small, asked, guidance.warn)
            stack.enter_context(fitting)
        if reduction is not None:
            _guide(stack, sampler, size, reduction.to(x.device), guidance, times)
        if mixes(guidance.settings, guidance.kind):
            reason = reason_not_to_mix(sampler.config)
            if reason:
                guidance.warn(f"Attentive Guidance was left out, because {reason}.")
            else:
                mixed = guidance.record.current.mix
                stack.enter_context(mixing(sampler, guidance.settings.pfsa, mixed, guidance.warn))
        yield


def _without_windows(sampler: Any, guidance: Guidance) -> Guidance:
    """The same where windows are not asked for or work here; else without, and a sentence."""
    sd_model = sampler.model_wrap_cfg.inner_model.inner_model
    reason = reason_for_whole(sd_model, guidance.controlnet)
    if guidance.settings.ug.windows == "off" or not reason:
        return guidance
    guidance.warn(f"the large image was asked about as a whole, because {reason}.")
    return replace(guidance, settings=guidance.settings.updated({"ug_windows": "off"}))


def reason_for_whole(sd_model: Any, controlnet: ControlNet | None) -> str:
    """Why a large image cannot be asked about in windows, "" where it can."""
    if controlnet is not None:
        return CONTROLNET_SEES_WHOLE
    return host_of(sd_model).reason_for_whole(sd_model)


def _guide(
    stack: ExitStack,
    sampler: Any,
    size: Size,
    reduction: Reduction,
    guidance: Guidance,
    times: Sequence[float] | None,
) -> None:
    """Put Upsample Guidance around what the sampler asks the model until `stack` closes."""
    denoiser = sampler.model_wrap_cfg
    reason = host_of(denoiser.inner_model.inner_model).reason_not_to_guide(sampler.config)
    if reason:
        guidance.warn(f"Upsample Guidance was left out, because {reason}.")
        return
    guidance = _without_windows(sampler, guidance)
    if times is None:
        times = _follow_schedule(stack, sampler, reduction, guidance)
    pass_ = GuidedPass(
        size,
        reduction,
        guidance.settings.ug,
        times,
        on_guided=guidance.record.current.guide,
        warn=guidance.warn,
    )
    stack.enter_context(guiding(denoiser, pass_))


def _follow_schedule(
    stack: ExitStack, sampler: Any, reduction: Reduction, guidance: Guidance
) -> list[float]:
    """A list that will hold the schedule as soon as the sampler has made it.

    From pure noise the schedules of VE samplers are stretched upward, and with them the starting
    noise, which the host scales by the first sigma. DPM fast and adaptive make their own, and flow
    models start with no signal at all, at every size.
    """
    times: list[float] = []
    shifts = guidance.kind == "text" and guidance.settings.ug.shifted_start
    name = "get_sigmas" if hasattr(sampler, "get_sigmas") else "get_timesteps"
    shifts = shifts and name == "get_sigmas" and not is_flow(sampler.model_wrap.sigmas)
    make = getattr(sampler, name)

    def schedule(p: Any, steps: int) -> Tensor:
        made = make(p, steps)
        if shifts and sampler.config.name not in WITHOUT_STEPS:
            made = shifted_schedule(made, reduction.noise_gain)
        times[:] = whole_schedule(sampler, made)
        return made

    stack.enter_context(replaced(sampler, name, schedule))
    return times
