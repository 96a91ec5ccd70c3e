"""A tiny model that enlarges images, of ESRGAN's layout."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH, GROWTH = 8, 32  # spandrel knows no other growth
State = dict[str, Tensor]


def tiny_weights() -> State:
    """A random RRDBNet of one block that enlarges 4 times, named as Real-ESRGAN's files are."""
    shapes = {"conv_first": (WIDTH, 3), "conv_last": (3, WIDTH)}
    shapes |= {name: (WIDTH, WIDTH) for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr")}
    for dense in (1, 2, 3):
        for layer in range(1, 6):
            out = GROWTH if layer < 5 else WIDTH
            shapes[f"body.0.rdb{dense}.conv{layer}"] = out, WIDTH + (layer - 1) * GROWTH
    source, state = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for name, (out, into) in shapes.items():
        scale = (into * 9) ** -0.5
        state[f"{name}.weight"] = scale * torch.randn(out, into, 3, 3, generator=source)
        state[f"{name}.bias"] = 0.1 * torch.randn(out, generator=source)
    return state
