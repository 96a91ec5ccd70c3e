"""The noise families of the host's samplers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lib_hires.noise import Flow, NoiseFamily, Prediction, VarianceExploding, VariancePreserving


class WholeTimesteps(VariancePreserving):
    """For the host's v models, which look noise levels up by whole timesteps."""

    def matched(self, t: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        tau, scale = super().matched(t, gain)
        return tau.round(), scale


def is_flow(sigmas: Tensor) -> bool:
    """Whether these noise levels (T,), increasing, are a flow model's: from 0 to 1."""
    return float(sigmas[-1]) <= 1


def family_of_sigmas(sigmas: Tensor) -> NoiseFamily:
    """That of samplers that walk down these noise levels (T,), increasing."""
    return Flow() if is_flow(sigmas) else VarianceExploding(sigmas)


def family_of(inner: Any) -> tuple[NoiseFamily, Prediction]:
    """The noise family and parametrisation of an inner denoiser.

    k-diffusion's have sigmas and give x0; those of DDIM, PLMS and UniPC take timesteps, give eps.
    """
    if hasattr(inner, "sigmas"):
        return family_of_sigmas(inner.sigmas), "denoised"
    return WholeTimesteps(inner.inner_model.alphas_cumprod), "eps"
