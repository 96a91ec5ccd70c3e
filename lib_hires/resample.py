"""D, the mean over areas that gives the small image; U, its right inverse; bicubic upsampling.

For a whole-number scale D is the mean over m×m blocks and U repeats each value m×m times, as in
Upsample Guidance, section 4.2. For any other scale D weighs each value by the area it shares with
the block, per axis, and U is D's smallest right inverse (Moore-Penrose), so that D[U[r]] = r holds
at every scale, and with it everything that follows from it. U can be smooth instead, see `between`.
Frames are one more axis: D along time is the mean over m_t neighbouring frames (section 5.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_hires.clips import as_clips, as_frames
from lib_hires.devices import full_precision
from lib_hires.sizes import Size

INPAINTING = 5  # channels that an inpainting model receives beside the latent, the mask first


@dataclass(frozen=True, eq=False)
class Axis:
    """D and U along one axis."""

    reduce: Tensor  # (small, large)
    upsample: Tensor  # (large, small)
    power: float  # of D's rows: the mean over them of the sum of their squared weights

    @classmethod
    def between(cls, large: int, small: int, smooth: bool) -> Axis:
        """Raises ValueError where `small` is larger than `large`."""
        if not 0 < small <= large:
            raise ValueError(f"cannot reduce {large} to {small}")
        matrix = area_matrix(large, small)
        inverse = _right_inverse(matrix, smooth)
        return cls(matrix.float(), inverse.float(), matrix.square().sum(1).mean().item())

    @property
    def changes(self) -> bool:
        """False where D is the identity."""
        return len(self.reduce) < len(self.upsample)

    def to(self, device: torch.device) -> Axis:
        """The same on `device`."""
        return Axis(self.reduce.to(device), self.upsample.to(device), self.power)


@dataclass(frozen=True, eq=False)
class Reduction:
    """D and U between a large and a small size, separable: one `Axis` each.

    The axes are the last ones of what is reduced: (..., H, W), and with frames (..., f, H, W). In
    the convention of AnimateDiff frames are a batch, those of a clip one after another: then the
    first axis of `axes` is that of the batch, (b·f, c, H, W).
    """

    axes: tuple[Axis, ...]  # (frames,) rows, columns
    batched: bool = False  # the frames are a batch

    @classmethod
    def between(
        cls,
        large: tuple[int, ...],
        small: tuple[int, ...],
        smooth: bool = False,
        *,
        batched: bool = False,
    ) -> Reduction:
        """Build D and U between two sizes: (height, width), or (frames, height, width).

        smooth: make U bicubic, corrected so that D[U[r]] = r all the same; it leaves no grid.
        batched: the frames are a batch. Raises ValueError where `small` is larger than `large` on
        an axis, or frames are a batch and their number is not given.
        """
        if len(large) != len(small) or len(large) not in (2, 3) or (batched and len(large) == 2):
            raise ValueError(f"cannot reduce {large} to {small}")
        try:
            axes = [Axis.between(*sides, smooth) for sides in zip(large, small, strict=True)]
        except ValueError:
            raise ValueError(f"cannot reduce {large} to {small}") from None
        return cls(tuple(axes), batched)

    @property
    def noise_gain(self) -> float:
        """What D multiplies the deviation of independent noise by: its rows' root mean square.

        1/m for whole scales; between, the blocks share values and it is less (0.83/m at m = 1.5).
        Along time it is 1/sqrt(m_t), for one axis is reduced and not two.
        """
        return math.sqrt(math.prod(axis.power for axis in self.axes))

    @property
    def frames_to_one(self) -> float:
        """m_t: how many frames share one of D's result."""
        frames = self.axes[0] if len(self.axes) == 3 else None
        return len(frames.upsample) / len(frames.reduce) if frames else 1.0

    @property
    def small(self) -> Size:
        """(height, width) of D's result."""
        return len(self.axes[-2].reduce), len(self.axes[-1].reduce)

    @property
    def large(self) -> Size:
        """(height, width) that D takes."""
        return len(self.axes[-2].upsample), len(self.axes[-1].upsample)

    def to(self, device: torch.device) -> Reduction:
        """The same on `device`."""
        return Reduction(tuple(axis.to(device) for axis in self.axes), self.batched)

    def reduce(self, x: Tensor) -> Tensor:
        """D: (..., H, W) to (..., h, w), in float32, also under a host's autocast."""
        x = x.float()
        with full_precision(x.device):
            # Columns first: one plain matrix product, which leaves fewer values for the rows.
            for place, axis in reversed(self._placed):
                x = self._along(axis.reduce, x, place)
        return x

    def upsample(self, x: Tensor) -> Tensor:
        """U: (..., h, w) to (..., H, W), in float32."""
        x = x.float()
        with full_precision(x.device):
            for place, axis in self._placed:
                x = self._along(axis.upsample, x, place)
        return x

    def rows(self, values: Tensor) -> Tensor:
        """Of values for each row of a large batch, those for the small batch.

        The same, but where frames are a batch: then each native frame's are those of the frame in
        the middle of its block, (b·F, ...) to (b·f, ...).
        """
        if not self.batched:
            return values
        frames, small = len(self.axes[0].upsample), len(self.axes[0].reduce)
        middle = [math.floor((frame + 0.5) * frames / small) for frame in range(small)]
        clips = values.reshape(-1, frames, *values.shape[1:])
        return clips[:, middle].flatten(0, 1)

    @property
    def _placed(self) -> list[tuple[int, Axis]]:
        """(place from the end, axis) of those that are reduced, in order."""
        places = range(-len(self.axes), 0)
        return [pair for pair in zip(places, self.axes, strict=True) if pair[1].changes]

    def _along(self, matrix: Tensor, x: Tensor, place: int) -> Tensor:
        """A matrix applied along an axis of x; -1 its columns, -2 its rows, -3 its frames."""
        if place == -3 and self.batched:
            clips = x.reshape(-1, matrix.shape[1], x[0].numel())
            return (matrix @ clips).reshape(-1, *x.shape[1:])
        if place == -3:
            return (matrix @ x.flatten(-2)).reshape(*x.shape[:-3], -1, *x.shape[-2:])
        return matrix @ x if place == -2 else x @ matrix.T


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
    """Upsample (b, c, h, w) to (b, c, *size), or each frame of (b, c, f, h, w)."""
    if x.ndim == 5:
        return as_clips(bicubic(as_frames(x), size), x.shape[2])
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
