"""Models whose latent is the image itself: diffusers' `UNet2DModel`, with or without classes.

Upsample Guidance, windows and refinement run on them as on latents (Upsample Guidance, section
5.1): a position is a pixel, decoding and encoding change nothing but the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lib_hires.settings import SettingsError
from lib_hires.standalone.models.latent import Conditioning, LatentModel, TextEncoder


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelModel(LatentModel):
    """A diffusion model of pixels: class numbers in, images in [-1, 1] of 1 or 3 channels out."""

    encoders: tuple[TextEncoder, ...] = field(default=(), repr=False)
    vae: None = field(default=None, repr=False)
    names: Mapping[str, int] = field(default_factory=dict, repr=False)  # of classes, lower case
    clip: float | None = None  # what its predictions are clamped to, as its scheduler does

    @property
    def factor(self) -> int:
        return 1

    @property
    def classes(self) -> int:
        """How many there are; 0 for an unconditional model."""
        return int(self.unet.config.num_class_embeds or 0)

    def check_prompt(self, prompt: str, negative: str) -> None:
        self.encode_prompts([prompt], [negative])

    def encode_prompts(self, prompts: Sequence[str], negatives: Sequence[str]) -> Conditioning:
        """Class numbers (b,). Without a negative class there is nothing to guide away from.

        Raises SettingsError for what is no class of the model.
        """
        cond = self._numbers(prompts, "prompt")
        if not any(negatives):
            return Conditioning(cond, None)
        return Conditioning(cond, self._numbers(negatives, "negative"))

    def _numbers(self, texts: Sequence[str], option: str) -> Tensor:
        return torch.tensor([self._number(text.strip(), option) for text in texts]).to(self.device)

    def _number(self, text: str, option: str) -> int:
        if not self.classes:
            if text:
                raise SettingsError(f'{option}: {self.name} has no classes; give ""')
            return 0
        number = int(text) if text.isdecimal() else self.names.get(text.lower(), -1)
        if not 0 <= number < self.classes:
            known = f"a class of {self.name}, 0 to {self.classes - 1}"
            named = f" or a name such as {next(iter(self.names))!r}" if self.names else ""
            raise SettingsError(f"{option}: expected {known}{named}, got {text!r}")
        return number

    def denoiser(self) -> Any:
        """As that of a latent model; context is (b,), and x0 is clamped where `clip` says so."""
        denoiser = super().denoiser()
        if (limit := self.clip) is not None:
            denoiser.register_forward_hook(lambda _self, _given, x0: x0.clamp(-limit, limit))
        return denoiser

    def predict(self, x: Tensor, t: Tensor, *, context: Tensor, **_: Any) -> Tensor:
        """The U-Net's eps or v; a variance that it predicts too is left out."""
        labels = context if self.classes else None
        out = self.unet(x.to(self.dtype), t, labels, return_dict=False)[0]
        return out[:, : x.shape[1]].to(x.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """(b, 1 or 3, h, w) to (b, 3, h, w), float32; grey is shown in all three channels."""
        return latent.float().expand(-1, 3, -1, -1)

    def encode(self, image: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, 1 or 3, h, w), float32; grey is the mean of the three channels."""
        image = image.to(self.device).float()
        return image.mean(1, keepdim=True) if self.latent_channels == 1 else image
