"""The bundled model: a small latent diffusion model in the shape of Stable Diffusion.

Everything that fixes its architecture stands here once: a VAE of factor 8 with 4 latent channels, a
U-Net with self- and cross-attention at the two coarser of its three levels, and a CLIP text encoder
with a vocabulary made for the scenes' captions. Native size 256x256, v prediction, scaled-linear
betas from 0.00085 to 0.012 in 1000 steps: SD's schedule.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lib_hires.files import whole_file
from lib_hires.standalone.world.scenes import CLASSES, COLOURS, GROUNDS, SKIES

log = logging.getLogger("hires_guidance")

NATIVE_SIZE = 256
VAE_FACTOR = 8
LATENT_CHANNELS = 4
SCALE_FACTOR = 0.18215
TRAINING_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
MAX_TOKENS = 77
CONTEXT = 128

# 64 channels: with 32 the 32 groups of LDM are single channels, and colours are normalised away.
VAE_CHANNELS, VAE_MULTIPLIERS, VAE_BLOCKS = 64, (1, 1, 1, 1), 1
UNET_CHANNELS, UNET_MULTIPLIERS, UNET_BLOCKS = 96, (1, 1, 1), 1
UNET_ATTENTION_FACTORS = (2, 4)  # attention at 16x16 and 8x8, none at 32x32
UNET_HEADS = 3
TEXT_LAYERS, TEXT_HEADS = 2, 4


def alphas_cumprod() -> Tensor:
    """abar_t of SD's scaled-linear schedule, (1000,) float64."""
    ends = torch.tensor([BETA_START, BETA_END], dtype=torch.float64).sqrt()
    betas = torch.linspace(ends[0], ends[1], TRAINING_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def build_vae() -> AutoencoderKL:
    """(b, 3, h, w) in [-1, 1] to latents (b, 4, h/8, w/8) and back."""
    levels = len(VAE_MULTIPLIERS)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(VAE_CHANNELS * k for k in VAE_MULTIPLIERS),
        layers_per_block=VAE_BLOCKS,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=32,
        sample_size=NATIVE_SIZE,
        scaling_factor=SCALE_FACTOR,
    )


def build_unet() -> UNet2DConditionModel:
    """Latents (b, 4, h, w), timesteps (b,), context (b, 77, 128) to the predicted v."""
    attends = [2**i in UNET_ATTENTION_FACTORS for i in range(len(UNET_MULTIPLIERS))]
    return UNet2DConditionModel(
        sample_size=NATIVE_SIZE // VAE_FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=tuple(UNET_CHANNELS * k for k in UNET_MULTIPLIERS),
        layers_per_block=UNET_BLOCKS,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        cross_attention_dim=CONTEXT,
        attention_head_dim=UNET_HEADS,  # diffusers' name for the number of heads
    )


# --- text -----------------------------------------------------------------------------------------

_WORDS = ("a", "an", "on", "over", "and", "under", "sky", "nothing", "picture", "of")


def _byte_symbols() -> list[str]:
    """CLIP's 256 printable stand-ins for bytes, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return [chr(b) for b in printable] + [chr(256 + k) for k in range(len(others))]


def _merge(symbols: list[str], merges: Sequence[tuple[str, str]]) -> list[str]:
    """`symbols` after byte-pair encoding with `merges` in order of their rank."""
    rank = {pair: k for k, pair in enumerate(merges)}
    while len(symbols) > 1:
        pairs = list(zip(symbols, symbols[1:], strict=False))
        best = min(pairs, key=lambda pair: rank.get(pair, len(rank)))
        if best not in rank:
            break
        merged, k = [], 0
        while k < len(symbols):
            if tuple(symbols[k : k + 2]) == best:
                merged.append(best[0] + best[1])
                k += 2
            else:
                merged.append(symbols[k])
                k += 1
        symbols = merged
    return symbols


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids and merges in CLIP's format: every word of the captions is one token."""
    merges: list[tuple[str, str]] = []
    for word in (*_WORDS, *CLASSES, *COLOURS, *SKIES, *GROUNDS):
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(rest := _merge(symbols, merges)) > 1:
            merges.append((rest[0], rest[1]))
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: k for k, token in enumerate(tokens)}, merges


