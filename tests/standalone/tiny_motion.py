"""Tiny random motion modules: diffusers folders, and the layouts of AnimateDiff and HotShot-XL."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def make_adapter(
    widths: tuple[int, ...] = (32, 64),
    layers: int = 1,
    mid: bool = False,
    positions: int = 32,
    seed: int = 5,
) -> Any:
    """Random also where AnimateDiff starts at zero, so that frames differ from images."""
    from diffusers import MotionAdapter

    torch.manual_seed(seed)
    adapter = MotionAdapter(
        block_out_channels=widths,
        motion_layers_per_block=layers,
        motion_num_attention_heads=8,
        motion_max_seq_length=positions,
        use_motion_mid_block=mid,
    )
    for name, weight in adapter.named_parameters():
        if "proj_out.weight" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return adapter


def write_adapter(folder: Path, native_frames: int | None = 4, **options: Any) -> Path:
    """A diffusers folder, as ours with the number of native frames where it is given."""
    make_adapter(**options).save_pretrained(folder)
    if native_frames:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"native_frames": native_frames}))
    return folder


_ANIMATEDIFF = (
    (r"(motion_modules\.\d+)\.", r"\1.temporal_transformer."),
    (r"\.attn1\.", ".attention_blocks.0."),
    (r"\.attn2\.", ".attention_blocks.1."),
    (r"\.norm1\.", ".norms.0."),
    (r"\.norm2\.", ".norms.1."),
    (r"\.norm3\.", ".ff_norm."),
)
_HOTSHOT = (
    (r"motion_modules\.(\d+)\.temporal_transformer\.", r"temporal_attentions.\1."),
    (r"pos_encoder\.pe$", "pos_encoder.positional_encoding"),
)


def original_layout(adapter: Any, *, hotshot: bool = False, stated: bool = True) -> dict[str, Any]:
    """The tensors as AnimateDiff names them; stated: with those of positions."""
    state = {}
    for key, value in adapter.state_dict().items():
        if key.endswith("pos_embed.pe"):
            if stated:
                for block in (0, 1):
                    own = f"attention_blocks.{block}.pos_encoder.pe"
                    state[_renamed(key.replace("pos_embed.pe", own), _ANIMATEDIFF)] = value
            continue
        state[_renamed(key, _ANIMATEDIFF)] = value
    if hotshot:
        state = {_renamed(key, _HOTSHOT): value for key, value in state.items()}
    return {key: value.clone().contiguous() for key, value in state.items()}


def write_original(file: Path, adapter: Any, **options: Any) -> Path:
    save_file(original_layout(adapter, **options), file)
    return file


def _renamed(key: str, names: Any) -> str:
    for old, new in names:
        key = re.sub(old, new, key)
    return key
