"""Degradations: what a small diffusion model and its decoder do to an image."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def warp(x: Tensor) -> Tensor:
    """Bend by a smooth random field of up to some 3 % of the side."""
    b, _, h, w = x.shape
    bends = sum(
        _smooth(b, 2, cells, h, w) * torch.rand(b, 1, 1, 1) * strength
        for cells, strength in ((4, 0.05), (12, 0.02))
    )
    rows, columns = torch.meshgrid(centres(h) * 2 - 1, centres(w) * 2 - 1, indexing="ij")
    grid = torch.stack([columns, rows], -1) + bends.permute(0, 2, 3, 1)  # (b, h, w, 2)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def soften(x: Tensor) -> Tensor:
    """Reduce by 1.3 to 3.5 and back again."""
    size = [max(8, round(n / _uniform(1.3, 3.5))) for n in x.shape[-2:]]
    small = F.interpolate(x, size, mode="bilinear", antialias=True)
    return F.interpolate(small, x.shape[-2:], mode="bicubic")


def sharpen(x: Tensor) -> Tensor:
    """Overshoot at edges, as guided samples do."""
    return x + _uniform(0.3, 1.5) * (x - F.avg_pool2d(x, 3, 1, 1))


def grain(x: Tensor) -> Tensor:
    """Noise of one to four pixels, in brightness or colour, stronger in coloured parts."""
    b, _, h, w = x.shape
    size = [-(-n // int(torch.randint(1, 5, ()))) for n in (h, w)]
    noise = torch.randn(b, 3 if _uniform(0, 1) < 0.5 else 1, *size)
    noise = F.interpolate(noise, (h, w), mode="nearest" if _uniform(0, 1) < 0.5 else "bilinear")
    coloured = x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
    where = coloured if _uniform(0, 1) < 0.5 else torch.ones(())
    return x + noise * where * torch.rand(b, 1, 1, 1) * 0.3


def blotches(x: Tensor) -> Tensor:
    """Smooth patches of another brightness and tint."""
    b, _, h, w = x.shape
    cells = int(torch.randint(3, 17, ()))
    tint = _smooth(b, 3, cells, h, w) * 0.5 + _smooth(b, 1, cells, h, w)
    return x + tint * torch.rand(b, 1, 1, 1) * 0.3


def fade(x: Tensor) -> Tensor:
    """Wash out smooth parts of the image toward its mean colour."""
    b, _, h, w = x.shape
    share = (_smooth(b, 1, int(torch.randint(3, 12, ())), h, w) * 0.5).clamp(0, 0.45)
    return x.lerp(x.mean((2, 3), keepdim=True), share)


def recolour(x: Tensor) -> Tensor:
    """Change brightness, contrast and the balance of the channels, within the colours' names."""
    b = len(x)
    gain = 1 + 0.2 * torch.randn(b, 1, 1, 1).clamp(-2, 2) + 0.05 * torch.randn(b, 3, 1, 1)
    return x * gain + 0.1 * torch.randn(b, 1, 1, 1) + 0.04 * torch.randn(b, 3, 1, 1)


def jpeg(x: Tensor) -> Tensor:
    """Through a JPEG of quality 15 to 70."""
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    decoded = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(torch.randint(15, 71, ())))
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2) / 127.5 - 1


EFFECTS: tuple[tuple[Callable[[Tensor], Tensor], float], ...] = (
    (warp, 0.5),
    (fade, 0.2),
    (blotches, 0.3),
    (grain, 0.35),
    (soften, 0.35),
    (sharpen, 0.2),
    (recolour, 0.5),
    (jpeg, 0.1),
    (grain, 0.15),
)


def degrade(x: Tensor, clean: float = 0.0) -> Tensor:
    """Apply each effect to a random part of the batch, and none to a share `clean` of it."""
    x = x.clone()
    touched = torch.rand(len(x)) >= clean
    for effect, share in EFFECTS:
        chosen = touched & (torch.rand(len(x)) < share)
        if chosen.any():
            x[chosen] = effect(x[chosen]).clamp(-1, 1)
    return x


def _smooth(b: int, channels: int, cells: int, h: int, w: int) -> Tensor:
    """(b, channels, h, w) of unit normal values on a coarse grid, interpolated."""
    return F.interpolate(torch.randn(b, channels, cells, cells), (h, w), mode="bicubic")


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def centres(n: int) -> Tensor:
    return (torch.arange(n) + 0.5) / n
