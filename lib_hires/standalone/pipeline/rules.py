"""Sampling rules: what hosts do differently with the same schedule, noise and sampler."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.request import COMFYUI, K_DIFFUSION


class Rules:
    """k-diffusion's own, by which A1111 and Forge sample too."""

    def denoiser(self, model: LatentModel) -> Any:
        """The model's denoiser; it is evaluated at any timestep."""
        return model.denoiser()

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """The state (b, ...) at a schedule's first sigma, of standard normal noise."""
        return noise * sigma


class ComfyUIRules(Rules):
    """ComfyUI's."""

    def denoiser(self, model: LatentModel) -> Any:
        """The model's denoiser; it is evaluated at whole timesteps, the nearest by log sigma."""
        denoiser = super().denoiser(model)
        denoiser.quantize = True
        return denoiser

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """It has the variance that the model saw in training; 1 of it was the image's."""
        return noise * (1 + sigma**2).sqrt()


RULES = {K_DIFFUSION: Rules(), COMFYUI: ComfyUIRules()}
"""By the name that a request has for them."""
