"""What Forge's and reForge's models receive beside the latent, made to fit a smaller image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lib_hires.sizes import Size
from lib_hires.webui.hosts.conditioning import NUMBERS, SizeEmbeddings, shrunk
from lib_hires.webui.hosts.protocol import FACTOR

POOLED, NUMBER_CHANNELS = 1280, 256
"""Of SDXL's vector: the pooled text's length, and that of each embedded number behind it."""

BRANCHES = ("cond", "uncond")


def shrunk_conds(
    conds: Mapping[str, Any], small: Size, *, large: Size, controlled: bool, sizes: SizeEmbeddings
) -> Mapping[str, Any]:
    """Both lists of conds for latents of size `small` in place of `large`, (height, width).

    controlled: with ControlNet, whose hints the host resizes itself.
    """
    changes = _changes(small, large, sizes)

    def fitting(cond: dict[str, Any]) -> dict[str, Any]:
        parts = dict(cond["model_conds"])
        parts |= {name: _with(parts[name], changes[name]) for name in changes if name in parts}
        kept = cond if controlled else {**cond, "control": None}
        return {**kept, "model_conds": parts}

    both = {name: conds[name] and [fitting(cond) for cond in conds[name]] for name in BRANCHES}
    return {**conds, **both}


def call_fitting(
    cond: Mapping[str, Any],
    x: Tensor,
    t: Tensor,
    large: Size,
    *,
    sd_model: Any,
    sizes: SizeEmbeddings,
) -> Mapping[str, Any]:
    """The keyword arguments of a call of the model about x (n, c, h, w) at t, not about `large`.

    ControlNet's units are evaluated again; what is in the call is of the large image, and the
    model takes it out of the lists that it gets.
    """
    changes = _changes((x.shape[-2], x.shape[-1]), large, sizes)
    fitting = {**cond, **{name: changes[name](cond[name]) for name in changes if name in cond}}
    if cond.get("control") is not None:
        units = sd_model.forge_objects.unet.controlnet_linked_list
        options = cond["transformer_options"]
        knows_options = hasattr(units, "transformer_options")  # reForge's have them already
        given = () if knows_options else (options,)
        fitting["control"] = units.get_control(
            x, t, fitting, len(options["cond_or_uncond"]), *given
        )
    return fitting


PER_PART = "cond_or_uncond", "uuids"
ROW_NUMBERS = "cond_indices", "uncond_indices"
MARKS = "cond_mark"
"""Of a call's options those with an entry for each of its parts, those with numbers of rows, and
the tensor with a mark for each row."""


def options_in_windows(options: Mapping[str, Any], rows: int, made_of: int) -> dict[str, Any]:
    """A call's options of `rows` rows, made for `made_of` rows: the same rows of each of some
    windows, one after another. Extensions know cond's rows from uncond's by them."""
    windows, made = made_of // rows, dict(options)
    made |= {name: options[name] * windows for name in PER_PART if name in options}
    made |= {
        name: [window * rows + row for window in range(windows) for row in options[name]]
        for name in ROW_NUMBERS
        if name in options
    }
    if MARKS in options:
        made[MARKS] = options[MARKS].repeat(windows)
    return made


def _changes(
    small: Size, large: Size, sizes: SizeEmbeddings
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Of the tensors beside the latent those that have or contain a size, and how they change."""
    pixels = small[0] * FACTOR, small[1] * FACTOR
    return {
        "c_concat": lambda part: shrunk(part, large, small),
        "y": lambda vector: sizes.with_size(vector, pixels),
    }


def _with(cond: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """One of the host's conds of the same kind around the changed tensor."""
    return type(cond)(change(cond.cond))


def size_embeddings(sd_model: Any) -> SizeEmbeddings:
    """reForge's SDXL has the original's conditioner, Forge's a function that embeds."""
    if hasattr(sd_model, "embedder"):
        return SizeEmbeddings(partial(_embedders, sd_model.embedder))
    return SizeEmbeddings.of(sd_model)


def _embedders(embed: Any, length: int) -> list[_Embedder]:
    """What Forge's SDXL puts behind the pooled text, as the original's conditioner names it."""
    keys = ["original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple"]
    if length == POOLED + 5 * NUMBER_CHANNELS:  # the refiner
        keys[2] = "aesthetic_score"
    return [_Embedder(key, embed) for key in keys]


@dataclass(frozen=True)
class _Embedder:
    input_key: str
    embed: Any
    outdim: int = NUMBER_CHANNELS

    def __call__(self, numbers: Tensor) -> Tensor:
        """(1, n) to (1, n * outdim)."""
        assert numbers.shape[1] == NUMBERS[self.input_key]
        embedded: Tensor = self.embed(numbers.flatten())
        return embedded.flatten()[None]
