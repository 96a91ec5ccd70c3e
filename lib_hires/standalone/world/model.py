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

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lib_hires.standalone.models.names import text_model_of
from lib_hires.standalone.world.scenes import CLASSES, COLOURS, GROUNDS, SKIES

log = logging.getLogger("hires_guidance")

NAME = "hires-demo"
CLIP_FOLDER = "hires-demo-clip"  # of the tokenizer, beside the weights

NATIVE_SIZE = 256
VAE_FACTOR = 8
LATENT_CHANNELS = 4
SCALE_FACTOR = 0.18215
TRAINING_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
MAX_TOKENS = 77
CONTEXT = 128

# 64 channels: with 32 the 32 groups of LDM are single channels, and colours are normalised away.
VAE_CHANNELS, VAE_MULTIPLIERS, VAE_BLOCKS = 64, (1, 1, 2, 2), 1
UNET_CHANNELS, UNET_MULTIPLIERS, UNET_BLOCKS = 96, (1, 1, 1), 1
UNET_ATTENTION_FACTORS = (2, 4)  # attention at 16x16 and 8x8, none at 32x32
UNET_HEADS = 3
TEXT_LAYERS, TEXT_HEADS = 2, 4


def alphas_cumprod() -> Tensor:
    """abar_t of SD's scaled-linear schedule, (1000,) float64."""
    ends = torch.tensor([BETA_START, BETA_END], dtype=torch.float64).sqrt()
    betas = torch.linspace(ends[0], ends[1], TRAINING_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def build_vae(multipliers: Sequence[int] = VAE_MULTIPLIERS) -> AutoencoderKL:
    """(b, 3, h, w) in [-1, 1] to latents (b, 4, h/8, w/8) and back."""
    levels = len(multipliers)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(VAE_CHANNELS * k for k in multipliers),
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
_VIEW_WORDS = ("near", "view", "close", "up", "distant")  # last, so that older ids stay


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids and merges in CLIP's format: every word of the captions is one token.

    A word's merges join its first two parts until one is left. (A trainer would choose merges by
    their frequency, and the tokens' ids, which the bundled weights know, would be others.)
    """
    symbols = sorted(ByteLevel.alphabet())  # CLIP's order
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    merges: list[tuple[str, str]] = []
    for word in (*_WORDS, *CLASSES, *COLOURS, *SKIES, *GROUNDS, *_VIEW_WORDS):
        while len(parts := _parts(word, tokens, merges)) > 1:
            merges.append((parts[0], parts[1]))
            tokens.append(parts[0] + parts[1])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: k for k, token in enumerate(tokens)}, merges


def _parts(word: str, tokens: Sequence[str], merges: list[tuple[str, str]]) -> list[str]:
    """The tokens of a word by byte-pair encoding."""
    ids = {token: k for k, token in enumerate(tokens)}
    encoding = BPE(ids, merges, end_of_word_suffix="</w>")
    return [token.value for token in encoding.tokenize(word)]


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
    nn.init.constant_(text_model_of(model).final_layer_norm.bias, 0.1)
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
