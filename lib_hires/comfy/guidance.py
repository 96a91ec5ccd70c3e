"""Upsample Guidance of a host's model: MODEL in, MODEL out.

The patched model carries one wrapper, around a sampler's run. There everything that the run needs
is made and put into that run's own options, so that two runs share nothing.

In a run the host's `calc_cond_batch` is wrapped, which every evaluation of conds goes through: that
of cond and uncond, also where another node has put a function of its own in its place, and those
that perturbed attention, dual CFG and their kin make besides. All of them are guided alike, so the
coarse image is the one that the native sampler with the same nodes would make.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from lib_hires.comfy.conditioning import Controls, shrunk_conds
from lib_hires.comfy.model import (
    family_of,
    multiple_of,
    native_latent,
    pixels_per_position,
)
from lib_hires.detail.neighbourhood import Neighbourhood
from lib_hires.detail.slots import reason_for_whole_attention, with_windows
from lib_hires.noise import NoiseFamily, VarianceExploding
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance
from lib_hires.sizes import Size, shown, small_size, why_unguided
from lib_hires.upsample_guidance import Opening, UpsampleGuided, shifted_schedule

log = logging.getLogger("hires_guidance")

KEY = "hires_guidance"  # of our wrappers


def guided_model(model: Any, settings: UpsampleGuidance, native: int = 0) -> Any:
    """A clone of a host's MODEL that is guided wherever it is sampled.

    native: the side of the model's native square in pixels, 0 for what the model was trained on.
    At strength 0 the clone is the model; guidance that the model has already is replaced.
    """
    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    if settings.theta:
        guidance = GuidedSampling(settings, native)
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, guidance)
    return patched


def in_schedule(model: Any, steps: int) -> Any:
    """The same for runs that are the end of a schedule of so many steps; the model itself where it
    has no guidance."""
    guidance = guiding(model)
    if guidance is None:
        return model
    patched = model.clone()
    told = replace(guidance, whole_steps=steps)
    patched.wrappers[WrappersMP.SAMPLER_SAMPLE][KEY] = [told]  # at its place among others
    return patched


def guiding(model: Any) -> GuidedSampling | None:
    """The Upsample Guidance that a host's MODEL has."""
    for wrapper in model.wrappers.get(WrappersMP.SAMPLER_SAMPLE, {}).get(KEY, ()):
        if isinstance(wrapper, GuidedSampling):
            return wrapper
    return None


@dataclass(frozen=True)
class GuidedSampling:
    """The wrapper around a sampler's run.

    whole_steps: of the schedule whose end the run is; 0: not known, and told from its start.
    """

    settings: UpsampleGuidance
    native: int
    whole_steps: int = 0

    def __call__(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """The arguments are those of the host's `Sampler.sample`."""
        model = guider.inner_model
        reduction = self.reduction(model, noise)
        if reduction is not None:
            family = family_of(model.model_sampling)
            sigmas = self._schedule(sigmas, family, reduction)
            times = whole_times(sigmas, family, self.whole_steps)
            calls = GuidedCalls(self.settings, family, reduction.to(noise.device), times)
            options = extra_args["model_options"]  # this and the guider's are the run's own
            options["transformer_options"]["sample_sigmas"] = sigmas
            if self.settings.windows == "attention":
                self._attend_in_windows(options, model.diffusion_model, reduction)
            add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, calls, options, True)
            add_wrapper_with_key(
                WrappersMP.PREDICT_NOISE, KEY, calls.predict_noise, guider.model_options, True
            )
        return executor(guider, sigmas, extra_args, callback, noise, *rest, **named)

    def reduction(self, model: Any, latent: Tensor) -> Reduction | None:
        """D and U for a latent of this shape; None, and a message, where it is not guided."""
        if latent.ndim != 4:
            log.warning(
                "Upsample Guidance was left out: it knows images, (batch, channels, height, width),"
                " and this latent has %d axes.",
                latent.ndim,
            )
            return None
        large: Size = latent.shape[-2], latent.shape[-1]
        native = native_latent(model, self.native)
        small = small_size(large, native, self.settings.scale, multiple_of(model, native))
        factor = pixels_per_position(model)
        pixels = large[0] * factor, large[1] * factor
        if small is None:
            native_pixels = native[0] * factor, native[1] * factor
            log.warning(
                "Upsample Guidance was left out: %s.",
                why_unguided(pixels, native_pixels, self.settings.scale),
            )
            return None
        log.info(
            "Upsample Guidance: %s guided at %s",
            shown(pixels),
            shown((small[0] * factor, small[1] * factor)),
        )
        return Reduction.between(large, small, self.settings.enlargement == "bicubic")

    def _attend_in_windows(self, options: dict[str, Any], unet: Any, reduction: Reduction) -> None:
        """In the run's own options. Whole, and a message, where another node holds the place."""
        reason = reason_for_whole_attention(options, unet)
        if reason:
            log.warning("Attention in windows was left out: %s.", reason)
            return
        windows = Neighbourhood(reduction.large, reduction.small)
        options.update(with_windows(options, unet, windows))

    def _schedule(self, sigmas: Tensor, family: NoiseFamily, reduction: Reduction) -> Tensor:
        """The sampler's schedule, begun higher where it begins at the model's largest sigma."""
        if not self.settings.shifted_start or not isinstance(family, VarianceExploding):
            return sigmas
        largest = float(family.sigmas[-1])
        if not abs(float(sigmas[0]) / largest - 1) < 1e-3 or len(sigmas) < 2:
            return sigmas
        return shifted_schedule(sigmas, reduction.noise_gain)


