"""Upsample Guidance around a pipeline's U-Net or transformer, as one of diffusers' hooks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from lib_hires.detail.neighbourhood import Neighbourhood
from lib_hires.detail.processors import attention_in_windows
from lib_hires.diffusers.layouts import RESIDUALS, Fitted, Layout, layout_of
from lib_hires.diffusers.levels import Levels, Unsupported, level_at, schedule, time_scale
from lib_hires.resample import Reduction
from lib_hires.run.passes import Kind, attends_in_windows, guided_at, guides, mixes
from lib_hires.settings import Settings
from lib_hires.sizes import Size, why_unguided
from lib_hires.upsample_guidance import Opening, UpsampleGuided

log = logging.getLogger("hires_guidance")

NAME = "hires_guidance"  # in diffusers' registry of hooks


@dataclass
class Sampling:
    """What belongs to one run of the scheduler at one latent size."""

    timesteps: Tensor  # the scheduler's own, which identify the run
    size: Size  # of the latents
    kind: Kind
    levels: Levels | None = None  # None: left as it is
    reduction: Reduction | None = None
    guides: dict[int, UpsampleGuided] = field(default_factory=dict)  # by place in a step
    level: float = -1.0  # of the step
    place: int = -1  # of the call in the step
    opening: Opening = field(default_factory=Opening)
    windows_logged: bool = False  # that they do not fit


class GuidanceHook(ModelHook):
    """Guides each call of the model it is registered on.

    shifted: whether the scheduler's sigmas were raised, so that the pipeline's timesteps are not
    theirs; set by the pipeline's own preparation of latents.
    """

    def __init__(self, pipe: Any, settings: Settings, native: Size, multiple: int) -> None:
        """native, multiple: in latent positions."""
        super().__init__()
        self.pipe, self.settings = pipe, settings
        self.native, self.multiple = native, multiple
        self.kind: Kind = "text"
        self.shifted: Tensor | None = None  # the sigmas that were raised
        self.called_back = False  # in this run, by the pipeline at the end of a step
        self._sampling: Sampling | None = None
        self._begun: tuple[Tensor, float] | None = None  # a run's timesteps, and its first
        self._warned = False

    @torch.compiler.disable  # a model compiled in place would trace it; it then runs as it is
    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's forward, guided where there is something to guide."""
        forward: Callable[..., Any] = self.fn_ref.original_forward
        inner = getattr(module, "_orig_mod", module)
        arguments = named(inner, args, kwargs)
        if mixes(self.settings, self.kind):
            self._watch_callback(arguments["timestep"])
        if not guides(self.settings, self.kind):
            return forward(*args, **kwargs)
        try:
            layout = layout_of(inner, arguments)
            x, cond = layout.split(arguments)
            sampling = self._sampled(x, cond)
            if sampling.levels is None:
                return forward(*args, **kwargs)
            level = self._step(sampling, cond)
        except Unsupported as reason:
            log.warning("Upsample Guidance leaves the model as it is: %s", reason)
            return forward(*args, **kwargs)
        t = torch.full((len(x),), level, dtype=torch.float32, device=x.device)
        model = Evaluated(forward, layout, sampling.levels, x.dtype, cond.pop("timestep"))
        guide = self._guide(sampling, model)
        state = model.levels.state(x, t)
        if self._in_windows(sampling, layout, cond):
            guided = model.levels.output(guide(state, t, **cond), state, t)
            output = layout.output(guided.to(x.dtype), x)
            return (
                (output,) if cond.get("return_dict") is False else Transformer2DModelOutput(output)
            )
        seen, seen_t = guide.model_input(state, t)
        with attention_in_windows(inner, self._windows(sampling), inside=True):
            if self._is_shifted:
                whole = forward(**model.arguments(seen, seen_t, cond))
            else:
                whole = forward(*args, **kwargs)
        denoised = model.denoised(whole[0], seen, seen_t)
        guided = guide.guide(denoised, state, t, cond)
        if guided is denoised and not self._is_shifted:
            return whole
        guided = model.levels.output(guided, state, t).to(whole[0].dtype)
        return replaced(whole, layout.output(guided, whole[0]))

    def _watch_callback(self, timestep: Any) -> None:
        """Warn once, at a run's second step, where nothing has called for Attentive Guidance."""
        timesteps = self.pipe.scheduler.timesteps
        if self._begun is None or self._begun[0] is not timesteps:
            self._begun, self.called_back = (timesteps, _any_time(timestep)), False
        elif not (self.called_back or self._warned) and _any_time(timestep) != self._begun[1]:
            self._warned = True
            log.warning(
                "Attentive Guidance does nothing: give the pipeline callback_on_step_end=hires."
                "on_step_end, hires being what apply_hires_guidance returned"
            )

    def _in_windows(self, sampling: Sampling, layout: Layout, cond: Mapping[str, Any]) -> bool:
        if not self.settings.ug.evaluates_windows:
            return False
        residuals = any(cond.get(name) is not None for name in RESIDUALS)
        if residuals or not layout.takes_windows:
            if not sampling.windows_logged:
                log.info("the image is evaluated at full size: windows do not fit this pipeline")
            sampling.windows_logged = True
            return False
        return True

    def _windows(self, sampling: Sampling) -> Neighbourhood | None:
        """What self-attention sees of the large image; None for all of it."""
        if sampling.reduction is None or not attends_in_windows(self.settings, self.kind):
            return None
        return Neighbourhood(sampling.size, sampling.reduction.small)

    @property
    def _is_shifted(self) -> bool:
        return self.shifted is not None and self.pipe.scheduler.sigmas is self.shifted

    def reduction(self, size: Size) -> Reduction | None:
        """D and U for latents of `size`; None where they are not guided."""
        small = guided_at(
            self.settings, self.kind, size, native=self.native, multiple=self.multiple
        )
        smooth = self.settings.ug.enlargement == "bicubic"
        return small and Reduction.between(size, small, smooth)

    def _sampled(self, x: Tensor, cond: Mapping[str, Any]) -> Sampling:
        """The sampling that a call belongs to, which begins anew with the scheduler's timesteps."""
        timesteps, size = self.pipe.scheduler.timesteps, (x.shape[-2], x.shape[-1])
        known = self._sampling
        if known and known.timesteps is timesteps and (known.size, known.kind) == (size, self.kind):
            return known
        self._sampling = sampling = Sampling(timesteps, size, self.kind)
        sampling.reduction = self.reduction(size)
        if sampling.reduction is None:
            factor = factor_of(self.pipe)
            image, native = (
                (height * factor, width * factor) for height, width in (size, self.native)
            )
            reason = why_unguided(image, native, self.settings.ug.scale)
            log.info("Upsample Guidance has nothing to do: %s", reason)
            return sampling
        scheduler, t = self.pipe.scheduler, cond["timestep"]
        scale = time_scale(scheduler, first_time(t))
        sampling.levels = Levels(scheduler, x.device, scale)
        sampling.reduction = sampling.reduction.to(x.device)
        return sampling

    def _step(self, sampling: Sampling, cond: Mapping[str, Any]) -> float:
        """The call's noise level; counts the calls of a step."""
        assert sampling.levels is not None
        timestep = first_time(cond["timestep"]) * sampling.levels.time_scale
        level = level_at(self.pipe.scheduler, timestep)
        sampling.place = sampling.place + 1 if level == sampling.level else 0
        sampling.level = level
        return level

    def _guide(self, sampling: Sampling, model: Evaluated) -> UpsampleGuided:
        """The guidance of a place in the step, with what it keeps from step to step."""
        assert sampling.reduction is not None
        if sampling.place not in sampling.guides:
            ug = self.settings.ug
            windows = ug.windows if model.layout.takes_windows else "off"
            sampling.guides[sampling.place] = UpsampleGuided(
                model,
                replace(ug, windows=windows),
                family=model.levels.family,
                reduction=sampling.reduction,
                times=schedule(self.pipe.scheduler),
                shrink_cond=Fitted(sampling.size, factor_of(self.pipe), ug.controlnet),
                opening=sampling.opening,
            )
        return sampling.guides[sampling.place]


