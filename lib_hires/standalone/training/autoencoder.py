"""The bundled model's autoencoder: how its training begins, and what a work folder holds of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib_hires.standalone.training.loop import load
from lib_hires.standalone.world import model as demo

CHECKPOINT = "vae.pt"


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 (h, w, 3) arrays to one (b, 3, h, w) tensor in [-1, 1], channels last."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (batch / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def start_plainly(vae: nn.Module) -> None:
    """Start the VAE near plain averaging and upsampling, with little noise in its latents.

    From torch's own start the losses of the first 500 steps come about 100 steps later.
    """
    for name, part in vae.named_modules():
        if name.endswith(("downsamplers.0.conv", "upsamplers.0.conv")):
            part.weight *= 0.3
            channels = range(part.weight.shape[0])
            if "down" in name:
                part.weight[channels, channels, :2, :2] += 0.25
            else:
                part.weight[channels, channels, 1, 1] += 1.0
        elif ".resnets." in name and name.endswith("conv2"):
            part.weight *= 0.1
    nn.init.orthogonal_(vae.quant_conv.weight)
    vae.quant_conv.weight[demo.LATENT_CHANNELS :] *= 0.1
    vae.quant_conv.bias[demo.LATENT_CHANNELS :] = -8.0


def widths(text: str) -> list[int]:
    """Multiples of the VAE's channels, level by level, from numbers with commas."""
    return [int(each) for each in text.split(",")]


def load_vae(work: Path) -> nn.Module:
    """The averaged VAE of `work`, before its latents are normalised. Raises ValueError without."""
    state = load(work / CHECKPOINT)
    if state is None:
        raise ValueError(f"{work / CHECKPOINT}: not there; run the stage 'vae' first")
    modules, trained = state["modules"], state.get("config")  # none where it began from a model
    vae = demo.build_vae(widths(trained["multipliers"]) if trained else demo.VAE_MULTIPLIERS)
    vae.load_state_dict(modules.get("ema_vae", modules["vae"]))
    return demo.speed_up(vae).eval().requires_grad_(False)
