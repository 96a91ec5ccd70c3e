"""What the model receives beside the latent, made to fit the native evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lib_hires import resample
from lib_hires.sizes import Size
from lib_hires.webui.hosts.protocol import FACTOR

NUMBERS = {
    "original_size_as_tuple": 2,
    "crop_coords_top_left": 2,
    "target_size_as_tuple": 2,
    "aesthetic_score": 1,
}
"""How many numbers SDXL's conditioner embeds under each key."""


class SizeEmbeddings:
    """The image's size in SDXL's vector; lives for one sampling.

    What a size is embedded as is computed, and its numbers are brought to the device, once.
    """

    def __init__(self, embedders: Callable[[int], Sequence[Any]]) -> None:
        """embedders: those that SDXL's conditioner has made a vector of so many numbers with."""
        self._embedders = embedders
        self._embedded = lru_cache(maxsize=None)(_embedded)

    @classmethod
    def of(cls, sd_model: Any) -> SizeEmbeddings:
        """By the original's conditioner, which only SDXL has; others receive no size."""
        embedders = getattr(getattr(sd_model, "conditioner", None), "embedders", ())
        return cls(lambda length: embedders)

    def with_size(self, vector: Tensor, size: Size) -> Tensor:
        """The vector (b, n) with the original and the target size in it replaced by `size`, in
        pixels (height, width).

        The pooled text stands first, then embedded numbers in the order of the embedders.
        """
        vector, end = vector.clone(), vector.shape[1]
        for embedder in reversed(self._embedders(end)):
            if embedder.input_key not in NUMBERS:
                break
            start = end - NUMBERS[embedder.input_key] * embedder.outdim
            if embedder.input_key.endswith("size_as_tuple"):
                vector[:, start:end] = self._embedded(embedder, size, vector.device, vector.dtype)
            end = start
        return vector


def _embedded(embedder: Any, size: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(1, 2 * embedder.outdim)"""
    numbers = torch.tensor([size], device=device, dtype=torch.float32)
    embedded: Tensor = embedder(numbers).to(dtype)
    return embedded


def shrink_cond(
    cond: Mapping[str, Any], small: Size, *, large: Size, sizes: SizeEmbeddings
) -> Mapping[str, Any]:
    """A call's keyword arguments for a latent of size `large`, made to fit one of size `small`.

    Sizes are latent (height, width).
    """
    inner = dict(cond["cond"])
    if "c_concat" in inner:
        inner["c_concat"] = [shrunk(part, large, small) for part in inner["c_concat"]]
    if "vector" in inner:
        pixels = small[0] * FACTOR, small[1] * FACTOR
        inner["vector"] = sizes.with_size(inner["vector"], pixels)
    return {**cond, "cond": inner}


def shrunk(part: Tensor, large: Size, small: Size) -> Tensor:
    """An image beside the latent (b, c, *large), made (b, c, *small); another's size stays."""
    return resample.shrunk(part, small) if tuple(part.shape[-2:]) == large else part
