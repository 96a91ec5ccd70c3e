"""Models that enlarge images, as ESRGAN and its kin: any that `spandrel` loads."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_hires.resample import bicubic
from lib_hires.settings import SettingsError
from lib_hires.sizes import Size

SIDE, MARGIN = 512, 16  # pixels of the small image: of a tile, and what it reads around its own


def load_upscaler(path: str, device: torch.device) -> Callable[[Tensor, Size], Tensor]:
    """upscale(image (b, 3, h, w) around [-1, 1], size) -> (b, 3, *size), in tiles.

    Raises SettingsError where `spandrel` is not installed, or the file is none that it loads.
    """
    try:
        from spandrel import ImageModelDescriptor, ModelLoader
    except ImportError:
        raise SettingsError(
            'upscaler: needs spandrel; install it with pip install "hires-guidance[upscaler]"'
        ) from None
    try:
        model = ModelLoader(device=device).load_from_file(Path(path))
    except Exception as error:  # whatever the file leads to
        raise SettingsError(f"upscaler: {path} cannot be loaded ({error})") from None
    if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3:
        raise SettingsError(f"upscaler: {path} is no model that enlarges colour images")
    model.eval()
    return Upscaler(model, model.scale)


class Upscaler:
    """model: images (1, 3, h, w) in [0, 1] to `scale` times their sides."""

    def __init__(self, model: Callable[[Tensor], Tensor], scale: int) -> None:
        self._model, self._scale = model, scale

    @torch.no_grad()
    def __call__(self, image: Tensor, size: Size) -> Tensor:
        """As often as the size needs, and then to the size itself."""
        if self._scale > 1:
            for _ in range(math.ceil(math.log(size[0] / image.shape[-2], self._scale) - 1e-9)):
                image = torch.cat([self._once(single[None]) for single in image])
        if image.shape[-2] > size[0] or image.shape[-1] > size[1]:
            return F.interpolate(image, size=size, mode="bicubic", antialias=True)
        return bicubic(image, size)

    def _once(self, image: Tensor) -> Tensor:
        """One image, tile by tile; neighbours read MARGIN pixels of each other."""
        image = (image.clamp(-1, 1) + 1) / 2
        scale, (height, width) = self._scale, image.shape[-2:]
        whole = image.new_empty(1, 3, height * scale, width * scale)
        for top in range(0, height, SIDE):
            for left in range(0, width, SIDE):
                first, before = max(0, top - MARGIN), max(0, left - MARGIN)
                part = image[..., first : top + SIDE + MARGIN, before : left + SIDE + MARGIN]
                rows = slice((top - first) * scale, (top - first + SIDE) * scale)
                columns = slice((left - before) * scale, (left - before + SIDE) * scale)
                made = self._model(part)[..., rows, columns]
                here = slice(top * scale, top * scale + made.shape[-2])
                whole[..., here, left * scale : left * scale + made.shape[-1]] = made
        return whole * 2 - 1
