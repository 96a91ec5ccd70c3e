"""Motion modules: an image model becomes one of clips, its own weights unchanged.

Single files of AnimateDiff's family are known by their tensors' names and shapes:

| type | blocks | mid block | positions | native frames |
|---|---|---|---|---|
| AnimateDiff v1 | 4 | no | 24 | 16 |
| AnimateDiff v2 | 4 | yes | 32 | 16 |
| AnimateDiff v3 | 4 | no | 32 | 16 |
| AnimateLCM | 4 | yes | not stated, 64 | 16 |
| AnimateDiff SDXL beta | 3 | no | 32 | 16 |
| HotShot-XL | 3 | no | 24 | 8 |

Positions are sinusoids, so the files' tensors of them are only counted. Files of ours state native
frames and positions, and modules that they lack change nothing. AnimateDiff v1 and HotShot were
trained with group norms over all frames of a clip; diffusers, and so we, normalise each frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib_hires.files import whole_file
from lib_hires.standalone.models.checkpoint import listed
from lib_hires.standalone.models.kinds import no_safetensors
from lib_hires.standalone.models.latent import LatentModel, ModelError, Motion, placed, reason

NATIVE_FRAMES = 16
NATIVE, POSITIONS = "native_frames", "positions"  # what ours state; diffusers has no such entries
OWN = (NATIVE, POSITIONS)
LCM_POSITIONS = 64
HEADS = 8  # of all known modules; not in a file
KINDS = {
    (4, False, 24): ("AnimateDiff v1", NATIVE_FRAMES),
    (4, True, 32): ("AnimateDiff v2", NATIVE_FRAMES),
    (4, False, 32): ("AnimateDiff v3", NATIVE_FRAMES),
    (4, True, None): ("AnimateLCM", NATIVE_FRAMES),
    (3, False, 32): ("AnimateDiff SDXL beta", NATIVE_FRAMES),
    (3, False, 24): ("HotShot-XL", 8),
}
"""(blocks, whether there is one in the middle, positions) to a name and native frames."""

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


def with_motion(model: LatentModel, path: Path) -> LatentModel:
    """The model with a motion module from a file or a diffusers folder.

    Raises ModelError where it is none, damaged, or made for another family of models.
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(f"{path}: no such motion module; give a .safetensors file or a folder")
    read = _from_folder(path) if path.is_dir() else _from_file(path)
    _check_fits(path, read.adapter, model)
    try:
        moving = with_adapter(model, read.adapter, path.stem, read.frames, ours=read.ours)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: not for {model.name}: {reason(error)}") from error
    if read.modules:
        skip_others(moving.unet, read.modules)
    return moving


def with_adapter(
    model: LatentModel, adapter: Any, name: str, frames: int, *, ours: bool
) -> LatentModel:
    """The model with a copy of diffusers' MotionAdapter, of so many native frames.

    ours: it is trained here, and not by others.

    Raises ValueError or RuntimeError where their shapes differ.
    """
    from diffusers import UNetMotionModel

    unet = UNetMotionModel.from_unet2d(model.unet, adapter)
    motion = Motion(name, frames, int(adapter.config.motion_max_seq_length), ours)
    return replace(model, unet=placed(unet, model.device, model.dtype), motion=motion)


class _Skipped(nn.Module):
    """In the place of a motion module that changes nothing: hands on what it gets."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


def skip_others(unet: Any, modules: Collection[str]) -> None:
    """Spend no time on motion modules but these, such as `up_blocks.0.motion_modules.1`.

    For modules that change nothing: the result is the same.
    """
    found = {name for name, module in unet.named_modules() if _is_motion(module)}
    for name in found.difference(modules):
        block, _, place = name.rpartition(".")
        unet.get_submodule(block)[int(place)] = _Skipped()


def _is_motion(module: nn.Module) -> bool:
    return type(module).__name__ == "AnimateDiffTransformer3D"


def silent(adapter: Any) -> Any:
    """The adapter with every module changing nothing, as AnimateDiff's begin; the same object."""
    for name, weight in adapter.named_parameters():
        if ".proj_out." in name and ".ff." not in name:
            weight.data.zero_()
    return adapter


