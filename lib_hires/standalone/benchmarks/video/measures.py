"""What a clip shows: objects frame by frame, their path, and how much changes beside its motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_hires.standalone.benchmarks.quality.real_features import CropFeatures, crops_at
from lib_hires.standalone.models.efficientnet import CROP
from lib_hires.standalone.world.judge import SIDE, Judge, reduce_area

BLOCK = 16  # pixels at 256, of what is moved as a whole
REACH = 0.04  # sides, how far a block may move between two frames of a native clip
CUT = 0.1  # sides; true objects move less than 0.04 between two frames of a native clip
SHORT = 4  # frames of a short clip
LOOKED_AT = 4  # frames whose crops the real network sees
CHANNELS = 1280  # of its features


@dataclass(frozen=True, eq=False)
class Seen:
    """What is measured of one clip of f frames."""

    one_object: np.ndarray  # (f,) bool
    right_class: np.ndarray  # (f,) bool
    right_colour: np.ndarray  # (f,) bool
    centre: np.ndarray  # (f, 2) of what is seen, in sides
    size: np.ndarray  # (f,) root of the area that objects cover, in sides
    features: np.ndarray  # (f, d) of the judge
    change: np.ndarray  # (f - 1,) mean absolute difference of neighbouring frames, of 2
    residual: np.ndarray  # (f - 1,) the same after each block has moved where it fits best
    crops: np.ndarray  # (n, d) of a real network, from some frames; (0, d) where nothing sees them

    def saved(self) -> dict[str, np.ndarray]:
        return dict(vars(self))


@torch.no_grad()
def seen(
    clip: Tensor, judge: Judge, kind: str, colour: str, network: CropFeatures | None = None
) -> Seen:
    """Measure a clip (3, f, H, W) in [-1, 1] of one object of a class and colour."""
    frames = clip.transpose(0, 1).contiguous()
    verdicts = [verdict for part in frames.split(8) for verdict in judge.look(part)]
    sights = [judge(reduce_area(part, SIDE)) for part in frames.split(8)]
    density = torch.cat([sight.density for sight in sights])
    covered = torch.cat([sight.kinds.softmax(1)[:, 1:].sum(1) for sight in sights])
    return Seen(
        np.array([verdict.objects == 1 for verdict in verdicts]),
        np.array([verdict.kind == kind for verdict in verdicts]),
        np.array([verdict.colour == colour for verdict in verdicts]),
        _centres(density).numpy(),
        covered.mean((1, 2)).sqrt().numpy(),
        torch.cat([judge.features(part) for part in frames.split(8)]).numpy(),
        (frames[1:] - frames[:-1]).abs().mean((1, 2, 3)).numpy(),
        np.array([residual(a, b) for a, b in zip(frames[:-1], frames[1:], strict=True)]),
        crop_features(frames, network).numpy(),
    )


def crop_features(frames: Tensor, network: CropFeatures | None) -> Tensor:
    """(n, d) features of crops at 1:1 pixels of some of the frames (f, 3, H, W)."""
    side = min(frames.shape[-2:])
    if network is None or side < CROP:
        return torch.zeros(0, CHANNELS)
    picks = np.linspace(0, len(frames) - 1, LOOKED_AT).round().astype(int)
    count = crops_at(side / CROP)
    return torch.cat([network(frames[pick, None], int(pick), count)[0] for pick in picks])


def _centres(density: Tensor) -> Tensor:
    """(f, 2) centres of maps (f, h, w), x and y in sides."""
    height, width = density.shape[-2:]
    total = density.sum((1, 2)).clamp(min=1e-6)
    x = (density.sum(1) * (torch.arange(width) + 0.5)).sum(1) / total / width
    y = (density.sum(2) * (torch.arange(height) + 0.5)).sum(1) / total / height
    return torch.stack([x, y], 1)


def residual(before: Tensor, after: Tensor) -> float:
    """Mean absolute difference of two frames (3, H, W) once each block of the later one is taken
    from where the earlier one fits it best.

    At a side of 256 pixels, so that sizes compare, in whole pixels.
    """
    before, after = (
        F.interpolate(frame[None], (256, 256), mode="area" if frame.shape[-1] > 256 else "bilinear")
        for frame in (before, after)
    )
    reach = round(REACH * 256)
    padded = F.pad(before, (reach,) * 4, mode="replicate")
    best: Tensor | None = None
    for dy in range(0, 2 * reach + 1, 2):
        for dx in range(0, 2 * reach + 1, 2):
            moved = padded[..., dy : dy + 256, dx : dx + 256]
            errors = F.avg_pool2d((moved - after).abs().mean(1, keepdim=True), BLOCK)
            best = errors if best is None else torch.minimum(best, errors)
    assert best is not None
    return float(best.mean())


def jitter(path: np.ndarray) -> float:
    """Mean length of a path's second differences, (f, ...): 0 for even motion."""
    bends = np.diff(path, n=2, axis=0).reshape(len(path) - 2, -1)
    return float(np.linalg.norm(bends, axis=1).mean())


def travel(path: np.ndarray) -> float:
    """How far a path (f, ...) leads: between the medians of its first and of its last quarter, so
    that a frame by chance does not count. 0 where the object stands or comes back."""
    quarter = max(1, len(path) // 4)
    ends = np.median(path[:quarter], axis=0), np.median(path[-quarter:], axis=0)
    return float(np.linalg.norm(ends[1] - ends[0]))


def cuts(path: np.ndarray, times: int = 1) -> float:
    """How often a path (f, 2) in sides moves farther in the time between two native frames than a
    true one can; times: frames to a native one, so that each cut lies in as many such moves."""
    moves = np.linalg.norm(path[times:] - path[:-times], axis=1)
    return float((moves > CUT).sum() / times)


def short_clips(features: np.ndarray) -> np.ndarray:
    """(n, 3 d) what short clips are like: their first frame's features, and how these change."""
    starts = range(0, len(features) - SHORT + 1, SHORT)
    parts = [features[start : start + SHORT] for start in starts]
    return np.stack(
        [
            np.concatenate([part[0], part[-1] - part[0], np.abs(np.diff(part, axis=0)).mean(0)])
            for part in parts
        ]
    )
