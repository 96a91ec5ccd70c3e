"""The denoiser evaluated on overlapping windows of native size: time grows with the area.

A model's attention sees one window and nothing of the whole: by themselves windows repeat their
subject (MultiDiffusion, arXiv:2302.08113), so Upsample Guidance holds them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lib_hires.devices import is_out_of_memory
from lib_hires.sizes import Size

Corner = tuple[int, int]  # (top, left)

AT_ONCE = 4  # windows in one call; less where memory does not allow it


def corners(size: Size, window: Size, overlap: float) -> list[Corner]:
    """Where the windows (height, width) lie that cover `size`, evenly spaced, row by row.

    overlap: the least share of a window's side that lies in its neighbour, in [0, 1).
    """
    rows, columns = (
        _starts(length, side, overlap) for length, side in zip(size, window, strict=True)
    )
    return [(top, left) for top in rows for left in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    gaps = math.ceil((length - side) / max(1, math.floor(side * (1 - overlap))))
    return [0, *(math.floor(gap * (length - side) / gaps + 0.5) for gap in range(1, gaps + 1))]


def blending(window: Size, blend: str) -> Tensor:
    """(height, width) weights of a window's positions, all positive.

    "Hann": nothing at its borders and 1 in its middle, so that no seam shows; "average": 1
    everywhere, as MultiDiffusion blends.
    """
    if blend == "average":
        return torch.ones(window)
    rows, columns = (
        torch.sin(math.pi * (torch.arange(side) + 0.5) / side).square() for side in window
    )
    return rows[:, None] * columns


class Windowed:
    """A denoiser evaluated on overlapping windows and blended (MultiDiffusion).

    predict: the model, whose prediction may be of any parametrisation. window: (height, width) in
    latent positions, at most the image's. overlap, blend: as `corners` and `blending` take them.
    fit_cond: changes conditioning that was cropped to the windows, given their size (SDXL receives
    it as numbers).
    """

    def __init__(
        self,
        predict: Callable[..., Tensor],
        *,
        window: Size,
        overlap: float,
        blend: str = "Hann",
        fit_cond: Callable[[Mapping[str, Any], Size], Mapping[str, Any]] | None = None,
    ) -> None:
        self._predict = predict
        self._window, self._overlap = window, overlap
        self._weights = blending(window, blend)
        self._fit_cond = fit_cond
        self._at_once = AT_ONCE

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The prediction for x (b, c, h, w) at the times t (b,), blended in float32.

        A clip's frames, (b, c, f, h, w) or a batch, are all in every window: none is split in time.

        Every tensor in `cond` with a row for each of x's is repeated for the windows, and one that
        has x's height and width too is cropped as x is.
        """
        size = x.shape[-2], x.shape[-1]
        if size == self._window:
            return self._predict(x, t, **cond)
        height, width = self._window
        self._weights = self._weights.to(x.device)
        weights = self._weights.new_zeros(size)
        total: Tensor | None = None
        for (top, left), part in self._parts(x, t, cond):
            if total is None:
                total = weights.new_zeros(len(x), *part.shape[1:-2], *size)
            here = ..., slice(top, top + height), slice(left, left + width)
            total[here] += part * self._weights
            weights[here] += self._weights
        assert total is not None
        return (total / weights).to(x.dtype)

    def _parts(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Any]
    ) -> Iterator[tuple[Corner, Tensor]]:
        """Every window's corner and the prediction there, (b, c, *window)."""
        missing = corners((x.shape[-2], x.shape[-1]), self._window, self._overlap)
        while missing:
            some = missing[: self._at_once]
            prediction = self._predicted(x, t, cond, some)
            if prediction is None:
                self._at_once = len(some) // 2
                continue
            yield from zip(some, prediction.chunk(len(some)), strict=True)
            missing = missing[len(some) :]

    def _predicted(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Any], some: Sequence[Corner]
    ) -> Tensor | None:
        """The model's prediction for a batch of windows, their rows one after another; None where
        memory ran out and the batch can be smaller."""
        parts = for_windows(x, x, some, self._window)
        fitted = {name: for_windows(value, x, some, self._window) for name, value in cond.items()}
        if self._fit_cond is not None:
            fitted = dict(self._fit_cond(fitted, self._window))
        try:
            return self._predict(parts, t.repeat(len(some)), **fitted)
        except RuntimeError as error:
            if len(some) == 1 or not is_out_of_memory(error):
                raise
        return None


def for_windows(value: Any, x: Tensor, some: Sequence[Corner], window: Size) -> Any:
    """Crop or repeat the conditioning of x for a batch of its windows.

    value: a tensor, a list or mapping of such, or anything else, which stays as it is. The windows'
    rows stand one after another.
    """
    if isinstance(value, Mapping):
        return {key: for_windows(part, x, some, window) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(for_windows(part, x, some, window) for part in value)
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(x):
        return value
    if value.ndim in (4, 5) and value.shape[-2:] == x.shape[-2:]:
        height, width = window
        return torch.cat(
            [value[..., top : top + height, left : left + width] for top, left in some]
        )
    return value.repeat(len(some), *[1] * (value.ndim - 1))
