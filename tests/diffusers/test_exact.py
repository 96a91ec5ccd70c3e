"""With theta = 1 and eta = 1, D of the large run is the native run from D of its noise."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_pipelines as tiny
import torch

from lib_hires import Reduction
from lib_hires.diffusers import apply_hires_guidance
from lib_hires.diffusers.layouts import unpacked

REDUCTION = Reduction.between((16, 16), (8, 8))
NOISE = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
SETTINGS = {"ug": True, "ug_eta": 1, "ug_cadence": 1, "ug_shifted_start": False}


def unet_euler(pipe: Any, prediction: str, sigmas: list[float]) -> torch.Tensor:
    """The native sampler, written down once more, on the sigmas halved."""
    abar = pipe.scheduler.alphas_cumprod.double()
    table = ((1 - abar) / abar).sqrt()
    embeds = tiny.prompt(pipe)["prompt_embeds"]
    x = REDUCTION.reduce(NOISE * sigmas[0]).double()
    for sigma, after in zip(sigmas, sigmas[1:], strict=False):
        half = torch.tensor(sigma / 2).double()
        known = half.clamp(table[0], table[-1])
        above = int(torch.searchsorted(table, known).clamp(1, len(table) - 1))
        low, high = table[above - 1].log(), table[above].log()
        t = above - 1 + (known.log() - low) / (high - low)
        root = (1 + known**2).sqrt()
        out = pipe.unet((x / root).float(), t.float(), embeds).sample.double()
        if prediction == "eps":
            denoised = x - known * out
        elif prediction == "v":
            denoised = x / root**2 - known / root * out
        else:
            denoised = out
        x = denoised + (x - denoised) * (after / sigma)
    return x.float()


@pytest.mark.parametrize("prediction", ["eps", "v", "sample"])
@torch.no_grad()
def test_of_a_unet(prediction: str) -> None:
    pipe = tiny.unet_pipeline("sd1", prediction)
    apply_hires_guidance(pipe, **SETTINGS)
    large = tiny.latents(pipe, steps=6, guidance_scale=1.0)
    small = unet_euler(pipe, prediction, pipe.scheduler.sigmas.tolist())
    torch.testing.assert_close(REDUCTION.reduce(large), small, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", ["sd3", "flux"])
@torch.no_grad()
def test_of_a_flow(family: str) -> None:
    pipe = tiny.sd3_pipeline() if family == "sd3" else tiny.flux_pipeline()
    apply_hires_guidance(pipe, **SETTINGS, native=16)
    guidance = {"guidance_scale": 1.0} if family == "sd3" else {}
    large = tiny.latents(pipe, steps=6, **guidance)
    times = pipe.scheduler.sigmas.tolist()
    start = NOISE
    if family == "flux":
        large = unpacked(large, (8, 8))
    x = 2 * REDUCTION.reduce(start)
    halved = [t / 2 / (1 - t + t / 2) for t in times]
    prompt = tiny.prompt(pipe)
    rows, columns = torch.arange(4.0), torch.arange(4.0)
    for t, after in zip(halved, halved[1:], strict=False):
        if family == "sd3":
            velocity = pipe.transformer(
                x,
                timestep=torch.tensor([1000 * t]),
                encoder_hidden_states=prompt["prompt_embeds"],
                pooled_projections=prompt["pooled_prompt_embeds"],
            ).sample
        else:
            places = torch.cartesian_prod(rows, columns)
            tokens = x.reshape(1, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 16)
            out = pipe.transformer(
                tokens,
                timestep=torch.tensor([t]),
                encoder_hidden_states=prompt["prompt_embeds"],
                pooled_projections=prompt["pooled_prompt_embeds"],
                txt_ids=torch.zeros(6, 3),
                img_ids=torch.cat([torch.zeros(16, 1), places], dim=1),
            ).sample
            velocity = unpacked(out, (4, 4))
        x = x + (after - t) * velocity
    torch.testing.assert_close(REDUCTION.reduce(large), x, rtol=2e-4, atol=2e-4)
