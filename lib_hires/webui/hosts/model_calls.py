"""How a host's CFG denoiser asks its model: the innermost calls, of which one row is one answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lib_hires.sizes import Size

CONTROLNET_SEES_WHOLE = "ControlNet's units see whole images only"
"""Why such calls are not made in windows."""


@dataclass(frozen=True)
class ModelCalls:
    """The method `name` of `owner`: (x, t, **cond) -> prediction, with x (n, c, h, w) and t (n,).

    fitting: a call's keyword arguments (cond) made for one about x at t, in place of latents of
    size `large`, (height, width); the rows stay those of the same images and prompts.
    images_of: for each row of x (n, c, h, w), which image of the sampler's state (b, c, h, w) it
    is of. branches: what the keyword arguments tell of which rows are cond's and which uncond's.
    """

    owner: Any
    name: str
    fitting: Callable[[Mapping[str, Any], Tensor, Tensor, Size], Mapping[str, Any]]
    images_of: Callable[[Tensor, Tensor], Tensor]
    branches: Callable[[Mapping[str, Any]], Hashable]
