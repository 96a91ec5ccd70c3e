"""Self-attention in windows, through whatever attention the host has chosen.

In A1111 a block calls its `attn1` as a module: each call is made block by block, with the window as
its context. Forge and its kin have a place for attention among the patcher's options, which gives
queries, keys and values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lib_hires.detail.neighbourhood import EvaluatedSize, Neighbourhood
from lib_hires.webui.patching import replaced

SLOT = "attn1"  # of self-attention, among the options and in a block alike


@contextmanager
def attention_in_windows(unet: nn.Module, windows: Neighbourhood | None) -> Iterator[None]:
    """Inside the block self-attention sees windows in a U-Net's calls of the large image (A1111).

    None: nothing changes.
    """
    evaluated = EvaluatedSize()
    with ExitStack() as stack:
        if windows is not None:
            stack.enter_context(evaluated.of(unet))
        for block in unet.modules() if windows is not None else ():
            if hasattr(block, SLOT) and not getattr(block, "disable_self_attn", False):
                assert windows is not None
                called = SelfAttention(windows, block.attn1.forward, evaluated)
                stack.enter_context(replaced(block.attn1, "forward", called))
        yield


class SelfAttention:
    """In place of a self-attention's `forward`."""

    def __init__(
        self, windows: Neighbourhood, forward: Callable[..., Tensor], evaluated: EvaluatedSize
    ) -> None:
        self._windows, self._forward, self._evaluated = windows, forward, evaluated

    def __call__(self, x: Tensor, context: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """x: (b, positions, d). What others give beside x, such as a reference image's positions or
        a mask, is theirs: such a call is made as it is."""
        own = context is None or context is x
        own = own and not any(map(_is_given, (*args, *kwargs.values())))
        large = self._evaluated.now == self._windows.large
        if not (own and large) or self._windows.grids(x.shape[-2]) is None:
            return self._forward(x, context, *args, **kwargs)

        def attend(queries: Tensor, seen: Tensor) -> Tensor:
            return self._forward(queries, context=seen, **kwargs)

        return self._windows.attention(attend, x, x)


def _is_given(value: Any) -> bool:
    return isinstance(value, Tensor) or bool(value)


def with_windows(options: Mapping[str, Any], unet: Any, windows: Neighbourhood) -> dict[str, Any]:
    """A patcher's options with self-attention in windows in every block (Forge and its kin)."""
    attend = partial(_attend_in_windows, windows, _host_attention(unet))
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


def _host_attention(unet: Any) -> Callable[..., Tensor]:
    """What the host's own self-attention calls: attention(q, k, v, heads)."""
    attn = next(block.attn1 for block in unet.modules() if hasattr(block, SLOT))
    module = sys.modules[type(attn).__module__]
    known = (vars(module).get(name) for name in ("attention_function", "optimized_attention"))
    function: Callable[..., Tensor] = next(filter(None, known))
    return function
