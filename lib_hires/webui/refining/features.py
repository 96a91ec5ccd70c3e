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
from lib_hires.sizes import Size
from lib_hires.upsampler_file import NamedUpsampler
from lib_hires.webui.hosts import host_of
from lib_hires.webui.hosts.per_call import Denoiser, PlacedModel
from lib_hires.webui.hosts.protocol import ModelCalls
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
    """Carry features into what `sampler` samples at the size of `latent` inside the block."""
    denoiser = sampler.model_wrap_cfg
    calls = host_of(denoiser.inner_model.inner_model).model_calls(denoiser)
    stage = _UpsampledStage(calls, unet, small, (latent.shape[-2], latent.shape[-1]), warn)
    with (
        replaced(calls.owner, calls.name, stage.model),
        denoiser.register_forward_pre_hook(stage.before_evaluation),
    ):
        yield


class _UpsampledStage:
    """The model's calls during one stage, each with features of the same rows: the clean latent of
    the same images, evaluated at t = 0 with the same conds, once."""

    def __init__(
        self, calls: ModelCalls, unet: Any, small: SmallImage, size: Size, warn: Warn
    ) -> None:
        self._calls, self._unet, self._small, self._size = calls, unet, small, size
        self._forward: Denoiser = getattr(calls.owner, calls.name)
        self._state: Tensor | None = None  # of the evaluation that is going on
        self.model = PlacedModel(
            self._forward,
            self._carried,
            size=size,
            technique="the feature upsampler",
            warn=warn,
            branches=calls.branches,
        )

    def before_evaluation(self, _: Any, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook of the CFG denoiser."""
        self._state = inputs[0]
        self.model.begin_evaluation()

    def _carried(self, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Denoiser:
        assert self._state is not None
        weights = self._small.upsampler.weights
        rows = self._small.clean[self._calls.images_of(x, self._state)].to(x)
        clean_time = torch.zeros_like(t)
        fitting = self._calls.fitting(cond, rows, clean_time, self._size)
        with captured(self._unet, weights.info.layers) as features:
            self._forward(rows, clean_time, **fitting)
        fitted = copy.deepcopy(weights).to(features[0])
        scope = Upsampled(self._unet, fitted, features, self._size)

        def denoise(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            with scope:
                denoised: Tensor = self._forward(x, t, **cond)
                return denoised

        return denoise
