"""Files and folders of motion modules.

Single files of AnimateDiff's family are known by their tensors' names and shapes:

| type | blocks | mid block | positions | native frames | betas |
|---|---|---|---|---|---|
| AnimateDiff v1 | 4 | no | 24 | 16 | linear, to 0.012 |
| AnimateDiff v2 | 4 | yes | 32 | 16 | linear, to 0.012 |
| AnimateDiff v3 | 4 | no | 32 | 16 | linear, to 0.012 |
| AnimateLCM | 4 | yes | not stated, 64 | 16 | linear, to 0.012 |
| AnimateDiff SDXL beta | 3 | no | 32 | 16 | linear in their roots, to 0.020 |
| HotShot-XL | 3 | no | 24 | 8 | the image model's |

The betas are those that a type was trained with, from 0.00085 on: a clip's noise schedule, in the
place of the image model's. Positions are sinusoids, so the files' tensors of them are only counted.
Files of ours state native frames and positions, have the image model's betas, and modules that they
lack change nothing. Group norms are diffusers': of the U-Net over each frame, where AnimateDiff v1
and HotShot were trained with all frames together; of the modules over all frames together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_hires.files import whole_file
from lib_hires.standalone.models import schedule
from lib_hires.standalone.models.checkpoint import listed
from lib_hires.standalone.models.kinds import no_safetensors
from lib_hires.standalone.models.latent import ModelError, reason

NATIVE_FRAMES = 16
NATIVE, POSITIONS = "native_frames", "positions"  # what ours state; diffusers has no such entries
OWN = (NATIVE, POSITIONS)
LCM_POSITIONS = 64
SD1_BLOCKS = 4
HEADS = 8  # of all known modules; not in a file


class Kind(NamedTuple):
    """A type of modules; alphas_cumprod: as it was trained with, None for the image model's."""

    name: str
    frames: int  # native
    alphas_cumprod: Callable[[], Tensor] | None = None


_SDXL_BETA = partial(schedule.scaled_linear, end=0.02)
KINDS = {
    (4, False, 24): Kind("AnimateDiff v1", NATIVE_FRAMES, schedule.linear),
    (4, True, 32): Kind("AnimateDiff v2", NATIVE_FRAMES, schedule.linear),
    (4, False, 32): Kind("AnimateDiff v3", NATIVE_FRAMES, schedule.linear),
    (4, True, None): Kind("AnimateLCM", NATIVE_FRAMES, schedule.linear),
    (3, False, 32): Kind("AnimateDiff SDXL beta", NATIVE_FRAMES, _SDXL_BETA),
    (3, False, 24): Kind("HotShot-XL", 8),
}
"""By (blocks, whether there is one in the middle, positions)."""

_RENAMED = (  # AnimateDiff's and HotShot's names to those of diffusers
    (r"^(?:module\.|unet\.|model\.)+", ""),
    (r"\.temporal_attentions\.", ".motion_modules."),
    (r"\.temporal_transformer\.", "."),
    (r"\.pos_encoder\.positional_encoding$", ".pos_encoder.pe"),
    (r"\.attention_blocks\.0\.", ".attn1."),
    (r"\.attention_blocks\.1\.", ".attn2."),
    (r"\.norms\.0\.", ".norm1."),
    (r"\.norms\.1\.", ".norm2."),
    (r"\.ff_norm\.", ".norm3."),
)


class Read(NamedTuple):
    """An adapter, and what its file or folder says of it."""

    adapter: Any
    kind: Kind
    ours: bool  # it states native frames itself, as no other does
    modules: frozenset[str] = frozenset()  # that are in a file of ours, which may lack some


def read_motion(path: Path) -> Read:
    """A motion module from a file or a diffusers folder; raises ModelError."""
    return _from_folder(path) if path.is_dir() else _from_file(path)


def _from_folder(path: Path) -> Read:
    from diffusers import MotionAdapter

    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8-sig"))
        class_name = config.get("_class_name") if isinstance(config, dict) else None
        if class_name != "MotionAdapter":
            raise ModelError(f"{path}: a {class_name}; expected a MotionAdapter")
        own = {name: value for name, value in config.items() if name != NATIVE}
        adapter = MotionAdapter.from_config(own)
        weights = sorted(path.glob("*.safetensors"), key=lambda file: "fp16" in file.name)
        if not weights:
            raise ModelError(f"{path}: has no .safetensors weights; copy them there")
        _fill(path, adapter, {name: v.float() for name, v in load_file(weights[0]).items()})
    except ModelError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: the motion module {reason(error)}; copy it again") from error
    _refuse_pia(path, adapter)
    positions = int(adapter.config.motion_max_seq_length)
    kind = _kind(len(adapter.down_blocks), adapter.mid_block is not None, positions, config)
    return Read(adapter, kind, NATIVE in config)


def _kind(blocks: int, mid: bool, positions: int | None, stated: Mapping[str, Any]) -> Kind:
    """Ours state native frames; others are known by their shape, or taken as AnimateDiff's, those
    of other shapes than SD 1.5's with the image model's betas."""
    if isinstance(stated.get(NATIVE), int):
        return Kind("", stated[NATIVE])
    other = Kind("", NATIVE_FRAMES, schedule.linear if blocks == SD1_BLOCKS else None)
    kind = KINDS.get((blocks, mid, positions), other)
    return kind._replace(frames=min(kind.frames, positions or LCM_POSITIONS))


