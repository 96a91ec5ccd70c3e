"""Group norms that take the whole image's moments while they see one tile of it.

A VAE's group norms take mean and variance over their whole input, so a tile with more sky
than its neighbour comes out in other colours. What a later norm sees depends on every earlier one,
so exact moments would cost a pass over the tiles for each norm. Two passes come close: see
`whole_moments`. For a fraction of their cost a sample comes close where it has many cells: see
`sampled_moments`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lib_hires.tiled_vae.tiles import Sample, Tile

PASSES = 2  # over all tiles; each leaves a fifth or less of the moments' error


@dataclass(frozen=True, eq=False)
class Moments:
    """Of each group of each image, (b, groups), float32; the variance with the norm's epsilon."""

    mean: Tensor
    variance: Tensor
    count: int  # values in a group

    @classmethod
    def of(cls, norm: nn.GroupNorm, x: Tensor) -> Moments:
        """x: (b, c, h, w), what the norm is given."""
        values = x.float().reshape(x.shape[0], norm.num_groups, -1)
        variance, mean = torch.var_mean(values, dim=2, correction=0)
        return cls(mean, variance + norm.eps, values.shape[2])

    def joined(self, other: Moments) -> Moments:
        """Of both sets of values (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        share, gap = other.count / count, other.mean - self.mean
        variance = torch.lerp(self.variance, other.variance, share)
        return Moments(
            self.mean + share * gap, variance + share * (1 - share) * gap.square(), count
        )

    def moved(self, before: Moments, after: Moments) -> Moments:
        """Under the scaling and shift that takes `before` to `after`."""
        scale = (after.variance / before.variance).sqrt()
        mean = after.mean + scale * (self.mean - before.mean)
        return Moments(mean, scale.square() * self.variance, self.count)

    def apply(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """x (b, c, h, w), normed with these, in its dtype."""
        deviation = self.variance.sqrt()
        scale, shift = (
            values.repeat_interleave(norm.num_channels // norm.num_groups, dim=1)[..., None, None]
            for values in (1 / deviation, -self.mean / deviation)
        )  # (b, c, 1, 1)
        if norm.affine:
            weight, bias = (values.float()[:, None, None] for values in (norm.weight, norm.bias))
            scale, shift = scale * weight, shift * weight + bias
        return (x * scale).add_(shift).to(x.dtype)  # computed in float32


Taken = dict[nn.GroupNorm, Moments]


@contextmanager
def norms_take(
    norms: Sequence[nn.GroupNorm], moments: Callable[[nn.GroupNorm, Tensor], Moments]
) -> Iterator[None]:
    """Inside the block the norms take what `moments(norm, its input)` returns."""

    def normed(norm: nn.GroupNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return moments(norm, inputs[0]).apply(norm, inputs[0]).to(output.dtype)

    with ExitStack() as stack:
        for norm in norms:
            stack.enter_context(norm.register_forward_hook(of_this_thread(normed)))
        yield


def of_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """`hook` for the calls of this thread alone: in another a host may decode a live preview."""
    here = threading.get_ident()
    return lambda *call: hook(*call) if threading.get_ident() == here else None


def whole_moments(
    norms: Sequence[nn.GroupNorm],
    tiles: Sequence[Tile],
    run_tile: Callable[[Tile], object],
    run_small: Callable[[], object],
) -> Taken:
    """What the norms would take if the whole image went through them at once, nearly.

    run_tile, run_small: run one tile, and the whole image in small, through every norm once.
    First the norms take the small image's moments. A pass over all tiles then gives the whole's
    moments under those. To put these in their place corrects every norm, but moves what the later
    ones see; by how much, a second run of the small image shows.
    """
    correction = _Correction(norms, run_small)
    correction.update({})
    for _ in range(PASSES):
        taken = (_tile_moments(norms, tile, run_tile, correction.held) for tile in tiles)
        correction.update(_joined(taken))
    return correction.held


def sampled_moments(
    norms: Sequence[nn.GroupNorm], sample: Sample, run_sample: Callable[[], object]
) -> Taken:
    """The whole's moments as those of a sample of it, which goes through all norms at once.

    Each norm takes what the sample's own cells have there, so that no later norm is misled. Of n
    cells the error is the spread between cells over the root of n, or less.
    """
    held: Taken = {}

    def note(norm: nn.GroupNorm, x: Tensor) -> Moments:
        held[norm] = Moments.of(norm, sample.own(x))
        return held[norm]

    with norms_take(norms, note):
        run_sample()
    return held


class _Correction:
    """The moments that the norms take, corrected from one pass over the tiles to the next."""

    def __init__(self, norms: Sequence[nn.GroupNorm], run_small: Callable[[], object]) -> None:
        self.held: Taken = {}  # what the norms take
        self._small: Taken = {}  # the small image's own, while they take that
        self._norms = norms
        self._run_small = run_small

    def update(self, whole: Taken) -> None:
        """Run the small image with the norms taking `whole`, moved as the small image's move.

        whole: the whole image's own moments under those held; at first none.
        """
        before = dict(self._small)  # a host may compute the small image twice over
        with norms_take(self._norms, partial(self._corrected, whole, before)):
            self._run_small()

    def _corrected(self, whole: Taken, before: Taken, norm: nn.GroupNorm, x: Tensor) -> Moments:
        small = self._small[norm] = Moments.of(norm, x)
        self.held[norm] = whole[norm].moved(before[norm], small) if whole else small
        return self.held[norm]


def _tile_moments(
    norms: Sequence[nn.GroupNorm], tile: Tile, run_tile: Callable[[Tile], object], held: Taken
) -> Taken:
    """Of a tile's own part; a host that computes it twice over counts once."""
    own: Taken = {}

    def note(norm: nn.GroupNorm, x: Tensor) -> Moments:
        own[norm] = Moments.of(norm, tile.own(x))
        return held[norm]

    with norms_take(norms, note):
        run_tile(tile)
    return own


def _joined(parts: Iterable[Taken]) -> Taken:
    whole: Taken = {}
    for part in parts:
        for norm, moments in part.items():
            whole[norm] = whole[norm].joined(moments) if norm in whole else moments
    return whole
