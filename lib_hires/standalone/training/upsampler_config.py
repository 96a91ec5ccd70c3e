"""What decides how a feature upsampler is trained. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lib_hires.settings import Declared, SettingsError, control


@dataclass(frozen=True)
class UpsamplerTraining(Declared):
    """Algorithm 1 of Self-Cascade, and what it leaves open."""

    scale: float = control(
        2.0,
        "Scale",
        "The large images' sides over the model's native ones; a stage upsamples at most to 2.",
        minimum=1.15,
        maximum=2,
        step=0.05,
    )
    pivot: int = control(
        700, "Pivot", "K: timesteps are drawn from 1 to K.", "K", minimum=1, maximum=999
    )
    layers: str = control(
        "",
        "Layers",
        "Skip features in the decoder's order, the coarsest is 0, with commas. Empty: four, "
        "spread evenly.",
    )
    width: int = control(
        8, "Width", "Channels between the two convolutions.", minimum=1, maximum=256
    )
    steps: int = control(4000, "Steps", "Optimisation steps.", minimum=1, maximum=10_000_000)
    batch: int = control(
        8, "Batch", "Images of a step, over all parts and processes.", minimum=1, maximum=65536
    )
    accumulation: int = control(
        1, "Accumulation", "Parts that a step is computed in.", minimum=1, maximum=65536
    )
    rate: float = control(
        2e-3, "Learning rate", "Of AdamW, at its highest.", minimum=1e-7, maximum=1
    )
    warmup: int = control(
        50, "Warm-up", "Steps over which the rate rises.", minimum=1, maximum=1_000_000
    )
    decay: float = control(
        0.5,
        "Decay",
        "The last part of the steps, in which the rate falls to zero.",
        minimum=0.01,
        maximum=1,
        step=0.05,
    )
    caption_dropout: float = control(
        0.1,
        "Caption dropout",
        "The share of captions left empty, for the unconditional branch.",
        minimum=0,
        maximum=1,
        step=0.05,
    )
    mixed_precision: str = control(
        "auto",
        "Mixed precision",
        "accelerate's autocast. auto: bf16, on a CPU only where it is fast.",
        choices=("auto", "no", "bf16", "fp16"),
    )
    checkpointing: bool = control(
        False, "Checkpointing", "Compute activations again in the backward pass, to save memory."
    )
    scenes: int = control(
        4000, "Scenes", "Drawn scenes, where no folder is given.", minimum=1, maximum=1_000_000
    )
    held_out: int = control(
        16,
        "Held out",
        "Images kept for the validation loss (at most a fifth of a folder).",
        minimum=0,
        maximum=100_000,
    )
    samples: int = control(4, "Samples", "Images made at each validation.", minimum=0, maximum=64)
    validate_every: int = control(
        500, "Validate every", "Steps between validations.", minimum=1, maximum=10_000_000
    )
    save_every: int = control(
        100, "Save every", "Steps between checkpoints.", minimum=1, maximum=10_000_000
    )
    seed: int = control(
        1, "Seed", "Of first weights, order, timesteps and noise.", minimum=0, maximum=2**32 - 1
    )

    def values(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def part(self, processes: int) -> int:
        """Images that one process computes at once. Raises SettingsError for a remainder."""
        part, rest = divmod(self.batch, self.accumulation * processes)
        if rest or not part:
            raise SettingsError(
                f"batch: expected a multiple of {self.accumulation * processes} "
                f"({self.accumulation} parts on {processes} processes), got {self.batch}"
            )
        return part

    def rate_at(self, step: int) -> float:
        """Warm-up, constant, then linear to zero at the end."""
        left = 1 - step / self.steps
        return self.rate * min(1.0, (step + 1) / self.warmup) * min(1.0, left / self.decay)
