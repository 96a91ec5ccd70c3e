"""Tiles of an image that are computed with a halo of their surroundings and kept without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_hires.sizes import Size


@dataclass(frozen=True)
class Span:
    """A tile's extent along one axis: it reads [start, stop) and owns [first, last) of it."""

    start: int
    stop: int
    first: int
    last: int

    def read(self, scale: int) -> slice:
        return slice(self.start * scale, self.stop * scale)

    def owned(self, scale: int, origin: int = 0) -> slice:
        """The own part, counted from `origin`."""
        return slice((self.first - origin) * scale, (self.last - origin) * scale)


@dataclass(frozen=True)
class Tile:
    """A rectangle of an image; spans are in latent positions, `scale` values make one of them."""

    rows: Span
    columns: Span

    def read(self, whole: Tensor, scale: int) -> Tensor:
        """Of a whole (b, c, H, W) what this tile is computed from."""
        return whole[..., self.rows.read(scale), self.columns.read(scale)]

    def own(self, part: Tensor) -> Tensor:
        """Of what was computed (b, c, h, w), at any scale, the part that no other tile owns."""
        scale = part.shape[-2] // (self.rows.stop - self.rows.start)
        rows = self.rows.owned(scale, self.rows.start)
        return part[..., rows, self.columns.owned(scale, self.columns.start)]

    def write(self, part: Tensor, whole: Tensor, scale: int) -> None:
        """Put the own part of what was computed where it belongs."""
        whole[..., self.rows.owned(scale), self.columns.owned(scale)] = self.own(part)


def tiles_over(size: Size, side: int, halo: int) -> list[Tile]:
    """The tiles that cover `size`, (height, width), row by row; all read as much.

    side: the most that a tile reads along an axis, and so what memory it takes; a shorter image is
    read whole. halo: the least that a tile reads beyond its own part, but at the image's border;
    less than half of the side. There are as few tiles as that allows, as small as they can be.
    """
    rows, columns = (list(_spans(length, side, halo)) for length in size)
    return [Tile(row, column) for row in rows for column in columns]


def _spans(length: int, side: int, halo: int) -> Iterator[Span]:
    """Evenly spaced; neighbours meet in the middle of what both read."""
    if length <= side:
        yield Span(0, length, 0, length)
        return
    gaps = math.ceil((length - side) / (side - 2 * halo))
    side = math.ceil((length + 2 * halo * gaps) / (gaps + 1))
    starts = [gap * (length - side) // gaps for gap in range(gaps + 1)]
    meets = [(left + side + right) // 2 for left, right in zip(starts, starts[1:], strict=False)]
    for start, first, last in zip(starts, [0, *meets], [*meets, length], strict=True):
        yield Span(start, start + side, first, last)


@dataclass(frozen=True)
class Sample:
    """Small cells spread evenly over an image, put side by side in one much smaller image.

    rows, columns: where the cells start; cell, margin: the side of a cell and what it shares with
    strangers at its borders, all in latent positions.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    cell: int
    margin: int

    @classmethod
    def over(cls, size: Size, side: int, cell: int, margin: int) -> Sample:
        """As many cells of `size`, (height, width), as an image of at most `side` holds."""
        rows, columns = (_starts(length, min(length, side) // cell, cell) for length in size)
        return cls(rows, columns, cell, margin)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def read(self, whole: Tensor, scale: int) -> Tensor:
        """Of a whole (b, c, H, W), `scale` values a latent position, the cells as one image."""
        rows, columns = (
            torch.cat([torch.arange(scale * self.cell) + scale * start for start in starts])
            for starts in (self.rows, self.columns)
        )
        return whole[..., rows.to(whole.device), :][..., columns.to(whole.device)]

    def own(self, part: Tensor) -> Tensor:
        """Of what was computed (b, c, h, w), at any scale, the cells without their margins."""
        side = part.shape[-2] // len(self.rows)
        kept = slice(self.margin * side // self.cell, side - self.margin * side // self.cell)
        grid = len(self.rows), side, len(self.columns), side
        cells = part.reshape(*part.shape[:2], *grid)[..., kept, :, kept]
        return cells.flatten(-2).flatten(-3, -2)


def _starts(length: int, count: int, cell: int) -> tuple[int, ...]:
    """Each in the middle of its share of the length."""
    return tuple((2 * index + 1) * length // (2 * count) - cell // 2 for index in range(count))


def assembled(
    tiles: Sequence[Tile], compute: Callable[[Tile], Tensor], size: Size, scale: int
) -> Tensor:
    """The whole (b, c, height·scale, width·scale) of what `compute` gives for each tile."""
    whole: Tensor | None = None
    for tile in tiles:
        part = compute(tile)
        if whole is None:
            whole = part.new_empty(*part.shape[:2], size[0] * scale, size[1] * scale)
        tile.write(part, whole, scale)
    assert whole is not None
    return whole