def write_tokenizer(folder: Path) -> None:
    """`vocab.json`, `merges.txt` and the two small configuration files that CLIPTokenizer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    ids, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, **special}
    config |= {"do_lower_case": True, "errors": "replace", "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer whose files lie in `folder`, which are written if they are missing."""
    if not (folder / "vocab.json").exists():
        write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """(b, 77) token ids, padded as SD does."""
    return tokenizer(
        list(captions),
        padding="max_length",
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    ).input_ids


def build_text_encoder() -> CLIPTextModel:
    """Token ids (b, 77) to a context (b, 77, 128)."""
    ids, _ = vocabulary()
    end = ids["<|endoftext|>"]
    config = CLIPTextConfig(
        vocab_size=len(ids),
        hidden_size=CONTEXT,
        intermediate_size=4 * CONTEXT,
        projection_dim=CONTEXT,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=ids["<|startoftext|>"],
        eos_token_id=end,
        pad_token_id=end,
    )
    model = CLIPTextModel(config)
    # The WebUI's emphasis divides by the mean of the output, which a zero bias would make zero.
    nn.init.constant_(model.text_model.final_layer_norm.bias, 0.1)
    return model


# --- speed ----------------------------------------------------------------------------------------


class _GroupNorm(torch.autograd.Function):
    """group_norm for channels-last tensors; torch's own backward pass is some 15 times slower."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:  # type: ignore[override, no-untyped-def]
        x = x.contiguous()
        n, c, pixels = x.shape[0], x.shape[1], x[0, 0].numel()
        y, mean, rstd = torch.native_group_norm(
            x, weight.to(x.dtype), bias.to(x.dtype), n, c, pixels, groups, eps
        )
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 else y

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override, no-untyped-def]
        x, weight, mean, rstd = ctx.saved_tensors
        n, c, pixels = x.shape[0], x.shape[1], x[0, 0].numel()
        weight_x = weight.to(x.dtype)
        dx, dw, db = torch.ops.aten.native_group_norm_backward(
            grad.contiguous(), x, mean, rstd, weight_x, n, c, pixels, ctx.groups, [True] * 3
        )
        dx = dx.contiguous(memory_format=torch.channels_last) if dx.dim() == 4 else dx
        return dx, dw.to(weight.dtype), db.to(weight.dtype), None, None


def speed_up(module: nn.Module) -> nn.Module:
    """Make channels-last training fast on CPUs; outputs stay the same. Returns `module`."""
    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            part.forward = MethodType(_fast_forward, part)  # type: ignore[method-assign]
    return module.to(memory_format=torch.channels_last)


def _fast_forward(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return _GroupNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)  # type: ignore[no-any-return, no-untyped-call]


# --- the LDM layout -------------------------------------------------------------------------------

CLIP_FOLDER = "hires-demo-clip"
WEBUI_CLIP = f"models/Stable-diffusion/{CLIP_FOLDER}"  # relative to the WebUI's working directory
NAME = "hires-demo"

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
        state[f"cond_stage_model.transformer.{key}"] = value
    state = {k: v.half().contiguous() for k, v in state.items() if not k.endswith("position_ids")}
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    state[positions] = torch.arange(MAX_TOKENS)[None]
    abar = alphas_cumprod()
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    return state | {"alphas_cumprod": abar.float(), "betas": (1 - abar / before).float()}


def ldm_config() -> dict[str, Any]:
    """The yaml beside the weights, as the WebUI and diffusers read it."""
    unet = {
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
    vae = {
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
            "params": unet,
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": LATENT_CHANNELS,
                "monitor": "val/rec_loss",
                "ddconfig": vae,
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": WEBUI_CLIP},
        },
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


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
