"""The names under which the tensors of a network are found in files of all kinds.

diffusers' and transformers' names are the ones wanted; each function gives the places where such a
tensor may lie, the original (LDM or OpenCLIP) name first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its name, which third of its rows, and whether it lies transposed."""

    name: str
    third: int | None = None
    transposed: bool = False


Places = Callable[[str], Iterator[Place]]

TEXT_MODEL = "text_model."

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_places(layers: int, attentive: Sequence[bool]) -> Places:
    """layers: resnets of a block; attentive: which blocks on the way up have attention."""

    def places(key: str) -> Iterator[Place]:
        yield Place(_unet_name(key, layers, attentive))
        yield Place(key)

    return places


def _unet_name(key: str, layers: int, attentive: Sequence[bool]) -> str:
    module, dot, kind = key.rpartition(".")
    if module in _UNET_ENDS:
        return _UNET_ENDS[module] + dot + kind
    way, _, rest = key.partition(".")
    if way == "mid_block":
        part, index, inner = rest.split(".", 2)
        position = 2 * int(index) + (part == "attentions")
        return f"middle_block.{position}.{_inner(part, inner)}"
    block, part, index, inner = rest.split(".", 3)
    first, row = int(block) * (layers + 1), int(index)
    if way == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{inner.removeprefix('conv.')}"
        side = f"input_blocks.{first + row + 1}"
    else:
        if part == "upsamplers":
            return f"output_blocks.{first + layers}.{1 + attentive[int(block)]}.{inner}"
        side = f"output_blocks.{first + row}"
    return f"{side}.{int(part == 'attentions')}.{_inner(part, inner)}"


def _inner(part: str, inner: str) -> str:
    if part != "resnets":
        return inner
    name, _, kind = inner.partition(".")
    return f"{_RESNET[name]}.{kind}"


_ATTENTION = {
    "group_norm": ("norm", "group_norm"),
    "to_q": ("q", "to_q", "query"),
    "to_k": ("k", "to_k", "key"),
    "to_v": ("v", "to_v", "value"),
    "to_out.0": ("proj_out", "to_out.0", "to_out", "proj_attn"),
}
"""What the parts of a VAE's attention are called by LDM and by diffusers, newer and older."""


def vae_places(levels: int) -> Places:
    def places(key: str) -> Iterator[Place]:
        found = re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(\w+)", key)
        if found:
            side, part, kind = found.groups()
            roots = (f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
            for root, name in product(roots, _ATTENTION[part]):
                yield Place(f"{root}.{name}.{kind}")
            return
        yield Place(_vae_name(key, levels))
        yield Place(key)

    return places


def _vae_name(key: str, levels: int) -> str:
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", key)
    key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
    key = re.sub(r"resnets\.(\d+)", r"block.\1", key)
    key = re.sub(r"(up|down)samplers\.0\.conv", r"\1sample.conv", key)
    return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def clip_name(key: str) -> str:
    """A CLIP text model's weight as files call it: transformers 5 itself has `text_model.` only in
    the models with a projection."""
    known = key.startswith((TEXT_MODEL, "text_projection."))
    return key if known else TEXT_MODEL + key


def text_model_of(model: Any) -> Any:
    """What of a CLIP text model has the embeddings and the final norm, in any transformers."""
    return getattr(model, "text_model", model)


def clip_places(key: str) -> Iterator[Place]:
    """Of a CLIP text model in transformers' naming, where `text_model.` may be left out."""
    key = clip_name(key)
    yield Place(key)
    yield Place(key.removeprefix(TEXT_MODEL))
    if key == "text_projection.weight":
        yield Place("text_projection", transposed=True)


_OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def open_clip_places(key: str) -> Iterator[Place]:
    """Of OpenCLIP's (and the original CLIP's) naming, where q, k and v are rows of one tensor."""
    key = clip_name(key)
    if key == "text_projection.weight":
        yield Place("text_projection", transposed=True)
        yield Place("text_projection.weight")
        return
    if key in _OPEN_CLIP:
        yield Place(_OPEN_CLIP[key])
        return
    layer, name = key.removeprefix("text_model.encoder.layers.").split(".", 1)
    block = f"transformer.resblocks.{layer}"
    module, _, kind = name.rpartition(".")
    if module.endswith(("q_proj", "k_proj", "v_proj")):
        yield Place(f"{block}.attn.in_proj_{kind}", third="qkv".index(module[-6]))
        yield Place(f"{block}.attn.{module[-6:]}.{kind}")
    else:
        yield Place(f"{block}.{_OPEN_CLIP_LAYER[module]}.{kind}")
