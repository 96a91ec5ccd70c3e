"""Sharpening an enlarged image before it is encoded (DiffuseHigh): an unsharp mask.

    image' = image + amount·(image - G[image])            G: Gaussian, deviation in pixels

Bicubic enlargement leaves the highest octave nearly empty; the denoising that follows is short and
keeps what it finds there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sharpened(image: Tensor, amount: float, deviation: float = 1.0) -> Tensor:
    """image' (b, c, h, w) in its dtype, not clamped; the image itself where the amount is 0."""
    if amount == 0:
        return image
    return (image.float() + amount * (image.float() - gaussian(image, deviation))).to(image.dtype)


def gaussian(image: Tensor, deviation: float) -> Tensor:
    """The image (b, c, h, w) blurred, float32; its border continues outside."""
    radius = max(1, math.ceil(3 * deviation))
    at = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    weights = torch.exp(-at.square() / (2 * deviation**2))
    kernel = (weights / weights.sum()).expand(image.shape[1], 1, -1)  # (c, 1, 2·radius + 1)
    padded = F.pad(image.float(), [radius] * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[..., None, :], groups=image.shape[1])
    return F.conv2d(rows, kernel[..., :, None], groups=image.shape[1])
