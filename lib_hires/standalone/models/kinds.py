"""What a file is that holds no whole model: by its first bytes, or by its tensors' names."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

PICKLED = "pickled checkpoints can run code when read and are refused; convert it to .safetensors"
UNSAFE = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}

_AGAIN = "download it again, signed in where its site wants that"
_STARTS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file; fetch it with git lfs pull"),
    (b"GGUF", "a GGUF file is not supported; give the model as .safetensors"),
    (b"PK\x03\x04", PICKLED),
    (b"\x80", PICKLED),
    (b"<", f"a web page, not a model; {_AGAIN}"),
    (b"{", f"JSON text, not a model; {_AGAIN}"),
)

_NAMES = (
    (r"(^|[._])(lora|lycoris|dora|hada|lokr|oft)_", "a LoRA, which changes a model"),
    (r"^control_model\.|^controlnet_|input_hint_block|controlnet_", "a ControlNet"),
    (r"(^|\.)double_blocks\.", "a Flux model"),
    (r"(^|\.)joint_blocks\.", "a Stable Diffusion 3 model"),
    (r"(^|\.)transformer_blocks\.\d+\.(attn|ff_context|norm1_context)\.", "a transformer model"),
    (r"^(emb_params|clip_[lg]|string_to_param\.?.*)$", "an embedding of textual inversion"),
    (
        r"(^|[._])ema[._].*(input_blocks|diffusion_model)",
        "averages of weights (EMA), but no weights",
    ),
    (r"(^|\.)decoder\.conv_in\.weight$", "a VAE, but no U-Net"),
    (
        r"(^|\.)(token_embedding|embeddings\.token_embedding)\.weight$",
        "a text encoder, but no U-Net",
    ),
)


def no_safetensors(path: Path) -> str | None:
    """What a file is that is not safetensors, and what to do; None where that is not known."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not start:
        return "the file is empty; download or copy it again"
    for beginning, kind in _STARTS:
        if start.lstrip().startswith(beginning):
            return kind
    return PICKLED if path.suffix.lower() in UNSAFE else None


def without_unet(names: Collection[str]) -> str | None:
    """What a safetensors file without a U-Net of Stable Diffusion holds; None if not known."""
    for pattern, kind in _NAMES:
        if any(re.search(pattern, name) for name in names):
            return kind
    return None


def part_of_folder(file: Path) -> str | None:
    """What a file is that lies in a diffusers folder as a part of it."""
    for folder in file.absolute().parents[:2]:
        if (folder / "model_index.json").is_file():
            return f"a part of a diffusers folder; give the folder, {folder}"
    return None
