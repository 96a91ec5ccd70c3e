"""What the model is told beside the latent, made to fit the small picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_hires.sizes import Size
from lib_hires.webui.latents import FACTOR

NUMBERS = {
    "original_size_as_tuple": 2,
    "crop_coords_top_left": 2,
    "target_size_as_tuple": 2,
    "aesthetic_score": 1,
}
"""How many numbers SDXL's conditioner embeds under each key."""


def shrink_cond(
    cond: Mapping[str, Any], small: Size, *, large: Size, conditioner: Any = None
) -> Mapping[str, Any]:
    """A call's keyword arguments for a latent of size `large`, made to fit one of size `small`.

    Sizes are latent (height, width). conditioner: SDXL's, which knows what its vector is made of.
    """
    inner = dict(cond["cond"])
    if "c_concat" in inner:
        inner["c_concat"] = [shrunk(part, large, small) for part in inner["c_concat"]]
    if conditioner is not None and "vector" in inner:
        pixels = small[0] * FACTOR, small[1] * FACTOR
        inner["vector"] = with_size(inner["vector"], pixels, conditioner)
    return {**cond, "cond": inner}


def with_size(vector: Tensor, size: Size, conditioner: Any) -> Tensor:
    """SDXL's vector (b, n) with the original and the target size in it replaced by `size`.

    The pooled text stands first, then embedded numbers in the order of the conditioner's embedders.
    """
    vector, end = vector.clone(), vector.shape[1]
    for embedder in reversed(conditioner.embedders):
        if embedder.input_key not in NUMBERS:
            break
        start = end - NUMBERS[embedder.input_key] * embedder.outdim
        if embedder.input_key.endswith("size_as_tuple"):
            numbers = torch.tensor([size], device=vector.device, dtype=torch.float32)
            vector[:, start:end] = embedder(numbers).to(vector.dtype)
        end = start
    return vector


def shrunk(part: Tensor, large: Size, small: Size) -> Tensor:
    """A picture beside the latent (b, c, *large), made (b, c, *small); another's size stays.

    Area means; of an inpainting model's five channels the first is a mask and stays hard.
    """
    if tuple(part.shape[-2:]) != large:
        return part
    means = F.interpolate(part.float(), size=small, mode="area").to(part.dtype)
    if part.shape[1] != 5:
        return means
    mask = F.interpolate(part[:, :1].float(), size=small, mode="nearest-exact").to(part.dtype)
    return torch.cat([mask, means[:, 1:]], dim=1)
