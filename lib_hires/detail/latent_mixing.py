"""A stage's start from both enlargements (latent frequency mixing of ScaleDiff, arXiv:2510.25818).

    z' = z_pixel + LP[z_latent - z_pixel]    z_pixel = E(bicubic(decode z)), z_latent = bicubic z

LP = U[D[.]] at the size before, with the smooth U: the coarse part is that of the latent itself,
which decoding and encoding dull, the rest that of the enlarged image.
"""

from __future__ import annotations

from torch import Tensor

from lib_hires.resample import Reduction, bicubic


def mixed(pixel: Tensor, before: Tensor) -> Tensor:
    """z' (b, c, H, W), in its dtype. pixel: z_pixel; before: the latent (b, c, h, w) itself."""
    size, small = (pixel.shape[-2], pixel.shape[-1]), (before.shape[-2], before.shape[-1])
    reduction = Reduction.between(size, small, smooth=True).to(pixel.device)
    difference = bicubic(before.float(), size) - pixel.float()
    return (pixel.float() + reduction.upsample(reduction.reduce(difference))).to(pixel.dtype)
