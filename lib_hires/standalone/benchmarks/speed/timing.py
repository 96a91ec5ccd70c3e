"""The seconds of a run and of each of the model's parts in it, and what is read off them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lib_hires.settings import Settings
from lib_hires.sizes import Size
from lib_hires.standalone.benchmarks.speed.growth import PROMPT, now
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request


@dataclass
class PartTimes:
    """Seconds of each call of the model's parts, by part, input's (height, width) and batch."""

    seconds: dict[tuple[str, Size, int], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def of(self, part: str, size: Size | None = None) -> list[float]:
        """All calls of a part, or those with inputs of one size."""
        return [
            seconds
            for (name, at, _), calls in self.seconds.items()
            if name == part and size in (None, at)
            for seconds in calls
        ]

    @property
    def total(self) -> float:
        return sum(sum(calls) for calls in self.seconds.values())

    @contextmanager
    def watching(self, model: LatentModel) -> Iterator[None]:
        """Time the U-Net and the text encoders inside the block."""
        networks = [("unet", model.unet)]
        networks += [("text", encoder.model) for encoder in model.encoders]
        with ExitStack() as stack:
            for name, network in networks:
                self._watch(stack, name, network)
            yield

    def _watch(self, stack: ExitStack, name: str, module: Any) -> None:
        begun: list[float] = []

        def before(_: Any, inputs: tuple[Any, ...]) -> None:
            begun[:] = [now()]

        def after(_: Any, inputs: tuple[Any, ...], __: Any) -> None:
            self.seconds[_key(name, *inputs[:1])].append(now() - begun[0])

        stack.enter_context(module.register_forward_pre_hook(before))
        stack.enter_context(module.register_forward_hook(after))

    def timed(self, name: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The same function, its seconds noted as those of the part `name`."""

        def timed(x: Tensor) -> Tensor:
            begun = now()
            result = function(x)
            self.seconds[_key(name, x)].append(now() - begun)
            return result

        return timed


def _key(part: str, x: Tensor | None = None) -> tuple[str, Size, int]:
    if x is None:
        return part, (0, 0), 0
    return part, (x.shape[-2], x.shape[-1]), x.shape[0]


@dataclass(frozen=True)
class Timed:
    """A run's seconds, in all and by part."""

    seconds: float
    parts: PartTimes


def time_run(
    model: LatentModel, settings: Settings, size: Size | None, steps: int, tile: int | None = None
) -> Timed:
    """Generate one image.

    size: the first image's (height, width), None for native. tile: of decoding and encoding, in
    pixels, in the place of the settings'.
    """
    height, width = size or model.native
    request = Request(prompt=PROMPT, width=width, height=height, steps=steps)
    parts = PartTimes()
    run = Run(model, request, settings, tile=tile, wrap=parts.timed)
    with parts.watching(model):
        begun = now()
        for _ in run.generate():
            pass
        return Timed(now() - begun, parts)


def ratio(runs: Sequence[Timed], plain: Sequence[Timed]) -> float:
    """Of runs made in turns, so that each is compared with the plain one before it."""
    return statistics.median(
        run.seconds / other.seconds for run, other in zip(runs, plain, strict=True)
    )


def bound(runs: Sequence[Timed], plain: Sequence[Timed]) -> float:
    """The calls that a run makes, at the median cost of such a call, over the plain run's time."""
    cost: dict[tuple[str, Size, int], list[float]] = defaultdict(list)
    for run in (*runs, *plain):
        for key, calls in run.parts.seconds.items():
            cost[key] += calls
    ideal = sum(
        statistics.median(cost[key]) * len(calls) for key, calls in runs[0].parts.seconds.items()
    )
    return ideal / statistics.median(run.seconds for run in plain)
