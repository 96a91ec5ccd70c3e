"""k-diffusion's samplers and schedules, driven so that each image is the one made alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lib_hires.attentive_guidance import steps_behind
from lib_hires.clips import as_clips, as_frames
from lib_hires.detail.split_guidance import split_guidance
from lib_hires.noise import draw
from lib_hires.refinement import ONE_STEP_SAMPLER
from lib_hires.resample import Reduction
from lib_hires.standalone.models.k_diffusion import import_k_diffusion
from lib_hires.standalone.models.latent import Conditioning
from lib_hires.standalone.pipeline.request import SAMPLERS, Sampler

Denoiser = Callable[..., Tensor]
StateHook = Callable[[Tensor, int], None]
"""hook(state, steps done): may change the sampler's state in place before a step begins."""


def schedule_sigmas(denoiser: Any, name: str, steps: int) -> Tensor:
    """(steps + 1,) sigmas from the model's largest downward, and 0."""
    sampling = import_k_diffusion().sampling

    if name == "Uniform":
        return denoiser.get_sigmas(steps)
    if name == "SGM Uniform":  # the smallest sigma left out
        sigmas = denoiser.get_sigmas(steps + 1)
        return torch.cat([sigmas[:-2], sigmas[-1:]])
    function = {
        "Karras": sampling.get_sigmas_karras,
        "Exponential": sampling.get_sigmas_exponential,
    }[name]
    smallest, largest = float(denoiser.sigma_min), float(denoiser.sigma_max)
    return function(steps, smallest, largest, device=denoiser.sigmas.device)


class ClassifierFreeGuidance:
    """uncond + scale·(cond - uncond), both branches in one call of the inner denoiser.

    split: scales of the coarse part and of the detail, in the place of the one, and what parts
    them (`detail.split_guidance`).
    """

    def __init__(
        self,
        denoise: Denoiser,
        conditioning: Conditioning,
        scale: float,
        split: tuple[float, float, Reduction] | None = None,
    ) -> None:
        self._denoise = denoise
        self._scale, self._split = scale, split
        branches = (
            [conditioning.cond, conditioning.pooled_cond],
            [conditioning.uncond, conditioning.pooled_uncond],
        )
        if conditioning.uncond is None or (scale == 1 and split is None):
            branches = branches[:1]
        context, pooled = (list(parts) for parts in zip(*branches, strict=True))
        self._branches = len(branches)
        self._cond = {"context": torch.cat(context)}
        if pooled[0] is not None:
            self._cond["pooled"] = torch.cat(pooled)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x (b, c, h, w), or clips (b, c, f, h, w), sigma (b,) to the predicted image."""
        n = self._branches
        denoised = self._denoise(torch.cat([x] * n), sigma.repeat(n), **self._cond)
        if n == 1:
            return denoised
        cond, uncond = denoised.chunk(2)
        if self._split is not None:
            return split_guidance(cond, uncond, *self._split)
        return uncond + self._scale * (cond - uncond)


def sample(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    sampler: Sampler,
    *,
    sources: Sequence[torch.Generator],
    state_hook: StateHook | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Run a sampler from the noisy state x down `sigmas` (steps + 1,).

    x: (b, c, h, w), or clips (b, c, f, h, w). sources: of the noise of stochastic samplers, one
    generator per image, or per frame, clip after clip.
    on_step: called with the step's index and its prediction (b, c, h, w).
    """
    sampling = import_k_diffusion().sampling

    if len(sigmas) == 2:
        sampler = SAMPLERS[ONE_STEP_SAMPLER]
    extra: dict[str, Any] = {} if sampler.eta is None else {"eta": sampler.eta}
    if sampler.noise != "none":
        extra["noise_sampler"] = _noise_sampler(sampler.noise, x, sigmas, sources)
    model = _StepStarts(denoise, sampler.evaluations, state_hook) if state_hook else denoise
    callback = None
    if on_step is not None:
        callback = lambda step: on_step(step["i"], step["denoised"])  # noqa: E731
    function = getattr(sampling, sampler.function)
    with warnings.catch_warnings():
        # torchsde warns where sigmas at the interval's ends differ in float32's last digit.
        warnings.filterwarnings("ignore", "Should have t[ab]")
        return function(model, x, sigmas, callback=callback, disable=True, **extra)


def _noise_sampler(
    kind: str, x: Tensor, sigmas: Tensor, sources: Sequence[torch.Generator]
) -> Callable[..., Tensor]:
    """noise(sigma, next sigma) of x's shape, for each image or frame from its own source."""
    frames = as_frames(x)

    def laid_out(noise: Tensor) -> Tensor:
        return as_clips(noise, x.shape[2]) if x.ndim == 5 else noise

    if kind == "white":
        return lambda *_: laid_out(draw(sources, tuple(frames.shape[1:])).to(x))
    positive = sigmas[sigmas > 0]
    entropy = [source.initial_seed() for source in sources]
    make = import_k_diffusion().sampling.BrownianTreeNoiseSampler
    brownian = make(frames, positive.min(), positive.max(), seed=entropy)
    return lambda *levels: laid_out(brownian(*levels))


class _StepStarts:
    """A denoiser that calls a hook on the sampler's state before each step's first evaluation."""

    def __init__(self, denoise: Denoiser, evaluations: int, hook: StateHook) -> None:
        self._denoise = denoise
        self._evaluations = evaluations
        self._hook = hook
        self._count = 0

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        step = steps_behind(self._count, self._evaluations)
        if step is not None:
            self._hook(x, step)
        self._count += 1
        return self._denoise(x, sigma, **cond)
