"""The host's conditioning, made to fit an image of another size.

A cond is a dictionary. Before sampling it has what the user's nodes have put there; while it
samples the host has added "model_conds", the tensors that the model receives, and has fitted
areas and masks to the latent. ControlNet's hints it fits itself at each call.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.conds
import comfy.model_base
import torch

from lib_hires.resample import area_means, shrunk
from lib_hires.sizes import Size

HEIGHTS = "height", "crop_h", "target_height"
WIDTHS = "width", "crop_w", "target_width"
"""Of a cond, SDXL's numbers in pixels."""


def scaled(cond: Mapping[str, Any], to: Size, of: Size) -> dict[str, Any]:
    """A cond's areas and numbers for an image of size `to` in place of one of size `of`."""
    rows, columns = to[0] / of[0], to[1] / of[1]
    made = dict(cond)
    made |= {name: round(cond[name] * rows) for name in HEIGHTS if name in cond}
    made |= {name: round(cond[name] * columns) for name in WIDTHS if name in cond}
    area = cond.get("area")
    if area is not None and len(area) == 4 and area[0] != "percentage":
        height, top = _scaled_span(area[0], area[2], to[0], of[0])
        width, left = _scaled_span(area[1], area[3], to[1], of[1])
        made["area"] = (height, width, top, left)
    return made


def _scaled_span(length: int, start: int, to: int, of: int) -> tuple[int, int]:
    """A length and its start, not empty and inside 0 to `to`."""
    begin = min(round(start * to / of), to - 1)
    end = max(begin + 1, min(round((start + length) * to / of), to))
    return end - begin, begin


def scaled_conditioning(conditioning: Sequence[Any], to: Size, of: Size) -> list[Any]:
    """The same for a node's CONDITIONING, which is a list of [text features, cond]."""
    return [[features, scaled(cond, to, of)] for features, cond in conditioning]


class Controls:
    """ControlNets and their kin once more, for evaluations of another size, in one sampling.

    Each keeps the hint that it has fitted to the latent's size; with one of its own for either
    size none fits its hint again at every step, which may mean to encode it. Weights are shared.
    """

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Any, Any]] = {}  # by id, with the original, so that it lives

    def copy(self, control: Any) -> Any:
        """The copy of a control and of those chained to it; always the same one."""
        if id(control) not in self._copies:
            made = copy.copy(control)
            if getattr(made, "previous_controlnet", None) is not None:
                made.previous_controlnet = self.copy(made.previous_controlnet)
            self._copies[id(control)] = control, made
        return self._copies[id(control)][1]


def shrunk_conds(
    conds: Sequence[Any], small: Size, large: Size, model: Any, controls: Controls
) -> list[Any]:
    """The lists of conds of each branch, as the host evaluates them, for the small latent.

    small, large: (height, width) of the latents. model: the host's BaseModel.
    """
    return [
        branch and [_shrunk(cond, small, large, model, controls) for cond in branch]
        for branch in conds
    ]


def _shrunk(
    cond: Mapping[str, Any], small: Size, large: Size, model: Any, controls: Controls
) -> dict[str, Any]:
    made = scaled(cond, small, large)
    if cond.get("control") is not None:
        made["control"] = controls.copy(cond["control"])
    if "mask" in cond:
        made["mask"] = area_means(cond["mask"], small).to(cond["mask"].dtype)
    parts = dict(cond["model_conds"])
    for name, part in parts.items():
        data = getattr(part, "cond", None)
        if isinstance(part, comfy.conds.CONDNoiseShape) and tuple(data.shape[-2:]) == large:
            parts[name] = type(part)(shrunk(data, small))
    if "y" in parts and isinstance(model, (comfy.model_base.SDXL, comfy.model_base.SDXLRefiner)):
        parts["y"] = _with_sizes(parts["y"], cond, small, large, model)
    return {**made, "model_conds": parts}


def _with_sizes(y: Any, cond: Mapping[str, Any], small: Size, large: Size, model: Any) -> Any:
    """SDXL's vector anew. The host takes the latent's size times 8 where a cond has none."""
    sized = {"height": large[0] * 8, "width": large[1] * 8, **cond}
    numbers = scaled(sized, small, large)
    vector: torch.Tensor = model.encode_adm(**{**numbers, "device": y.cond.device})
    return type(y)(vector.to(y.cond))
