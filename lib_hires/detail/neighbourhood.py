"""Self-attention that sees a neighbourhood of native size (ScaleDiff's neighbourhood patch
attention, arXiv:2510.25818): an evaluation's cost then grows with the image's area.

    out[B] = attend(q[B], k[W(B)], v[W(B)])

B are blocks of half the native sides, which cover the image without overlap; W(B) is the window of
native size around B, moved inwards where it would leave the image. An image of native size or less
has one window, itself, and its attention is called as ever. Everything but self-attention sees the
whole image once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lib_hires.sizes import Size

HALVINGS = 3  # of the sides, at most, in the U-Nets there are

Attend = Callable[..., Tensor]
"""attend(queries (..., n, d), *contexts (..., m, e)) -> (..., n, f), such as (q, k, v)."""


@dataclass(frozen=True)
class Part:
    """A block of queries and the window of keys around it, as (rows, columns)."""

    block: tuple[slice, slice]
    window: tuple[slice, slice]


def parts_of(grid: Size, native: Size) -> Iterator[Part]:
    """The blocks that cover a grid, (height, width), and their windows, row by row."""
    rows, columns = (list(_along(*sides)) for sides in zip(grid, native, strict=True))
    for block_rows, window_rows in rows:
        for block_columns, window_columns in columns:
            yield Part((block_rows, block_columns), (window_rows, window_columns))


def _along(length: int, native: int) -> Iterator[tuple[slice, slice]]:
    """Blocks and windows along one axis; the last block may be shorter."""
    window, block = min(length, native), max(1, native // 2)
    if length <= native:
        block = length
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = start - (window - (stop - start)) // 2
        first = min(max(first, 0), length - window)
        yield slice(start, stop), slice(first, first + window)


def grid_of(tokens: int, size: Size) -> tuple[Size, int] | None:
    """The grid, (height, width), that `tokens` positions of a U-Net's features make, and how often
    its sides were halved; None for features of another image.

    size: of the latents. A U-Net halves with rounding up.
    """
    height, width = size
    for halvings in range(HALVINGS + 1):
        if height * width == tokens:
            return (height, width), halvings
        height, width = (height + 1) // 2, (width + 1) // 2
    return None


@dataclass(frozen=True)
class Neighbourhood:
    """The windows for latents of size `large` and a model of size `native`, (height, width)."""

    large: Size
    native: Size

    def grids(self, tokens: int) -> tuple[Size, Size] | None:
        """The grid that `tokens` positions of the large image make and the native one there; None
        where attention stays whole: where it is no larger than native, and of other numbers."""
        found = grid_of(tokens, self.large)
        if found is None:
            return None
        grid, halvings = found
        height, width = (math.ceil(side / 2**halvings) for side in self.native)
        small = height, width
        return None if grid[0] <= height and grid[1] <= width else (grid, small)

    def attention(self, attend: Attend, queries: Tensor, *contexts: Tensor) -> Tensor:
        """attend(queries, *contexts), block by block. queries, contexts: (..., positions, d)."""
        grids = self.grids(queries.shape[-2])
        if grids is None:
            return attend(queries, *contexts)
        grid, native = grids
        return _in_windows(attend, queries, contexts, grid, native)


class EvaluatedSize:
    """The latents' (height, width) in a U-Net's present call, noted by a hook before its forward.

    Positions alone do not tell: half the sides of a large image's features may be native ones.
    """

    def __init__(self) -> None:
        self.now: Size | None = None

    @contextmanager
    def of(self, unet: nn.Module) -> Iterator[None]:
        """Follow the calls of a U-Net, whose first tensor of four axes, or five with frames, is the
        latents."""

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = (*args, *kwargs.values())
            x = next(v for v in values if isinstance(v, Tensor) and v.ndim in (4, 5))
            self.now = x.shape[-2], x.shape[-1]

        with unet.register_forward_pre_hook(note, with_kwargs=True):
            yield


def _in_windows(
    attend: Attend, queries: Tensor, contexts: Sequence[Tensor], grid: Size, native: Size
) -> Tensor:
    whole: Tensor | None = None
    queries, *laid = (_laid(x, grid) for x in (queries, *contexts))  # (..., h, w, d)
    for part in parts_of(grid, native):
        block = queries[(..., *part.block, slice(None))]
        seen = (context[(..., *part.window, slice(None))].flatten(-3, -2) for context in laid)
        made = attend(block.flatten(-3, -2), *seen)
        if whole is None:
            whole = made.new_empty(*made.shape[:-2], *grid, made.shape[-1])
        whole[(..., *part.block, slice(None))] = _laid(made, (block.shape[-3], block.shape[-2]))
    assert whole is not None
    return whole.flatten(-3, -2)


def _laid(x: Tensor, grid: Size) -> Tensor:
    """(..., h·w, d) to (..., h, w, d)."""
    return x.reshape(*x.shape[:-2], *grid, x.shape[-1])
