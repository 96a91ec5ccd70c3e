"""The bundled model's shape, its tokenizer, and its way through the LDM layout and back."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel

from lib_hires.standalone.bundled import FOLDER
from lib_hires.standalone.models.names import clip_name
from lib_hires.standalone.world import model as demo
from lib_hires.standalone.world.layout import export, normalise_latents
from lib_hires.standalone.world.scenes import random_scene

Parts = tuple[AutoencoderKL, UNet2DConditionModel, CLIPTextModel]


@pytest.fixture(scope="module")
def parts() -> Parts:
    torch.manual_seed(0)
    return (
        demo.build_vae().eval(),
        demo.build_unet().eval(),
        demo.build_text_encoder().eval(),
    )


@pytest.fixture(scope="module")
def exported(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export")
    vae, unet, text_encoder = parts
    return export(out, vae=vae, unet=unet, text_encoder=text_encoder)


@pytest.fixture(scope="module")
def loaded(exported: Path) -> tuple[AutoencoderKL, UNet2DConditionModel]:
    """VAE and U-Net as diffusers' own single-file loader reads them."""
    yaml_file = str(exported.with_suffix(".yaml"))
    vae, unet = (
        kind.from_single_file(str(exported), original_config=yaml_file, torch_dtype=torch.float32)
        for kind in (AutoencoderKL, UNet2DConditionModel)
    )
    return vae.eval(), unet.eval()


def test_everything_fits_in_24_megabytes(exported: Path) -> None:
    files = [f for f in exported.parent.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 24_000_000


def test_every_group_norm_has_32_groups(parts: Parts) -> None:
    norms = [m for p in parts[:2] for m in p.modules() if isinstance(m, nn.GroupNorm)]
    assert {n.num_groups for n in norms} == {32}


def test_weights_survive_the_ldm_layout(
    parts: Parts, loaded: tuple[AutoencoderKL, UNet2DConditionModel]
) -> None:
    for ours, theirs in zip(parts[:2], loaded, strict=True):
        expected, got = ours.state_dict(), theirs.state_dict()
        assert expected.keys() == got.keys()
        for key, value in expected.items():
            assert torch.equal(got[key], value.half().float()), key


def test_outputs_survive_the_ldm_layout(
    parts: Parts, loaded: tuple[AutoencoderKL, UNet2DConditionModel]
) -> None:
    vae, unet = (copy.deepcopy(p).half().float() for p in parts[:2])
    torch.manual_seed(1)
    latent, context = torch.randn(2, 4, 32, 32), torch.randn(2, 77, demo.CONTEXT)
    t = torch.tensor([3, 900])
    with torch.no_grad():
        assert torch.equal(unet(latent, t, context).sample, loaded[1](latent, t, context).sample)
        small = latent[:1, :, :8, :8]
        assert torch.equal(vae.decode(small).sample, loaded[0].decode(small).sample)


def test_the_text_encoder_keeps_its_names_and_weights(parts: Parts, exported: Path) -> None:
    state = load_file(exported)
    for key, value in parts[2].state_dict().items():
        if not key.endswith("position_ids"):
            assert torch.equal(
                state[f"cond_stage_model.transformer.{clip_name(key)}"], value.half()
            )


def test_the_yaml_says_v_and_the_native_size(exported: Path) -> None:
    params = yaml.safe_load(exported.with_suffix(".yaml").read_text())["model"]["params"]
    assert params["parameterization"] == "v"
    assert params["image_size"] * demo.VAE_FACTOR == demo.NATIVE_SIZE == 256
    assert params["scale_factor"] == 0.18215


def test_the_schedule_is_that_of_stable_diffusion() -> None:
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    torch.testing.assert_close(demo.alphas_cumprod().float(), scheduler.alphas_cumprod)


def test_the_yaml_is_the_bundled_models(exported: Path) -> None:
    name = f"{demo.NAME}.yaml"
    assert (exported.parent / name).read_bytes() == (FOLDER / name).read_bytes()


def test_the_vocabulary_is_the_bundled_models(exported: Path) -> None:
    """Token ids are among what its weights know."""
    for name in ("vocab.json", "merges.txt"):
        ours = (exported.parent / demo.CLIP_FOLDER / name).read_bytes()
        assert ours == (FOLDER / demo.CLIP_FOLDER / name).read_bytes()


def captions() -> Iterator[str]:
    rng = np.random.default_rng(0)
    for k in range(60):
        yield replace(random_scene(rng, objects=k % 3), names_ground=k % 2 == 0).caption


def test_every_word_of_a_caption_is_one_token(exported: Path) -> None:
    tokenizer = demo.build_tokenizer(exported.parent / demo.CLIP_FOLDER)
    for caption in captions():
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 2
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


def test_the_tokenizer_reads_any_text_and_has_what_the_webui_asks_for(exported: Path) -> None:
    tokenizer = demo.build_tokenizer(exported.parent / demo.CLIP_FOLDER)
    assert tokenizer.model_max_length == 77
    assert ",</w>" in tokenizer.get_vocab()
    ids = demo.tokenize(tokenizer, ["", "Ein gr\u00fcnes Schlo\u00df, 1 \u2603!" * 30])
    assert ids.shape == (2, 77)
    assert tokenizer.unk_token_id == tokenizer.eos_token_id == max(tokenizer.get_vocab().values())
    files = exported.parent / demo.CLIP_FOLDER
    assert json.loads((files / "config.json").read_text())["vocab_size"] == len(tokenizer)


def test_an_empty_prompt_has_no_zero_mean(parts: Parts, exported: Path) -> None:
    """The WebUI's emphasis divides by it."""
    tokenizer = demo.build_tokenizer(exported.parent / demo.CLIP_FOLDER)
    with torch.no_grad():
        context = parts[2](demo.tokenize(tokenizer, ["", "a red house"])).last_hidden_state
    assert (context.mean((1, 2)) > 0.05).all()


def test_normalising_latents_leaves_images_alone(parts: Parts) -> None:
    vae = copy.deepcopy(parts[0])
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before = vae.encode(image).latent_dist
        expected = vae.decode(before.mean).sample
        mean, deviation = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
        normalise_latents(vae, mean, deviation)
        after = vae.encode(image).latent_dist
        scaled = after.mean * demo.SCALE_FACTOR
        torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
        gain = (deviation * demo.SCALE_FACTOR).view(1, 4, 1, 1)
        torch.testing.assert_close(after.std * gain, before.std, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(vae.decode(after.mean).sample, expected, atol=1e-3, rtol=1e-3)


def test_the_fast_training_form_computes_the_same() -> None:
    """In double precision: sums of 72 products in another order then differ by some 1e-14 on any
    processor, a mistake by more than the 1e-7 that is allowed."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(32, 32, eps=1e-6), nn.SiLU()).double()
    fast = demo.speed_up(copy.deepcopy(plain))
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for module in (plain, fast):
        module(image).square().sum().backward()
    torch.testing.assert_close(fast(image), plain(image))
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
