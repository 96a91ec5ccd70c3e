"""In place of a sampler's inner denoiser, whatever parts the host calls it in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor

from lib_hires.sizes import Size
from lib_hires.webui.messages import Warn, warn_failed

Denoiser = Callable[..., Tensor]
MakeDenoiser = Callable[[Tensor, Tensor, Mapping[str, Any]], Denoiser]


class PlacedModel:
    """Stands in for the host's `forward` at one latent size, during one sampling.

    The host calls it with conds and uncond stacked, or one after another, or with conds alone.
    Each of these calls keeps a denoiser of its own, found by its place in the evaluation, so that
    what one branch has kept never meets another. Where one fails, the rest is made without.
    """

    def __init__(
        self,
        forward: Denoiser,
        make: MakeDenoiser,
        *,
        size: Size,
        technique: str,
        warn: Warn,
        branches: Callable[[Mapping[str, Any]], Hashable] = lambda cond: None,
    ) -> None:
        """make: a denoiser for a place, from the arguments of the first call there. size: (height,
        width) of the latents; others pass through. technique: its name, for the user. branches:
        what the host's arguments name of a call's rows, cond's or uncond's, where it may evaluate
        uncond first and in another evaluation not at all."""
        self._forward = forward
        self._make, self._size = make, size
        self._technique, self._warn = technique, warn
        self._branches = branches
        self._denoisers: dict[Hashable, Denoiser] = {}
        self._calls: Counter[Hashable] = Counter()
        self._failed = False

    def begin_evaluation(self) -> None:
        """To be called before the host's first call of an evaluation."""
        self._calls.clear()

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if self._failed or tuple(x.shape[-2:]) != self._size:
            return self._forward(x, t, **cond)
        branches = self._branches(cond)
        place = branches, self._calls[branches], len(x)
        self._calls[branches] += 1
        try:
            if place not in self._denoisers:
                self._denoisers[place] = self._make(x, t, cond)
            return self._denoisers[place](x, t, **cond)
        except Exception as error:
            self._failed = True
            warn_failed(self._warn, self._technique, error)
        self._denoisers.clear()  # and with them, after the block, what the failed call held
        return self._forward(x, t, **cond)
