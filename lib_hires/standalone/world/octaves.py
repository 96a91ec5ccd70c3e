"""Energy per octave: how much an image holds at each size of detail, by a Laplacian pyramid."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

OCTAVES = 4  # the finest first: details of 1 to 2 pixels, 2 to 4, 4 to 8, 8 to 16


def octave_energies(image: Tensor, octaves: int = OCTAVES) -> list[float]:
    """Mean squared difference between an image (b, c, h, w) and itself without the finest detail,
    then the same of the image at half the size, and so on.

    Raises ValueError for an image that cannot be halved so often.
    """
    if min(image.shape[-2:]) < 2**octaves:
        raise ValueError(f"octaves: {octaves} of an image of {tuple(image.shape[-2:])}")
    energies, values = [], image.float()
    for _ in range(octaves):
        half = F.interpolate(values, scale_factor=0.5, mode="area")
        back = F.interpolate(half, size=values.shape[-2:], mode="bicubic", align_corners=False)
        energies.append(float((values - back).square().mean()))
        values = half
    return energies


def beside_truth(energies: np.ndarray, true: np.ndarray) -> list[float]:
    """Mean energy of images (n, octaves) over that of true ones (k, octaves), octave by octave."""
    return [float(ratio) for ratio in energies.mean(0) / true.mean(0)]