class GuidedCalls:
    """The wrapper around the evaluation of conds, in one run of a sampler."""

    def __init__(
        self,
        settings: UpsampleGuidance,
        family: NoiseFamily,
        reduction: Reduction,
        times: Sequence[float],
    ) -> None:
        self._settings, self._family, self._reduction = settings, family, reduction
        self._large = reduction.large
        self._times = times
        self._guides: dict[Hashable, UpsampleGuided] = {}
        self._calls: Counter[Hashable] = Counter()  # in this evaluation
        self._opening = Opening()
        self._controls = Controls()

    def predict_noise(self, executor: Any, *arguments: Any, **named: Any) -> Any:
        """The wrapper around each evaluation that a sampler makes."""
        self._calls.clear()
        return executor(*arguments, **named)

    def __call__(
        self, executor: Any, model: Any, conds: Any, x: Tensor, sigma: Tensor, options: Any
    ) -> list[Tensor]:
        """The guided predictions, (b, c, h, w) for each branch. The executor's are unguided."""
        if tuple(x.shape[-2:]) != self._large:
            return list(executor(model, conds, x, sigma, options))
        guide = self._guide(conds)
        side_by_side = guide(x, sigma, call=Call(executor, model, conds, options))
        return list(side_by_side.chunk(len(conds), dim=1))

    def _guide(self, conds: Any) -> UpsampleGuided:
        """The one of this call's place in the evaluation: what one keeps never meets another."""
        branches = tuple(branch and tuple(cond.get("uuid") for cond in branch) for branch in conds)
        self._calls[branches] += 1
        place = branches, self._calls[branches]
        if place not in self._guides:
            self._guides[place] = UpsampleGuided(
                _evaluate,
                self._settings,
                family=self._family,
                reduction=self._reduction,
                times=self._times,
                shrink_cond=self._shrunk,
                opening=self._opening,
            )
        return self._guides[place]

    def _shrunk(self, cond: Mapping[str, Any], small: Size) -> dict[str, Any]:
        call: Call = cond["call"]
        conds = shrunk_conds(call.conds, small, self._large, call.model, self._controls)
        return {"call": Call(call.executor, call.model, conds, call.options)}


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a call of the host's `calc_cond_batch` beside the latent and its noise."""

    executor: Callable[..., Any]
    model: Any
    conds: Any
    options: Any


def _evaluate(x: Tensor, sigma: Tensor, *, call: Call) -> Tensor:
    """The branches' predictions side by side, (b, branches·c, h, w)."""
    branches = call.executor(call.model, call.conds, x, sigma, call.options)
    return torch.cat(list(branches), dim=1)


def whole_times(sigmas: Tensor, family: NoiseFamily, whole_steps: int = 0) -> list[float]:
    """The schedule of a run, with as many times before it as the whole schedule has.

    By them the engine knows how long a step is; a run may be the end of a schedule. Where its steps
    are not known (0), they are what a run from pure noise would have at this run's pace.
    """
    times: list[float] = sigmas.tolist()
    steps = len(times) - 1
    if whole_steps:
        return [float("inf")] * (whole_steps - steps) + times
    share = float(family.timestep(sigmas[:1].float())) / family.training_steps
    missing = round(steps / share) - steps if 0 < share < 1 else 0
    return [float("inf")] * min(missing, 10 * steps) + times
