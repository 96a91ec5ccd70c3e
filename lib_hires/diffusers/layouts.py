"""Where the latent is in a model's arguments and output, and how they fit another size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib_hires.diffusers.levels import Unsupported
from lib_hires.resample import area_means, shrunk
from lib_hires.sizes import Size

log = logging.getLogger("hires_guidance")

EXTRA = "_extra_channels"  # of inpainting and editing, beside the latent
RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
BOUND = ("image_rotary_emb", "img_shapes")  # arguments that are made for one size


@dataclass(frozen=True)
class Planes:
    """A latent (b, c, h, w), or (b, c, frames, h, w), whose frames count as channels here."""

    name: str  # of the argument
    channels: int
    frames: int = 0
    variances: bool = False  # of the model's own, behind its prediction

    @property
    def takes_windows(self) -> bool:
        return not self.frames and not self.variances

    def split(self, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The latent (b, c, h, w), and the other arguments."""
        cond = dict(arguments)
        x = cond.pop(self.name)
        if self.frames:
            return x.flatten(1, 2), cond
        if x.shape[1] > self.channels:
            cond[EXTRA] = x[:, self.channels :]
        return x[:, : self.channels], cond

    def joined(self, x: Tensor, cond: Mapping[str, Any]) -> dict[str, Any]:
        """The model's arguments for a latent (b, c, h, w)."""
        arguments = dict(cond)
        extra = arguments.pop(EXTRA, None)
        if self.frames:
            x = x.unflatten(1, (-1, self.frames))
        elif extra is not None:
            x = torch.cat([x, extra.to(x.dtype)], dim=1)
        return {self.name: x, **arguments}

    def prediction(self, output: Tensor, size: Size) -> Tensor:
        """The prediction (b, c, *size) in an output, which may have variances behind it."""
        return output.flatten(1, 2) if self.frames else output[:, : self.channels]

    def output(self, prediction: Tensor, whole: Tensor) -> Tensor:
        """The model's `whole` output with another prediction."""
        if self.frames:
            return prediction.unflatten(1, (-1, self.frames))
        return torch.cat([prediction, whole[:, self.channels :]], dim=1)


