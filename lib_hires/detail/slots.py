"""Self-attention in windows for hosts whose patchers have a place for attention among the model's
options: ComfyUI, Forge and its kin. The place receives queries, keys and values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from lib_hires.detail.neighbourhood import Neighbourhood

SLOT = "attn1"  # of self-attention, among the options and in a block alike


def reason_for_whole_attention(options: Mapping[str, Any], unet: Any) -> str:
    """Why self-attention must stay whole, "" where it need not: the model's kind, or somebody
    else's attention."""
    if not hasattr(unet, "input_blocks"):
        return "this model's attention is of another kind"
    if not any(hasattr(block, SLOT) for block in unet.modules()):
        return "this model has no self-attention"
    if _host_attention(unet) is None:
        return "the host's attention is not where it is looked for"
    if options.get("transformer_options", {}).get("patches_replace", {}).get(SLOT):
        return "another extension holds the attention's place"
    return ""


def with_windows(options: Mapping[str, Any], unet: Any, windows: Neighbourhood) -> dict[str, Any]:
    """A patcher's options with self-attention in windows in every block."""
    attention = _host_attention(unet)
    assert attention is not None, "asked for where reason_for_whole_attention gives a reason"
    attend = partial(_attend_in_windows, windows, attention)
    places = [("middle", 0)]
    for name, blocks in (("input", unet.input_blocks), ("output", unet.output_blocks)):
        places += [(name, number) for number in range(len(blocks))]
    transformer = dict(options.get("transformer_options", {}))
    parts = dict(transformer.get("patches_replace", {}))
    parts[SLOT] = dict.fromkeys(places, attend) | parts.get(SLOT, {})
    return {**options, "transformer_options": transformer | {"patches_replace": parts}}


def _attend_in_windows(
    windows: Neighbourhood,
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra: Mapping[str, Any],
) -> Tensor:
    """q, k, v: (b, positions, heads·d), as the host projects them, to the same shape."""
    precision = {name: extra[name] for name in ("attn_precision",) if name in extra}

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attention(queries, keys, values, extra["n_heads"], **precision)

    large = tuple(extra["original_shape"][-2:]) == windows.large
    if not large or k.shape[-2] != q.shape[-2]:  # or a reference image's positions beside its own
        return attend(q, k, v)
    return windows.attention(attend, q, k, v)


def _host_attention(unet: Any) -> Callable[..., Tensor] | None:
    """What the host's own self-attention calls: attention(q, k, v, heads)."""
    attn = next(block.attn1 for block in unet.modules() if hasattr(block, SLOT))
    names = vars(sys.modules[type(attn).__module__])
    return names.get("attention_function") or names.get("optimized_attention")
