"""The bundled model's files: weights in the LDM layout, the yaml and the tokenizer beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

from lib_hires.files import whole_file
from lib_hires.standalone.models.names import clip_name
from lib_hires.standalone.world.model import (
    BETA_END,
    BETA_START,
    CLIP_FOLDER,
    CONTEXT,
    LATENT_CHANNELS,
    MAX_TOKENS,
    NAME,
    NATIVE_SIZE,
    SCALE_FACTOR,
    TRAINING_STEPS,
    UNET_ATTENTION_FACTORS,
    UNET_BLOCKS,
    UNET_CHANNELS,
    UNET_HEADS,
    UNET_MULTIPLIERS,
    VAE_BLOCKS,
    VAE_CHANNELS,
    VAE_FACTOR,
    VAE_MULTIPLIERS,
    alphas_cumprod,
    write_tokenizer,
)

WEBUI_CLIP = f"models/Stable-diffusion/{CLIP_FOLDER}"  # relative to the WebUI's working directory

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def normalise_latents(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Change `vae` in place so that its latents times SCALE_FACTOR have mean 0 and deviation 1.

    `mean` and `deviation` (4,) are those of its latents now. Only the two 1x1 convolutions around
    the latent change; encoding and decoding together stay what they were.
    """
    gain = deviation * SCALE_FACTOR
    with torch.no_grad():
        means, log_variances = slice(0, LATENT_CHANNELS), slice(LATENT_CHANNELS, None)
        into, out = vae.quant_conv, vae.post_quant_conv
        into.weight[means] /= gain.view(-1, 1, 1, 1)
        into.bias[means] = (into.bias[means] - mean) / gain
        into.bias[log_variances] -= 2 * gain.log()
        out.bias += out.weight[:, :, 0, 0] @ mean
        out.weight *= gain.view(1, -1, 1, 1)


def _renamed(state: dict[str, Tensor], names: dict[str, str], prefix: str) -> dict[str, Tensor]:
    """`state` with each key's longest known beginning replaced, behind `prefix`."""
    renamed = {}
    for key, value in state.items():
        stem = key
        while stem not in names:
            if "." not in stem:
                raise KeyError(f"{key}: has no name in the LDM layout")
            stem = stem.rpartition(".")[0]
        renamed[prefix + names[stem] + key[len(stem) :]] = value
    return renamed


def _resnet_names(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in _RESNET.items()}


def _unet_names() -> dict[str, str]:
    names = dict(_UNET_ENDS)
    levels = len(UNET_MULTIPLIERS)
    block = 1
    for level in range(levels):
        for j in range(UNET_BLOCKS):
            names |= _resnet_names(f"down_blocks.{level}.resnets.{j}", f"input_blocks.{block}.0")
            names[f"down_blocks.{level}.attentions.{j}"] = f"input_blocks.{block}.1"
            block += 1
        if level < levels - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    names |= _resnet_names("mid_block.resnets.0", "middle_block.0")
    names["mid_block.attentions.0"] = "middle_block.1"
    names |= _resnet_names("mid_block.resnets.1", "middle_block.2")
    block = 0
    for level in range(levels):
        attends = 2 ** (levels - 1 - level) in UNET_ATTENTION_FACTORS
        for j in range(UNET_BLOCKS + 1):
            names |= _resnet_names(f"up_blocks.{level}.resnets.{j}", f"output_blocks.{block}.0")
            names[f"up_blocks.{level}.attentions.{j}"] = f"output_blocks.{block}.1"
            if j == UNET_BLOCKS and level < levels - 1:
                place = f"output_blocks.{block}.{2 if attends else 1}.conv"
                names[f"up_blocks.{level}.upsamplers.0.conv"] = place
            block += 1
    return names


