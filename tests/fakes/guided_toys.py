"""Upsample Guidance around toys, as several files of its tests set it up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lib_hires.noise import VarianceExploding
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance
from lib_hires.upsample_guidance import UpsampleGuided

TABLE = torch.logspace(-3, math.log10(15), 1000)  # sigmas, wide enough to clamp nothing
STEPS = [15.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0]
PLAIN = {"enabled": True, "eta": 1, "cadence": 1, "edge": 0, "shifted_start": False}

# A schedule whose log noise ratio is linear in t, so that tau is known in closed form.
SLOPE = 9 / 999
RATIOS = (-4.5 + SLOPE * torch.arange(1000, dtype=torch.float64)).exp()
ABAR = 1 / (1 + RATIOS**2)


def abar_at(t: Tensor) -> Tensor:
    return 1 / (1 + (-4.5 + SLOPE * t).exp() ** 2)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def guided(predict, large, small, *, family=None, times=STEPS, prediction="denoised", **options):
    shrink, device = options.pop("shrink_cond", None), options.pop("device", "cpu")
    batched, opening = options.pop("batched", False), options.pop("opening", None)
    return UpsampleGuided(
        predict,
        UpsampleGuidance(**{**PLAIN, **options}),
        family=family or VarianceExploding(TABLE),
        reduction=Reduction.between(large, small, batched=batched).to(device),
        times=times,
        prediction=prediction,
        shrink_cond=shrink,
        opening=opening,
    )


def wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
