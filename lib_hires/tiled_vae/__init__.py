"""A VAE that decodes and encodes large images in tiles, as it would the whole.

A tile alone would differ in three ways. The attention in the VAE's middle would see one tile, so
the middle, which lies at the latent's size, runs on the whole; only what lies between it and the
pixels runs in tiles. Group norms would take the tile's moments; they take the whole image's
(`group_norms`). Convolutions would see the tile's border, so a tile is computed with what lies
around it (`tiling`).

The caller's own function decodes or encodes; the VAE's modules are reached by hooks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_hires.sizes import Size
from lib_hires.tiled_vae.norms import norms_take, of_this_thread, whole_moments
from lib_hires.tiled_vae.tiles import Tile, assembled, tiles_over

HALO = 6  # latent positions that a tile reads around its own; convolutions hardly look further
LITTLE_HALO = 2  # enough for moments
TINY = 2  # sides of the latent that stands in where nothing is wanted of what is computed

Function = Callable[[Tensor], Tensor]


def vae_tiled(
    function: Function, x: Tensor, *, vae: nn.Module, pixels: int, factor: int, decode: bool
) -> Tensor:
    """function(x), decoding latents or encoding images x (b, c, h, w), in tiles of about `pixels`.

    function: calls `vae`. pixels: a tile's side; 0, or one that x fits in, computes the whole at
    once. factor: pixels per latent position. Each tile is computed once, after `PASSES` times with
    less around it for the norms. A function that has tiles of its own, or asks another network as
    for a preview, is left to itself. A VAE whose middle goes by no known name runs in plain tiles.
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
    except _PassedBy:
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


@dataclass(frozen=True)
class Half:
    """An encoder or a decoder, of LDM's layout or of diffusers'."""

    net: nn.Module
    first: nn.Module  # of the middle
    last: nn.Module  # of the middle
    norms: tuple[nn.GroupNorm, ...]  # outside the middle

    @classmethod
    def of(cls, vae: nn.Module, decode: bool) -> Half | None:
        """None where the middle's name is not known."""
        net: Any = getattr(vae, "decoder" if decode else "encoder", None)
        if hasattr(net, "mid_block"):  # diffusers
            middle, first, last = net.mid_block, net.mid_block, net.mid_block
        elif hasattr(net, "mid"):  # LDM and its kin
            middle, first, last = net.mid, net.mid.block_1, net.mid.block_2
        else:
            return None
        inside = set(middle.modules())
        outside = (part for part in net.modules() if part not in inside)
        norms = tuple(part for part in outside if isinstance(part, nn.GroupNorm))
        return cls(net, first, last, norms)

    @contextmanager
    def stopped_before_middle(self, size: Size) -> Iterator[list[Tensor]]:
        """Leave the block when the middle is given features of `size`; the list then holds them."""
        reached: list[Tensor] = []
        stop = partial(_stop, reached, size)
        with (
            suppress(_Reached),
            self.first.register_forward_pre_hook(of_this_thread(lambda _, inputs: stop(inputs[0]))),
        ):
            yield reached

    @contextmanager
    def stopped_after_middle(self, size: Size) -> Iterator[list[Tensor]]:
        """Leave the block when the middle gives features of `size`; the list then holds them."""
        reached: list[Tensor] = []
        stop = partial(_stop, reached, size)
        with (
            suppress(_Reached),
            self.last.register_forward_hook(of_this_thread(lambda *call: stop(call[2]))),
        ):
            yield reached

    @contextmanager
    def middle_takes(self, features: Tensor, factor: int) -> Iterator[None]:
        """Inside the block the encoder's middle is given `features`, whatever the image."""
        with (
            self._given_tiny(features, factor),
            self.first.register_forward_pre_hook(
                of_this_thread(lambda _, inputs: (features.to(inputs[0]), *inputs[1:]))
            ),
        ):
            yield

    @contextmanager
    def middle_gives(self, features: Tensor) -> Iterator[None]:
        """Inside the block the decoder's middle gives `features`, whatever the latent."""
        with (
            self._given_tiny(features, 1),
            self.last.register_forward_hook(of_this_thread(lambda *call: features.to(call[2]))),
        ):
            yield

    def _given_tiny(self, features: Tensor, factor: int) -> AbstractContextManager[Any]:
        """Inside the block a corner stands in for what `features` belong to, and for that alone."""
        side = TINY * factor

        def tiny(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            if _latent_size(inputs[0], factor) != features.shape[-2:]:
                raise _PassedBy
            return inputs[0][..., :side, :side], *inputs[1:]

        return self.net.register_forward_pre_hook(of_this_thread(tiny))


class _Reached(BaseException):
    """The middle was reached, and what comes after it is not wanted.

    Not an Exception, which Forge with --directml takes for a lack of memory and tries again.
    """


class _PassedBy(BaseException):
    """The function does not take what it is given through the VAE, or not the whole of it."""


def _stop(reached: list[Tensor], size: Size, features: Tensor) -> None:
    if tuple(features.shape[-2:]) == size:
        reached.append(features)
        raise _Reached


def _decoded(function: Function, z: Tensor, half: Half, plan: Plan) -> Tensor:
    """The image of a latent z (1, c, h, w): up to the middle's end whole, from there in tiles."""
    for _ in range(2):
        with half.stopped_after_middle(plan.size) as reached:
            return function(z)
        if reached[0].isfinite().all():
            break
        function(plan.small(z))  # a host that changes a VAE's precision at NaN does so now
    features = reached[0]

    def go_on(cut: Callable[[Tensor], Tensor]) -> Tensor:
        part = cut(z)
        with half.middle_gives(cut(features)):
            image = function(part)
        if _latent_size(image, plan.factor) != part.shape[-2:]:
            raise _PassedBy
        return image

    def tile_image(tile: Tile) -> Tensor:
        return go_on(lambda whole: tile.read(whole, 1))

    moments = whole_moments(half.norms, plan.moment_tiles, tile_image, lambda: go_on(plan.small))
    with norms_take(half.norms, lambda norm, _: moments[norm]):
        return assembled(plan.tiles, tile_image, plan.size, plan.factor)


def _encoded(function: Function, x: Tensor, half: Half, plan: Plan) -> Tensor:
    """The latent of an image x (1, c, H, W): up to the middle in tiles, from there whole."""

    def features(part: Tensor) -> Tensor:
        with half.stopped_before_middle(_latent_size(part, plan.factor)) as reached:
            function(part)
        if not reached:
            raise _PassedBy
        return reached[0]

    def tile_features(tile: Tile) -> Tensor:
        return features(tile.read(x, plan.factor))

    def show_small() -> None:
        features(plan.small(x, plan.factor))

    moments = whole_moments(half.norms, plan.moment_tiles, tile_features, show_small)
    with norms_take(half.norms, lambda norm, _: moments[norm]):
        whole = assembled(plan.tiles, tile_features, plan.size, 1)
    with half.middle_takes(whole, plan.factor):
        return function(x)


def _latent_size(image: Tensor, factor: int) -> Size:
    return image.shape[-2] // factor, image.shape[-1] // factor
