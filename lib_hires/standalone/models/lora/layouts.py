"""LoRA files: the products in them, and the weights of a model that each belongs to.

| layout | a product's tensors |
|---|---|
| kohya | `lora_unet_MODULE.lora_down.weight`, `.lora_up.weight`, `.alpha`; text encoders `lora_te_`, `lora_te1_`, `lora_te2_` |
| diffusers | `unet.MODULE.lora.down.weight`, `unet.BLOCK.processor.to_q_lora.down.weight`; `text_encoder.`, `text_encoder_2.` |
| peft | `unet.MODULE.lora_A.weight`, `base_model.model.MODULE.lora_A.weight` beside an adapter_config.json |
| ComfyUI | `diffusion_model.MODULE.lora_down.weight`, `.lora_up.weight`; text encoders `text_encoders.clip_l.transformer.`, `clip_h`, `clip_g` |
| AnimateDiff's motion LoRA | `down_blocks.0.motion_modules.0.temporal_transformer...` |

MODULE is diffusers' name or LDM's, in kohya's with underscores for its dots. As with checkpoints, a
file's names are found from the network's: diffusers' own conversion replaces parts of names, which
gives others in each of its versions, and wants peft, which would only multiply two matrices here.
"""  # noqa: E501

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lib_hires.standalone.models.checkpoint import Checkpoint, listed
from lib_hires.standalone.models.latent import LatentModel, ModelError
from lib_hires.standalone.models.motion.files import diffusers_name
from lib_hires.standalone.models.names import clip_name, unet_places

FILES = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
"""What diffusers and peft call the file in a folder."""
STATED = "lora_adapter_metadata"  # diffusers', in a file's metadata
PEFT = "base_model.model."
FAMILIES = {768: "SD1", 1024: "SD2", 2048: "SDXL"}
"""Channels of the text that a U-Net attends to."""

_PART = re.compile(
    r"(.+?)(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)(down|up|A|B)(?:\.default)?\.weight"
)
_SIDES = {"down": "down", "A": "down", "up": "up", "B": "up"}
_OTHERS = (
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("dora_scale", "DoRA"),
    ("magnitude", "DoRA"),
    ("lora_mid", "LoCon in CP form"),
)
_COMFY = "text_encoders.clip_{}.transformer."
_PREFIXES = (
    ("unet.", PEFT, "", "diffusion_model."),
    ("text_encoder.", _COMFY.format("l"), _COMFY.format("h")),
    ("text_encoder_2.", _COMFY.format("g")),
)
_KOHYA = ("lora_unet_",), ("lora_te_", "lora_te1_"), ("lora_te2_",)
"""What stands before the names of the U-Net's and of each text encoder's weights."""


@dataclass(frozen=True, eq=False)
class Product:
    """alpha / rank times up @ down, a change of one weight; of a convolution's, down has its
    kernel."""

    name: str  # in the file, as the layout calls it
    down: Tensor  # (r, ...)
    up: Tensor  # (out, r) or (out, r, 1, 1)
    alpha: float

    def change(self, like: Tensor) -> Tensor:
        """float32, in the shape and on the device of the weight that it changes."""
        up, down = (part.to(like.device).float().flatten(1) for part in (self.up, self.down))
        return (up @ down * (self.alpha / len(down))).reshape(like.shape)

    def fits(self, weight: Tensor) -> bool:
        """Whether it has the shape of the weight; axes of length one do not count."""
        made = [len(self.up), *self.down.shape[1:]]
        return _long(made) == _long(weight.shape) and self.up[0].numel() == len(self.down)


@dataclass(frozen=True)
class Target:
    """A weight of a model: of the U-Net (0) or of a text encoder, by its name there."""

    network: int
    name: str


def find_file(path: Path) -> Path:
    """The file of a LoRA, also in a folder. Raises ModelError where there is none."""
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise ModelError(f"{path}: no such LoRA; give a .safetensors file or a folder with {FILES[0]}")


