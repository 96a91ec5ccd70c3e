"""How often a pass evaluates the model, and in which steps at the native size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lib_hires.run.schedules import Sampler


@dataclass(frozen=True)
class Evaluations:
    """A pass's evaluations of the model, those at the native size included, and these alone."""

    total: int
    native: int


def native_steps(weights: Sequence[float], cadence: int) -> tuple[bool, ...]:
    """Which steps make a native evaluation: the first one with guidance, and every n-th after it.

    weights: w_t of each step.
    """
    chosen: list[bool] = []
    last = -cadence
    for step, weight in enumerate(weights):
        chosen.append(weight > 0 and step >= last + cadence)
        last = step if chosen[-1] else last
    return tuple(chosen)


def count_evaluations(sampler: Sampler, native: Sequence[bool], cadence: int) -> Evaluations:
    """The evaluations of a pass of len(native) steps.

    native: which steps make a native evaluation. At a cadence of 1 every evaluation of such a step
    has one of its own, at any other the step's first alone.
    """
    each = evaluations_of_steps(sampler, len(native))
    native_each = [n if cadence == 1 else 1 for n in each]
    small = sum(n for n, chosen in zip(native_each, native, strict=True) if chosen)
    return Evaluations(sum(each) + small, small)


def evaluations_of_steps(sampler: Sampler, steps: int) -> list[int]:
    """How often a sampler evaluates the image in each step; the last step is Euler's."""
    each = ([sampler.evaluations] * (steps - 1) + [1])[:steps]
    each[:1] = [n + sampler.opening for n in each[:1]]
    return each