def set_context(unet: Any, context: int | None, frames: int) -> None:
    """How many frames the temporal attention sees at once in the next calls with so many frames.

    None: all of them. Otherwise its blocks attend in overlapping windows, a quarter of the context
    apart, whose results are averaged with weights that fall to the windows' ends (FreeNoise,
    arXiv:2310.15169); convolutions and spatial attention see each frame once.
    """
    from diffusers.models.attention import BasicTransformerBlock, FreeNoiseTransformerBlock

    for module in unet.modules():
        blocks = getattr(module, "transformer_blocks", None)
        if not _is_motion(module) or blocks is None:
            continue
        for place, block in enumerate(blocks):
            kind = BasicTransformerBlock if context is None else FreeNoiseTransformerBlock
            if not isinstance(block, kind):
                blocks[place] = _rebuilt(block, kind)
            if context is not None:
                length = min(context, frames)
                blocks[place].set_free_noise_properties(length, max(1, length // 4))


def _rebuilt(block: Any, kind: Any) -> nn.Module:
    """The same block, of the other class, with the same weights."""
    names = (
        "dim", "num_attention_heads", "attention_head_dim", "dropout", "cross_attention_dim",
        "activation_fn", "attention_bias", "only_cross_attention", "double_self_attention",
        "positional_embeddings",
    )  # fmt: skip
    positions = block.num_positional_embeddings
    made = kind(
        **{name: getattr(block, name) for name in names}, num_positional_embeddings=positions
    )
    made.load_state_dict(block.state_dict())
    weight = next(block.parameters())
    return made.eval().requires_grad_(False).to(weight.device, weight.dtype)


# --- reading --------------------------------------------------------------------------------------


class _Read(NamedTuple):
    adapter: Any
    frames: int  # native
    ours: bool  # it states native frames itself, as no other does
    modules: frozenset[str] = frozenset()  # that are in a file of ours, which may lack some


def _from_folder(path: Path) -> _Read:
    from diffusers import MotionAdapter

    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8-sig"))
        kind = config.get("_class_name") if isinstance(config, dict) else None
        if kind != "MotionAdapter":
            raise ModelError(f"{path}: a {kind}; expected a MotionAdapter")
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
    return _Read(adapter, _native_frames(config, adapter), NATIVE in config)


def _native_frames(config: Mapping[str, Any], adapter: Any) -> int:
    """Ours state it; others are taken as AnimateDiff's, or HotShot's by their shape."""
    if isinstance(config.get(NATIVE), int):
        return int(config[NATIVE])
    blocks, mid = len(adapter.down_blocks), adapter.mid_block is not None
    _, frames = KINDS.get(
        (blocks, mid, int(adapter.config.motion_max_seq_length)), ("", NATIVE_FRAMES)
    )
    return min(frames, int(adapter.config.motion_max_seq_length))


def _from_file(path: Path) -> _Read:
    from diffusers import MotionAdapter

    try:
        state = _renamed(load_file(path))
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        stated = {name: int(metadata[name]) for name in OWN if name in metadata}
    except (OSError, ValueError, SafetensorError) as error:
        kind = no_safetensors(path) or f"the motion module {reason(error)}; copy it again"
        raise ModelError(f"{path}: {kind}") from error
    config = _configuration(path, state)
    positions = config["motion_max_seq_length"] or stated.get(POSITIONS)
    key = (len(config["block_out_channels"]), config["use_motion_mid_block"], positions)
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
    _, frames = KINDS.get(key, ("", NATIVE_FRAMES))
    native = stated.get(NATIVE) or min(frames, positions or LCM_POSITIONS)
    return _Read(adapter, native, NATIVE in stated, there if stated else frozenset())


def write_motion(path: Path, adapter: Any, frames: int, modules: Sequence[str]) -> None:
    """Write a file of ours: in float16, of the named modules; the others change nothing.

    modules: names as `up_blocks.0.motion_modules.1`. frames: native. diffusers' own names.
    """
    own = {
        name: value.half().contiguous() for name, value in adapter.state_dict().items()
        if _module_of(name) in modules and not name.endswith("pos_embed.pe")
    }  # fmt: skip
    stated = {NATIVE: str(frames), POSITIONS: str(adapter.config.motion_max_seq_length)}
    with whole_file(path) as partial:
        save_file(own, partial, metadata={"format": "pt", **stated})
        partial.chmod(0o644)


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


def _check_fits(path: Path, adapter: Any, model: LatentModel) -> None:
    """Raises ModelError where the model has no text, or blocks of other widths."""
    if model.family == "pixel":
        raise ModelError(f"{path}: {model.name} is a model of pixels; give an SD1, SD2 or SDXL one")
    own = tuple(model.unet.config.block_out_channels)
    wanted = tuple(adapter.config.block_out_channels)
    if model.family == "pixel" or own != wanted:
        raise ModelError(
            f"{path}: made for a U-Net with blocks {wanted}; {model.name} ({model.family.upper()}) "
            f"has {own}"
        )
