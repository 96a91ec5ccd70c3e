"""A VAE that decodes and encodes large images in tiles, as it would the whole.

A tile alone would differ in three ways. The attention in the VAE's middle would see one tile, so
the middle, which lies at the latent's size, runs on the whole; only what lies between it and the
pixels runs in tiles. Group norms would take the tile's moments; they take the whole image's
(`norms`). Convolutions would see the tile's border, so a tile is computed with a halo of its
surroundings (`tiles`).

The caller's own function decodes or encodes; the VAE's modules are reached by hooks alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_hires.sizes import Size
from lib_hires.tiled_vae.halves import Half, PassedBy, latent_size
from lib_hires.tiled_vae.norms import norms_take, whole_moments
from lib_hires.tiled_vae.tiles import Tile, assembled, tiles_over

HALO = 6  # latent positions that a tile reads around its own; convolutions hardly reach further
LITTLE_HALO = 2  # enough for moments

Function = Callable[[Tensor], Tensor]


def vae_tiled(
    function: Function, x: Tensor, *, vae: nn.Module, pixels: int, factor: int, decode: bool
) -> Tensor:
    """function(x), decoding latents or encoding images x (b, c, h, w), in tiles of about `pixels`.

    function: calls `vae`. pixels: a tile's side; 0, or one that x fits in, computes the whole at
    once. factor: pixels per latent position. Each tile is computed once, after `PASSES` times with
    a smaller halo for the norms. A function that makes tiles of its own, or runs another network
    (as for a preview), is called once on the whole. A VAE whose middle has no known name runs in
    plain tiles.
    """
    scale = 1 if decode else factor
    size = x.shape[-2] // scale, x.shape[-1] // scale
    side = max(4, pixels // factor)
    if not pixels or max(size) <= side:
        return function(x)
    plan = Plan(size, side, factor)
    half = Half.of(vae, decode)
    if half is None:
        of_result = factor if decode else 1
        return assembled(plan.tiles, lambda tile: function(tile.read(x, scale)), size, of_result)
    work = _decoded if decode else _encoded
    try:
        return torch.cat([work(function, x[i : i + 1], half, plan) for i in range(len(x))])
    except PassedBy:
        return function(x)


@dataclass(frozen=True)
class Plan:
    """How an image of `size` latent positions, (height, width), is computed in tiles of `side`."""

    size: Size
    side: int
    factor: int

    @property
    def tiles(self) -> list[Tile]:
        return tiles_over(self.size, self.side, min(HALO, self.side // 4))

    @property
    def moment_tiles(self) -> list[Tile]:
        return tiles_over(self.size, self.side, min(LITTLE_HALO, self.side // 4))

    def small(self, whole: Tensor, scale: int = 1) -> Tensor:
        """At most a tile, by picked values: averages of noise would spread less than it does."""
        size = [min(length, self.side) * scale for length in self.size]
        return F.interpolate(whole, size=size, mode="nearest-exact")


def _decoded(function: Function, z: Tensor, half: Half, plan: Plan) -> Tensor:
    """The image of a latent z (1, c, h, w): up to the middle's end whole, from there in tiles."""
    for _ in range(2):
        with half.stopped_after_middle(plan.size) as reached:
            return function(z)
        if reached[0].is_meta or reached[0].isfinite().all():  # meta: its operations are counted
            break
        function(plan.small(z))  # a host that changes a VAE's precision at NaN does so now
    features = reached[0]

    def decoded(crop: Callable[[Tensor], Tensor]) -> Tensor:
        part = crop(z)
        with half.middle_gives(crop(features)):
            image = function(part)
        if latent_size(image, plan.factor) != part.shape[-2:]:
            raise PassedBy
        return image

    def tile_image(tile: Tile) -> Tensor:
        return decoded(lambda whole: tile.read(whole, 1))

    moments = whole_moments(half.norms, plan.moment_tiles, tile_image, lambda: decoded(plan.small))
    with norms_take(half.norms, lambda norm, _: moments[norm]):
        return assembled(plan.tiles, tile_image, plan.size, plan.factor)


def _encoded(function: Function, x: Tensor, half: Half, plan: Plan) -> Tensor:
    """The latent of an image x (1, c, H, W): up to the middle in tiles, from there whole."""

    def features(part: Tensor) -> Tensor:
        with half.stopped_before_middle(latent_size(part, plan.factor)) as reached:
            function(part)
        if not reached:
            raise PassedBy
        return reached[0]

    def tile_features(tile: Tile) -> Tensor:
        return features(tile.read(x, plan.factor))

    def small_features() -> Tensor:
        return features(plan.small(x, plan.factor))

    moments = whole_moments(half.norms, plan.moment_tiles, tile_features, small_features)
    with norms_take(half.norms, lambda norm, _: moments[norm]):
        whole = assembled(plan.tiles, tile_features, plan.size, 1)
    with half.middle_takes(whole, plan.factor):
        return function(x)
