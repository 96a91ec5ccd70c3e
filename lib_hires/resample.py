"""D, the mean over areas that gives the small image; U, its right inverse; bicubic upsampling.

For a whole-number scale D is the mean over m×m blocks and U repeats each value m×m times, as in
Upsample Guidance, section 4.2. For any other scale D weighs each value by the area it shares with
the block, per axis, and U is D's smallest right inverse (Moore-Penrose), so that D[U[r]] = r holds
at every scale, and with it everything that follows from it. U can be smooth instead, see `between`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_hires.devices import full_precision
from lib_hires.sizes import Size

INPAINTING = 5  # channels that an inpainting model receives beside the latent, the mask first


@dataclass(frozen=True, eq=False)
class Reduction:
    """D and U between a large and a small size, separable: one matrix per axis and direction."""

    reduce_rows: Tensor  # (h, H)
    reduce_columns: Tensor  # (w, W)
    upsample_rows: Tensor  # (H, h)
    upsample_columns: Tensor  # (W, w)
    noise_gain: float
    """What D multiplies the deviation of independent noise by: its rows' root mean square.

    1/m for whole scales; between, the blocks share values and it is less (0.83/m at m = 1.5).
    """

    @classmethod
    def between(cls, large: Size, small: Size, smooth: bool = False) -> Reduction:
        """Build D and U. Raises ValueError where `small` is larger than `large` on an axis.

        smooth: make U bicubic, corrected so that D[U[r]] = r all the same; it leaves no grid.
        """
        if not 0 < small[0] <= large[0] or not 0 < small[1] <= large[1]:
            raise ValueError(f"cannot reduce {large} to {small}")
        rows, columns = area_matrix(large[0], small[0]), area_matrix(large[1], small[1])
        gains = (part.square().sum(1).mean().item() for part in (rows, columns))
        return cls(
            rows.float(),
            columns.float(),
            _right_inverse(rows, smooth).float(),
            _right_inverse(columns, smooth).float(),
            math.sqrt(math.prod(gains)),
        )

    @property
    def small(self) -> Size:
        """(height, width) of D's result."""
        return len(self.reduce_rows), len(self.reduce_columns)

    def to(self, device: torch.device) -> Reduction:
        """The same on `device`."""
        return Reduction(
            self.reduce_rows.to(device),
            self.reduce_columns.to(device),
            self.upsample_rows.to(device),
            self.upsample_columns.to(device),
            self.noise_gain,
        )

    def reduce(self, x: Tensor) -> Tensor:
        """D: (..., H, W) to (..., h, w), in float32, also under a host's autocast."""
        return _reduced(x, self.reduce_rows, self.reduce_columns)

    def upsample(self, x: Tensor) -> Tensor:
        """U: (..., h, w) to (..., H, W), in float32."""
        with full_precision(x.device):
            return self.upsample_rows @ x.float() @ self.upsample_columns.T


def area_matrix(large: int, small: int) -> Tensor:
    """(small, large) weights, rows summing to 1: the area each value shares with each block."""
    edges = torch.arange(small + 1, dtype=torch.float64) * large / small
    start = torch.arange(large, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], start + 1) - torch.maximum(edges[:-1, None], start)
    return overlap.clamp(min=0) * small / large


def area_means(x: Tensor, size: Size) -> Tensor:
    """D of an image (..., H, W) that belongs to a latent: (..., *size), no larger, in float32.

    torch's own area means count values that two blocks share in both as whole ones, and Apple's
    devices know them at whole scales only.
    """
    height, width = x.shape[-2:]
    rows, columns = _on_device(height, size[0], x.device), _on_device(width, size[1], x.device)
    return _reduced(x, rows, columns)


def shrunk(part: Tensor, size: Size) -> Tensor:
    """What a model receives beside its latent, (b, c, H, W), made (b, c, *size) in its own dtype.

    Area means; of an inpainting model's five channels the first is a mask and stays hard.
    """
    means = area_means(part, size).to(part.dtype)
    if part.shape[1] != INPAINTING or part.ndim != 4:
        return means
    mask = F.interpolate(part[:, :1].float(), size=size, mode="nearest-exact").to(part.dtype)
    return torch.cat([mask, means[:, 1:]], dim=1)


@lru_cache(maxsize=8)  # so that it is copied to the device once for all steps
def _on_device(large: int, small: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cached tensor is used outside of it too
        return area_matrix(large, small).float().to(device)


def _reduced(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    with full_precision(x.device):
        # Columns first: one plain matrix product, which leaves fewer values for the rows.
        return rows @ (x.float() @ columns.T)


def bicubic(x: Tensor, size: Size) -> Tensor:
    """Upsample (b, c, h, w) to (b, c, *size)."""
    # Channels last, as a VAE leaves its image, the same takes a CPU 2.6 times as long.
    return F.interpolate(x.contiguous(), size=size, mode="bicubic", align_corners=False)


def _right_inverse(matrix: Tensor, smooth: bool) -> Tensor:
    """The smallest U with D U = 1, D^T (D D^T)^-1; or the one nearest to bicubic upsampling B.

    That one is B + D^+ (1 - D B): what B changes of the coarse values is put back.
    """
    inverse: Tensor = torch.linalg.solve(matrix @ matrix.T, matrix).T
    if not smooth:
        return inverse
    small, large = matrix.shape
    identity = torch.eye(small, dtype=matrix.dtype)
    upsample = bicubic(identity[None, None], (large, small))[0, 0]  # (large, small)
    return upsample + inverse @ (identity - matrix @ upsample)
