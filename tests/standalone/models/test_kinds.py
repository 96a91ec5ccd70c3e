"""Files that are no model are named for what they are."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from model_checks import refusal
from safetensors.torch import save_file

from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.kinds import without_unet


def zipped() -> bytes:
    raw = io.BytesIO()
    torch.save({"state_dict": {}}, raw)
    return raw.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; download or copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page, not a model; download it again, signed in"),
        (b'{"error": "Unauthorized"}', "JSON text, not a model; download it again"),
        (b"GGUF\3\0\0\0" + bytes(40), "a GGUF file is not supported"),
        (zipped(), "pickled checkpoints can run code"),
        (pickle.dumps({"a": 1}), "pickled checkpoints can run code"),
    ],
)
def test_a_file_of_another_kind_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert message in refusal(file)


def test_what_a_file_is_goes_before_its_ending(tmp_path: Path) -> None:
    """A safetensors file that is called a pickled one holds no code."""
    file = tmp_path / "model.ckpt"
    save_file({"lora_unet_a.lora_up.weight": torch.ones(1)}, file)
    assert "holds a LoRA, which changes a model; give a whole" in refusal(file)
    file.write_bytes(bytes(20))
    assert "convert it to .safetensors" in refusal(file)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"], "LoRA"),
        (["unet.down_blocks.0.attentions.0.to_k.lora_A.weight"], "LoRA"),
        (["lycoris_mid_block.lokr_w1"], "LoRA"),
        (["lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a"], "LoRA"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight", "conv_in.weight"], "ControlNet"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (["emb_params"], "textual inversion"),
        (["clip_l", "clip_g"], "textual inversion"),
        (["model_ema.diffusion_modelinput_blocks00weight"], "EMA"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "VAE, but no U-Net"),
        (["text_model.embeddings.token_embedding.weight"], "text encoder, but no U-Net"),
    ],
)
def test_tensors_of_another_kind_are_named(names: list[str], kind: str) -> None:
    found = without_unet(names)
    assert found is not None and kind in found


def test_unknown_tensors_are_of_no_kind() -> None:
    assert without_unet(["clf.1.weight", "blocks.0.attn.weight"]) is None


def test_a_part_of_a_folder_points_to_the_folder(folders: dict[str, Path]) -> None:
    folder = folders["sd1"]
    for part in ("unet/diffusion_pytorch_model.safetensors", "model_index.json"):
        with pytest.raises(ValueError, match=f"give the folder, {folder}"):
            load_model(folder / part)
