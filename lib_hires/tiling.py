"""Apply a size-changing function (decode, encode) in overlapping tiles, blended."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_hires.group_norms import norms_held


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, overlap: int, ratio: Fraction
) -> Tensor:
    """function(x), computed tile by tile.

    x: (b, c, h, w). function: maps (b, c, h, w) to (b, d, h·ratio, w·ratio), ratio 8 to decode and
    1/8 to encode. tile, overlap: side and shared border in x's pixels; with ratio below 1 both
    must be multiples of 1/ratio. Neighbouring tiles fade linearly into each other over the overlap.
    A picture that fits in one tile is computed whole.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap: expected 0 to {tile - 1}, got {overlap}")
    if any((length * ratio).denominator != 1 for length in (tile, overlap)):
        raise ValueError(f"tile, overlap: expected multiples of {1 / ratio}, got {tile}, {overlap}")
    height, width = x.shape[-2:]
    if height <= tile and width <= tile:
        return function(x)
    total: Tensor | None = None
    weights: Tensor | None = None
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = function(x[..., top : top + tile, left : left + tile])
            if total is None or weights is None:
                shape = int(height * ratio), int(width * ratio)
                total = part.new_zeros(*part.shape[:2], *shape)
                weights = part.new_zeros(shape)
            rows = slice(int(top * ratio), int(top * ratio) + part.shape[-2])
            columns = slice(int(left * ratio), int(left * ratio) + part.shape[-1])
            fade = _fade(part, int(overlap * ratio))
            total[..., rows, columns] += part * fade
            weights[rows, columns] += fade
    assert total is not None and weights is not None
    return total / weights


def vae_tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    vae: nn.Module,
    pixels: int,
    factor: int,
    decode: bool,
) -> Tensor:
    """A VAE's decode or encode in tiles of about `pixels` to a side, a quarter of it shared.

    function: calls `vae`, whose group norms see the whole picture in every tile. factor: pixels per
    latent position. pixels 0 computes the whole at once.
    """
    tile = max(4, pixels // factor)  # in latent positions
    unit, ratio = (1, Fraction(factor)) if decode else (factor, Fraction(1, factor))
    height, width = x.shape[-2:]
    if not pixels or max(height, width) <= tile * unit:
        return function(x)
    scale = tile / max(height, width)
    small = [max(1, round(side * scale)) * unit for side in (height, width)]
    # Values are picked, not averaged, for averages of noise spread less than the whole does.
    small_x = F.interpolate(x, size=small, mode="nearest-exact")
    with norms_held(vae, lambda: function(small_x)):
        return tiled(function, x, tile=tile * unit, overlap=tile // 4 * unit, ratio=ratio)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Tile origins that cover `length`; the last tile is moved back so as not to stick out."""
    last = max(0, length - tile)
    return [*range(0, last, tile - overlap), last]


def _fade(part: Tensor, border: int) -> Tensor:
    """(h, w) weights that rise linearly over `border` from each side, positive everywhere."""
    ramps = []
    for length in part.shape[-2:]:
        distance = torch.arange(1, length + 1, device=part.device, dtype=part.dtype)
        edge = torch.minimum(distance, distance.flip(0))
        ramps.append((edge / (border + 1)).clamp(max=1))
    return ramps[0][:, None] * ramps[1]
