"""Classifier-free guidance whose scale depends on the frequency (FreCaS; frequency-decoupled
guidance, arXiv:2506.19713).

    d   = x_cond - x_uncond
    x0' = x_uncond + w_low·d + (w_high - w_low)·(d - U[D[d]])

D and U are those of Upsample Guidance: what the native size can show is guided by w_low, the rest
by w_high. With w_low = w_high it is guidance with one scale, at another than the native image's the
whole-band form that RectifiedHR (arXiv:2503.02537) raises the energy of a large image with.
"""

from __future__ import annotations

from torch import Tensor

from lib_hires.resample import Reduction


def split_guidance(
    cond: Tensor, uncond: Tensor, low: float, high: float, reduction: Reduction
) -> Tensor:
    """x0' (b, c, h, w) of both predictions, in their dtype; the detail's part in float32.

    reduction: between their size and the native one, on their device.
    """
    difference = cond - uncond
    guided = uncond + low * difference
    if high == low:
        return guided
    detail = difference.float() - reduction.upsample(reduction.reduce(difference))
    return (guided.float() + (high - low) * detail).to(guided.dtype)
