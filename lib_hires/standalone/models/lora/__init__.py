"""LoRA: small products that change weights of a model, which itself stays as it is.

A weight W becomes W + weight · alpha / rank · up @ down once, before sampling, summed in float32
and rounded to the model's dtype; so every evaluation, Upsample Guidance's native one included, sees
the same. A package of its own, because the folder has its 15 modules.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib_hires.files import sha256_of
from lib_hires.standalone.models.checkpoint import Checkpoint
from lib_hires.standalone.models.latent import LatentModel, Lora, ModelError
from lib_hires.standalone.models.lora.layouts import (
    Product,
    Target,
    find_file,
    matched,
    networks,
    read_products,
    settings_file,
)

__all__ = ["find_file", "with_loras"]

DIGITS = 12  # of a file's sha256, by which it is known again

Weighted = tuple[float, Product]


def with_loras(model: LatentModel, files: Sequence[tuple[Path, float]]) -> LatentModel:
    """The model with LoRA files at these weights; the model itself where all weights are 0.

    All files are read and checked before anything is made. Unchanged weights are shared with
    `model`. Raises ModelError where one is damaged, of another kind or for another model, or where
    a weight is so large that the sum is infinite.
    """
    if files and model.family == "pixel":
        raise ModelError(f"{files[0][0]}: {model.name} is a model of pixels, which takes no LoRA")
    changes: dict[Target, list[Weighted]] = {}
    loras = []
    for path, weight in files:
        file = Checkpoint(find_file(Path(path)))
        for target, product in matched(file.path, read_products(file), model).items():
            if weight:
                changes.setdefault(target, []).append((weight, product))
        if weight:
            loras.append(Lora(Path(path).stem, weight, _hash(file)))
    if not changes:
        return model
    unet, *encoders = (
        _changed(network, {t.name: c for t, c in changes.items() if t.network == number})
        for number, network in enumerate(networks(model))
    )
    pairs = zip(model.encoders, encoders, strict=True)
    return replace(
        model,
        unet=unet,
        encoders=tuple(replace(encoder, model=made) for encoder, made in pairs),
        loras=(*model.loras, *loras),
    )


def _hash(file: Checkpoint) -> str:
    """Of all that it is read from."""
    return sha256_of(filter(None, [file.path, settings_file(file)]))[:DIGITS]


@torch.no_grad()
def _changed(network: Any, changes: Mapping[str, Sequence[Weighted]]) -> Any:
    """A copy that has weights of its own where they are changed; the network where none is."""
    if not changes:
        return network
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    made = copy.deepcopy(network, shared)
    for name, products in changes.items():
        module, _, kind = name.rpartition(".")
        own = network.get_parameter(name)
        total = own.float()
        for weight, product in products:
            total = total + weight * product.change(own)
        value = total.to(own.dtype)
        if own.isfinite().all() and not value.isfinite().all():
            raise ModelError(f"LoRA: {name} came out as what is not a number; lower the weights")
        setattr(made.get_submodule(module), kind, nn.Parameter(value, False))
    return made
