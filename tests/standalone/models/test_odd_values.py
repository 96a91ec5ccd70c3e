"""Odd but legal values in a model's files: used where they have a meaning, else named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from model_checks import call, copy, edit_json, edit_yaml, noise, refusal

from lib_hires.settings import Settings
from lib_hires.standalone.models import load_model, precision
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request


@pytest.fixture
def changed(folders: dict[str, Path], tmp_path: Path):
    """A copy of a family's folder with values changed in one of its files."""

    def change(file: str, family: str = "sd1", **values: Any) -> Path:
        folder = copy(folders[family], tmp_path / "changed")
        edit_json(folder / file, **values)
        return folder

    return change


@pytest.mark.parametrize(
    ("file", "values", "native"),
    [
        ("unet/config.json", {"sample_size": 8.0}, (16, 16)),
        ("unet/config.json", {"sample_size": "8"}, (16, 16)),
        ("unet/config.json", {"sample_size": [8, 12]}, (16, 24)),
        ("unet/config.json", {"sample_size": None}, (128, 128)),
        ("tokenizer/tokenizer_config.json", {"pad_token": None}, (16, 16)),
        ("tokenizer/tokenizer_config.json", {"model_max_length": None}, (16, 16)),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": None}, (16, 16)),
        ("scheduler/scheduler_config.json", {"prediction_type": None}, (16, 16)),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": None}, (16, 16)),
        ("scheduler/scheduler_config.json", {"beta_end": "0.012"}, (16, 16)),
        ("model_index.json", {"safety_checker": [None, None]}, (16, 16)),
    ],
)
def test_values_with_a_meaning_are_used(file, values, native, changed, loaded) -> None:
    model = load_model(changed(file, **values))
    assert model.native == native
    x, sigma = noise(1, 4, 8, 8), torch.tensor([2.0])
    torch.testing.assert_close(call(model, x, sigma), call(loaded["sd1"], x, sigma))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"sample_size": "wide"}, "unet/config.json: sample_size: expected wh"),
        ("unet/config.json", {"sample_size": [1, 2, 3]}, "sample_size: expected one side or two"),
        (
            "unet/config.json",
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "unet/config.json: quantization_config: expected none; download the model's weights "
            "that are not quantized, got 'bitsandbytes'",
        ),
        ("unet/config.json", {"block_out_channels": None}, "unet: its config.json or"),
        ("unet/config.json", {"down_block_types": ["Nonsense"]}, "unet: its config.json or"),
        ("vae/config.json", {"scaling_factor": None}, "vae/config.json: scaling_factor: exp"),
        ("vae/config.json", {"scaling_factor": "x"}, "vae/config.json: scaling_factor: exp"),
        ("vae/config.json", {"scaling_factor": float("inf")}, "vae/config.json: scaling_factor: e"),
        ("vae/config.json", {"latents_mean": [1, 2]}, "latents_mean: expected 4 numbers, got [1, "),
        ("vae/config.json", {"latents_std": [0, 1, 1, 1]}, "latents_std: expected numbers above 0"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type: expected none"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 1e12}, "and at most 1000000"),
        ("vae/config.json", {"act_fn": "no such"}, "vae: its config.json or weights could not be"),
        ("text_encoder/config.json", {"hidden_act": "no such"}, "text_encoder: its config.json or"),
        ("text_encoder/config.json", {"num_hidden_layers": None}, "text_encoder: its config.json"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "laplace"}, "beta_schedule: exp"),
        ("scheduler/scheduler_config.json", {"trained_betas": []}, "trained_betas: expected two"),
        ("scheduler/scheduler_config.json", {"trained_betas": ["x", 1]}, "trained_betas: expected"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}, "json: num_train_times"),
        ("scheduler/scheduler_config.json", {"beta_start": -1}, "beta_start: expected a"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "x"}, "could not be read"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderDC"]}, "is not supported; give an"),
    ],
)  # fmt: skip
def test_values_without_one_are_named(file, values, message, changed) -> None:
    assert message in refusal(changed(file, **values))


def test_a_tokenizer_of_another_model_is_named(changed) -> None:
    folder = changed("model_index.json")
    vocabulary = {token: 3 * i for i, token in enumerate(tiny_models.VOCABULARY)}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    message = refusal(folder)
    assert "the text encoder knows 57 tokens; copy the tokenizer again" in message