def _vae_names() -> dict[str, str]:
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    levels = len(VAE_MULTIPLIERS)
    for side, theirs in (("encoder", "down"), ("decoder", "up")):
        for end in ("conv_in", "conv_out"):
            names[f"{side}.{end}"] = f"{side}.{end}"
        names[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for k in (0, 1):
            names |= _vae_resnet(f"{side}.mid_block.resnets.{k}", f"{side}.mid.block_{k + 1}")
        for a, b in _VAE_ATTENTION.items():
            names[f"{side}.mid_block.attentions.0.{a}"] = f"{side}.mid.attn_1.{b}"
        resample = "downsample" if theirs == "down" else "upsample"
        for i in range(levels):
            ours = f"{side}.{theirs}_blocks.{i}"
            level = f"{side}.{theirs}.{i if theirs == 'down' else levels - 1 - i}"
            for j in range(VAE_BLOCKS + (theirs == "up")):
                names |= _vae_resnet(f"{ours}.resnets.{j}", f"{level}.block.{j}")
            names[f"{ours}.{resample}rs.0.conv"] = f"{level}.{resample}.conv"
    return names


def _vae_resnet(ours: str, theirs: str) -> dict[str, str]:
    names = {f"{ours}.{part}": f"{theirs}.{part}" for part in ("norm1", "conv1", "norm2", "conv2")}
    return names | {f"{ours}.conv_shortcut": f"{theirs}.nin_shortcut"}


def ldm_state(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel
) -> dict[str, Tensor]:
    """All weights under the names of the original LDM code, fp16; the schedule in fp32."""
    state = _renamed(unet.state_dict(), _unet_names(), "model.diffusion_model.")
    for key, value in _renamed(vae.state_dict(), _vae_names(), "first_stage_model.").items():
        is_matrix = ".attn_1." in key and value.dim() == 2  # 1x1 convolutions in the original
        state[key] = value[:, :, None, None] if is_matrix else value
    for key, value in text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.{clip_name(key)}"] = value
    state = {k: v.half().contiguous() for k, v in state.items() if not k.endswith("position_ids")}
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    state[positions] = torch.arange(MAX_TOKENS)[None]
    abar = alphas_cumprod()
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    return state | {"alphas_cumprod": abar.float(), "betas": (1 - abar / before).float()}


def ldm_config() -> dict[str, Any]:
    """The yaml beside the weights, as the WebUI and diffusers read it."""
    params = {
        "parameterization": "v",
        "linear_start": BETA_START,
        "linear_end": BETA_END,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": TRAINING_STEPS,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": NATIVE_SIZE // VAE_FACTOR,
        "channels": LATENT_CHANNELS,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": SCALE_FACTOR,
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": _unet_config(),
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": LATENT_CHANNELS,
                "monitor": "val/rec_loss",
                "ddconfig": _vae_config(),
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": WEBUI_CLIP},
        },
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _unet_config() -> dict[str, Any]:
    return {
        "use_checkpoint": False,
        "image_size": NATIVE_SIZE // VAE_FACTOR,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "model_channels": UNET_CHANNELS,
        "attention_resolutions": list(UNET_ATTENTION_FACTORS),
        "num_res_blocks": UNET_BLOCKS,
        "channel_mult": list(UNET_MULTIPLIERS),
        "num_heads": UNET_HEADS,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": CONTEXT,
        "legacy": False,
    }


def _vae_config() -> dict[str, Any]:
    return {
        "double_z": True,
        "z_channels": LATENT_CHANNELS,
        "resolution": NATIVE_SIZE,
        "in_channels": 3,
        "out_ch": 3,
        "ch": VAE_CHANNELS,
        "ch_mult": list(VAE_MULTIPLIERS),
        "num_res_blocks": VAE_BLOCKS,
        "attn_resolutions": [],
        "dropout": 0.0,
    }


_YAML_HEAD = f"""\
# The model {{name}} of HiRes Guidance in the original LDM layout.
# For the A1111 WebUI copy {{name}}.safetensors, this file and the folder {CLIP_FOLDER}
# into models/Stable-diffusion. `version` below is relative to the WebUI's working directory;
# other loaders find the folder beside this file.
"""


def export(
    out: Path,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    name: str = NAME,
) -> Path:
    """Write `name`.safetensors, `name`.yaml and hires-demo-clip/ into `out`.

    The VAE must come normalised (`normalise_latents`). Returns the safetensors file.
    """
    folder = out / CLIP_FOLDER
    write_tokenizer(folder)
    (folder / "config.json").write_text(text_encoder.config.to_json_string(), encoding="utf-8")
    text = yaml.safe_dump(ldm_config(), sort_keys=False)
    (out / f"{name}.yaml").write_text(_YAML_HEAD.format(name=name) + text, encoding="utf-8")
    path = out / f"{name}.safetensors"
    with whole_file(path) as partial:
        save_file(ldm_state(vae, unet, text_encoder), partial, metadata={"format": "pt"})
        partial.chmod(0o644)
    return path
