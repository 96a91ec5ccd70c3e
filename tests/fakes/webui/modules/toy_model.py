"""Latent diffusion models of some hundred random weights, native size 64x64 pixels."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class Posterior:
    def __init__(self, moments):
        self._mean, self._log_variance = moments.chunk(2, dim=1)

    def sample(self):
        return self._mean + self._log_variance.mul(0.5).exp() * torch.randn_like(self._mean)


class UNet(nn.Module):
    channel_mult = (1, 2)

    def __init__(self, numbers=0):
        super().__init__()
        self.into = nn.Conv2d(4, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 4, 3, padding=1)
        self.time = nn.Linear(1, 8)
        self.context = nn.Linear(6, 8)
        self.label = nn.Linear(numbers, 8) if numbers else None

    def forward(self, x, t, context, y=None):
        hidden = self.time(t.float()[:, None] / 1000) + self.context(context.mean(1))
        if self.label is not None:
            hidden = hidden + self.label(y)
        return x * 0.8 + self.out(torch.tanh(self.into(x) + hidden[:, :, None, None]))


class Decoder(nn.Module):
    gain = 1

    def __init__(self):
        super().__init__()
        self.colours = nn.Parameter(torch.randn(3, 4) / 3)

    def forward(self, z):
        colours = torch.einsum("dc,bchw->bdhw", self.colours, z)
        return F.interpolate(self.gain * torch.tanh(colours), scale_factor=8, mode="bilinear")


class FirstStage(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = Decoder()
        self.quant_conv = nn.Identity()

    def encode(self, images):
        means = torch.atanh(F.avg_pool2d(images, 8).clamp(-0.999, 0.999))
        back = torch.linalg.pinv(self.decoder.colours)
        mean = torch.einsum("cd,bdhw->bchw", back, means)
        return Posterior(self.quant_conv(torch.cat([mean, torch.full_like(mean, -3)], dim=1)))


class ToyModel(nn.Module):
    parameterization = "eps"
    image_size = 8
    scale_factor = 0.8
    is_sdxl = is_sd2 = is_sd3 = False
    numbers = 0  # that the U-Net receives beside the prompt

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.diffusion_model = UNet(self.numbers)
        self.first_stage_model = FirstStage()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.register_buffer("alphas_cumprod", (1 - betas).cumprod(0).float())
        self.requires_grad_(False)
        self.evaluated = []  # latent sizes of all calls, and how many images each held
        self.received = []  # by each call beside the prompt

    def apply_model(self, x, t, cond):
        self.evaluated.append((tuple(x.shape[-2:]), len(x)))
        for part in cond["c_concat"]:
            assert part.shape[-2:] in (x.shape[-2:], (1, 1))
        return self.evaluate(x, t, cond)

    def evaluate(self, x, t, cond):
        return self.model.diffusion_model(x, t, cond["c_crossattn"][0])

    def encode_prompt(self, prompt, size=None):
        """(3 or 6, 6): long prompts give more tokens."""
        stream = torch.Generator().manual_seed(sum(map(ord, prompt.strip())))
        return torch.randn(6 if len(prompt) > 40 else 3, 6, generator=stream)

    def decode_first_stage(self, z):
        return self.first_stage_model.decoder(z / self.scale_factor)

    def encode_first_stage(self, images):
        return self.first_stage_model.encode(images)

    def get_first_stage_encoding(self, posterior):
        return self.scale_factor * posterior.sample()


class Waves(nn.Module):
    """Embeds each number by `outdim` of them."""

    outdim = 4

    def __init__(self, input_key):
        super().__init__()
        self.input_key = input_key

    def forward(self, numbers):
        rates = torch.tensor([1.0, 0.1, 0.01, 0.001])
        return (numbers[:, :, None] * rates).sin().flatten(1)


class ToySDXL(ToyModel):
    """Receives the image's size, and drawing its sample inside encode_first_stage."""

    is_sdxl = True
    numbers = 2 + 3 * 2 * Waves.outdim

    def __init__(self):
        super().__init__()
        keys = "original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple"
        text = SimpleNamespace(input_key="txt")
        self.conditioner = SimpleNamespace(embedders=[text, *map(Waves, keys)])

    def evaluate(self, x, t, cond):
        self.received.append(cond["vector"][-1])
        return self.model.diffusion_model(x, t, cond["crossattn"], cond["vector"])

    def encode_prompt(self, prompt, size=None):
        tokens = super().encode_prompt(prompt)
        size, crop = torch.tensor([size], dtype=torch.float32), torch.zeros(1, 2)
        waves = [embed(n)[0] for embed, n in zip(self.embedders(), (size, crop, size), strict=True)]
        return {"crossattn": tokens, "vector": torch.cat([tokens[0, :2], *waves])}

    def embedders(self):
        return self.conditioner.embedders[1:]

    def encode_first_stage(self, images):
        return self.scale_factor * self.first_stage_model.encode(images).sample()

    def get_first_stage_encoding(self, latent):
        return latent
