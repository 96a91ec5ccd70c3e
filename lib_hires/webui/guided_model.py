"""Upsample Guidance around a sampler's inner denoiser, whatever parts the host calls it in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from lib_hires.noise import NoiseFamily, Prediction, VarianceExploding, VariancePreserving
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance
from lib_hires.sizes import Size
from lib_hires.upsample_guidance import UpsampleGuided
from lib_hires.webui.conditioning import shrink_cond
from lib_hires.webui.messages import Say

log = logging.getLogger("hires_guidance")


class WholeTimesteps(VariancePreserving):
    """For the host's v models, which look noise levels up by whole timesteps."""

    def matched(self, t: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        tau, scale = super().matched(t, gain)
        return tau.round(), scale


def family_of(inner: Any) -> tuple[NoiseFamily, Prediction]:
    """The noise family and parametrisation of an inner denoiser.

    k-diffusion's have sigmas and give x0; those of DDIM, PLMS and UniPC take timesteps, give eps.
    """
    if hasattr(inner, "sigmas"):
        return VarianceExploding(inner.sigmas), "denoised"
    return WholeTimesteps(inner.inner_model.alphas_cumprod), "eps"


class GuidedModel:
    """Stands in for the inner denoiser's `forward` during one sampling.

    The host calls it with conds and uncond stacked, or one after another, or with conds alone.
    Each of these calls keeps an UpsampleGuided of its own, found by its place in the evaluation,
    so that a difference which is reused never meets another branch.
    """

    def __init__(
        self,
        inner: Any,
        settings: UpsampleGuidance,
        *,
        size: Size,
        reduction: Reduction,
        times: Sequence[float],
        say: Say,
    ) -> None:
        """size: (height, width) of the latents to guide; others pass through. times: may be
        filled later, but before the first call."""
        family, prediction = family_of(inner)
        self._forward: Callable[..., Tensor] = inner.forward
        self._size = size
        self._new_guide = partial(
            UpsampleGuided,
            self._forward,
            settings,
            family=family,
            reduction=reduction,
            times=times,
            prediction=prediction,
            shrink_cond=partial(
                shrink_cond, large=size, conditioner=getattr(inner.inner_model, "conditioner", None)
            ),
        )
        self._guides: dict[tuple[int, int], UpsampleGuided] = {}
        self._calls = 0
        self._say = say
        self._failed = False

    def begin_evaluation(self) -> None:
        """To be called before the host's first call of an evaluation."""
        self._calls = 0

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        if self._failed or tuple(x.shape[-2:]) != self._size:
            return self._forward(x, t, **kwargs)
        place = self._calls, len(x)
        self._calls += 1
        if place not in self._guides:
            self._guides[place] = self._new_guide()
        try:
            return self._guides[place](x, t, **kwargs)
        except Exception as error:
            log.exception("Upsample Guidance failed")
            self._failed = True
            self._say(
                "the rest of the picture was made without Upsample Guidance, because asking "
                f"about the small picture failed ({type(error).__name__}: {error})."
            )
            return self._forward(x, t, **kwargs)
