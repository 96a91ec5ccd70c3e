"""Models denoise by the formulas of their kind, and read prompts as the pipelines do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from model_checks import call, copy, edit_json, noise

from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel


def test_denoiser_is_the_formula(model: LatentModel) -> None:
    """x0 = x - sigma·eps, or x/(1+sigma²) - sigma/sqrt(1+sigma²)·v, at the interpolated time."""
    x, sigma = noise(3, 4, 8, 8, scale=3), torch.tensor([9.0, 1.234, 0.05])
    embedded = model.encode_prompts(["a red house"] * 3, [""] * 3)
    table = ((1 - model.alphas_cumprod) / model.alphas_cumprod).sqrt().log().double().numpy()
    t = torch.tensor([interpolated(table, s) for s in sigma.log().tolist()])
    added = None
    if model.family == "sdxl":
        ids = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 3)
        added = {"text_embeds": embedded.pooled_cond, "time_ids": ids}

    s = sigma[:, None, None, None]
    root = (1 + s**2).sqrt()
    out = model.unet(x / root, t, embedded.cond, added_cond_kwargs=added).sample
    expected = x - s * out if model.prediction == "eps" else x / root**2 - s / root * out
    x0 = model.denoiser()(x, sigma, context=embedded.cond, pooled=embedded.pooled_cond)
    assert (x0 - expected).abs().max() < 1e-3
    assert (x0 - x).abs().max() > 0.01  # the U-Net took part


def interpolated(table: Any, value: float) -> float:
    low = max(i for i in range(len(table) - 1) if table[i] <= value)
    return float(low + (value - table[low]) / (table[low + 1] - table[low]))


def test_sigma_and_time(model: LatentModel) -> None:
    denoiser = model.denoiser()
    assert denoiser.sigmas.shape == (1000,)
    low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
    assert (low, high) == pytest.approx((0.0292, 14.61), rel=1e-2)
    # Not quantized; outside the table its ends.
    t = denoiser.sigma_to_t(torch.tensor([0.0, low / 2, low, 1.0, high, 4 * high]))
    assert t[[0, 1, 2]].tolist() == [0, 0, 0] and t[[4, 5]].tolist() == [999, 999]
    assert t[3] % 1 != 0
    times = torch.tensor([0.0, 0.5, 345.6, 999.0])
    assert torch.allclose(denoiser.sigma_to_t(denoiser.t_to_sigma(times)), times, atol=1e-2)


def test_sigma_beyond_the_table(model: LatentModel) -> None:
    """The U-Net receives the last timestep, the formula keeps the sigma it was given."""
    received: list[torch.Tensor] = []
    handle = model.unet.register_forward_pre_hook(lambda _, args: received.append(args[1]))
    with handle:
        x0 = call(model, noise(1, 4, 8, 8, scale=60), torch.tensor([60.0]))
    assert received[0].tolist() == [999] and x0.isfinite().all()


def test_low_precision_model(folders: dict[str, Path]) -> None:
    """The model computes in its own dtype; x0 comes back in x's."""
    x, sigma = noise(1, 4, 8, 8, scale=3), torch.tensor([2.0])
    exact = call(load_model(folders["sd1"]), x, sigma)
    for dtype in (torch.bfloat16, torch.float16):
        model = load_model(folders["sd1"], dtype=dtype)
        assert {p.dtype for p in model.unet.parameters()} == {dtype}
        assert model.encode_prompts(["a"], [""]).cond.dtype == dtype
        x0 = call(model, x, sigma)
        assert x0.dtype == torch.float32 and (x0 - exact).abs().max() < 0.1
        assert model.decode(x).dtype == torch.float32


def test_sdxl_vae_keeps_float32_where_it_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(folders["sdxl"], dtype=torch.float16)
    assert (model.vae.dtype, model.unet.dtype) == (torch.float32, torch.float16)
    folder = copy(folders["sdxl"], tmp_path / "fixed")
    edit_json(folder / "vae" / "config.json", force_upcast=False)
    assert load_model(folder, dtype=torch.float16).vae.dtype == torch.float16