def _from_file(path: Path) -> Read:
    from diffusers import MotionAdapter

    try:
        state = _renamed(load_file(path))
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        stated = {name: int(metadata[name]) for name in OWN if name in metadata}
    except (OSError, ValueError, SafetensorError) as error:
        why = no_safetensors(path) or f"the motion module {reason(error)}; copy it again"
        raise ModelError(f"{path}: {why}") from error
    config = _configuration(path, state)
    positions = config["motion_max_seq_length"] or stated.get(POSITIONS)
    shape = len(config["block_out_channels"]), config["use_motion_mid_block"], positions
    adapter = MotionAdapter(**config | {"motion_max_seq_length": positions or LCM_POSITIONS})
    weights = {key: value for key, value in state.items() if not key.endswith("pos_encoder.pe")}
    there = frozenset(map(_module_of, state))
    kept = {
        name: value
        for name, value in silent(adapter).state_dict().items()
        if name.endswith("pos_embed.pe") or (stated and _module_of(name) not in there)
    }
    try:
        _fill(path, adapter, {**kept, **weights})
    except RuntimeError as error:
        raise ModelError(f"{path}: its tensors {reason(error)}; copy it again") from error
    modules = there if stated else frozenset()
    return Read(adapter, _kind(*shape, stated), NATIVE in stated, modules)


def silent(adapter: Any) -> Any:
    """The adapter with every module changing nothing, as AnimateDiff's begin; the same object."""
    for name, weight in adapter.named_parameters():
        if ".proj_out." in name and ".ff." not in name:
            weight.data.zero_()
    return adapter


def write_motion(path: Path, adapter: Any, frames: int, modules: Sequence[str]) -> None:
    """Write a file of ours: in float16, of the named modules; the others change nothing.

    modules: names as `up_blocks.0.motion_modules.1`. frames: native. diffusers' own names.
    """
    own = {
        name: value.half().contiguous() for name, value in adapter.state_dict().items()
        if _module_of(name) in modules and not name.endswith("pos_embed.pe")
    }  # fmt: skip
    stated = {NATIVE: str(frames), POSITIONS: str(adapter.config.motion_max_seq_length)}
    with whole_file(path) as unfinished:
        save_file(own, unfinished, metadata={"format": "pt", **stated})
        unfinished.chmod(0o644)


def _module_of(name: str) -> str:
    """`up_blocks.0.motion_modules.1` of a tensor's name."""
    return re.sub(r"(\.motion_modules\.\d+)\..*", r"\1", name)


def _fill(path: Path, adapter: Any, state: Mapping[str, Tensor]) -> None:
    """Raises ModelError for missing and for extra tensors, RuntimeError for other shapes."""
    result = adapter.load_state_dict(state, strict=False)
    if result.missing_keys:
        raise ModelError(f"{path}: lacks {listed(result.missing_keys)}; copy it again")
    if result.unexpected_keys:
        raise ModelError(f"{path}: there is no place for {listed(result.unexpected_keys)}")


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of motion modules under diffusers' names; others are left out."""
    named = ((diffusers_name(key), value) for key, value in state.items())
    return {key: value.float() for key, value in named if ".motion_modules." in key}


def diffusers_name(name: str) -> str:
    """A motion module's name of diffusers for AnimateDiff's and HotShot's."""
    for old, new in _RENAMED:
        name = re.sub(old, new, name)
    return name


def _configuration(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """MotionAdapter's arguments, from shapes; None for positions that are not stated."""
    norm = re.compile(r"^down_blocks\.(\d+)\.motion_modules\.(\d+)\.norm\.weight$")
    found = {
        tuple(map(int, match.groups())): state[match[0]]
        for match in map(norm.match, state)
        if match
    }
    if not found or "attn2" not in " ".join(state):
        raise ModelError(
            f"{path}: not a motion module; give AnimateDiff's, HotShot-XL's or AnimateLCM's"
        )
    blocks = sorted({block for block, _ in found})
    without = [block for block in blocks if (block, 0) not in found]
    if without:
        raise ModelError(f"{path}: lacks down_blocks.{without[0]}.motion_modules.0; copy it again")
    layers = tuple(sum(block == number for block, _ in found) for number in blocks)
    transformers = {
        int(match[1]) for match in (re.search(r"transformer_blocks\.(\d+)\.", key) for key in state)
        if match
    }  # fmt: skip
    positions = next((v.shape[1] for k, v in state.items() if k.endswith("pos_encoder.pe")), None)
    return {
        "block_out_channels": tuple(len(found[block, 0]) for block in blocks),
        "motion_layers_per_block": layers,
        "motion_transformer_layers_per_block": len(transformers),
        "motion_num_attention_heads": HEADS,
        "motion_max_seq_length": positions,
        "use_motion_mid_block": any(key.startswith("mid_block.") for key in state),
    }


def _refuse_pia(path: Path, adapter: Any) -> None:
    if adapter.config.conv_in_channels:
        raise ModelError(f"{path}: PIA, which animates an image, is not supported")
