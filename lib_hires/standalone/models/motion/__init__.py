"""Motion modules: an image model becomes one of clips, its own weights unchanged."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lib_hires.standalone.models import schedule
from lib_hires.standalone.models.latent import (
    LatentModel,
    ModelError,
    Motion,
    placed,
    reason,
    with_finite_sigmas,
)
from lib_hires.standalone.models.motion.files import read_motion

PURE_NOISE = 1e-6  # alphas_cumprod below it; SD's end at 0.005


def with_motion(model: LatentModel, path: Path) -> LatentModel:
    """The model with a motion module from a file or a diffusers folder.

    Raises ModelError where it is none, damaged, or made for another family of models.
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(f"{path}: no such motion module; give a .safetensors file or a folder")
    read = read_motion(path)
    _check_fits(path, read.adapter, model)
    if read.kind.alphas_cumprod:
        trained = read.kind.alphas_cumprod()
        if model.alphas_cumprod[-1] < PURE_NOISE:  # as the image model is, by itself or by option
            trained = schedule.zero_snr(trained)
        model = replace(model, alphas_cumprod=with_finite_sigmas(trained))
    try:
        moving = with_adapter(model, read.adapter, name_of(path), read.kind.frames, ours=read.ours)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: not for {model.name}: {reason(error)}") from error
    if read.modules:
        skip_others(moving.unet, read.modules)
    return moving


def name_of(path: Path) -> str:
    """What a motion module of a file or a folder is called."""
    return path.resolve().name if path.is_dir() else path.stem


def with_adapter(
    model: LatentModel, adapter: Any, name: str, frames: int, *, ours: bool
) -> LatentModel:
    """The model with a copy of diffusers' MotionAdapter, of so many native frames.

    ours: it is trained here, and not by others. Raises ValueError or RuntimeError where their
    shapes differ.
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


def set_context(unet: Any, context: int | None, frames: int) -> None:
    """How many frames the temporal attention sees at once in the next calls with so many frames.

    None: all of them. Otherwise its blocks attend in overlapping windows, a quarter of the context
    apart, whose results are averaged with weights that fall to the windows' ends (FreeNoise,
    arXiv:2310.15169); convolutions and spatial attention see each frame once.
    """
    from diffusers.models.attention import BasicTransformerBlock

    from lib_hires.standalone.models.motion.windows import WindowedBlock

    for module in unet.modules():
        blocks = getattr(module, "transformer_blocks", None)
        if not _is_motion(module) or blocks is None:
            continue
        for place, block in enumerate(blocks):
            kind = BasicTransformerBlock if context is None else WindowedBlock
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


def _check_fits(path: Path, adapter: Any, model: LatentModel) -> None:
    """Raises ModelError where the model has no text, or blocks of other widths."""
    if model.family == "pixel":
        raise ModelError(f"{path}: {model.name} is a model of pixels; give an SD1, SD2 or SDXL one")
    own = tuple(model.unet.config.block_out_channels)
    wanted = tuple(adapter.config.block_out_channels)
    if own != wanted:
        raise ModelError(
            f"{path}: made for a U-Net with blocks {wanted}; {model.name} ({model.family.upper()}) "
            f"has {own}"
        )
