"""What a host's model was made for: its noise family, native size and latents."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_sampling
import torch

from lib_hires.noise import Flow, NoiseFamily, VarianceExploding
from lib_hires.sizes import Size

MULTIPLE = 64  # pixels, of which the sides of native evaluations are multiples


def family_of(model_sampling: Any) -> NoiseFamily:
    """The noise family of a host's model_sampling."""
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return Flow()
    return VarianceExploding(model_sampling.sigmas)


def native_side(model: Any) -> int:
    """The side in pixels of the square images that a host's BaseModel was trained on.

    By the width of its text features: Stable Diffusion 1 has 768, 2 has 1024.
    """
    context = model.model_config.unet_config.get("context_dim")
    if context == 768:
        return 512
    if context == 1024:
        v = isinstance(model.model_sampling, comfy.model_sampling.V_PREDICTION)
        return 768 if v else 512
    return 1024


def pixels_per_position(model: Any) -> int:
    """Pixels along a side of what a latent's position stands for. Older hosts do not know it."""
    return int(getattr(model.latent_format, "spacial_downscale_ratio", 8))


def native_latent(model: Any, side: int = 0) -> Size:
    """(height, width) of a native latent; side: in pixels, 0 for the model's own."""
    length = max(1, (side or native_side(model)) // pixels_per_position(model))
    return length, length


def multiple_of(model: Any, native: Size) -> int:
    """What sides of native latents are rounded to, in latent positions; less in small ones."""
    return max(1, min(MULTIPLE // pixels_per_position(model), native[0] // 4))


def sigma_at(model_sampling: Any, timestep: float) -> float:
    """The noise level of a training timestep, counted as if there were 1000."""
    family = family_of(model_sampling)
    if isinstance(family, Flow):
        return timestep / family.training_steps
    assert isinstance(family, VarianceExploding)
    logs = family.sigmas.cpu().double().log()  # MPS has no float64
    place = torch.tensor(timestep * len(logs) / 1000).clamp(0, len(logs) - 1)
    below = min(int(place), len(logs) - 2)
    return math.exp(float(logs[below].lerp(logs[below + 1], float(place) - below)))
