"""Group norms that see the same picture in every tile.

A VAE's group norms take mean and deviation over all that they are shown, so that a tile with more
sky than its neighbour comes out in other colours. Here they are taken from the whole picture in
small, and held while the tiles are computed. (An idea of pkuliyi2015's Tiled VAE.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Moments = dict[nn.GroupNorm, list[tuple[Tensor, Tensor]]]
"""Means and deviations (b, groups, 1) of a module's calls, in their order."""


@contextmanager
def norms_held(module: nn.Module, show: Callable[[], object]) -> Iterator[None]:
    """Inside the block the group norms in `module` take mean and deviation from `show()`'s calls.

    show: computes the whole picture in small, once. Inside, each picture must make the same calls
    again, as often as one likes; a VAE may be called image by image.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    moments: Moments = defaultdict(list)

    def note(norm: nn.GroupNorm, inputs: tuple[Tensor, ...]) -> None:
        moments[norm].append(_moments(norm, inputs[0]))

    with _hooks(norms, "register_forward_pre_hook", note):
        show()
    calls: dict[nn.GroupNorm, int] = defaultdict(int)

    def replace(norm: nn.GroupNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        mean, deviation = moments[norm][calls[norm] % len(moments[norm])]
        calls[norm] += 1
        return _normed(norm, inputs[0], mean, deviation).to(output.dtype)

    with _hooks(list(moments), "register_forward_hook", replace):
        yield


@contextmanager
def _hooks(norms: list[nn.GroupNorm], register: str, hook: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for norm in norms:
            stack.enter_context(getattr(norm, register)(hook))
        yield


def _moments(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of x (b, c, ...), in float32."""
    values = x.float().reshape(x.shape[0], norm.num_groups, -1)
    variance, mean = torch.var_mean(values, dim=2, correction=0, keepdim=True)
    return mean, (variance + norm.eps).sqrt()


def _normed(norm: nn.GroupNorm, x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """x (b, c, ...) normed with the mean and deviation given, float32."""
    values = x.float().reshape(x.shape[0], norm.num_groups, -1)
    normed = ((values - mean) / deviation).reshape(x.shape)
    if norm.weight is None:
        return normed
    each = 1, -1, *[1] * (x.ndim - 2)
    return normed * norm.weight.to(normed).view(each) + norm.bias.to(normed).view(each)
