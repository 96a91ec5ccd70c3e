"""Self-attention in windows in A1111, through whatever attention it has chosen.

In A1111 a block calls its `attn1` as a module: each call is made block by block, with the window as
its context. Forge and its kin have a place for it: `lib_hires.detail.slots`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from lib_hires.detail.neighbourhood import EvaluatedSize, Neighbourhood
from lib_hires.detail.slots import SLOT
from lib_hires.webui.patching import replaced


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
