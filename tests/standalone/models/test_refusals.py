"""What is no model, or not whole, is refused with a message that names it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from model_checks import copy, edit_json, edit_yaml, noise, refusal
from safetensors.torch import load_file

from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel, ModelError


def test_refuses_what_is_not_a_model(tmp_path: Path) -> None:
    assert "no such model" in refusal(tmp_path / "missing.safetensors")
    pickle = tmp_path / "old.ckpt"
    pickle.write_bytes(b"\x80\x02")
    assert "convert it to .safetensors" in refusal(pickle)
    for content in (b"", b"not a checkpoint at all", b"\xff" * 64):
        damaged = tmp_path / "damaged.safetensors"
        damaged.write_bytes(content)
        assert "download or copy it again" in refusal(damaged)
    assert "has no model_index.json" in refusal(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    assert "damaged, not JSON" in refusal(tmp_path)


def test_refuses_a_device_that_is_not_there(folders: dict[str, Path]) -> None:
    assert "device 'teapot': cannot be used here" in refusal(folders["sd1"], device="teapot")


def test_refuses_truncated_and_foreign_files(
    loaded: dict[str, LatentModel], tmp_path: Path
) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    short = tmp_path / "short.safetensors"
    short.write_bytes(file.read_bytes()[:-100])
    assert "damaged" in refusal(short)

    def without(prefix: str) -> Path:
        state = {k: v for k, v in load_file(file).items() if not k.startswith(prefix)}
        tiny_models.save_file(state, tmp_path / "part.safetensors")
        return tmp_path / "part.safetensors"

    assert "holds a VAE, but no U-Net" in refusal(without("model.diffusion_model."))
    assert "has no VAE" in refusal(without("first_stage_model."))
    assert "has no CLIP text encoder" in refusal(without("cond_stage_model."))
    assert "put its part.yaml beside it" in refusal(without("nothing"))


def test_refuses_inpainting(loaded: dict[str, LatentModel], tmp_path: Path) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    state = load_file(file)
    state["model.diffusion_model.input_blocks.0.0.weight"] = noise(32, 9, 3, 3)
    tiny_models.save_file(state, file)
    assert "give a text-to-image model" in refusal(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not readable as yaml"),
        ("hello", "not an LDM configuration"),
        ("model: {params: {unet_config: {params: {}}}}", "not an LDM configuration"),
    ],
)
def test_refuses_a_wrong_yaml(
    content: str, message: str, loaded: dict[str, LatentModel], tmp_path: Path
) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    file.with_suffix(".yaml").write_text(content)
    assert message in refusal(file)


def test_refuses_a_yaml_that_does_not_fit(loaded: dict[str, LatentModel], tmp_path: Path) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    edit_yaml(file, parameterization="x0")
    assert "parameterization: expected eps or v, got 'x0'" in refusal(file)
    edit_yaml(file, parameterization="eps", beta_schedule="cosine")
    assert "beta_schedule: expected linear, got 'cosine'" in refusal(file)
    unet = tiny_models.ldm_config(loaded["sd1"], "tiny-clip")["model"]["params"]["unet_config"]
    unet["params"]["channel_mult"] = [1, 4]
    edit_yaml(file, beta_schedule="linear", unet_config=unet)
    assert "the U-Net does not fit its configuration" in refusal(file)
    del unet["params"]["channel_mult"], unet["params"]["num_heads"]
    edit_yaml(file, unet_config=unet)
    assert "lacks channel_mult, num_heads;" in refusal(file)


def test_tokenizer_is_looked_for(
    loaded: dict[str, LatentModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the file, as written, in the hub's cache; else one sentence, and no download."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "e"))
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    away = Path(shutil.move(tmp_path / "tiny-clip", tmp_path / "elsewhere"))
    message = refusal(file)
    assert "put a folder tiny-clip with vocab.json and merges.txt beside the file" in message

    edit_yaml(file, cond_stage_config={"params": {"version": str(away)}})
    assert load_model(file).encoders[0].length == tiny_models.TOKENS
    (away / "config.json").unlink()  # then the text encoder's shape is read off its weights
    assert load_model(file).encoders[0].model.config.num_hidden_layers == 2
    (away / "merges.txt").unlink()
    with pytest.raises(ModelError, match="elsewhere: the tokenizer has no"):
        load_model(file)


def test_refuses_incomplete_and_foreign_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["sd1"], tmp_path / "model")
    index = (folder / "model_index.json").read_text()
    edit_json(folder / "model_index.json", unet=["diffusers", "SD3Transformer2DModel"])
    assert "give an SD1, SD2 or SDXL text-to-image model" in refusal(folder)
    (folder / "model_index.json").write_text(index)

    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "give a model that predicts epsilon or v" in refusal(folder)
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    assert "unet: could not be read" in refusal(folder)
    weights.rename(weights.with_suffix(".bin"))
    assert "has no .safetensors weights" in refusal(folder)
    weights.with_suffix(".fp16.safetensors").write_bytes(whole)
    assert load_model(folder).unet.dtype == torch.float32

    (folder / "tokenizer" / "merges.txt").unlink()
    assert "the tokenizer has no merges.txt; copy it there" in refusal(folder)
