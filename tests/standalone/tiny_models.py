"""Tiny random models for the tests: diffusers folders, and the same weights in the LDM layout."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from lib_hires.standalone.models.names import clip_name

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["!", *LETTERS, *(f"{c}</w>" for c in LETTERS), "re", "red</w>"]
VOCABULARY += ["<|startoftext|>", "<|endoftext|>"]
TOKENS = 16  # of a prompt; 77 in SD
WIDTH = 64  # of the text encoders, and one attention head
KINDS = (("sd1", "eps"), ("sd2", "v"), ("sdxl", "eps"))
"""The families, and what the tiny model of each predicts."""
SCALE = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}


def write_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    settings = {"model_max_length": TOKENS, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def text_config(act: str, layers: int = 2) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=1,
        max_position_embeddings=TOKENS,
        hidden_act=act,
        bos_token_id=len(VOCABULARY) - 2,
        eos_token_id=len(VOCABULARY) - 1,
    )


def make_unet(family: str) -> Any:
    from diffusers import UNet2DConditionModel

    sdxl = family == "sdxl"
    extra: dict[str, Any] = {"attention_head_dim": 4}
    if family != "sd1":
        extra = {"attention_head_dim": (2, 4), "use_linear_projection": True}
    if sdxl:
        extra |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        extra["projection_class_embeddings_input_dim"] = WIDTH + 6 * 256
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH * (2 if sdxl else 1),
        **extra,
    )


def make_vae(family: str) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        sample_size=16,
        scaling_factor=SCALE[family],
    )


def write_folder(folder: Path, family: str, prediction: str) -> Path:
    """A random model as a diffusers folder; native size 16x16 pixels, VAE factor 2."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    names = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline"}
    index: dict[str, Any] = {"_class_name": names.get(family, "StableDiffusionXLPipeline")}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    make_unet(family).save_pretrained(folder / "unet")
    make_vae(family).save_pretrained(folder / "vae")

    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    act = "gelu" if family == "sd2" else "quick_gelu"
    CLIPTextModel(text_config(act)).save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer", pad="!" if family == "sd2" else "<|endoftext|>")
    if family == "sdxl":
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        second = CLIPTextModelWithProjection(text_config("gelu", layers=3))
        second.save_pretrained(folder / "text_encoder_2")
        write_tokenizer(folder / "tokenizer_2", pad="!")

    (folder / "model_index.json").write_text(json.dumps(index))
    scheduler = {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[prediction],
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


# ---- the same weights in the original LDM layout ------------------------------------------------


def write_ldm(file: Path, model: Any, *, clip: str = "tiny-clip", half: bool = False) -> Path:
    """Write a LatentModel as one safetensors file, its yaml, and a folder for the tokenizer."""
    state = {f"model.diffusion_model.{_unet_key(k)}": v for k, v in _items(model.unet)}
    for key, value in _items(model.vae):
        wide = re.search(r"attentions\.0\.to_.*weight", key)
        state[f"first_stage_model.{_vae_key(key)}"] = value[..., None, None] if wide else value
    state |= _text_state(model)
    state = {key: value.half() if half else value for key, value in state.items()}
    save_file({key: value.clone().contiguous() for key, value in state.items()}, file)
    file.with_suffix(".yaml").write_text(yaml.safe_dump(ldm_config(model, clip)))
    write_tokenizer(file.parent / clip)
    if model.family == "sd1":
        model.encoders[0].model.config.save_pretrained(file.parent / clip)
    return file


def ldm_config(model: Any, clip: str) -> dict[str, Any]:
    sdxl = model.family == "sdxl"
    unet: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": [1],
        "channel_mult": [1, 2],
        "context_dim": model.unet.config.cross_attention_dim,
    }
    if model.family == "sd1":
        unet |= {"num_heads": 4, "transformer_depth": 1}
    else:
        unet |= {"num_head_channels": 16, "use_linear_in_transformer": True}
    if sdxl:
        unet |= {"num_classes": "sequential", "adm_in_channels": WIDTH + 6 * 256}
    ddconfig = {"z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2]}
    params: dict[str, Any] = {
        "scale_factor": SCALE[model.family],
        "image_size": 8,
        "first_stage_config": {"params": {"ddconfig": ddconfig | {"num_res_blocks": 1}}},
        "cond_stage_config": {"params": {"version": f"models/Stable-diffusion/{clip}"}},
        "network_config" if sdxl else "unet_config": {"params": unet},
    }
    if sdxl:
        scaling = {"target": f"sgm.modules.{'V' if model.prediction == 'v' else 'Eps'}Scaling"}
        params["denoiser_config"] = {"params": {"scaling_config": scaling}}
    else:
        params |= {"parameterization": model.prediction, "timesteps": 1000}
    return {"model": {"params": params}}


def _items(module: Any) -> Any:
    return module.state_dict().items()


def _renamed(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        key = key.replace(old, new)
    return key


_UNET_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    # Two blocks of one layer each: every place is fixed.
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _unet_key(key: str) -> str:
    inner = _renamed(key, _RESNET) if "resnets" in key else key
    return _renamed(inner, _UNET_OUTER)


_VAE_NAMES = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0.": "downsample.",
    "upsamplers.0.": "upsample.",
    "down_blocks": "down",
    "up_blocks.0": "up.1",
    "up_blocks.1": "up.0#",
    "#": "",
    "resnets": "block",
}


def _vae_key(key: str) -> str:
    return _renamed(key, _VAE_NAMES)


def _text_state(model: Any) -> dict[str, torch.Tensor]:
    first = model.encoders[0].model
    if model.family == "sd1":
        return {f"cond_stage_model.transformer.{clip_name(k)}": v for k, v in _items(first)}
    if model.family == "sd2":
        # OpenCLIP's last layer is there and not used.
        state = _open_clip(first, "cond_stage_model.model.")
        last = {k: v for k, v in state.items() if ".resblocks.1." in k}
        return state | {k.replace("s.1.", "s.2."): torch.randn_like(v) for k, v in last.items()}
    state = {f"conditioner.embedders.0.transformer.{clip_name(k)}": v for k, v in _items(first)}
    return state | _open_clip(model.encoders[1].model, "conditioner.embedders.1.model.")


_OPEN_CLIP_NAMES = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn": "attn",
}