def test_a_sigmoid_schedule_is_diffusers_own(changed) -> None:
    from diffusers import DDPMScheduler

    file, name = "scheduler/scheduler_config.json", "scheduler_config.json"
    for kind in ("sigmoid", "squaredcos_cap_v2", "linear"):
        folder = changed(file, beta_schedule=kind)
        theirs = DDPMScheduler.from_config(json.loads((folder / "scheduler" / name).read_text()))
        model = load_model(folder)
        torch.testing.assert_close(
            model.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4, atol=1e-7
        )
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("params", "native"),
    [
        ({"image_size": None}, (128, 128)),
        ({"image_size": [8, 8]}, (16, 16)),
        ({"image_size": [8, 12]}, (16, 24)),
        ({"image_size": 8.0}, (16, 16)),
        ({"scale_factor": "0.18215"}, (16, 16)),
        ({"timesteps": "1000", "linear_start": None}, (16, 16)),
        ({"parameterization": "EPS"}, (16, 16)),
        ({"parameterization": "epsilon"}, (16, 16)),
        ({"cond_stage_config": None}, None),
    ],
)
def test_values_of_a_yaml_are_read_as_leniently(
    params, native, loaded: dict[str, LatentModel], tmp_path: Path
) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    edit_yaml(file, **params)
    if native is None:
        assert "its CLIP tokenizer is not on this machine" in refusal(file)
        return
    model = load_model(file)
    assert model.native == native
    image = noise(1, 3, 16, 16)
    torch.testing.assert_close(model.encode(image), loaded["sd1"].encode(image))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"image_size": "large"}, "tiny.yaml: image_size: expected whole numbers, got 'large'"),
        ({"scale_factor": [1]}, "tiny.yaml: scale_factor: expected a number"),
        ({"timesteps": 1}, "tiny.yaml: timesteps: expected at least 2"),
        ({"linear_end": "x"}, "tiny.yaml: linear_end: expected a number"),
        (
            {
                "parameterization": None,
                "denoiser_config": {"params": {"scaling_config": {"target": "a.EDMScaling"}}},
            },
            "denoiser_config.params.scaling_config.target: expected one of epsilon or v",
        ),
        ({"first_stage_config": None}, "tiny.yaml: not an LDM configuration"),
    ],
)
def test_values_of_a_yaml_are_named(
    params, message, loaded: dict[str, LatentModel], tmp_path: Path
) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    edit_yaml(file, **params)
    assert message in refusal(file)


def test_a_yaml_of_another_encoding_is_read(loaded, tmp_path: Path) -> None:
    """Its keys and values are ASCII; a comment need not be."""
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    yaml = file.with_suffix(".yaml")
    yaml.write_bytes("# café\n".encode("latin-1") + yaml.read_bytes())
    assert load_model(file).native == (16, 16)


def test_running_out_of_memory_suggests_what_is_not_slow(folders, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("lib_hires.standalone.models.folder.schedule.of_folder", fail)
    for words, dtype, advice in (
        ({"avx2"}, torch.float32, "out of memory while loading"),
        ({"avx512_bf16"}, torch.float32, "out of memory while loading; try --dtype bfloat16"),
        ({"avx512_bf16"}, torch.bfloat16, "out of memory while loading"),
    ):
        monkeypatch.setattr(precision, "_processor", lambda words=words: frozenset(words))
        assert refusal(folders["sd1"], dtype=dtype).endswith(advice)


def test_the_networks_values_are_named(loaded: dict[str, LatentModel], tmp_path: Path) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    unet = tiny_models.ldm_config(loaded["sd1"], "tiny-clip")["model"]["params"]["unet_config"]
    for name, value in (("channel_mult", "x"), ("context_dim", None), ("num_res_blocks", [1, 2])):
        params = {"params": unet["params"] | {name: value}}
        edit_yaml(file, unet_config=params)
        assert f"tiny.yaml: unet_config.params.{name}: expected" in refusal(file)
    for name, value in (("num_heads", 3), ("model_channels", -32), ("channel_mult", [0, 1])):
        edit_yaml(file, unet_config={"params": unet["params"] | {name: value}})
        assert "the U-Net does not fit its configuration" in refusal(file)


def test_whatever_else_fails_is_a_message(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("in some library")

    monkeypatch.setattr("lib_hires.standalone.models.folder.schedule.of_folder", fail)
    message = refusal(folders["sd1"])
    assert "the model could not be read (ZeroDivisionError: in some library)" in message


@pytest.fixture
def tiny_autoencoder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder whose VAE is an AutoencoderTiny (TAESD)."""
    from diffusers import AutoencoderTiny

    folder = copy(folders["sd1"], tmp_path / "taesd")
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    tiny.save_pretrained(folder / "vae")
    edit_json(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    return folder


def test_a_tiny_autoencoder_is_loaded(tiny_autoencoder: Path) -> None:
    model = load_model(tiny_autoencoder)
    assert (model.native, model.factor) == ((16, 16), 2)
    latent, image = noise(1, 4, 8, 12), noise(1, 3, 16, 24).clamp(-1, 1)
    own = model.vae.decode(latent).sample
    assert torch.equal(model.decode(latent), own)
    assert torch.equal(model.encode(image), model.vae.encode(image).latents)


@pytest.mark.slow
def test_a_tiny_autoencoder_decodes_in_tiles(tiny_autoencoder: Path) -> None:
    settings = Settings.from_values({"refine_tile": 128})
    request = Request(prompt="x", steps=1, width=160, height=144)
    (made,) = Run(load_model(tiny_autoencoder), request, settings, tile=128).generate()
    assert made.images.shape == (1, 3, 144, 160) and made.images.isfinite().all()
