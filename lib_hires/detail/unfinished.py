"""Unfinished stages (FreCaS, RectifiedHR): a stage is left with its predicted image.

A stage ends at the first noise level that is not above `level`, in place of 0, with the prediction
made there; that image is enlarged and renoised to where the next stage begins, sigma_b:

    level = sigma_b        the same noise level (RectifiedHR)
    level = g·sigma_b      matched (FreCaS): D, which turns the larger image into the smaller one,
                           multiplies the noise's deviation by g, so both are as noisy there

So the stages of a run together cost about as many evaluations as one schedule has.
"""

from __future__ import annotations

from collections.abc import Sequence

from lib_hires.resample import Reduction
from lib_hires.sizes import Size


def left_at(sigmas: Sequence[float], level: float) -> list[float]:
    """A stage's noise levels, decreasing to 0, left at `level`: at least one step, the last to 0.

    A sampler's step to 0 gives the prediction itself.
    """
    kept = [sigma for sigma in sigmas[:-1] if sigma > level * (1 + 1e-4)]
    return [*(kept or sigmas[:1]), sigmas[-1]]


def level_before(start: float, before: Size, after: Size, matched: bool) -> float:
    """Where a stage of size `before` is left for one of size `after` that begins at `start`."""
    return start * Reduction.between(after, before).noise_gain if matched else start