def _open_clip(text_model: Any, prefix: str) -> dict[str, torch.Tensor]:
    weights = {clip_name(key): value for key, value in _items(text_model)}
    state = {}
    for key, value in weights.items():
        name = prefix + _renamed(key, _OPEN_CLIP_NAMES)
        if "q_proj" in key:
            three = [weights[key.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            state[name.replace("q_proj.", "in_proj_")] = torch.cat(three)
        elif key == "text_projection.weight":
            state[prefix + "text_projection"] = value.T
        elif "k_proj" not in key and "v_proj" not in key:
            state[name] = value
    return state


# ---- the networks of the quality benchmark ------------------------------------------------------


def write_inception(file: Path) -> Path:
    """Random features in the layout of clean-fid's weights: TorchScript with `layers` inside."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 2048))
    network = nn.ModuleDict({"layers": layers})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # clean-fid's is of this kind
        torch.jit.script(network).save(str(file))
    return file


def write_clip(folder: Path) -> Path:
    """A random CLIP as a folder, with its tokenizer and what prepares its images of 32x32."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
        CLIPVisionConfig,
    )

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=32,
        patch_size=16,
    )
    text = text_config("quick_gelu").to_dict()
    config = CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=WIDTH)
    CLIPModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    CLIPProcessor(images, CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return folder


def write_pixels(folder: Path, *, channels: int = 3, **unet: Any) -> Path:
    """A random `DDPMPipeline` of 16x16 pixels, as diffusers saves it."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=16,
        in_channels=channels,
        **{"out_channels": channels} | unet,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder)
    return folder
