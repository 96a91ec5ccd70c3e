"""Upsample Guidance: evaluate the model at its native size too, and guide the coarse structure.

    x0' = x0 + w_t · U[ x0_small - D[x0] ]           x0_small = model(scale · D[x], tau)
    w_t = theta · H(t - (1 - eta) · T)               eq. 5

This is the paper's eq. 4 written for the predicted image. In eps, with D[x] = a·D[x0] + s·D[eps]:

    eps' = eps + w·U[ eps_small/m - D[eps] ]
    eps_small = (D[x]/sqrt(P) - a(tau)·x0_small) / s(tau)

where s(tau)·sqrt(P) = s/m and a(tau)·sqrt(P) = a, so eps_small/m = (D[x] - a·x0_small)/s and
eps' - eps = w·U[-(a/s)·(x0_small - D[x0])]: the change of eps that changes x0 as above. The same
change serves every parametrisation (`NoiseFamily.output_change`), and because it is linear it can
be applied before classifier-free guidance as well as after.

It follows that D[x0'] = (1 - w)·D[x0] + w·x0_small: at w = 1 the coarse image follows exactly the
path of the native sampler from D[x_T] along the noise levels sigma/m.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib_hires.noise import NoiseFamily, Prediction, VarianceExploding, per_image
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance
from lib_hires.sizes import Size
from lib_hires.windows import Windowed

Predictor = Callable[..., Tensor]
"""model(x, t, **cond) -> prediction; x (b, c, h, w), or clips (b, c, f, h, w); t (b,)."""

ShrinkCond = Callable[[Mapping[str, Any], Size], Mapping[str, Any]]
"""Fits a call's conditioning to the small image, given the small latent's (height, width)."""


def guidance_weight(
    timestep: Tensor, settings: UpsampleGuidance, *, training_steps: int, steps: int
) -> Tensor:
    """w_t of eq. 5, optionally with a soft end.

    timestep: any shape, 0 to T = training_steps. `settings.edge` is the width of the ramp at the
    end of the window in steps of the sampler, taken as T/steps timesteps each; 0 is eq. 5 as
    printed. A window that lasts to the end of the run (eta = 1) has no ramp. An automatic eta is
    that of a run from noise.
    """
    settings = settings.decided(steps)
    past_end = timestep - (1 - settings.eta) * training_steps
    if settings.edge == 0 or settings.eta == 1:
        return settings.theta * (past_end >= 0).to(timestep.dtype)
    return settings.theta * (past_end * steps / (settings.edge * training_steps)).clamp(0, 1)


def shifted_schedule(sigmas: Tensor, noise_gain: float) -> Tensor:
    """A VE schedule stretched upward so that the coarse image, too, starts at sigma_max.

    sigmas: (steps + 1,), decreasing, the last one 0. D multiplies the noise by `noise_gain`, so
    the first sigma becomes sigma_max / noise_gain; the smallest stays, and those between move in
    proportion in log sigma. The number of steps is the same.
    """
    log_sigmas = sigmas[:-1].log()
    if len(log_sigmas) == 1:
        share = torch.ones_like(log_sigmas)
    else:
        share = (log_sigmas - log_sigmas[-1]) / (log_sigmas[0] - log_sigmas[-1])
    return torch.cat([sigmas[:-1] * noise_gain**-share, sigmas[-1:]])


@dataclass
class Opening:
    """Where a pass began, as the first of its evaluations tells: the share of the training
    timesteps. One for all that guide a pass, of which a host may need another in its middle."""

    start: float | None = None


class UpsampleGuided:
    """A predictor guided by its own prediction at the native size; made for one sampling.

    predict: the model, in the parametrisation named by `prediction`.
    reduction: on the model's device.
    times: the sampler's schedule, decreasing, the final time included (steps + 1 numbers). It, and
    the time of the pass's first call, decide what is automatic in the settings.
    opening: shared by those that guide one pass; not given where this one guides all of it.
    shrink_cond: fits conditioning of the image's size (c_concat, hints) to the native evaluation,
    and conditioning that was cropped to windows to theirs.
    predict_native: `predict` as it is called for native evaluations, where a host marks them.
    on_guided: receives, for every guided evaluation, whether a native evaluation was made for it.
    Call it like the model, which may be evaluated in windows; where a host evaluates the model at
    full size itself, use `model_input` before and `guide` after.
    Guidance is computed in float32; the result has the model's dtype and device, and the native
    evaluation the large one's memory layout. Only eta below 1 and a cadence above 1 wait for the
    device, to read the time of the step.
    """

    def __init__(
        self,
        predict: Predictor,
        settings: UpsampleGuidance,
        *,
        family: NoiseFamily,
        reduction: Reduction,
        times: Sequence[float],
        prediction: Prediction = "denoised",
        shrink_cond: ShrinkCond | None = None,
        on_guided: Callable[[bool], None] = lambda native: None,
        predict_native: Predictor | None = None,
        opening: Opening | None = None,
    ) -> None:
        self._predict_native = predict_native or predict
        self._predict_large = predict
        if settings.evaluates_windows:
            self._predict_large = Windowed(
                predict,
                window=reduction.small,
                overlap=settings.overlap,
                blend=settings.windows,
                fit_cond=shrink_cond,
            )
        self._settings = settings  # those of the pass, once it has begun
        self._family = family
        self._reduction = reduction
        self._rising_times = sorted(times)
        self._prediction = prediction
        self._shrink_cond = shrink_cond
        self._on_guided = on_guided
        self._opening = opening or Opening()
        self._native_step = -1  # the step of the last native evaluation ...
        self._x0_small: Tensor | None = None  # ... and x0_small there

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The guided prediction, in the model's parametrisation."""
        return self.guide(self._predict_large(*self.model_input(x, t), **cond), x, t, cond)

    def model_input(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The model's input for the large image: x and t.

        Above the model's largest sigma the noise is scaled down to it.
        """
        if isinstance(self._family, VarianceExploding) and self._settings.shifted_start:
            t, scale = self._family.matched(t, 1.0)
            x = x * per_image(scale, x.ndim).to(x.dtype)
        return x, t

    def guide(self, output: Tensor, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """The model's `output` for `model_input(x, t)`, guided by a native evaluation."""
        weight = self._weight(t, x.ndim)
        if weight is None:
            return output
        native = self._needs_native(t)
        if native:
            self._x0_small = self._predict_small(x, t, cond)
        assert self._x0_small is not None
        self._on_guided(native)
        denoised = self._family.denoised(self._prediction, x.float(), output.float(), t.float())
        difference = self._x0_small - self._reduction.reduce(denoised)
        change = weight * self._reduction.upsample(difference)
        change = self._family.output_change(self._prediction, change, t.float())
        return (output.float() + change).to(output.dtype)

    def _weight(self, t: Tensor, axes: int) -> Tensor | float | None:
        """w_t, (b, 1, ...) with so many axes, or the one number of all steps; None where it is 0
        for every image."""
        if self._settings.theta == 0:
            return None
        settings = self._settings = self._decided(t)
        if settings.eta == 1:
            return settings.theta
        weight = guidance_weight(
            self._family.timestep(t.float()),
            settings,
            training_steps=self._family.training_steps,
            steps=len(self._rising_times) - 1,
        )
        return per_image(weight, axes) if weight.any() else None

    def _decided(self, t: Tensor) -> UpsampleGuidance:
        """The settings, in which the time of the pass's first call leaves nothing automatic."""
        if self._settings.eta and self._settings.cadence:  # so that no step waits for the device
            return self._settings
        if self._opening.start is None:
            start = self._family.timestep(t.float()).max()
            self._opening.start = float(start) / self._family.training_steps
        return self._settings.decided(len(self._rising_times) - 1, self._opening.start)

    def _predict_small(self, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """x0_small, float32, of D[x]'s shape: the model's image for D[x] at the matched time."""
        reduction = self._reduction
        t_small = reduction.rows(t)
        tau, scale = self._family.matched(t_small.float(), reduction.noise_gain)
        small = reduction.reduce(x) * per_image(scale, x.ndim)
        if reduction.batched:
            cond = {name: _native_rows(value, len(x), reduction) for name, value in cond.items()}
        if self._shrink_cond is not None:
            cond = self._shrink_cond(cond, (small.shape[-2], small.shape[-1]))
        tau = tau if t.is_floating_point() else tau.round()
        small_x = small.to(x.dtype, memory_format=_layout(x))
        output = self._predict_native(small_x, tau.to(t.dtype), **cond)
        return self._family.denoised(self._prediction, small, output.float(), tau)

    def _needs_native(self, t: Tensor) -> bool:
        """Once at every n-th step, and where the noise has risen again, as Restart lets it; with
        n = 1 in every evaluation."""
        if self._settings.cadence == 1:
            return True
        later_or_now = bisect.bisect_right(self._rising_times, float(t.max()) * (1 + 1e-4))
        step = len(self._rising_times) - later_or_now
        since = step - self._native_step
        if self._x0_small is not None and 0 <= since < self._settings.cadence:
            return False
        self._native_step = step
        return True


def _native_rows(value: Any, rows: int, reduction: Reduction) -> Any:
    """What a call with a batch of frames receives, for the native frames.

    value: a tensor, a list or mapping of such, or anything else; only tensors with a row for each
    of the call's frames are changed.
    """
    if isinstance(value, Mapping):
        return {key: _native_rows(part, rows, reduction) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_native_rows(part, rows, reduction) for part in value)
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != rows:
        return value
    return reduction.rows(value)


def _layout(x: Tensor) -> torch.memory_format:
    """How x (b, c, h, w) lies in memory; clips (b, c, f, h, w) are contiguous."""
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    if x.is_contiguous() or not channels_last:
        return torch.contiguous_format
    return torch.channels_last