def test_sdxl_time_ids(loaded: dict[str, LatentModel]) -> None:
    """The size of the call where it is given, else that of x; cropped nowhere."""
    model = loaded["sdxl"]
    received: list[dict[str, torch.Tensor]] = []

    def record(_: Any, args: Any, kwargs: Any) -> None:
        received.append(kwargs["added_cond_kwargs"])

    with model.unet.register_forward_pre_hook(record, with_kwargs=True):
        x, sigma = noise(2, 4, 8, 12), torch.ones(2)
        call(model, x, sigma)
        call(model, x, sigma, size=(1024, 768))
    assert received[0]["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]] * 2
    assert received[1]["time_ids"].tolist() == [[1024, 768, 0, 0, 1024, 768]] * 2
    assert received[0]["text_embeds"].shape == (2, tiny_models.WIDTH)
    with pytest.raises(ValueError, match="pooled: expected"):
        model.denoiser()(x, sigma, context=model.encode_prompts(["a"], [""]).cond)


def test_prompts(model: LatentModel) -> None:
    embedded = model.encode_prompts(["a red house", "x"], ["", "blur"])
    width = model.unet.config.cross_attention_dim
    assert embedded.cond.shape == embedded.uncond.shape == (2, tiny_models.TOKENS, width)
    assert (embedded.pooled_cond is None) == (model.family != "sdxl")
    alone = model.encode_prompts(["x"], ["blur"])
    assert torch.allclose(embedded.cond[1:], alone.cond, atol=1e-5)
    assert torch.allclose(embedded.uncond[1:], alone.uncond, atol=1e-5)
    with pytest.raises(ValueError, match="negatives: expected one for each of 2 prompts, got 1"):
        model.encode_prompts(["a", "b"], [""])


def test_sdxl_empty_negative_is_zero(loaded: dict[str, LatentModel]) -> None:
    embedded = loaded["sdxl"].encode_prompts(["", ""], ["", "blur"])
    assert embedded.pooled_uncond is not None
    assert embedded.uncond[0].abs().max() == 0 and embedded.pooled_uncond[0].abs().max() == 0
    assert embedded.uncond[1].abs().max() > 0 and embedded.cond[0].abs().max() > 0


def test_prompts_equal_the_pipelines(folders: dict[str, Path]) -> None:
    """diffusers' own pipelines, with the same parts, make the same embeddings."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    model = load_model(folders["sd2"])
    encoder = model.encoders[0]
    pipe = StableDiffusionPipeline(
        model.vae, encoder.model, encoder.tokenizer, model.unet,
        scheduler, None, None, requires_safety_checker=False,
    )  # fmt: skip
    embedded = model.encode_prompts(["a red house"], ["blur"])
    theirs = pipe.encode_prompt("a red house", "cpu", 1, True, "blur")
    assert torch.equal(embedded.cond, theirs[0]) and torch.equal(embedded.uncond, theirs[1])

    model = load_model(folders["sdxl"])
    one, two = model.encoders
    xl = StableDiffusionXLPipeline(
        model.vae, one.model, two.model, one.tokenizer, two.tokenizer, model.unet,
        scheduler, add_watermarker=False,
    )  # fmt: skip
    embedded = model.encode_prompts(["a red house"], ["blur"])
    theirs = xl.encode_prompt("a red house", device="cpu", negative_prompt="blur")
    ours = (embedded.cond, embedded.uncond, embedded.pooled_cond, embedded.pooled_uncond)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_long_prompt_is_cut_with_a_warning(
    model: LatentModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="hires_guidance"):
        tokens = model.encoders[0].tokens(["a b c d e f g h i j k l m n o p q r s t"])
    assert tokens.shape == (1, tiny_models.TOKENS)
    assert tokens[0, -1] == len(tiny_models.VOCABULARY) - 1
    assert "prompt of 22 tokens: the text encoder takes 16" in caplog.text
