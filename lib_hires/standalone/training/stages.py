"""The stages of `hires train-demo` that last a number of minutes: their settings and their loop.

Learning rates follow the share of a stage's minutes that have passed, so a run fits the time that
there is; a resumed run may be given more or fewer minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lib_hires.standalone.training.loop import Every, Loop, Pace, Progress, adamw, descending


@dataclass(frozen=True)
class StageConfig:
    """What every stage of `hires train-demo` that lasts some minutes needs to know."""

    seed: int = 1
    ema: float = 0.999
    warmup_steps: int = 100
    decay_share: float = 0.5  # the last part of a stage, in which the rate falls to zero
    save_minutes: float = 3.0
    sample_minutes: float = 10.0


@dataclass(frozen=True)
class TrainingConfig(StageConfig):
    """Everything that decides how the model comes out, beside the time given."""

    shards: int = 60  # of crops, 240 each, on which the VAE is trained
    scenes: int = 20_000
    model_minutes: float = 75.0
    model_batch: int = 16
    model_rate: float = 1e-3
    caption_dropout: float = 0.1


def rate_at(config: StageConfig, progress: Progress, minutes: float, peak: float = 1.0) -> float:
    """Warm-up over steps, constant, then linear to zero over the last `decay_share` of the time."""
    left = 1 - progress.seconds / (60 * minutes)
    warm = min(1.0, (progress.step + 1) / config.warmup_steps)
    return peak * warm * min(1.0, max(left, 0.0) / config.decay_share)


def run_stage(
    name: str,
    path: Path,
    config: StageConfig,
    minutes: float,
    *,
    rates: Mapping[str, float],
    parts: Mapping[str, nn.Module],
    averages: Mapping[str, AveragedModel],
    rng: np.random.Generator,
    loss_of: Callable[[Progress], Tensor | Mapping[str, Tensor]],
    look: Callable[[int], None],
    optimizer: Any = None,
) -> Progress:
    """Train `parts` on `loss_of(progress)` until `minutes` have been trained, going on from `path`.

    `rates` holds the highest learning rate of each of the parts, for AdamW where no `optimizer` is
    given; `averages` those of `averaged` under the same names. `look(step)` is called every
    `sample_minutes` and at the end.
    """
    pace = Pace(
        minutes,
        save=Every(seconds=60 * config.save_minutes),
        look=Every(seconds=60 * config.sample_minutes),
    )
    return Loop(
        name,
        path,
        pace=pace,
        parts=parts,
        optimizer=optimizer or adamw(parts, rates),
        compute=descending(loss_of),
        rate_at=lambda progress: rate_at(config, progress, minutes),
        averages=averages,
        rng=rng,
        look=lambda progress: look(progress.step),
        config=asdict(config),
    ).run()
