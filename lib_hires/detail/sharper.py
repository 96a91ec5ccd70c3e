"""Evaluate the large image at a smaller sigma than its state has (Detail Daemon).

    x0 = model(x, sigma·(1 - amount·bump(t/T)))       bump(u) = sin²(pi·(u - 0.2)/0.6) in 0.2 to 0.8

What the model takes for signal it keeps, so that more detail stays. Upsample Guidance's native
evaluation receives the true sigma, so the coarse part cannot drift. The bump is that of Detail
Daemon's defaults, over the training timesteps instead of the sampler's steps: a stage has its share
of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib_hires.noise import VarianceExploding

FIRST, LAST = 0.2, 0.8  # where the bump begins and ends, as shares of the training timesteps


def bump(share: Tensor) -> Tensor:
    """0 outside FIRST to LAST, 1 half-way; any shape."""
    inside = (share > FIRST) & (share < LAST)
    return torch.sin(math.pi * (share - FIRST) / (LAST - FIRST)).square() * inside


def sharper(
    denoise: Callable[..., Tensor], amount: float, family: VarianceExploding
) -> Callable[..., Tensor]:
    """`denoise` (x, sigma, **cond) at a smaller sigma; itself where the amount is 0."""
    if amount == 0:
        return denoise

    def at_smaller_sigma(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        share = family.timestep(sigma.float()) / family.training_steps
        return denoise(x, sigma * (1 - amount * bump(share)).to(sigma), **cond)

    return at_smaller_sigma
