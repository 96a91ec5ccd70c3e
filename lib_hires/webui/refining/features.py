"""The scope around one refinement stage in which the model has the smaller image's features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib_hires.feature_upsampler import Upsampled, captured
from lib_hires.upsampler_file import NamedUpsampler
from lib_hires.webui.hosts import host_of
from lib_hires.webui.hosts.per_call import Denoiser, PlacedModel
from lib_hires.webui.messages import Warn
from lib_hires.webui.patching import replaced


@dataclass(frozen=True, eq=False)
class SmallImage:
    """What a stage carries over: the clean latent (b, c, h, w) before it, and by what."""

    clean: Tensor
    upsampler: NamedUpsampler

    @classmethod
    def fitting(
        cls, upsampler: NamedUpsampler | None, before: Tensor, after: Tensor
    ) -> SmallImage | None:
        """The latent `before` a stage, where an upsampler serves the step to that `after` it."""
        sizes = [(latent.shape[-2], latent.shape[-1]) for latent in (before, after)]
        if upsampler is None or not upsampler.weights.info.fits(*sizes):
            return None
        return cls(before, upsampler)


@contextmanager
def upsampled_stage(
    sampler: Any, unet: Any, small: SmallImage, latent: Tensor, warn: Warn
) -> Iterator[None]:
    """Carry features into what `sampler` samples at the size of `latent` inside the block.

    Each of the host's calls has features of the same rows: the clean latent of the same images,
    asked at t = 0 with the same conds, once.
    """
    denoiser = sampler.model_wrap_cfg
    calls = host_of(denoiser.inner_model.inner_model).model_calls(denoiser)
    forward: Denoiser = getattr(calls.owner, calls.name)
    size = latent.shape[-2], latent.shape[-1]
    clean, weights = small.clean, small.upsampler.weights
    states: list[Tensor] = []  # of the evaluation that is going on

    def carried(x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Denoiser:
        rows, clean_time = clean[calls.images_of(x, states[0])].to(x), torch.zeros_like(t)
        fitting = calls.fitting(cond, rows, clean_time, size)
        with captured(unet, weights.info.layers) as features:
            forward(rows, clean_time, **fitting)
        scope = Upsampled(unet, copy.deepcopy(weights).to(features[0]), features, size)

        def denoise(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            with scope:
                denoised: Tensor = forward(x, t, **cond)
                return denoised

        return denoise

    model = PlacedModel(
        forward,
        carried,
        size=size,
        technique="the feature upsampler",
        warn=warn,
        branches=calls.branches,
    )

    def before_evaluation(_: Any, inputs: tuple[Tensor, ...]) -> None:
        states[:] = [inputs[0]]
        model.begin_evaluation()

    with (
        replaced(calls.owner, calls.name, model),
        denoiser.register_forward_pre_hook(before_evaluation),
    ):
        yield
