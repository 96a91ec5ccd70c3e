"""Random LoRA for the tiny models in every layout, and what they compute, without our loader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_models import _unet_key

from lib_hires.standalone.models.names import text_model_of

RANK, ALPHA = 3, 2.0
BLOCK = "attentions.0.transformer_blocks.0"
ATTENTION = [
    f"down_blocks.0.{BLOCK}.attn1.to_q",
    f"down_blocks.0.{BLOCK}.attn2.to_k",
    f"up_blocks.1.{BLOCK}.attn2.to_out.0",
]
UNET = [
    *ATTENTION,
    f"mid_block.{BLOCK}.attn1.to_v",
    f"down_blocks.0.{BLOCK}.ff.net.0.proj",
    "down_blocks.0.attentions.0.proj_in",  # of SD1 a convolution of one pixel
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.0.resnets.0.conv_shortcut",
    "up_blocks.0.resnets.1.time_emb_proj",
    "conv_in",
]
LAYER = "encoder.layers.1"
TEXT = [f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.out_proj", f"{LAYER}.mlp.fc1"]
MOTION = "motion_modules.0.transformer_blocks.0"
MOVING = [f"down_blocks.0.{MOTION}.attn1.to_q", f"up_blocks.1.{MOTION}.attn2.to_out.0"]

DIFFUSERS = "lora.down", "lora.up"

Pairs = dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]


def module_of(model: Any, place: tuple[int, str]) -> Any:
    number, name = place
    if number == 0:
        return model.unet.get_submodule(name)
    return text_model_of(model.encoders[number - 1].model).get_submodule(name)


def random_pairs(model: Any, unet: list[str] = UNET, text: list[str] = TEXT) -> Pairs:
    """(down, up) of each weight; of the U-Net (0) and of each text encoder."""
    generator = torch.Generator().manual_seed(8)
    places = [(0, name) for name in unet]
    places += [(n, name) for n, _ in enumerate(model.encoders, 1) for name in text]
    made = {}
    for place in places:
        out, into, *kernel = module_of(model, place).weight.shape
        down = torch.randn(RANK, into, *kernel, generator=generator)
        up = torch.randn(out, RANK, *[1] * len(kernel), generator=generator)
        made[place] = down / down[0].numel() ** 0.5, up / 2
    return made


@contextmanager
def added(model: Any, pairs: Pairs, scale: float) -> Iterator[None]:
    """Inside the block the modules' outputs have `scale` times up(down(x)) added to them."""
    handles = []
    for place, (down, up) in pairs.items():

        def add(module, inputs, output, down=down, up=up):
            if down.ndim == 2:
                return output + scale * F.linear(F.linear(inputs[0], down), up)
            low = F.conv2d(inputs[0], down, stride=module.stride, padding=module.padding)
            return output + scale * F.conv2d(low, up)

        handles.append(module_of(model, place).register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def named(pairs: Pairs, layout: str) -> dict[str, torch.Tensor]:
    """The tensors as a file of the layout has them; kohya's with an alpha."""
    state = {}
    for (number, name), (down, up) in pairs.items():
        own = name if number == 0 else f"text_model.{name}"
        if layout.startswith("kohya"):
            if number == 0 and layout == "kohya LDM":
                own = _unet_key(own)
            one = "lora_te_" if all(n < 2 for n, _ in pairs) else "lora_te1_"
            stem = ("lora_unet_", one, "lora_te2_")[number] + own.replace(".", "_")
            state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            state[f"{stem}.alpha"] = torch.tensor(ALPHA)
            continue
        if layout == "ComfyUI":
            own = _unet_key(own) if number == 0 else f"clip_{' lg'[number]}.transformer.{own}"
            stem = ("text_encoders." if number else "diffusion_model.") + own
            state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            continue
        stem = ("unet.", "text_encoder.", "text_encoder_2.")[number] + own
        ends = ("lora_linear_layer.down", "lora_linear_layer.up") if number else DIFFUSERS
        if layout == "peft":
            ends = "lora_A", "lora_B"
        elif layout == "diffusers, processors" and "attn" in stem:
            stem, ends = _of_processor(stem), ("down", "up")
        state |= {f"{stem}.{ends[0]}.weight": down, f"{stem}.{ends[1]}.weight": up}
    return {key: value.contiguous() for key, value in state.items()}


def _of_processor(stem: str) -> str:
    head, _, last = stem.rpartition(".")
    if ".self_attn" in stem:
        known = {"q_proj": "to_q_lora", "out_proj": "to_out_lora"}
        return f"{head}.{known[last]}"
    if last == "0":
        head, last = head.removesuffix(".to_out"), "to_out"
    return f"{head}.processor.{last}_lora"


def write_lora(file: Path, pairs: Pairs, layout: str = "kohya") -> Path:
    save_file(named(pairs, layout), file)
    return file


def write_peft(folder: Path, pairs: Pairs) -> Path:
    """A U-Net's, as peft itself saves it."""
    folder.mkdir()
    state = named(pairs, "peft").items()
    own = {key.replace("unet.", "base_model.model."): value for key, value in state}
    save_file(own, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "alpha_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
