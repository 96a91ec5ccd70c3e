"""How far images have left the native ones that they were made of.

`moved` is the root mean square difference of an image and the native one of its seed, both reduced
to GRID x GRID means, in 255 steps. It sees what distances of crops cannot: land in the sky, second
chimneys. An enlarged image has hardly moved, one from other noise is another image altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 16  # cells along each side of an image


def coarse(image: Tensor) -> Tensor:
    """The means (3, GRID, GRID), 0 to 255, of an image (1, 3, h, w) in [-1, 1]."""
    return F.adaptive_avg_pool2d((image[0].float() + 1) * 127.5, GRID)


def moved(images: Sequence[Tensor], natives: Sequence[Tensor]) -> dict[str, Any]:
    """A row's `moved`, the mean over its images, and its standard error, of what `coarse` gives."""
    differences = torch.stack(list(images)) - torch.stack(list(natives))
    each = differences.square().mean((1, 2, 3)).sqrt().numpy()
    error = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else 0.0
    return {"moved": round(float(each.mean()), 2), "moved_error": round(error, 2)}
