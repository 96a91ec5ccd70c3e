"""A trained VAE in more channels that computes the same (Chen, Goodfellow, Shlens 2016).

Each channel becomes several equal ones beside each other, so that a group of a norm holds the same
values as before; weights that read them are divided by their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def widened(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], noise: float = 0.0
) -> dict[str, Tensor]:
    """The weights `old` of an AutoencoderKL in the shapes of `new`, whose widths are multiples.

    noise: deviation of the factors by which weights then differ, so that equal channels part.
    Raises ValueError where a width is no multiple.
    """
    return {
        key: _widened(key, old.get(key), like) * (1 + noise * torch.randn(like.shape))
        for key, like in new.items()
    }


def _widened(key: str, value: Tensor | None, like: Tensor) -> Tensor:
    if value is None:  # a shortcut, which equal widths do not need
        return _identity(key, like)
    factors = [after / before for before, after in zip(value.shape, like.shape, strict=True)]
    if any(factor != int(factor) for factor in factors):
        raise ValueError(f"{key}: {tuple(like.shape)} is no multiple of {tuple(value.shape)}")
    result = value.float()
    for dim, factor in enumerate(factors):
        result = result.repeat_interleave(int(factor), dim)
    if value.dim() > 1:
        result = result / factors[1]
    if ".to_q." in key:  # attention divides by the root of its width, and there are more products
        result = result / math.sqrt(factors[0])
    return result


def _identity(key: str, like: Tensor) -> Tensor:
    if "conv_shortcut" not in key:
        raise ValueError(f"{key}: has no counterpart")
    if like.dim() == 1:
        return torch.zeros(like.shape)
    wide, narrow = max(like.shape[:2]), min(like.shape[:2])
    if wide % narrow:
        raise ValueError(f"{key}: {wide} is no multiple of {narrow}")
    each = torch.eye(narrow).repeat_interleave(wide // narrow, 0)  # (wide, narrow)
    matrix = each if like.shape[0] == wide else each.T / (wide // narrow)
    return matrix[:, :, None, None].reshape(like.shape)
