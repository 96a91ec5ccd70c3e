"""The one loop of all trainings: learning rates, averages, checkpoints, progress and loss curve.

A training defines what a step computes (`Compute`), how long it lasts and how often it is saved
(`Pace`). It can be killed at any moment: the next call goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from lib_hires.files import whole_file
from lib_hires.settings import SettingsError
from lib_hires.standalone.models.precision import fast_dtype

log = logging.getLogger("hires_guidance")

Point = tuple[int, float, dict[str, float]]
"""Of a loss curve: steps done, minutes trained, the mean of each loss since the point before."""


def computed_in() -> str:
    """The name of the dtype that `fast_autocast` computes in here, for records."""
    return str(fast_dtype()).removeprefix("torch.")


# --- progress -------------------------------------------------------------------------------------


@dataclass
class Progress:
    """What a training has behind it; lives in its checkpoint."""

    step: int = 0
    seconds: float = 0.0
    losses: list[Point] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)  # step, loss
    looked: int = -1  # the last step at which `Loop` called `look`

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> Progress:
        """From a checkpoint; one of version 0.1 has plain numbers for the losses."""
        progress = cls(**values)
        progress.losses = [
            (step, minutes, loss if isinstance(loss, dict) else {"loss": loss})
            for step, minutes, loss in progress.losses
        ]
        return progress

    def curve(self, name: str = "loss") -> list[tuple[int, float]]:
        """One loss over the steps."""
        return [(step, losses[name]) for step, _, losses in self.losses]


@dataclass(frozen=True)
class Every:
    """Once in so many steps, or in so many seconds of training; never where both are 0."""

    steps: int = 0
    seconds: float = 0.0

    def due(self, progress: Progress, since: float) -> bool:
        """since: the seconds trained when it was last due."""
        if self.steps and progress.step % self.steps == 0:
            return True
        return bool(self.seconds) and progress.seconds - since > self.seconds


@dataclass(frozen=True)
class Pace:
    """How long a training lasts, and how often it is saved, looked at and noted in the curve."""

    minutes: float = math.inf
    steps: int = 0  # 0: as many as the minutes allow
    save: Every = Every(seconds=180)
    look: Every = Every()
    window: int = 50  # steps of a point of the curve
    look_first: bool = False  # also before the first step

    def finished(self, progress: Progress) -> bool:
        if self.steps and progress.step >= self.steps:
            return True
        return progress.seconds >= 60 * self.minutes


# --- averages and optimizers ----------------------------------------------------------------------


def averaged(module: nn.Module, decay: float, buffers: bool = False) -> AveragedModel:
    """The exponential moving average of a module's weights, which begins as they are.

    Early on the decay is lower, (k + 1) / (k + 10) after k steps, so that the first weights do not
    linger. buffers: average them too, as the statistics of batch norms need.
    """

    def update(means: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        keep = min(decay, (int(count) + 1) / (int(count) + 10))
        get_ema_multi_avg_fn(keep)(means, values, count)

    average = AveragedModel(module, multi_avg_fn=update, use_buffers=buffers)
    return average.requires_grad_(False)


def adamw(
    parts: Mapping[str, nn.Module], rates: Mapping[str, float], weight_decay: float = 0.01
) -> torch.optim.AdamW:
    """AdamW over some parts, each with its highest learning rate."""
    weights: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, part in parts.items():
        weights[rates[name]] += part.parameters()
    groups = [{"params": some, "lr": rate} for rate, some in weights.items()]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)


# --- checkpoints ----------------------------------------------------------------------------------


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        torch.save(state, partial)


def load(path: Path) -> dict[str, Any] | None:
    """A checkpoint; None where there is none. Raises SettingsError for a damaged one."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds for a file that is not its own
        raise SettingsError(f"{path}: damaged, remove it to begin anew") from error
    return state


# --- the loop -------------------------------------------------------------------------------------

Compute = Callable[[Progress], Mapping[str, Tensor]]
"""compute(progress): a step's losses by name, the gradients of their sum left in the weights."""


