"""Trains the judge on drawn scenes of 0 to 16 objects, degraded as generated images are.

`hires train-demo --stages judge`; called again, it goes on from its checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib_hires.standalone.models.precision import fast_autocast
from lib_hires.standalone.training.judge.effects import degrade
from lib_hires.standalone.training.judge.images import Images, draw_images
from lib_hires.standalone.training.judge.targets import loss_of
from lib_hires.standalone.training.loop import (
    Loop,
    Pace,
    Panel,
    Progress,
    averaged,
    computed_in,
    descending,
    plot,
)
from lib_hires.standalone.world.judge import MANY, SIDE, Judge, inspect, save_judge
from lib_hires.standalone.world.scenes import CLASSES, COLOURS

log = logging.getLogger("hires_guidance")

SHAPES = ((SIDE, SIDE), (160, 96), (96, 160))  # width, height; one shape a batch
SHAPE_SHARES = (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class Config:
    """How the judge is trained. `scenes`: drawn images, each degraded anew whenever it is used;
    `clean`: the share of images left as drawn; `average`: the decay of the averaged weights."""

    steps: int = 3500
    batch: int = 64
    scenes: int = 16_000
    rate: float = 2e-3
    clean: float = 0.2
    average: float = 0.998
    seed: int = 1


def train(out: Path, config: Config | None = None) -> Path:
    """Train a judge and write `judge.safetensors`, `judge-training.json` and `judge-loss.png`.

    Args:
        out: a folder; its `judge-state.pt` holds the training so far and goes when it is done.

    Returns:
        The path of the weights.
    """
    config = config or Config()
    out.mkdir(parents=True, exist_ok=True)
    shapes = [
        draw_images(max(1, round(config.scenes * share)), *shape, config.seed)
        for shape, share in zip(SHAPES, SHAPE_SHARES, strict=True)
    ]
    checkpoint = out / "judge-state.pt"
    judge, progress = train_network(checkpoint, config, shapes)
    path = _finish(out, judge, config, progress)
    checkpoint.unlink(missing_ok=True)
    return path


def train_network(
    checkpoint: Path, config: Config, shapes: Sequence[Images]
) -> tuple[Judge, Progress]:
    """The averaged network after all steps, and the training's progress.

    shapes: images of each of SHAPES. Raises SettingsError for a checkpoint of other settings.
    """
    torch.manual_seed(config.seed)
    judge = Judge(CLASSES, tuple(COLOURS)).to(memory_format=torch.channels_last)
    average = averaged(judge, config.average, buffers=True)
    loop = Loop(
        "judge",
        checkpoint,
        pace=Pace(steps=config.steps, window=20),
        parts={"judge": judge},
        optimizer=torch.optim.AdamW(judge.parameters(), lr=config.rate, weight_decay=0.02),
        compute=descending(partial(_losses, judge, config, shapes)),
        rate_at=partial(_rate_at, config),
        averages={"judge": average},
        config=asdict(config),
        expects=f"expected a training with {config}, got another; move it",
    )
    progress = loop.run()
    return average.module.eval(), progress


def _losses(
    judge: Judge, config: Config, shapes: Sequence[Images], progress: Progress
) -> Mapping[str, Tensor]:
    """The parts of the loss on images of one of the shapes."""
    torch.manual_seed(1_000_003 * config.seed + progress.step)  # resumed, it is the same run
    drawn = shapes[int(torch.multinomial(torch.tensor(SHAPE_SHARES), 1))]
    images, objects = drawn.pick(torch.randint(len(drawn), (config.batch,)))
    if torch.rand(()) < 0.5:
        images, objects = images.flip(3), _mirrored(objects)
    images = degrade(images, config.clean).contiguous(memory_format=torch.channels_last)
    with fast_autocast():
        sight = judge(images)
    return loss_of(sight, objects)


def _rate_at(config: Config, progress: Progress) -> float:
    """Warm-up over 200 steps, then half a cosine."""
    done = progress.step / config.steps
    return min(1.0, progress.step / 200) * (1 + math.cos(math.pi * done)) / 2


def _mirrored(objects: Tensor) -> Tensor:
    mirrored = objects.clone()
    mirrored[..., 0] = 1 - mirrored[..., 0]
    return mirrored


def _finish(out: Path, judge: Judge, config: Config, progress: Progress) -> Path:
    path = out / "judge.safetensors"
    save_judge(judge, path, seed=config.seed)
    about = {
        "config": asdict(config),
        "dtype": computed_in(),
        "held_out": {name: evaluate(judge, name == "degraded") for name in ("clean", "degraded")},
        "curve_every_20": [losses for *_, losses in progress.losses],
    }
    (out / "judge-training.json").write_text(json.dumps(about, indent=1))
    lines = {name: progress.curve(name) for name in progress.losses[0][2]}
    plot(out / "judge-loss.png", [Panel("judge", lines, scale="symlog")], width=7.0)
    log.info("judge: %s", about["held_out"])
    return path


def evaluate(
    judge: Judge, degraded: bool, number: int = 2000, seed: int = 990_001
) -> dict[str, float]:
    """Accuracy on images that were not trained on.

    `count_N`: exact, of images with N objects (`count_4_or_more` likewise); `many_called_one`: of
    those with two or more, `one_called_other`: of those with one; `class`, `colour`: of those with
    one object.
    """
    drawn = draw_images(number, SIDE, SIDE, seed)
    torch.manual_seed(seed)
    images, objects = drawn.pick(torch.arange(number))
    if degraded:
        images = torch.cat([degrade(part) for part in images.split(50)])
    verdicts = inspect(images, judge, batch=50)
    true = (objects[..., 4] >= 0).sum(1).clamp(max=MANY).numpy()
    seen = np.array([v.objects for v in verdicts])
    one = [(v, row[0]) for v, row, n in zip(verdicts, objects, true, strict=True) if n == 1]
    kinds = [v.kind == CLASSES[int(row[4])] for v, row in one]
    colours = [v.colour == tuple(COLOURS)[int(row[5])] for v, row in one]
    shares = {f"count_{n}": (seen[true == n] == n).mean() for n in range(4)}
    shares |= {
        "count_4_or_more": (seen == true)[true >= 4].mean(),
        "many_called_one": (seen[true >= 2] == 1).mean(),
        "one_called_other": (seen[true == 1] != 1).mean(),
        "class": np.mean(kinds),
        "colour": np.mean(colours),
    }
    return {name: round(float(share), 4) for name, share in shares.items()}
