"""Progressive refinement: upsample the finished image, renoise it part of the way, denoise.

AP-LDM (3.3, algorithm 1) and Self-Cascade's pivot are the same `refine` over a different `plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lib_hires.controls import SettingsError
from lib_hires.detail.latent_mixing import mixed
from lib_hires.resample import bicubic
from lib_hires.settings import ProgressiveRefinement
from lib_hires.sizes import Size, size_of_area, snap

ONE_STEP_SAMPLER = "Euler"
"""For runs of one step: every sampler's last step is Euler's, and samplers with noise or steps of
their own fail on a single step."""


@dataclass(frozen=True)
class Stage:
    """One upsampling. number counts from 1; the image before the first stage is stage 0."""

    number: int
    size: Size  # (height, width) of the image in pixels
    enlargement: Literal["pixel", "latent"]
    strength: float  # AP-LDM: the share of the schedule's steps that is denoised again
    timestep: int | None = None  # Pivot: renoise up to this training timestep of 1000 instead

    def times(self, schedule: Sequence[float], time_at: Callable[[float], float]) -> list[float]:
        """The part of a decreasing schedule (final time included) that this stage denoises.

        time_at: the sampler's time of a training timestep of 1000. Always at least one step.
        """
        steps = len(schedule) - 1
        if self.timestep is None:
            return list(schedule[-(max(1, round(self.strength * steps)) + 1) :])
        start = time_at(self.timestep)
        # A tiny first step would make multistep samplers unstable, which divide by it.
        return [start, *(time for time in schedule if time < 0.99 * start)]


@dataclass(frozen=True)
class StageResult:
    """A finished stage and its latent (b, c, h, w), or (b, c, f, h, w)."""

    stage: Stage
    latent: Tensor


def target_size(settings: ProgressiveRefinement, first: Size, factor: int) -> Size:
    """The final (height, width) in pixels, rounded to the VAE's factor.

    With one side given the other follows from the first image's shape.
    Raises SettingsError where it would be smaller than the first image or clearly of another
    shape (rounding makes small differences, which are stretched over).
    """
    if settings.width or settings.height:
        aspect = first[0] / first[1]
        width = settings.width or settings.height / aspect
        wanted = settings.height or settings.width * aspect, width
    else:
        wanted = first[0] * settings.factor, first[1] * settings.factor
    target = snap(wanted[0], factor), snap(wanted[1], factor)
    if target[0] < first[0] or target[1] < first[1]:
        raise SettingsError(
            f"refine: the final size {target[1]}x{target[0]} is smaller than the first image's "
            f"{first[1]}x{first[0]}"
        )
    if not 0.85 < target[0] / target[1] / (first[0] / first[1]) < 1.18:
        raise SettingsError(
            f"refine: the final size {target[1]}x{target[0]} has another shape than the first "
            f"image's {first[1]}x{first[0]}"
        )
    return target


def plan(
    settings: ProgressiveRefinement, first: Size, *, multiple: int, factor: int
) -> tuple[Stage, ...]:
    """The stages from a first image of size (height, width) pixels to the target.

    multiple: what the sizes between are rounded to; factor: what the target is rounded to.
    AP-LDM: areas evenly spaced (algorithm 1, lines 8 to 12), one stage for each of eta2.
    Pivot: R = ceil(log4(area ratio)) stages of equal ratio, each from timestep K.
    """
    target = target_size(settings, first, factor)
    area, last_area = math.prod(first), math.prod(target)
    if settings.method == "Pivot":
        count = max(1, math.ceil(math.log(last_area / area, 4) - 1e-9))
        areas = [area * (last_area / area) ** (number / count) for number in range(1, count + 1)]
        strengths: Sequence[float] = [settings.pivot / 1000] * count
    else:
        count = len(settings.eta2)
        areas = [area + (last_area - area) * number / count for number in range(1, count + 1)]
        strengths = settings.eta2
    between = [size_of_area(a, target[0] / target[1], multiple) for a in areas[:-1]]
    sizes = [
        (min(max(h, first[0]), target[0]), min(max(w, first[1]), target[1])) for h, w in between
    ] + [target]
    enlargement = enlargement_of(settings)
    timestep = settings.pivot if settings.method == "Pivot" else None
    return tuple(
        Stage(number, size, enlargement, strength, timestep)
        for number, (size, strength) in enumerate(zip(sizes, strengths, strict=True), start=1)
    )


def enlargement_of(settings: ProgressiveRefinement) -> Literal["pixel", "latent"]:
    """What stages upsample; automatic: as in the method's paper."""
    latent = settings.method == "Pivot" and settings.enlargement == "automatic"
    return "latent" if latent or settings.enlargement == "latent" else "pixel"