def descending(loss_of: Callable[[Progress], Tensor | Mapping[str, Tensor]]) -> Compute:
    """`Compute` of a function that returns the loss, or several that are added."""

    def compute(progress: Progress) -> Mapping[str, Tensor]:
        found = loss_of(progress)
        losses = {"loss": found} if isinstance(found, Tensor) else found
        total = torch.stack(list(losses.values())).sum()
        if torch.isfinite(total):
            total.backward()  # type: ignore[no-untyped-call]
        return losses

    return compute


class Loop:
    """One training. `run` brings it to its end, from the checkpoint where there is one."""

    def __init__(
        self,
        name: str,
        checkpoint: Path,
        *,
        pace: Pace,
        parts: Mapping[str, nn.Module],
        optimizer: Any,
        compute: Compute,
        rate_at: Callable[[Progress], float | Sequence[float]],
        averages: Mapping[str, AveragedModel] | None = None,
        rng: np.random.Generator | None = None,
        look: Callable[[Progress], None] | None = None,
        clip: Callable[[list[nn.Parameter], float], object] = nn.utils.clip_grad_norm_,
        config: Mapping[str, Any] | None = None,
        expects: str = "",
        main: bool = True,
    ) -> None:
        """
        Args:
            parts: what is trained; averages: of some of them, under the same names.
            optimizer: its groups' learning rates are their highest ones.
            rate_at: the share of the highest rates at which a step is made, or one for each group.
            rng: comes back from the checkpoint, as torch's own random numbers do.
            look: shows or validates what is trained so far.
            clip: limits the norm of all gradients, and may return it: no step is made by one that
                is not finite.
            config: kept in the checkpoint; expects: the message of the SettingsError raised where
                a checkpoint has another one, empty where it may.
            main: whether this process shows the progress and writes the checkpoint.
        """
        self.name, self.progress = name, Progress()
        self._path, self._pace, self._main = checkpoint, pace, main
        self._parts, self._averages = parts, averages or {}
        self._optimizer, self._compute, self._rate_at = optimizer, compute, rate_at
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._weights = [each for group in optimizer.param_groups for each in group["params"]]
        self._rng, self._look, self._clip = rng, look, clip
        self._config, self._expects = dict(config or {}), expects
        self._running: dict[str, list[float]] = defaultdict(list)

    def run(self) -> Progress:
        """Train to the end of the pace; looks and saves on the way and at the end."""
        self.resume()
        pace, progress = self._pace, self.progress
        saved = looked = progress.seconds
        if pace.look_first and not progress.step:
            self._look_at()
        with self._bar() as bar:
            while not pace.finished(progress):
                self.step()
                self._show(bar)
                if pace.look.due(progress, looked):
                    self._look_at()
                    looked = progress.seconds
                if pace.save.due(progress, saved):
                    self.save()
                    saved = progress.seconds
        self.save()
        self._look_at()
        self.save()
        return progress

    def step(self) -> Mapping[str, float]:
        """One step; returns the losses. Without a finite loss and gradient the weights stay."""
        progress, begun = self.progress, time.monotonic()
        self._set_rates()
        self._optimizer.zero_grad()
        losses = {key: float(loss.detach()) for key, loss in self._compute(progress).items()}
        if all(map(math.isfinite, losses.values())) and self._clipped():
            self._optimizer.step()
            for name, average in self._averages.items():
                average.update_parameters(self._parts[name])
        else:
            log.warning(
                "%s: step %d has no finite loss or gradient; skipped", self.name, progress.step
            )
        progress.step += 1
        progress.seconds += time.monotonic() - begun
        self._note(losses)
        return losses

    def _set_rates(self) -> None:
        groups, share = self._optimizer.param_groups, self._rate_at(self.progress)
        shares = share if isinstance(share, Sequence) else [share] * len(groups)
        for group, peak, each in zip(groups, self._peaks, shares, strict=True):
            group["lr"] = peak * each

    def _clipped(self) -> bool:
        norm = self._clip(self._weights, 1.0)
        return not isinstance(norm, Tensor) or bool(norm.isfinite())

    def _note(self, losses: Mapping[str, float]) -> None:
        for name, loss in losses.items():
            if math.isfinite(loss):
                self._running[name].append(loss)
        progress = self.progress
        if progress.step % self._pace.window == 0 and self._running:
            means = {name: round(float(np.mean(some)), 6) for name, some in self._running.items()}
            progress.losses.append((progress.step, progress.seconds / 60, means))
            self._running.clear()

    def _look_at(self) -> None:
        """Look, once at a step, also when a finished training is called again."""
        if self._look is not None and self.progress.looked != self.progress.step:
            self._look(self.progress)
            self.progress.looked = self.progress.step

    # --- the bar ---

    def _bar(self) -> Any:
        pace, progress = self._pace, self.progress
        total, done, unit = pace.steps, progress.step, "step"
        if not total:
            total, done, unit = round(pace.minutes * 60), round(progress.seconds), "s"
        return tqdm(total=total, initial=done, desc=self.name, unit=unit, disable=not self._main)

    def _show(self, bar: Any) -> None:
        progress = self.progress
        done = progress.step if self._pace.steps else round(progress.seconds)
        bar.n = min(done, bar.total)
        latest = {name: some[-1] for name, some in self._running.items()}
        latest = latest or (progress.losses[-1][2] if progress.losses else {})
        shown = {name: f"{loss:.4f}" for name, loss in latest.items()}
        bar.set_postfix(step=progress.step, **shown)

    # --- checkpoints ---

    def _modules(self) -> dict[str, nn.Module]:
        averages = {f"ema_{name}": average.module for name, average in self._averages.items()}
        return {**self._parts, **averages}

    def save(self) -> None:
        """Write the checkpoint."""
        if not self._main:
            return
        state: dict[str, Any] = {
            "modules": {name: module.state_dict() for name, module in self._modules().items()},
            "optimizer": self._optimizer.state_dict(),
            "progress": asdict(self.progress),
            "torch_rng": torch.get_rng_state(),
            "config": self._config,
            "dtype": computed_in(),
        }
        if self._rng is not None:
            state["numpy_rng"] = self._rng.bit_generator.state
        save(self._path, state)

    def resume(self) -> None:
        """Go on from the checkpoint. Raises SettingsError for one of another training."""
        state = load(self._path)
        if state is None:
            return
        if self._expects and state.get("config") != self._config:
            raise SettingsError(f"{self._path}: {self._expects}")
        try:
            for name, module in self._modules().items():
                module.load_state_dict(state["modules"][name])
            if "optimizer" in state:  # not where a work folder was begun from a finished model
                self._resume_optimizer(state["optimizer"])
                self.progress = Progress.restored(state["progress"])
                torch.set_rng_state(state["torch_rng"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise SettingsError(f"{self._path}: damaged, remove it to begin anew") from error
        if self._rng is not None and "numpy_rng" in state:
            self._rng.bit_generator.state = state["numpy_rng"]
        for average in self._averages.values():
            average.n_averaged.fill_(self.progress.step)

    def _resume_optimizer(self, state: dict[str, Any]) -> None:
        """Its state, computed as a new one would."""
        names = ("fused", "foreach")
        groups = self._optimizer.param_groups
        forms = [{name: group[name] for name in names if name in group} for group in groups]
        self._optimizer.load_state_dict(state)
        for group, form in zip(self._optimizer.param_groups, forms, strict=True):
            group.update(form)


# --- the curve ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """Losses over steps, side by side in one figure; level: a named constant among them."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]  # by label; "" for none
    level: tuple[str, float] | None = None
    scale: str = "log"
    marker: str = ""


def plot(path: Path, panels: Sequence[Panel], width: float = 3.7) -> None:
    """Write the panels as one image, `width` inches each; nothing where there are none."""
    if not panels:
        return
    figure = Figure(figsize=(width * len(panels), 3.2), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(row, panels, strict=True):
        for label, points in panel.lines.items():
            steps, losses = zip(*points, strict=True) if points else ((), ())
            axes.plot(steps, losses, label=label or None, marker=panel.marker)
        if panel.level is not None:
            label, loss = panel.level
            axes.axhline(loss, linestyle="--", color="grey", label=label)
        axes.set(xlabel="step", ylabel="loss", yscale=panel.scale, title=panel.title)
        if panel.level is not None or any(panel.lines):
            axes.legend()
    figure.savefig(path, dpi=110)