@dataclass(frozen=True)
class Evaluated:
    """The model as a denoiser: evaluate(x, t, **cond) -> x0 of a state x (b, c, h, w), t (b,)."""

    forward: Callable[..., Any]
    layout: Layout
    levels: Levels
    dtype: torch.dtype  # of the model's input
    time: Any  # as the pipeline gives it

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.denoised(self.forward(**self.arguments(x, t, cond))[0], x, t)

    def arguments(self, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> dict[str, Any]:
        """The model's arguments for a state."""
        time = self.levels.model_time(t)
        if isinstance(self.time, Tensor) and self.time.is_floating_point():
            time = time.to(self.time.dtype)
        model_input = self.levels.model_input(x, t).to(self.dtype)
        return self.layout.joined(model_input, {**cond, "timestep": time})

    def denoised(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """x0 of the model's whole output, float32."""
        prediction = self.layout.prediction(output, (x.shape[-2], x.shape[-1]))
        return self.levels.denoised(prediction, x, t)


def named(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call of the module by their names."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _any_time(timestep: Any) -> float:
    return float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)


def first_time(timestep: Any) -> float:
    """The time of a call, whose images all have the same. Raises Unsupported for others."""
    if not isinstance(timestep, Tensor):
        return float(timestep)
    if timestep.ndim > 1 or (timestep.ndim == 1 and bool((timestep != timestep[0]).any())):
        raise Unsupported("its images have times of their own")
    return float(timestep.flatten()[0])


def factor_of(pipe: Any) -> int:
    """Pixels to a latent position."""
    return int(getattr(pipe, "vae_scale_factor", None) or pipe.vae_scale_factor_spatial)


def replaced(whole: Any, output: Tensor) -> Any:
    """A model's return value with another first output."""
    if isinstance(whole, tuple):
        return (output, *whole[1:])
    return type(whole)(**{**whole, next(iter(whole)): output})