@dataclass(frozen=True)
class Packed:
    """Flux: tokens (b, h·w, 4c) of 2x2 latent positions each, with their places in `img_ids`."""

    grid: Size  # of the tokens

    @property
    def takes_windows(self) -> bool:
        return True

    def split(self, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        cond = dict(arguments)
        return unpacked(cond.pop("hidden_states"), self.grid), cond

    def joined(self, x: Tensor, cond: Mapping[str, Any]) -> dict[str, Any]:
        grid = x.shape[-2] // 2, x.shape[-1] // 2
        ids = cond["img_ids"]
        if grid != self.grid:
            rows, columns = (torch.arange(side, device=ids.device) for side in grid)
            places = torch.cartesian_prod(rows, columns).to(ids.dtype)
            ids = torch.cat([ids[:1, :1].expand(len(places), 1), places], dim=1)
        return {**cond, "hidden_states": packed(x), "img_ids": ids}

    def prediction(self, output: Tensor, size: Size) -> Tensor:
        return unpacked(output, (size[0] // 2, size[1] // 2))

    def output(self, prediction: Tensor, whole: Tensor) -> Tensor:
        return packed(prediction)


Layout = Planes | Packed


def layout_of(module: Any, arguments: Mapping[str, Any]) -> Layout:
    """Raises Unsupported for arguments of another form."""
    name = "sample" if "sample" in arguments else "hidden_states"
    x = arguments.get(name)
    bound = [key for key in BOUND if arguments.get(key) is not None]
    if not isinstance(x, Tensor) or bound:
        raise Unsupported(f"{type(module).__name__} takes {', '.join(bound) or 'no latent'}")
    config = module.config
    own = int(config.in_channels)
    channels = min(own, int(config.get("out_channels") or own))
    if x.ndim == 4:
        return Planes(name, channels, variances=int(config.get("out_channels") or own) > channels)
    if x.ndim == 5 and channels in x.shape[1:3] and own == channels:
        return Planes(name, channels, frames=x.shape[2])
    ids = arguments.get("img_ids")
    if x.ndim == 3 and isinstance(ids, Tensor) and ids.ndim == 2:
        grid = int(ids[:, 1].max()) + 1, int(ids[:, 2].max()) + 1
        if grid[0] * grid[1] == x.shape[1] == len(ids):
            return Packed(grid)
    raise Unsupported(f"{type(module).__name__}'s latents {tuple(x.shape)} are not known")


def unpacked(tokens: Tensor, grid: Size) -> Tensor:
    """(b, h·w, 4c) to (b, c, 2h, 2w)."""
    b, _, values = tokens.shape
    blocks = tokens.reshape(b, *grid, values // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(b, values // 4, 2 * grid[0], 2 * grid[1])


def packed(x: Tensor) -> Tensor:
    """(b, c, 2h, 2w) to (b, h·w, 4c)."""
    b, c, height, width = x.shape
    blocks = x.reshape(b, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(b, height // 2 * (width // 2), 4 * c)


class Fitted:
    """Fits a call's other arguments to a smaller latent; made for one size of the large one."""

    def __init__(self, large: Size, factor: int, controlnet: bool) -> None:
        """large: in latent positions. factor: pixels to a latent position."""
        self._large, self._factor = large, factor
        self._controlnet = controlnet

    def __call__(self, cond: Mapping[str, Any], small: Size) -> dict[str, Any]:
        fitted = dict(cond)
        extra = fitted.get(EXTRA)
        if extra is not None and extra.shape[-2:] != small:
            fitted[EXTRA] = shrunk(extra, small)
        added = fitted.get("added_cond_kwargs")
        if added and added.get("time_ids") is not None:
            fitted["added_cond_kwargs"] = {
                **added,
                "time_ids": self._sizes(added["time_ids"], small),
            }
        self._fit_residuals(fitted, small)
        return fitted

    def _sizes(self, ids: Tensor, small: Size) -> Tensor:
        """SDXL's sizes and crop in pixels, (b, 5 or 6), where they are those of the large image."""
        pixels = [side * self._factor for side in self._large]
        pairs = ids.shape[-1] // 2
        known = ids[..., 4:6] if pairs == 3 else ids[..., 0:2]
        if known.flatten(0, -2)[0].tolist() != pixels:
            return ids
        ratios = [part / whole for part, whole in zip(small, self._large, strict=True)]
        scale = ids.new_tensor(ratios * pairs, dtype=torch.float32)
        sizes = (ids[..., : 2 * pairs].float() * scale).round().to(ids.dtype)
        return torch.cat([sizes, ids[..., 2 * pairs :]], dim=-1)

    def _fit_residuals(self, fitted: dict[str, Any], small: Size) -> None:
        """ControlNet's and adapters' residuals, as the means over areas, or none of them."""
        given = [name for name in RESIDUALS if fitted.get(name) is not None]
        if not given:
            return
        try:
            if not self._controlnet:
                raise Unsupported("ug_controlnet is off")
            residuals = {name: self._shrunk(fitted[name], small) for name in given}
        except Unsupported as reason:
            log.info("the native evaluation is made without ControlNet: %s", reason)
            residuals = dict.fromkeys(given)
        fitted.update(residuals)

    def _shrunk(self, value: Any, small: Size) -> Any:
        if not isinstance(value, Tensor):
            return type(value)(self._shrunk(part, small) for part in value)
        large, own = self._large, small
        while large != tuple(value.shape[-2:]):
            if large == (1, 1):
                raise Unsupported(f"residuals {tuple(value.shape)} have a size of their own")
            large = (large[0] + 1) // 2, (large[1] + 1) // 2
            own = (own[0] + 1) // 2, (own[1] + 1) // 2
        return area_means(value, own).to(value.dtype)