def read_products(file: Checkpoint) -> list[Product]:
    """All products of a file. Raises ModelError for what is no LoRA, or one of another kind."""
    parts: dict[str, dict[str, str]] = {}
    left = []
    for key in file.shapes:
        if found := _PART.fullmatch(key):
            parts.setdefault(found[1], {})[_SIDES[found[2]]] = key
        elif not key.endswith(".alpha"):
            left.append(key)
    _check(file.path, parts, left)
    alphas = _Alphas(file)
    return [
        Product(name, _matrix(file, part["down"]), _matrix(file, part["up"]), alphas.of(name, part))
        for name, part in parts.items()
    ]


def matched(path: Path, products: Iterable[Product], model: LatentModel) -> dict[Target, Product]:
    """The products by the weights that they change.

    Raises ModelError where the file is for another family of models or another motion module.
    """
    products = list(products)
    _check_text(path, products, model)
    known = dict(_names(model))
    found: dict[Target, Product] = {}
    unknown = []
    for product in products:
        target = known.get(_plain(product.name))
        if target is None:
            unknown.append(product.name)
        elif found.setdefault(target, product) is not product:
            raise ModelError(f"{path}: has two products for {target.name}; convert it again")
    title = f"{model.name} ({model.family.upper()})"
    if unknown and model.motion is None and all("motion" in name for name in unknown):
        raise ModelError(f"{path}: a motion LoRA; name a motion module with --motion")
    if unknown:
        raise ModelError(f"{path}: not for {title}, which has no {listed(unknown)}")
    for target, product in found.items():
        weight = networks(model)[target.network].get_parameter(target.name)
        if not product.fits(weight):
            raise ModelError(
                f"{path}: not for {title}: {product.name} is for a weight of "
                f"{_shown([len(product.up), *product.down.shape[1:]])}, which has "
                f"{_shown(weight.shape)}"
            )
    return found


def networks(model: LatentModel) -> list[Any]:
    """Those that a LoRA changes: the U-Net and the text encoders."""
    return [model.unet, *(encoder.model for encoder in model.encoders)]


# --- files ----------------------------------------------------------------------------------------


def _check(path: Path, parts: dict[str, dict[str, str]], left: list[str]) -> None:
    for mark, kind in _OTHERS:
        if any(mark in key for key in left):
            raise ModelError(
                f"{path}: a {kind}; only LoRA, with two matrices a weight, is supported"
            )
    if not parts:
        raise ModelError(f"{path}: not a LoRA, but holds {listed(left) or 'nothing'}")
    if left:
        raise ModelError(f"{path}: {listed(left)} is no part of a LoRA")
    for name, part in parts.items():
        if len(part) != len({"down", "up"}):
            raise ModelError(f"{path}: {name} lacks one of its two matrices; copy it again")


def _matrix(file: Checkpoint, key: str) -> Tensor:
    """A part of a product. Raises ModelError where it is none, or damaged."""
    value = file.tensor(key)
    if not value.is_floating_point():
        raise ModelError(f"{file.path}: {key} is quantized to {value.dtype}, which is not read")
    if value.ndim < 2 or not value.numel():
        raise ModelError(
            f"{file.path}: {key} is no matrix, but {_shown(value.shape) or 'a number'}"
        )
    if not value.float().isfinite().all():  # types of 8 bits do not know it themselves
        raise ModelError(f"{file.path}: {key} holds what is not a number; download it again")
    return value


def settings_file(file: Checkpoint) -> Path | None:
    """peft's file of settings beside a LoRA of its layout; None for one of another layout.

    Raises ModelError where it is missing.
    """
    if not any(name.startswith(PEFT) for name in file.shapes):
        return None
    beside = file.path.with_name("adapter_config.json")
    if not beside.is_file():
        raise ModelError(f"{file.path}: put peft's {beside.name} beside it")
    return beside


