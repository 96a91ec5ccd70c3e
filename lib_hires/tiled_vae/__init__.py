"""A VAE that decodes and encodes large images in tiles, as it would the whole.

A tile alone would differ in three ways. The attention in the VAE's middle would see one tile, so
the middle, which lies at the latent's size, runs on the whole; only what lies between it and the
pixels runs in tiles. Group norms would take the tile's moments; they take the whole image's
(`norms`). Convolutions would see the tile's border, so a tile is computed with a halo of its
surroundings (`tiles`).

The caller's own function decodes or encodes; the VAE's modules are reached by hooks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_hires.sizes import Size
from lib_hires.tiled_vae.halves import Half, PassedBy, latent_size
from lib_hires.tiled_vae.norms import Taken, norms_take, sampled_moments, whole_moments
from lib_hires.tiled_vae.tiles import Sample, Tile, assembled, tiles_over

HALO = 6  # latent positions that a tile reads around its own; convolutions hardly reach further
LITTLE_HALO = 2  # enough for moments
CELL, MARGIN = 8, 1  # latent positions: of a sample's cells
CELLS = 400  # enough for a sample to stand for the whole

Function = Callable[[Tensor], Tensor]
Read = Callable[[Tensor, int], Tensor]
"""read(whole, values per latent position): a part of it, or a small image in its place."""
Run = Callable[[Read], Tensor]


def vae_tiled(
    function: Function, x: Tensor, *, vae: nn.Module, pixels: int, factor: int, decode: bool
) -> Tensor:
    """function(x), decoding latents or encoding images x (b, c, h, w), in tiles of about `pixels`.

    function: calls `vae`. pixels: a tile's side; 0, or one that x fits in, computes the whole at
    once. factor: pixels per latent position. Each tile is computed once, after one image of a
    tile's size for the norms; tiles too small for that, under about 1300 pixels at factor 8, are
    computed `PASSES` times more with a smaller halo instead. A function that makes tiles of its
    own, or runs another network (as for a preview), is called once on the whole. A VAE whose middle
    has no known name runs in plain tiles.
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

    @property
    def sample(self) -> Sample:
        """Of the whole, no larger than a tile."""
        return Sample.over(self.size, self.side, min(CELL, *self.size), MARGIN)

    def moments(self, norms: Sequence[nn.GroupNorm], run: Run) -> Taken:
        """The whole's. run: computes what belongs to a part of it, given how to read that part."""
        sample = self.sample
        if len(sample) >= CELLS:
            return sampled_moments(norms, sample, lambda: run(sample.read))
        return whole_moments(
            norms, self.moment_tiles, lambda tile: run(tile.read), lambda: run(self.small)
        )

    def small(self, whole: Tensor, scale: int) -> Tensor:
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
        function(plan.small(z, 1))  # a host that changes a VAE's precision at NaN does so now
    features = reached[0]

    def decoded(read: Read) -> Tensor:
        part = read(z, 1)
        with half.middle_gives(read(features, 1)):
            image = function(part)
        if latent_size(image, plan.factor) != part.shape[-2:]:
            raise PassedBy
        return image

    moments = plan.moments(half.norms, decoded)
    with norms_take(half.norms, lambda norm, _: moments[norm]):
        return assembled(plan.tiles, lambda tile: decoded(tile.read), plan.size, plan.factor)


def _encoded(function: Function, x: Tensor, half: Half, plan: Plan) -> Tensor:
    """The latent of an image x (1, c, H, W): up to the middle in tiles, from there whole."""

    def features(read: Read) -> Tensor:
        part = read(x, plan.factor)
        with half.stopped_before_middle(latent_size(part, plan.factor)) as reached:
            function(part)
        if not reached:
            raise PassedBy
        return reached[0]

    moments = plan.moments(half.norms, features)
    with norms_take(half.norms, lambda norm, _: moments[norm]):
        whole = assembled(plan.tiles, lambda tile: features(tile.read), plan.size, 1)
    with half.middle_takes(whole, plan.factor):
        return function(x)
