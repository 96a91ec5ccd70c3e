"""Flux and Stable Diffusion 3 of random weights, for Forge."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from small_shapes import HEAD, T5, XL_TEXT_LAYERS
from tiny_checkpoints import (
    TEXT,
    UNET,
    VAE,
    XL_POOLED,
    beside_unet,
    convolution,
    half,
    linear,
    renamed,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

FLUX_WIDTH = 128


SD3_WIDTH, SD3_CONTEXT, SD3_PATCHES = 64, 4096, 16  # 64 for each block; patches along a side


def put_flow_models(model: Path) -> None:
    """flux and sd3. model: the first one that `put_known_models` wrote; they lie beside it."""
    torch.manual_seed(2)
    beside = beside_unet(load_file(model))
    save_file(_flux_weights(beside), model.with_name("flux.safetensors"))
    save_file(_sd3_weights(beside), model.with_name("sd3.safetensors"))


def _flux_weights(beside: dict[str, Tensor]) -> dict[str, Tensor]:
    """Flux of two blocks. beside: the VAE and SD 1.5's text encoder."""
    received = _flow_text_encoders(beside)
    transformer = half(_flux_transformer(FLUX_WIDTH, T5["d_model"]))
    return renamed(_flow_vae(beside), VAE, "vae.") | received | transformer


def _sd3_weights(beside: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stable Diffusion 3 of one block. beside: the VAE and SD 1.5's text encoder."""
    clip_g = renamed(_larger_clip().state_dict(), "", "text_encoders.clip_g.transformer.")
    received = _flow_text_encoders(beside) | half(clip_g)
    return _flow_vae(beside) | received | half(_sd3_transformer(SD3_WIDTH))


def _flow_vae(beside: dict[str, Tensor]) -> dict[str, Tensor]:
    """That of SD 1.5 for latents of 16 channels, without the layers next to the latent."""
    vae = {key: value for key, value in beside.items() if key.startswith(VAE)}
    vae = {key: value for key, value in vae.items() if "quant" not in key}
    for end in ("weight", "bias"):
        last = f"{VAE}encoder.conv_out.{end}"
        vae[last] = torch.cat([vae[last]] * 4)
    first = f"{VAE}decoder.conv_in.weight"
    vae[first] = vae[first].repeat(1, 4, 1, 1) / 2
    return vae


def _flow_text_encoders(beside: dict[str, Tensor]) -> dict[str, Tensor]:
    """SD 1.5's and a narrow T5."""
    config = T5Config(**T5, feed_forward_proj="gated-gelu")
    t5 = T5EncoderModel(config).state_dict()
    t5.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight
    clip_l = renamed(beside, TEXT, "text_encoders.clip_l.")
    return clip_l | half(renamed(t5, "", "text_encoders.t5xxl.transformer."))


def _larger_clip() -> CLIPTextModelWithProjection:
    """SD3's larger text encoder, that of SDXL, with fewer layers."""
    config = CLIPTextConfig(
        hidden_size=XL_POOLED,
        intermediate_size=4 * XL_POOLED,
        projection_dim=XL_POOLED,
        num_hidden_layers=XL_TEXT_LAYERS,
        num_attention_heads=20,
    )
    return CLIPTextModelWithProjection(config)


def _flux_transformer(width: int, received: int) -> dict[str, Tensor]:
    layers = {
        "img_in": (64, width),
        "txt_in": (received, width),
        "time_in.in_layer": (256, width),
        "time_in.out_layer": (width, width),
        "vector_in.in_layer": (768, width),
        "vector_in.out_layer": (width, width),
        "guidance_in.in_layer": (256, width),
        "guidance_in.out_layer": (width, width),
        "single_blocks.0.linear1": (width, 7 * width),
        "single_blocks.0.linear2": (5 * width, width),
        "single_blocks.0.modulation.lin": (width, 3 * width),
        "final_layer.linear": (width, 64),
        "final_layer.adaLN_modulation.1": (width, 2 * width),
    }
    norms = ["single_blocks.0.norm"]
    for part in ("img", "txt"):
        block = f"double_blocks.0.{part}"
        layers |= {
            f"{block}_mod.lin": (width, 6 * width),
            f"{block}_attn.qkv": (width, 3 * width),
            f"{block}_attn.proj": (width, width),
            f"{block}_mlp.0": (width, 4 * width),
            f"{block}_mlp.2": (4 * width, width),
        }
        norms.append(f"{block}_attn.norm")
    state: dict[str, Tensor] = {}
    for name, (before, after) in layers.items():
        state |= linear(name, before, after)
    for name in norms:
        state |= {f"{name}.{of}_norm.scale": torch.ones(HEAD) for of in ("query", "key")}
    return renamed(state, "", UNET)


def _sd3_transformer(width: int) -> dict[str, Tensor]:
    """Of one block and one attention head."""
    layers = {
        "t_embedder.mlp.0": (256, width),
        "t_embedder.mlp.2": (width, width),
        "y_embedder.mlp.0": (768 + XL_POOLED, width),
        "y_embedder.mlp.2": (width, width),
        "context_embedder": (SD3_CONTEXT, width),
        "joint_blocks.0.context_block.adaLN_modulation.1": (width, 2 * width),
        "joint_blocks.0.context_block.attn.qkv": (width, 3 * width),
        "joint_blocks.0.x_block.adaLN_modulation.1": (width, 6 * width),
        "joint_blocks.0.x_block.attn.qkv": (width, 3 * width),
        "joint_blocks.0.x_block.attn.proj": (width, width),
        "joint_blocks.0.x_block.mlp.fc1": (width, 4 * width),
        "joint_blocks.0.x_block.mlp.fc2": (4 * width, width),
        "final_layer.adaLN_modulation.1": (width, 2 * width),
        "final_layer.linear": (width, 64),
    }
    state = convolution("x_embedder.proj", 16, width, side=2)
    state["pos_embed"] = torch.randn(1, SD3_PATCHES**2, width)
    for name, (before, after) in layers.items():
        state |= linear(name, before, after)
    return renamed(state, "", UNET)
