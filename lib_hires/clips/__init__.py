"""Clips: a latent or an image with frames, and how its layouts become each other.

Two conventions exist: a batch of frames (b·f, c, h, w), the frames of a clip one after another, as
AnimateDiff's own code has it, and (b, c, f, h, w), as diffusers has it. The engine takes both. A
package of its own, because the engine's folder is full and the number of frames and their noise
have modules beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def as_frames(x: Tensor) -> Tensor:
    """(b, c, f, h, w) to (b·f, c, h, w); what has no frames stays as it is."""
    return x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x


def as_clips(x: Tensor, frames: int) -> Tensor:
    """(b·f, c, h, w) to (b, c, f, h, w)."""
    return x.reshape(-1, frames, *x.shape[1:]).transpose(1, 2)


def frame_by_frame(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of images, applied to a clip's frames one at a time, so that memory stays that of
    one image for each clip: (b, c, f, h, w) to (b, ..., f, ...). Images pass as they are."""

    def applied(x: Tensor) -> Tensor:
        if x.ndim != 5:
            return function(x)
        return torch.stack([function(frame) for frame in x.unbind(2)], dim=2)

    return applied
