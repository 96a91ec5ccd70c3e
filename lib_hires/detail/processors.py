"""Self-attention in windows for U-Nets of diffusers, through their attention processors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lib_hires.detail.neighbourhood import EvaluatedSize, Neighbourhood

KNOWN = "AttnProcessor2_0"
"""The processor whose attention this is; diffusers' default."""


class InWindows:
    """A processor of self-attention that sees neighbourhoods; it projects each position once."""

    def __init__(self, windows: Neighbourhood, original: Any, evaluated: EvaluatedSize) -> None:
        self._windows, self._original, self._evaluated = windows, original, evaluated

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """As diffusers calls it: (b, positions, d) to the same shape."""
        large = self._evaluated.now == self._windows.large
        whole = not large or self._windows.grids(hidden_states.shape[-2]) is None
        if whole or encoder_hidden_states is not None:
            result: Tensor = self._original(
                attn, hidden_states, encoder_hidden_states, *args, **kwargs
            )
            return result
        batch, positions, _ = hidden_states.shape
        q, k, v = (
            layer(hidden_states).reshape(batch, positions, attn.heads, -1).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )  # (b, heads, positions, d)
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        seen = self._windows.attention(F.scaled_dot_product_attention, q, k, v)
        made = seen.transpose(1, 2).flatten(2).to(q.dtype)
        projected: Tensor = attn.to_out[1](attn.to_out[0](made))
        return projected


@contextmanager
def attention_in_windows(
    unet: nn.Module, windows: Neighbourhood | None, *, inside: bool = False
) -> Iterator[None]:
    """Inside the block self-attention sees neighbourhoods in the U-Net's calls of the large image.

    Only where diffusers' own processors stand; others stay, and so do motion modules', whose
    positions are frames. None: nothing changes. inside: the
    block lies in such a call already, and holds no other.
    """
    evaluated = EvaluatedSize()
    if windows is not None and inside:
        evaluated.now = windows.large
    blocks = unet.named_modules() if windows is not None else iter(())
    selves: Iterator[Any] = (
        block.attn1
        for name, block in blocks
        if hasattr(block, "attn1") and ".motion_modules." not in name
    )
    kept = [(attn, attn.processor) for attn in selves if type(attn.processor).__name__ == KNOWN]
    try:
        for attn, processor in kept:
            assert windows is not None
            attn.processor = InWindows(windows, processor, evaluated)
        with nullcontext() if inside else evaluated.of(unet):
            yield
    finally:
        for attn, processor in kept:
            attn.processor = processor
