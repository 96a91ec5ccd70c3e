"""What a report on clips can see: true clips, and true clips made worse in ways that are known.

`true_blurred` has half the sides, which kd_crop must see; `true_held` half the frame rate, which
the path's jitter must see; `true_shuffled` its frames in another order, which change, cuts and
short clips must see; `true_through_vae` was encoded and decoded, as near as a latent model comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_hires.standalone.models.latent import LatentModel

TRUE, THROUGH_VAE = "true", "true_through_vae"

Change = Callable[[Tensor], Tensor]
"""Of a clip (3, f, H, W) in [-1, 1], to one of the same shape."""


def changes_for(model: LatentModel, times: int) -> Mapping[str, Change]:
    """The rows of true clips at `times` the native frames, by name. The VAE sees each frame alone,
    so more of them would say nothing new."""
    rows: dict[str, Change] = {
        TRUE: lambda clip: clip,
        "true_blurred": blurred,
        "true_held": held,
        "true_shuffled": shuffled,
    }
    if times == 1:
        rows[THROUGH_VAE] = lambda clip: _each_frame(
            clip, lambda frame: model.decode(model.encode(frame))
        )
    return rows


def blurred(clip: Tensor) -> Tensor:
    """At half the sides, enlarged again."""
    size = clip.shape[-2:]
    half = F.interpolate(clip.transpose(0, 1), scale_factor=0.5, mode="area")
    full = F.interpolate(half, size=size, mode="bicubic", align_corners=False)
    return full.clamp(-1, 1).transpose(0, 1)


def held(clip: Tensor) -> Tensor:
    """Every second frame, shown twice."""
    return clip[:, ::2].repeat_interleave(2, 1)[:, : clip.shape[1]]


def shuffled(clip: Tensor) -> Tensor:
    """The same frames in an order that chance has chosen, the same for all clips."""
    order = torch.randperm(clip.shape[1], generator=torch.Generator().manual_seed(0))
    return clip[:, order]


def _each_frame(clip: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """change: of a frame (1, 3, H, W)."""
    frames = [change(frame[None]).float().clamp(-1, 1) for frame in clip.transpose(0, 1)]
    return torch.cat(frames).transpose(0, 1)
