"""What the judge's maps should be for given objects, and the losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_hires.standalone.training.judge.effects import centres
from lib_hires.standalone.world.judge import Sight

NOTHING, UNSURE = 0, -1  # labels of a position with no object, and of an object's rim


def targets(objects: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    """Objects (b, MOST, 6) -> density (b, h, w), class and colour labels (b, h, w).

    The density is a Gaussian of volume one at each centre, wider for larger objects. A class label
    is 0 for nothing, 1 + the class inside an object, -1 (ignored) at its rim.
    """
    objects = objects[:, : int((objects[..., 4] >= 0).sum(1).max())]
    density = torch.zeros(len(objects), h, w)
    kinds = torch.full((len(objects), h, w), NOTHING)
    colours = torch.full((len(objects), h, w), UNSURE)
    for row in objects[..., None, None].unbind(1):
        x, y, half_width, half_height, kind, colour = row.unbind(1)  # each (b, 1, 1)
        there = kind >= 0
        dx, dy = centres(w)[None, None, :] - x, centres(h)[None, :, None] - y
        spread = 0.2 * (half_width * w + half_height * h) / 2 + 0.6  # cells
        hill = torch.exp(-((dx * w) ** 2 + (dy * h) ** 2) / (2 * spread**2)) * there
        density += hill / hill.sum((1, 2), keepdim=True).clamp_min(1e-6)
        radius = torch.hypot(dx / half_width, dy / half_height)
        inside, rim = there & (radius < 0.75), there & (radius >= 0.75) & (radius < 1.2)
        kinds = torch.where(inside, kind.long() + 1, torch.where(rim, UNSURE, kinds))
        colours = torch.where(inside, colour.long(), torch.where(rim, UNSURE, colours))
    return density, kinds, colours


def loss_of(sight: Sight, objects: Tensor) -> dict[str, Tensor]:
    """The parts of the training loss, each a mean over the batch."""
    density, kinds, colours = targets(objects, *sight.density.shape[1:])
    number = (objects[..., 4] >= 0).sum(1).float()
    seen = sight.density.sum((1, 2))
    poisson = sight.density - density * sight.density.clamp_min(1e-8).log()
    return {
        "place": poisson.sum((1, 2)).sub(number).div(1 + number).mean(),
        "count": F.smooth_l1_loss(seen, number, beta=0.25, reduction="none")
        .div(1 + 0.15 * number)
        .mean(),
        "class": F.cross_entropy(sight.kinds, kinds, ignore_index=UNSURE),
        "colour": F.cross_entropy(sight.colours, colours, ignore_index=UNSURE),
        "named": _naming_loss(sight, objects),
    }


def _naming_loss(sight: Sight, objects: Tensor) -> Tensor:
    """How surprising the true names are to the verdicts on images with exactly one object."""
    alone = (objects[..., 4] >= 0).sum(1) == 1
    truth = objects[alone, 0, 4:].long().unbind(1)
    return sum(
        F.nll_loss((shares[alone] + 1e-4).log(), names, reduction="sum") / len(objects)
        for shares, names in zip(sight.shares(), truth, strict=True)
    )
