"""Toy models whose predictions do not depend on any download."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

# The toys are so small that a second thread costs more than it brings. Programs that tests start
# follow.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first, so that no process waits at the end for another.

    Those that share the served page come before all others, next to each other: then one process
    runs them, and serves it once.
    """
    longest: dict[Path, float] = {}
    for item in items:
        marker = item.get_closest_marker("slow")
        seconds = float(*marker.args) or 1.0 if marker else 0.0
        if "served" in getattr(item, "fixturenames", ()):
            seconds = math.inf
        longest[item.path] = max(longest.get(item.path, 0.0), seconds)
    items.sort(key=lambda item: -longest[item.path])


class ToyNet:
    """A small random nonlinear convolutional network, conditioned on one number per image."""

    def __init__(self, channels: int = 3, width: int = 8, seed: int = 0) -> None:
        stream = torch.Generator().manual_seed(seed)
        self._into = torch.randn(width, channels, 3, 3, generator=stream) / 4
        self._time = torch.randn(width, generator=stream)
        self._out = torch.randn(channels, width, 3, 3, generator=stream) / 6

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """x (b, c, h, w), time (b,) to (b, c, h, w), in x's dtype."""
        time = time.to(x)[:, None, None, None] * self._time.to(x)[:, None, None]
        hidden = torch.tanh(F.conv2d(x, self._into.to(x), padding=1) + time)
        return F.conv2d(hidden, self._out.to(x), padding=1)


@pytest.fixture(scope="session")
def toy_net() -> ToyNet:
    return ToyNet()


@pytest.fixture(scope="session")
def toy_denoiser(toy_net):
    """denoise(x, sigma): k-diffusion's contract, nonlinear, of three channels."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        scale = (1 + sigma**2).rsqrt()[:, None, None, None]
        return toy_net(x * scale, sigma.log() / 4)

    return denoise


@pytest.fixture(scope="session")
def sd_alphas_cumprod() -> Tensor:
    """Stable Diffusion's schedule, (1000,), float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)
