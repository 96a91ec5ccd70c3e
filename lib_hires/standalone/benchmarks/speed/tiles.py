"""Rows of `hires benchmark speed` about tiles: how near to the whole, and how much memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib_hires.sizes import Size
from lib_hires.standalone.benchmarks.memory import peak_alone, peak_memory
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.tiled_vae import vae_tiled

GOALS = {"mean": 2, "largest": 8}  # of 255


def difference_rows(model: LatentModel, latent: Tensor) -> list[dict[str, Any]]:
    """Between decoding (encoding) in tiles of native size and as a whole, in 255ths.

    latent: (1, c, h, w), larger than native. Encoding is compared by what decoding makes of it.
    """
    options: dict[str, Any] = {
        "vae": model.vae,
        "pixels": model.native[0],
        "factor": model.factor,
    }
    whole = model.decode(latent)
    decoded = vae_tiled(model.decode, latent, decode=True, **options)
    encoded = vae_tiled(model.encode, whole, decode=False, **options)
    again = model.decode(model.encode(whole))
    rows = []
    for name, got, wanted in (
        ("decode", decoded, whole),
        ("encode", model.decode(encoded), again),
    ):
        difference = (got - wanted).abs() * 127.5
        found = {"mean": float(difference.mean()), "largest": float(difference.max())}
        rows += [
            {"name": f"{name} in tiles, {kind} difference", "ratio": found[kind], "goal": goal}
            for kind, goal in GOALS.items()
        ]
    return rows


def memory_rows(model: LatentModel, scales: Sequence[int]) -> list[dict[str, Any]]:
    """Peak memory of decoding at multiples of the native sides, over that of a native image.

    Tiles of native size would ideally take as much as that, whatever the image. No rows where the
    system does not report it, or a native image takes too little for it to see.
    """
    native = _peak(model, 1, 0)
    if not native:
        return []
    rows = []
    for scale in scales:
        for name, pixels in (("in tiles", model.native[0]), ("whole", 0)):
            peak = _peak(model, scale, pixels)
            assert peak is not None
            row = {"name": f"memory of decoding {name}, {scale}x", "ratio": peak / native}
            rows.append(row | ({"bound": 1.0} if pixels else {}))
    return rows


def _peak(model: LatentModel, scale: int, pixels: int) -> int | None:
    """Bytes; on the CPU in a fresh process, which needs no more of the model than its VAE."""
    size = model.native[0] * scale // model.factor, model.native[1] * scale // model.factor
    decoder = dataclasses.replace(model, unet=None, encoders=())
    measure = partial(_peak_of_decoding, decoder, model.latent_channels, size, pixels)
    return peak_alone(model.device, measure)


def _peak_of_decoding(model: LatentModel, channels: int, size: Size, pixels: int) -> int | None:
    def decode(latent: Tensor) -> None:
        options: dict[str, Any] = {"vae": model.vae, "pixels": pixels, "factor": model.factor}
        vae_tiled(model.decode, latent, decode=True, **options)

    decode(torch.zeros(1, channels, 2, 2, device=model.device))  # what the first call loads
    latent = torch.randn(1, channels, *size, device=model.device)
    return peak_memory(model.device, lambda: decode(latent))
