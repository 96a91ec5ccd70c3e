"""In place of a sampler's inner denoiser, whatever parts the host calls it in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lib_hires.sizes import Size
from lib_hires.upsample_guidance import UpsampleGuided
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
        if not self._acts_on(x):
            return self._forward(x, t, **cond)
        try:
            return self._denoiser_of(x, t, cond)(x, t, **cond)
        except Exception as error:
            self._give_up(error)
        self._denoisers.clear()  # and with them, after the block, what the failed call held
        return self._forward(x, t, **cond)

    def _acts_on(self, x: Tensor) -> bool:
        return not self._failed and tuple(x.shape[-2:]) == self._size

    def _denoiser_of(self, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Denoiser:
        """That of the place of a call, which is counted."""
        branches = self._branches(cond)
        place = branches, self._calls[branches], len(x)
        self._calls[branches] += 1
        if place not in self._denoisers:
            self._denoisers[place] = self._make(x, t, cond)
        return self._denoisers[place]

    def _give_up(self, error: Exception) -> None:
        """To be called in the block that handles `error`."""
        self._failed = True
        warn_failed(self._warn, self._technique, error)


class SurroundedModel(PlacedModel):
    """The same from outside: guides whatever stands in the place of the model's `forward` by then,
    as an extension puts it there while the host samples. For `UpsampleGuided` alone.

    Only calls of the module itself are guided, so native evaluations go to its `forward`.
    """

    _call: tuple[UpsampleGuided, Tensor, Tensor] | None = None  # what is guided, its x and t

    @contextmanager
    def around(self, module: nn.Module) -> Iterator[None]:
        """Guide the calls of `module` inside the block: (x, t, **cond) -> prediction."""
        with (
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, with_kwargs=True),
        ):
            yield

    def _before(
        self, _: nn.Module, inputs: tuple[Tensor, ...], cond: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        self._call = None
        x, t = inputs
        if self._acts_on(x):
            try:
                guided = cast(UpsampleGuided, self._denoiser_of(x, t, cond))
                inputs = guided.model_input(x, t)
                self._call = guided, x, t
            except Exception as error:
                self._give_up(error)
        if self._failed:
            self._denoisers.clear()
        return inputs, cond

    def _after(
        self, _: nn.Module, inputs: tuple[Tensor, ...], cond: dict[str, Any], output: Tensor
    ) -> Tensor:
        if self._call is None:
            return output
        (guided, x, t), self._call = self._call, None
        try:
            return guided.guide(output, x, t, cond)
        except Exception as error:
            self._give_up(error)
        self._denoisers.clear()
        if all(map(_are_alike, inputs, (x, t))):
            return output  # it is the plain prediction already
        return self._forward(x, t, **cond)


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.dtype == other.dtype and torch.equal(one, other))
