"""Techniques of detail (`lib_hires.detail`) as one run uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib_hires.detail import Detail
from lib_hires.detail.neighbourhood import Neighbourhood
from lib_hires.detail.sharpening import sharpened
from lib_hires.detail.sharper import sharper
from lib_hires.detail.unfinished import left_at, level_before
from lib_hires.noise import VarianceExploding
from lib_hires.resample import Reduction, bicubic
from lib_hires.run.passes import attends_in_windows
from lib_hires.settings import Settings, SettingsError
from lib_hires.sizes import Size, small_size
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.upscalers import load_upscaler

Denoiser = Callable[..., Tensor]


class RunDetail:
    """Which techniques act on an image of which size; sizes are (height, width) in pixels.

    Raises SettingsError where clips are to have what they cannot, or an upscaler cannot be loaded.
    """

    def __init__(
        self, chosen: Detail, settings: Settings, model: LatentModel, *, cfg: float, frames: int
    ) -> None:
        if frames > 1 and (changed := set(chosen.changed()) - {"attention"}):
            raise SettingsError(f"detail: {min(changed)}: expected none for clips")
        self.chosen = chosen
        self._settings, self._model, self._cfg = settings, model, cfg
        self._enlarge = load_upscaler(chosen.upscaler, model.device) if chosen.upscaler else bicubic

    def about(self) -> dict[str, Any]:
        """Plain values that repeat it; nothing where it is the default."""
        changed = self.chosen.changed()
        return {"detail": changed} if changed else {}

    def windows(self, size: Size, stage: int = 0) -> Neighbourhood | None:
        """What self-attention sees of an image; None for all of it."""
        small = self._native(size)
        wanted = attends_in_windows(self._settings, "stage" if stage else "text")
        if small is None or not (wanted or self.chosen.attention == "windows"):
            return None
        return Neighbourhood(self._latent(size), self._latent(small))

    def split(self, size: Size) -> tuple[float, float, Reduction] | None:
        """CFG's two scales for an image, and what parts them; None for one scale."""
        small, low, high = self._native(size), self.chosen.cfg_low, self.chosen.cfg_high
        if small is None or not (low or high):
            return None
        low = low or self._cfg
        reduction = Reduction.between(self._latent(size), self._latent(small))
        return low, high or low, reduction.to(self._model.device)

    def sharper(self, denoise: Denoiser, family: VarianceExploding) -> Denoiser:
        """The denoiser of the large image; `denoise` itself where it receives the true sigma."""
        return sharper(denoise, self.chosen.sharper, family)

    def left(self, sigmas: Tensor, size: Size, after: Size, start: float) -> Tensor:
        """The noise levels (n + 1,) of an image of `size` as far as it is denoised, where a stage
        of size `after`, which begins at the level `start`, is made of it."""
        if self.chosen.unfinished == "no":
            return sigmas
        level = level_before(start, size, after, self.chosen.unfinished == "matched")
        return torch.tensor(left_at(sigmas.tolist(), level)).to(sigmas)

    @property
    def upscale(self) -> Callable[[Tensor, Size], Tensor] | None:
        """upscale(image (b, 3, h, w), size), before encoding; None for bicubic upsampling alone."""
        return self._upscaled if self.chosen.upscaler or self.chosen.sharpen else None

    @property
    def mixes_latents(self) -> bool:
        """Whether a stage's coarse part is the enlarged latent's."""
        return self.chosen.mixing

    def _upscaled(self, image: Tensor, size: Size) -> Tensor:
        return sharpened(self._enlarge(image, size), self.chosen.sharpen)

    def _native(self, size: Size) -> Size | None:
        model = self._model
        return small_size(size, model.native, multiple=model.multiple)

    def _latent(self, size: Size) -> Size:
        return size[0] // self._model.factor, size[1] // self._model.factor
