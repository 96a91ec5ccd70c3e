"""The host's own upscalers, as Hires. fix offers them, before a stage's image is encoded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from modules import images
from PIL import Image
from torch import Tensor

from lib_hires.sizes import Size
from lib_hires.webui.messages import Warn
from lib_hires.webui.surfaces.host_options import UPSCALER

Upscale = Callable[[Tensor, Size], Tensor]


def host_upscaler(warn: Warn) -> Upscale | None:
    """The one that the Settings page names; None for bicubic upsampling, and a message where the
    host does not have it."""
    if UPSCALER.is_refused():
        warn(f'there is no upscaler "{UPSCALER.wanted}"; the stages start from bicubic upsampling.')
    name = UPSCALER.chosen()
    return None if name == UPSCALER.default else partial(_upscaled, name)


def _upscaled(name: str, batch: Tensor, size: Size) -> Tensor:
    """Images (b, 3, h, w) in [-1, 1] to `size`, (height, width), through the host's 8 bits."""
    made = [images.resize_image(0, _as_pil(image), size[1], size[0], name) for image in batch]
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in made])
    return torch.from_numpy(pixels).movedim(-1, 1).to(batch) / 127.5 - 1


def _as_pil(image: Tensor) -> Image.Image:
    pixels = image.add(1).mul(127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.movedim(0, -1).cpu().numpy())
