"""Sampling by ComfyUI's rules: what the network sees, computed beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lib_hires.noise import draw, generators
from lib_hires.settings import Settings
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request


def evaluations(
    model: LatentModel, request: Request, **settings: object
) -> list[tuple[Tensor, float]]:
    """The input (2, c, h, w) and the timestep of each evaluation of a run."""
    seen: list[tuple[Tensor, float]] = []

    def record(_: object, received: tuple[Tensor, ...]) -> None:
        seen.append((received[0], float(received[1][0])))

    with model.unet.register_forward_pre_hook(record):
        list(Run(model, request, Settings.from_values(settings)).generate())
    return seen


@pytest.mark.parametrize("side", [16, 32])
def test_both_evaluations_are_at_the_nearest_whole_timestep(
    tiny_model: LatentModel, side: int
) -> None:
    """By the nearest log sigma, as ComfyUI's `timestep` has it."""
    request = Request(
        prompt="a", width=side, height=side, steps=5, sampler="Euler", rules="comfyui"
    )
    guided = {"ug": True, "ug_eta": 1, "ug_cadence": 1} if side == 32 else {}
    run = Run(tiny_model, request, Settings.from_values(guided))
    gain = run.reduction(run.first).noise_gain if guided else 1.0
    abar = tiny_model.alphas_cumprod.double().numpy()
    table = np.log((1 - abar) / abar) / 2
    levels = np.log(run.first_sigmas()[:-1].double().numpy())
    nearest = [
        [float(np.abs(level + np.log(g) - table).argmin()) for level in levels] for g in (1, gain)
    ]

    seen = evaluations(tiny_model, request, **guided)
    large = [t for x, t in seen if x.shape[-1] == side // tiny_model.factor]
    assert large == nearest[0]
    small = [t for x, t in seen if x.shape[-1] < side // tiny_model.factor]
    assert small == (nearest[1] if guided else [])
    assert small[1:] != large[1:]

    between = evaluations(
        tiny_model, Request(**request.values() | {"rules": "k-diffusion"}), **guided
    )
    assert any(t % 1 for _, t in between)


def test_the_network_first_sees_noise_of_variance_1(tiny_model: LatentModel) -> None:
    """x / sqrt(1 + sigma²) is the noise itself; k-diffusion's rule leaves out the image's part."""
    request = Request(prompt="a", seed=3, steps=2, rules="ComfyUI")
    (first, _), *_ = evaluations(tiny_model, request)
    noise = draw(generators([3]), tuple(first.shape[1:]))
    torch.testing.assert_close(first[:1], noise, rtol=1e-6, atol=1e-6)
    (other, _), *_ = evaluations(tiny_model, Request(prompt="a", seed=3, steps=2))
    sigma = float(tiny_model.denoiser().sigma_max)
    torch.testing.assert_close(
        other[:1], noise * sigma / (1 + sigma**2) ** 0.5, rtol=1e-6, atol=1e-6
    )


def test_a_request_by_k_diffusions_rules_is_written_as_before() -> None:
    """Batches are found again by what is written of them."""
    assert "rules" not in Request().values()
    assert Request.from_values(Request(rules="comfyui").values()).rules == "ComfyUI"
