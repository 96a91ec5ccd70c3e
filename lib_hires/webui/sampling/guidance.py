"""The scope around one sampling in which a host's sampler is guided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from lib_hires.resample import Reduction
from lib_hires.run.passes import Kind, clip_guided_at, mixes
from lib_hires.settings import Settings
from lib_hires.sizes import Size
from lib_hires.upsample_guidance import shifted_schedule
from lib_hires.webui.animatediff import WHOLE, Clip, clip_of
from lib_hires.webui.hosts import guiding, host_of
from lib_hires.webui.hosts.model import ModelSizes
from lib_hires.webui.hosts.noise import is_flow
from lib_hires.webui.hosts.protocol import CONTROLNET_SEES_WHOLE, FACTOR, GuidedPass
from lib_hires.webui.messages import warn_failed
from lib_hires.webui.patching import replaced
from lib_hires.webui.run_state import HostRun
from lib_hires.webui.sampling.attentive import WITHOUT_STEPS, mixing, reason_not_to_mix
from lib_hires.webui.sampling.controlnet import ControlNet, controlnet_of
from lib_hires.webui.sampling.recording import counting
from lib_hires.webui.sampling.schedules import whole_schedule

TECHNIQUES = {"ug": "Upsample Guidance", "pfsa": "Attentive Guidance"}


@dataclass(frozen=True)
class Guidance:
    """How one sampling is to be guided."""

    run: HostRun
    kind: Kind
    sizes: ModelSizes
    settings: Settings
    controlnet: ControlNet | None = field(default=None)  # where the run has units of it
    clip: Clip | None = None  # where the batch is one

    @classmethod
    def of(cls, run: HostRun, kind: Kind) -> Guidance:
        """A pass of the run, with the model that is loaded for it."""
        sizes = ModelSizes.of(run.p.sd_model)
        return cls(run, kind, sizes, run.settings, controlnet_of(run), clip_of(run.p))

    def reduction(self, large: Size) -> Reduction | None:
        """D and U for a latent of size (height, width); None where UG has nothing to do.

        A clip whose frames the motion module sees all together is guided in time too.
        """
        frames, native_frames = 1, 1
        if self.clip is not None and self.clip.is_seen_whole:
            frames, native_frames = self.clip.frames, self.clip.native
        found = clip_guided_at(
            self.settings,
            self.kind,
            large,
            frames,
            native=self.sizes.native_latent,
            native_frames=native_frames,
            multiple=self.sizes.multiple // FACTOR,
        )
        if found is None:
            return None
        few, small = found
        smooth = self.settings.ug.enlargement == "bicubic"
        if few == frames:
            return Reduction.between(large, small, smooth)
        return Reduction.between((frames, *large), (few, *small), smooth, batched=True)

    def reason_for_whole(self, sd_model: Any) -> str:
        """Why the large image cannot be evaluated in windows, "" where it can."""
        return reason_for_whole(sd_model, self.controlnet) if self.clip is None else WHOLE

    def native_scope(self, reduction: Reduction) -> AbstractContextManager[None]:
        """Around each native evaluation, for what lies deeper."""
        if self.clip is not None and reduction.batched:
            return self.clip.of_frames(round(self.clip.frames / reduction.frames_to_one))
        return nullcontext() if self.controlnet is None else self.controlnet.native_scope()


@contextmanager
def guided(
    sampler: Any, x: Tensor, guidance: Guidance, times: Sequence[float] | None = None
) -> Iterator[None]:
    """Guide what `sampler` samples inside the block; afterwards it is as before, whatever happens.

    What cannot be set up leaves the sampling as it is without us, and a message.

    x: a latent of the pass's size. times: the whole schedule, where the sampler is given a part.
    """
    run = guidance.run
    with counting(sampler, run.record.current), ExitStack() as stack:
        try:
            _set_up(stack, sampler, x, guidance, times)
        except Exception as error:
            stack.close()
            on = [name for name in TECHNIQUES if getattr(guidance.settings, name).enabled]

            def warn(message: str) -> None:
                for name in on:
                    run.leaving_out(name)(message)

            warn_failed(warn, " and ".join(TECHNIQUES[name] for name in on), error)
        yield


def _set_up(
    stack: ExitStack,
    sampler: Any,
    x: Tensor,
    guidance: Guidance,
    times: Sequence[float] | None,
) -> None:
    """Put everything that this sampling asks for in its place until `stack` closes."""
    size, run = (x.shape[-2], x.shape[-1]), guidance.run
    reduction = guidance.reduction(size)
    if guidance.controlnet is not None:
        fitting = guidance.controlnet.fitting(
            guidance.kind, reduction is not None, guidance.settings.ug.controlnet, run.warn
        )
        stack.enter_context(fitting)
    if reduction is not None:
        _guide(stack, sampler, size, reduction.to(x.device), guidance, times)
    if mixes(guidance.settings, guidance.kind):
        stack.enter_context(_mix(sampler, run, guidance.settings))


@contextmanager
def _mix(sampler: Any, run: HostRun, settings: Settings) -> Iterator[None]:
    warn, reason = run.leaving_out("pfsa"), reason_not_to_mix(sampler.config)
    if reason:
        warn(f"Attentive Guidance was left out, because {reason}.")
        yield
        return
    record, acting = run.record.current, run.acting("pfsa")

    def on_mixed() -> None:
        record.mix()
        acting()

    with mixing(sampler, settings.pfsa, on_mixed, warn):
        yield


def _without_windows(sampler: Any, guidance: Guidance) -> Guidance:
    """The same where windows are not wanted or work here; else without, and a message."""
    sd_model = sampler.model_wrap_cfg.inner_model.inner_model
    wanted = guidance.settings.ug.windows
    if wanted == "attention":
        reason = host_of(sd_model).reason_for_whole_attention(sd_model)
    else:
        reason = guidance.reason_for_whole(sd_model)
    if wanted == "off" or not reason:
        return guidance
    warn = guidance.run.leaving_out("ug_windows")
    warn(f"the large image was evaluated at full size, because {reason}.")
    return replace(guidance, settings=guidance.settings.updated({"ug_windows": "off"}))


def reason_for_whole(sd_model: Any, controlnet: ControlNet | None) -> str:
    """Why a large image cannot be evaluated in windows, "" where it can."""
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
    """Put Upsample Guidance around the sampler's evaluations of the model until `stack` closes."""
    denoiser, run = sampler.model_wrap_cfg, guidance.run
    warn = run.leaving_out("ug")
    reason = host_of(denoiser.inner_model.inner_model).reason_not_to_guide(sampler.config)
    if reason:
        warn(f"Upsample Guidance was left out, because {reason}.")
        return
    guidance = _without_windows(sampler, guidance)
    if times is None:
        times = _follow_schedule(stack, sampler, reduction, guidance)
    settings = guidance.settings.ug
    record = run.record.current
    acting = run.acting("ug", *(["ug_windows"] if settings.windows != "off" else []))

    def on_guided(native: bool) -> None:
        record.guide(native)
        acting()

    guided_pass = GuidedPass(
        size,
        reduction,
        settings,
        times,
        on_guided=on_guided,
        warn=warn,
        native_scope=partial(guidance.native_scope, reduction),
        surrounds=guidance.clip is not None,
    )
    stack.enter_context(guiding(denoiser, guided_pass))


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
