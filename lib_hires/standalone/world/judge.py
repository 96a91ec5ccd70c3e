"""A small network that judges images of the bundled world: how many objects, what, which colour.

It counts with a density map: every object adds a small hill of volume one at its centre, so the
map's sum is the number of objects and the map itself shows where they were seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_hires.standalone import bundled

SIDE = 128  # images are looked at reduced to about SIDE x SIDE pixels
MANY = 8  # "this many objects or more"
_MULTIPLE = 16  # the network halves an image four times


@dataclass(frozen=True)
class Verdict:
    """What the judge sees. `objects`: 0 to 7, or 8 for "8 or more"; `kind` and `colour` of what
    covers most of the image; `confidence` in [0, 1] is that of the least certain of the three."""

    objects: int
    kind: str
    colour: str
    confidence: float


@dataclass(frozen=True)
class Sight:
    """The network's maps for a batch, on a grid of a quarter of the image's side."""

    density: Tensor  # (b, h, w), sums to the number of objects
    kinds: Tensor  # (b, 1 + classes, h, w) logits, the first for "nothing"
    colours: Tensor  # (b, colours, h, w) logits, meant where there is an object

    def shares(self) -> tuple[Tensor, Tensor]:
        """(b, classes) and (b, colours): each one's share of the area that objects cover."""
        kinds = self.kinds.softmax(1)[:, 1:]
        there = kinds.sum(1, keepdim=True)
        colours = self.colours.softmax(1)
        return _shares((kinds * there).sum((2, 3))), _shares((colours * there**2).sum((2, 3)))


class Judge(nn.Module):
    """A small U-shaped convolutional network with three maps as output.

    Args:
        classes, palette: the names that the outputs stand for.
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the image's side.
    """

    def __init__(
        self,
        classes: Sequence[str],
        palette: Sequence[str],
        widths: tuple[int, int, int, int] = (24, 48, 80, 88),
    ) -> None:
        super().__init__()
        self.classes, self.palette, self.widths = tuple(classes), tuple(palette), tuple(widths)
        half, quarter, eighth, sixteenth = widths
        self.stem = _layer(3, half, stride=2)
        self.quarter = nn.Sequential(_layer(half, quarter, stride=2), _Residual(quarter))
        self.eighth = nn.Sequential(_layer(quarter, eighth, stride=2), _Residual(eighth))
        self.sixteenth = nn.Sequential(_layer(eighth, sixteenth, stride=2), _Residual(sixteenth))
        self.from_eighth = nn.Conv2d(eighth, quarter, 1)
        self.from_sixteenth = nn.Conv2d(sixteenth, quarter, 1)
        self.merge = _layer(quarter, quarter)
        self.heads = nn.Conv2d(quarter, 2 + len(self.classes) + len(self.palette), 1)

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, 3, H, W) in [-1, 1] -> maps at half and at a quarter of the side."""
        fine = self.stem(x)
        quarter = self.quarter(fine)
        eighth = self.eighth(quarter)
        coarse = _upsampled(self.from_sixteenth(self.sixteenth(eighth)), eighth)
        coarse = _upsampled(coarse + self.from_eighth(eighth), quarter)
        return fine, self.merge(quarter + coarse)

    def forward(self, x: Tensor) -> Sight:
        """Images (b, 3, H, W) in [-1, 1], H and W multiples of 16 -> the three maps."""
        maps = self.heads(self.trunk(x)[1]).float()
        density, kinds, colours = maps.split([1, 1 + len(self.classes), len(self.palette)], dim=1)
        return Sight(F.softplus(density[:, 0] - 4), kinds, colours)

    @torch.no_grad()
    def look(self, images: Tensor) -> list[Verdict]:
        """What is seen in each image of (b, 3, H, W) in [-1, 1], any size and shape."""
        sight = self(reduce_area(images, SIDE))
        counts = sight.density.sum((1, 2))  # (b,)
        objects = counts.round()
        kind, colour = sight.shares()
        sure = (1 - 2 * (counts - objects).abs()) * (objects < MANY) + 1.0 * (objects >= MANY)
        sure = torch.stack([sure, kind.amax(1), colour.amax(1)]).amin(0).clamp(0, 1)
        return [
            Verdict(min(int(n), MANY), self.classes[int(k)], self.palette[int(c)], float(s))
            for n, k, c, s in zip(objects, kind.argmax(1), colour.argmax(1), sure, strict=True)
        ]

    @torch.no_grad()
    def features(self, images: Tensor, side: int | None = SIDE) -> Tensor:
        """Features (b, d) for a Frechet distance, of fine detail and of content.

        The logarithm of the contrast that each filter of the first layer finds shows blur, grain
        and grids; the means of the last maps show the content. d = 72.

        Args:
            images: (b, 3, H, W) in [-1, 1].
            side: reduce the images to about side x side first; None looks at every pixel, which
                crops need: reduced, a blurred crop looks like a sharp one.
        """
        pixels = images.shape[-2] * images.shape[-1]
        fine, merged = self.trunk(reduce_area(images, side or math.sqrt(pixels)))
        return torch.cat([(fine.std((2, 3)) + 0.02).log(), merged.mean((2, 3))], dim=1)


def save_judge(judge: Judge, path: Path, **notes: object) -> None:
    """Write the weights in half precision with what is needed to rebuild the network."""
    about = {"classes": judge.classes, "palette": judge.palette, "widths": judge.widths, **notes}
    weights = {k: v.detach().half().contiguous() for k, v in judge.state_dict().items()}
    save_file(weights, path, {key: json.dumps(value) for key, value in about.items()})


def load_judge(path: Path = bundled.JUDGE) -> Judge:
    """The trained judge, in float32 and ready to look.

    Raises:
        ValueError: a file that is missing or is not a judge's.
    """
    try:
        with safe_open(path, "pt") as file:
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        judge = Judge(about["classes"], about["palette"], tuple(about["widths"]))
        judge.load_state_dict(weights)
    except Exception as error:
        raise ValueError(f"judge: expected the judge's weights in {path}, got {error}") from error
    return judge.eval().requires_grad_(False)


def inspect(images: Tensor | Sequence[Image.Image], judge: Judge, batch: int = 16) -> list[Verdict]:
    """Verdicts on many images, a few at a time."""
    if not isinstance(images, Tensor):
        images = torch.cat([to_tensor(image) for image in images])
    return [verdict for part in images.split(batch) for verdict in judge.look(part)]


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image as (1, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


def reduce_area(images: Tensor, side: float) -> Tensor:
    """Resize by area to about side x side pixels in all, keeping the shape, in multiples of 16."""
    height, width = images.shape[-2:]
    scale = side / math.sqrt(height * width) / _MULTIPLE
    size = [max(1, round(length * scale)) * _MULTIPLE for length in (height, width)]
    if size == [height, width]:
        return images
    if size[0] <= height and size[1] <= width:
        return F.interpolate(images, size, mode="area")
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_layer(width, width), _layer(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _layer(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outside),
        nn.SiLU(),
    )


def _upsampled(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear")


def _shares(votes: Tensor) -> Tensor:  # (b, n), rows sum to one
    return votes / votes.sum(1, keepdim=True).clamp_min(1e-6)
