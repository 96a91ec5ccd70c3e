"""Feature upsamplers of the toy U-Nets."""

from __future__ import annotations

from dataclasses import replace

import torch
from toy_unets import CHANNELS

from lib_hires.feature_upsampler import FeatureUpsampler, UpsamplerInfo


def info(**changes: object) -> UpsamplerInfo:
    plain = UpsamplerInfo("sd1", "toy", "0" * 64, layers=(0, 1, 2, 3), channels=CHANNELS)
    return replace(plain, **changes)


def trained(**changes: object) -> FeatureUpsampler:
    """One whose weights are all random."""
    torch.manual_seed(1)
    upsampler = FeatureUpsampler(info(**changes)).requires_grad_(False)
    for weight in upsampler.parameters():
        weight.copy_(torch.randn(weight.shape) / 2)
    return upsampler