class _Alphas:
    """What a file states of its products' alpha; one that states nothing means the rank."""

    def __init__(self, file: Checkpoint) -> None:
        self._file = file
        self._stated = _json(file.path, file.metadata.get(STATED, "{}"))
        if beside := settings_file(file):
            config = _json(beside, beside.read_bytes())
            self._stated |= {PEFT + key: value for key, value in config.items()}
        for key, value in self._stated.items():
            option = key.rpartition(".")[2]
            if value and option in ("alpha_pattern", "use_rslora", "use_dora"):
                raise ModelError(f"{file.path}: peft's {option} is not supported")

    def of(self, name: str, part: dict[str, str]) -> float:
        prefix = PEFT if name.startswith(PEFT) else f"{name.partition('.')[0]}."
        stated = self._stated.get(f"{prefix}lora_alpha")
        if f"{name}.alpha" in self._file.shapes:
            stated = self._file.tensor(f"{name}.alpha").tolist()
            stated = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
        if stated is None:
            return float(self._file.shapes[part["down"]][0])  # the rank
        try:
            alpha = float(stated)
            if isinstance(stated, bool) or not math.isfinite(alpha):
                raise ValueError
        except (OverflowError, TypeError, ValueError):
            some = f"{stated!s:.40}"
            raise ModelError(
                f"{self._file.path}: alpha of {name}: expected a number, got {some}"
            ) from None
        return alpha


def _json(path: Path, text: str | bytes) -> dict[str, Any]:
    """Bytes may be UTF-8, UTF-16 or UTF-32."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError(f"expected names and values, got {value!r:.40}")
    except (RecursionError, ValueError) as error:
        reason = f"{error!s:.120}"
        raise ModelError(f"{path}: what it states of its alpha is not JSON ({reason})") from None
    return value


# --- names ----------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    """A product's name without what only attention processors and AnimateDiff add to it."""
    if "motion_modules." in name or "temporal_attentions." in name:
        name = diffusers_name(name)
    name = re.sub(r"\.processor(?=\.)", "", name)
    if name.startswith("text_encoder"):
        name = re.sub(r"self_attn\.to_([qkv])$", r"self_attn.\1_proj", name)
        return re.sub(r"self_attn\.to_out$", "self_attn.out_proj", name)
    return re.sub(r"\.to_out$", ".to_out.0", name)


def _names(model: LatentModel) -> Iterator[tuple[str, Target]]:
    """Every name that a file may have for each of the model's weights."""
    config = model.unet.config
    layers = config.layers_per_block
    layers = layers if isinstance(layers, int) else layers[0]
    ldm = unet_places(layers, ["CrossAttn" in kind for kind in config.up_block_types])
    for number, network in enumerate(networks(model)):
        for weight, value in network.named_parameters():
            if value.ndim < 2 or not weight.endswith(".weight"):
                continue
            target = Target(number, weight)
            names = [weight if number == 0 else clip_name(weight)]
            if number == 0 and "motion_modules" not in weight:
                with suppress(ValueError):  # what LDM's U-Nets have not
                    names.append(next(ldm(weight)).name)
            for name in map(_module, names):
                yield from ((prefix + name, target) for prefix in _PREFIXES[number])
                yield from ((prefix + name.replace(".", "_"), target) for prefix in _KOHYA[number])


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def _check_text(path: Path, products: Iterable[Product], model: LatentModel) -> None:
    """Raises ModelError where a file's text has other channels than the model's."""
    own = model.unet.config.cross_attention_dim
    cross = re.compile(r"(?!.*motion_modules).*attn2[._](processor\.)?to_k")
    for product in products:
        width = product.down.shape[1]
        if cross.fullmatch(product.name) and width != own:
            made = FAMILIES.get(width, "a model")
            raise ModelError(
                f"{path}: made for {made} with text of {width} channels; {model.name} "
                f"({model.family.upper()}) has {own}"
            )


def _long(shape: Iterable[int]) -> list[int]:
    return [length for length in shape if length != 1]


def _shown(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