class NotEncoded(FloatingPointError):
    """The VAE gave NaN or infinity for a stage's upsampled image, as some do in half precision."""


def refine(
    latent: Tensor,
    stages: Sequence[Stage],
    *,
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    denoise: Callable[[Tensor, Stage, Tensor], Tensor],
    factor: int,
    colour_match: bool = False,
    upscale: Callable[[Tensor, Size], Tensor] | None = None,
    mix: bool = False,
) -> Iterator[StageResult]:
    """Run the stages one after another, yielding each as soon as it is finished.

    latent: (b, c, h, w), the finished first image, or clips (b, c, f, h, w), whose frames `decode`
    and `encode` take one at a time in `lib_hires.clips.frame_by_frame`. decode: latent to image
    (b, 3, H, W), around [-1, 1]; encode: back, to the posterior's mode. denoise: renoises a clean
    upsampled latent as far as the stage goes and samples it to the end; it also receives the latent
    before upsampling. factor: pixels per latent position. upscale: in the place of bicubic
    upsampling of images, to a size in pixels. mix: take the coarse part from the latent itself
    (`detail.latent_mixing`).

    An error or an interrupt raised inside a stage leaves through the iterator; what was yielded
    before stays good. Raises FloatingPointError where a stage gives NaN or infinity, as NotEncoded
    where the VAE does before it.
    """
    first = latent
    for stage in stages:
        size = stage.size[0] // factor, stage.size[1] // factor
        if stage.enlargement == "latent":
            upsampled = bicubic(latent.float(), size).to(latent.dtype)
        else:
            enlarge = upscale or bicubic
            upsampled = encode(enlarge(decode(latent).float(), stage.size).clamp(-1, 1))
            if mix:
                upsampled = mixed(upsampled, latent)
        if not torch.isfinite(upsampled).all():
            raise NotEncoded(
                f"the VAE gave values that are not numbers before refinement stage {stage.number}"
            )
        if colour_match:
            upsampled = match_channels(upsampled, first)
        latent = denoise(upsampled, stage, latent)
        if not torch.isfinite(latent).all():
            raise FloatingPointError(
                f"refinement stage {stage.number} gave values that are not numbers"
            )
        yield StageResult(stage, latent)


class Remembering:
    """A function of a tensor that does not compute the same tensor twice in a row.

    For `decode`: a stage's image is shown, and then upsampled for the next stage.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = x, self._function(x)
        return self._last[1]


def match_channels(latent: Tensor, reference: Tensor) -> Tensor:
    """`latent` with each image's channel means and deviations made those of `reference`.

    Both (b, c, h, w), of any spatial sizes, or clips (b, c, f, h, w), each matched as a whole.
    """
    axes = tuple(range(2, latent.ndim))
    x, y = latent.float(), reference.float()
    scale = y.std(axes, keepdim=True) / x.std(axes, keepdim=True).clamp(min=1e-6)
    matched = (x - x.mean(axes, keepdim=True)) * scale + y.mean(axes, keepdim=True)
    return matched.to(latent.dtype)
