"""Every kind of model loads the same way, offline, and has the same latents and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import yaml
from model_checks import assert_close, call, copy, edit_json, edit_yaml, noise

from lib_hires.standalone.bundled import MODEL
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.configs import Original
from lib_hires.standalone.models.k_diffusion import import_k_diffusion
from lib_hires.standalone.models.latent import LatentModel

k_diffusion = import_k_diffusion()


def test_facts(model: LatentModel) -> None:
    assert model.name == model.family
    assert model.prediction == dict(tiny_models.KINDS)[model.family]
    assert model.native == (16, 16)
    assert (model.latent_channels, model.factor, model.multiple) == (4, 2, 4)
    assert not model.unet.training and not any(p.requires_grad for p in model.vae.parameters())
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert torch.allclose(model.alphas_cumprod, torch.cumprod(1 - betas, 0))


@pytest.mark.parametrize(
    ("kind", "half"), [("sd1", False), ("sd1", True), ("sd2", False), ("sdxl", False)]
)
def test_ldm_file_is_the_folder(
    kind: str, half: bool, loaded: dict[str, LatentModel], tmp_path: Path
) -> None:
    folder = loaded[kind]
    file = load_model(tiny_models.write_ldm(tmp_path / "tiny.safetensors", folder, half=half))
    tolerance = 3e-2 if half else 1e-4
    assert (file.family, file.prediction, file.native) == (kind, folder.prediction, (16, 16))
    assert {p.dtype for p in file.unet.parameters()} == {torch.float32}

    prompts, negatives = ["a red house", "x"], ["", "blur"]
    a, b = (m.encode_prompts(prompts, negatives) for m in (folder, file))
    for name in ("cond", "uncond", "pooled_cond", "pooled_uncond"):
        assert_close(getattr(a, name), getattr(b, name), tolerance)

    x, sigma = noise(2, 4, 8, 8, scale=3), torch.tensor([4.0, 0.5])
    assert_close(call(folder, x, sigma), call(file, x, sigma), tolerance)
    image = noise(1, 3, 16, 16).clamp(-1, 1)
    assert_close(folder.encode(image), file.encode(image), tolerance)
    assert_close(folder.decode(x), file.decode(x), tolerance)


@pytest.mark.skipif(not MODEL.is_file(), reason="the bundled model is not there")
def test_bundled_model() -> None:
    model = load_model()
    assert (model.family, model.native, model.factor) == ("sd1", (256, 256), 8)
    assert model.latent_channels == 4
    settings = yaml.safe_load(MODEL.with_suffix(".yaml").read_text())["model"]["params"]
    assert model.prediction == settings["parameterization"]
    x0 = call(model, noise(1, 4, 32, 32, scale=14), torch.tensor([14.0]))
    assert x0.shape == (1, 4, 32, 32) and x0.isfinite().all()
    # A trained autoencoder gives back a flat image, nearly.
    image = torch.full((1, 3, 64, 64), 0.3)
    assert (model.decode(model.encode(image)) - image).abs().mean() < 0.3


def test_v_prediction_on_the_sd1_layout(loaded: dict[str, LatentModel], tmp_path: Path) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    edit_yaml(file, parameterization="v", scale_factor=0.5, image_size=16)
    model = load_model(file)
    assert (model.family, model.prediction, model.native) == ("sd1", "v", (32, 32))
    assert isinstance(model.denoiser(), k_diffusion.external.DiscreteVDDPMDenoiser)
    image = noise(1, 3, 16, 16)
    ratio = model.encode(image) / loaded["sd1"].encode(image)
    assert torch.allclose(ratio, torch.tensor(0.5 / 0.18215))


@pytest.mark.parametrize(
    ("family", "millions"), [("sd1", 859.520964), ("sd2", 865.910724), ("sdxl", 2567.463684)]
)
def test_standard_shapes(family: Any, millions: float) -> None:
    """Without a yaml: the published parameter counts of the U-Nets and their common VAE."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    original = Original.standard(family)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(original.unet_config())
        vae = AutoencoderKL.from_config(original.vae_config())
    assert sum(p.numel() for p in unet.parameters()) == round(millions * 1e6)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    side = 128 if family == "sdxl" else 64
    assert original.sample_size("eps") == (side, side)
    assert Original.standard("sd2").sample_size("v") == (96, 96)


def test_decode_and_encode(model: LatentModel) -> None:
    latent, image = noise(2, 4, 6, 8), noise(2, 3, 12, 16).clamp(-1, 1)
    decoded, encoded = model.decode(latent), model.encode(image)
    assert decoded.shape == (2, 3, 12, 16)
    assert encoded.shape == (2, 4, 6, 8)
    # The mode, not a sample: the same whatever the random state, and the mean of the posterior.
    assert torch.equal(encoded, model.encode(image))
    mean = model.vae.encode(image).latent_dist.mean
    assert torch.allclose(encoded, mean * tiny_models.SCALE[model.family])
    raw = model.vae.decode(latent / tiny_models.SCALE[model.family]).sample
    assert torch.allclose(decoded, raw)


def test_shift_mean_and_deviation_of_latents(folders: dict[str, Path], tmp_path: Path) -> None:
    image = noise(1, 3, 16, 16)
    plain = load_model(folders["sd1"]).encode(image)
    folder = copy(folders["sd1"], tmp_path / "shifted")
    edit_json(folder / "vae" / "config.json", shift_factor=0.5)
    shifted = load_model(folder)
    assert torch.allclose(shifted.encode(image), plain - 0.5 * 0.18215, atol=1e-6)
    edit_json(folder / "vae" / "config.json", latents_mean=[0.5] * 4, latents_std=[2.0] * 4)
    wide = load_model(folder)
    assert torch.allclose(wide.encode(image), (plain - 0.5 * 0.18215) / 2, atol=1e-6)
    assert torch.allclose(wide.decode(plain / 2), shifted.decode(plain), atol=1e-5)


def test_zero_snr_schedule_stays_finite(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["sd2"], tmp_path / "zero-snr")
    edit_json(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    denoiser = load_model(folder).denoiser()
    assert denoiser.sigmas.isfinite().all() and denoiser.sigma_max == pytest.approx(4096, rel=1e-3)
