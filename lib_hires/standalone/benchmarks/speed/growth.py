"""What one evaluation of the model costs as the image grows, as a whole and in windows."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from lib_hires.sizes import Size, snap
from lib_hires.standalone.benchmarks.memory import peak_alone, peak_memory
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.windows import Windowed, corners

PROMPT = "a red house under an evening sky"
OVERLAP = 0.5  # of windows, which is the control's default


@dataclass(frozen=True)
class Growth:
    """An evaluation of an image of `area`; all are multiples of the native image's."""

    area: float
    windows: int  # in which it is made; 1: as a whole
    seconds: float
    bytes: float | None  # at the peak, None where the system does not report it

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the report. The bound of the seconds: as the area, or as the number of windows."""
        how = "whole" if self.windows == 1 else f"in {self.windows} windows"
        name = f"one evaluation {how}, {self.area:.2f} times the area"
        bound = self.area if self.windows == 1 else self.windows
        rows: list[dict[str, Any]] = [{"name": name, "ratio": self.seconds, "bound": bound}]
        if self.bytes is not None:
            rows.append({"name": f"  memory of it, {how}, {self.area:.2f}", "ratio": self.bytes})
        return rows


def growth(model: LatentModel, areas: Sequence[float], repeats: int) -> list[Growth]:
    """Of images of about `areas` times the native area, with classifier-free guidance."""
    native = latent_size(model, 1)
    seconds = median_of(repeats, evaluation(model, native))
    held = peak_of_evaluation(model, native)
    made = []
    for area in tqdm(areas, desc="growth", leave=False):
        size = latent_size(model, area)
        for window in (None, native) if math.prod(size) > math.prod(native) else (None,):
            peak = peak_of_evaluation(model, size, window)
            made.append(
                Growth(
                    math.prod(size) / math.prod(native),
                    len(corners(size, window, OVERLAP)) if window else 1,
                    median_of(repeats, evaluation(model, size, window)) / seconds,
                    peak / held if peak and held else None,
                )
            )
    return made


def plot_growth(made: Sequence[Growth], path: Path) -> None:
    """Seconds and memory over the area, each as a whole and in windows."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("seconds", "bytes"), strict=True):
        axes.plot(*[[each.area for each in made]] * 2, "--", color="gray", label="as the area")
        for name, marker, chosen in (
            ("as a whole", "o-", [each for each in made if each.windows == 1]),
            ("in windows", "s-", [each for each in made if each.windows > 1]),
        ):
            values = [getattr(each, quantity) for each in chosen]
            if None not in values:
                axes.plot([each.area for each in chosen], values, marker, label=name)
        axes.set(xlabel="area, times native", ylabel=f"{quantity}, times native")
        axes.legend()
    figure.savefig(path, dpi=110)


def latent_size(model: LatentModel, area: float) -> Size:
    """(height, width) of a latent of about `area` times the native area, as the model takes it."""
    sides = [snap(side * math.sqrt(area), model.multiple) for side in model.native]
    return sides[0] // model.factor, sides[1] // model.factor


# --- one evaluation -------------------------------------------------------------------------------


def now() -> float:
    """Seconds, when all work of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def median_of(repeats: int, function: Callable[[], object]) -> float:
    """Seconds of a call."""
    times = []
    for _ in range(repeats + 1):
        begun = now()
        function()
        times.append(now() - begun)
    return statistics.median(times[1:])  # the first call is slower


def evaluation(
    model: LatentModel, latent: Size, window: Size | None = None
) -> Callable[[], Tensor]:
    """A call of the model for one image, as classifier-free guidance makes it.

    window: (height, width) in latent positions, None for an evaluation at full size.
    """
    return _call(model, _conditioning(model), latent, window)


def _conditioning(model: LatentModel) -> dict[str, Tensor]:
    """The conditioning of two rows."""
    cond = model.encode_prompts([PROMPT] * 2, [""] * 2)
    pooled = {} if cond.pooled_cond is None else {"pooled": cond.pooled_cond}
    return {"context": cond.cond, **pooled}


def _call(
    model: LatentModel, cond: dict[str, Tensor], latent: Size, window: Size | None
) -> Callable[[], Tensor]:
    predict: Callable[..., Tensor] = model.predict
    if window is not None:
        predict = Windowed(predict, window=window, overlap=OVERLAP)
    x = torch.randn(2, model.latent_channels, *latent, device=model.device)
    t = torch.full((2,), 500.0, device=model.device)
    return torch.no_grad()(lambda: predict(x, t, **cond))


def peak_of_evaluation(model: LatentModel, latent: Size, window: Size | None = None) -> int | None:
    """Bytes of what `evaluation` does; on the CPU in a fresh process, to which the U-Net is all
    that goes. None where the system does not report it."""
    unet_alone = dataclasses.replace(model, encoders=())
    measure = partial(_peak_of_call, unet_alone, _conditioning(model), latent, window)
    return peak_alone(model.device, measure)


def _peak_of_call(
    model: LatentModel, cond: dict[str, Tensor], latent: Size, window: Size | None
) -> int | None:
    least = model.multiple // model.factor
    _call(model, cond, (least, least), None)()  # what the first call loads
    return peak_memory(model.device, _call(model, cond, latent, window))
