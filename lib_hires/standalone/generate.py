"""One run: from a request to finished pictures, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from lib_hires.attentive_guidance import gamma_at, mix_into_state_
from lib_hires.noise import VarianceExploding, draw, generators
from lib_hires.refinement import Stage, StageResult, plan, refine
from lib_hires.resample import Reduction
from lib_hires.settings import Settings, SettingsError
from lib_hires.sizes import SMALLEST_SCALE, Size, native_size, small_size, snap
from lib_hires.standalone.latent_model import LatentModel
from lib_hires.standalone.request import SAMPLERS, Request
from lib_hires.standalone.sampling import (
    ClassifierFreeGuidance,
    Denoiser,
    sample,
    schedule_sigmas,
)
from lib_hires.tiling import vae_tiled
from lib_hires.upsample_guidance import UpsampleGuided, shifted_schedule

OnStep = Callable[[int, int, int], None]


@dataclass(frozen=True, eq=False)
class Painted:
    """A finished stage: 0 is the first picture, the last one is the result."""

    stage: int
    stages: int
    latent: Tensor  # (b, c, h, w)
    images: Tensor  # (b, 3, H, W) in [-1, 1], float32
    seconds: float  # since the run began
    model_evaluations: int  # calls of the model since the run began, small ones included
    small_evaluations: int  # those of them that Upsample Guidance made


class Run:
    """Everything one run needs, checked when built; `paint` makes the pictures.

    Raises SettingsError for what cannot work with this model and these sizes.
    """

    def __init__(self, model: LatentModel, request: Request, settings: Settings) -> None:
        self.model, self.request, self.settings = model, request, settings
        self.first = first_size(request, settings, model)
        self.stages: tuple[Stage, ...] = ()
        if settings.refine.enabled:
            self.stages = plan(
                settings.refine, self.first, multiple=model.multiple, factor=model.factor
            )
        elif settings.ug.enabled and settings.ug.theta and self._reduction(self.first) is None:
            raise SettingsError(
                f"ug: {self.first[1]}x{self.first[0]} is not clearly above the model's native "
                f"{model.native[1]}x{model.native[0]} (sides {SMALLEST_SCALE} times as long), "
                "so there is nothing to guide"
            )
        self._on_step: OnStep = lambda *_: None
        self._denoiser = model.denoiser()
        self._sigmas = schedule_sigmas(self._denoiser, request.schedule, request.steps)
        self._family = VarianceExploding(self._denoiser.sigmas)
        self._evaluations = {"all": 0, "small": 0}

    @property
    def steps(self) -> list[int]:
        """The sampler's steps of the first picture and of each stage."""
        schedule = self._sigmas.tolist()
        later = [len(stage.times(schedule, self._sigma_at)) - 1 for stage in self.stages]
        return [len(schedule) - 1, *later]

    def about(self) -> dict[str, Any]:
        """Plain values that repeat this run."""
        return {
            "version": version("hires-guidance"),
            "model": self.model.name,
            "request": self.request.values(),
            "settings": self.settings.changed(),
        }

    @torch.no_grad()
    def paint(self, on_step: OnStep = lambda *_: None) -> Iterator[Painted]:
        """Yield the first picture and then each stage's, as soon as it is finished.

        on_step: called after each step with (stage, step, steps of the stage).
        """
        self._on_step = on_step
        self._evaluations = {"all": 0, "small": 0}
        started = time.perf_counter()
        decode = _Remembering(self._decode)
        denoise = self._guided_by_prompt()
        latent = self._first_picture(denoise)
        if not torch.isfinite(latent).all():
            raise FloatingPointError("the first picture came out as values that are not numbers")

        def painted(stage: int, latent: Tensor) -> Painted:
            images = decode(latent)
            seconds = time.perf_counter() - started
            counts = self._evaluations["all"], self._evaluations["small"]
            return Painted(stage, len(self.stages), latent, images, seconds, *counts)

        yield painted(0, latent)
        results: Iterator[StageResult] = refine(
            latent,
            self.stages,
            decode=decode,
            encode=self._encode,
            denoise=partial(self._denoise_stage, denoise),
            factor=self.model.factor,
            colour_match=self.settings.refine.colour_match,
        )
        for result in results:
            yield painted(result.stage.number, result.latent)

    def _guided_by_prompt(self) -> Callable[[Denoiser], Denoiser]:
        """Puts classifier-free guidance with the request's prompts around a denoiser."""
        request = self.request
        conditioning = self.model.encode_prompts(
            [request.prompt] * request.batch, [request.negative] * request.batch
        )
        return partial(ClassifierFreeGuidance, conditioning=conditioning, scale=request.cfg)

    def _first_picture(self, prompted: Callable[[Denoiser], Denoiser]) -> Tensor:
        sigmas = self._sigmas
        reduction = self._reduction(self.first)
        if self._guides(reduction) and self.settings.ug.shifted_start:
            assert reduction is not None
            sigmas = shifted_schedule(sigmas, reduction.noise_gain)
        streams = generators(self.request.seeds)
        noise = draw(streams, self._latent_shape(self.first)).to(sigmas)
        return self._sample(prompted, noise * sigmas[0], sigmas, sigmas, streams, self.first, 0)

    def _denoise_stage(
        self, prompted: Callable[[Denoiser], Denoiser], latent: Tensor, stage: Stage
    ) -> Tensor:
        times = stage.times(self._sigmas.tolist(), self._sigma_at)
        sigmas = torch.tensor(times).to(self._sigmas)
        streams = generators(self.request.seeds, stage.number)
        noisy = latent + sigmas[0] * draw(streams, tuple(latent.shape[1:])).to(latent)
        return self._sample(
            prompted, noisy, sigmas, self._sigmas, streams, stage.size, stage.number
        )

    def _sigma_at(self, timestep: float) -> float:
        """sigma of a training timestep, counted as if there were 1000."""
        timestep *= self._family.training_steps / 1000
        return float(self._denoiser.t_to_sigma(torch.tensor(timestep)))

    def _sample(
        self,
        prompted: Callable[[Denoiser], Denoiser],
        x: Tensor,
        sigmas: Tensor,
        schedule: Tensor,
        streams: Sequence[torch.Generator],
        size: Size,
        stage: int,
    ) -> Tensor:
        """Sample one stage down `sigmas`, the end of the whole `schedule`."""
        denoise: Denoiser = partial(self._counted, x.shape)
        reduction = self._reduction(size)
        if self._guides(reduction, stage):
            assert reduction is not None
            denoise = UpsampleGuided(
                denoise,
                self.settings.ug,
                family=self._family,
                reduction=reduction.to(x.device),
                times=schedule.tolist(),
            )
        steps = len(sigmas) - 1
        pfsa = self.settings.pfsa

        def mix(state: Tensor, done: int) -> None:
            if done:
                gamma = gamma_at(steps - done, steps, pfsa)
                mix_into_state_(state, gamma, pfsa, float(sigmas[done]))

        return sample(
            prompted(denoise),
            x,
            sigmas,
            SAMPLERS[self.request.sampler],
            streams=streams,
            state_hook=mix if pfsa.enabled and stage == 0 else None,
            on_step=lambda step, _: self._on_step(stage, step, steps),
        )

    def _counted(self, state: torch.Size, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        self._evaluations["all"] += 1
        self._evaluations["small"] += x.shape[-2:] != state[-2:]
        return self._denoiser(x, sigma, **cond)

    def _guides(self, reduction: Reduction | None, stage: int = 0) -> bool:
        ug = self.settings.ug
        wanted = ug.enabled and ug.theta > 0 and (stage == 0 or self.settings.refine.guided)
        return wanted and reduction is not None

    def _reduction(self, size: Size) -> Reduction | None:
        """D and U for a picture of `size` pixels; None at or below the native size."""
        factor, model = self.model.factor, self.model
        latent = size[0] // factor, size[1] // factor
        native = model.native[0] // factor, model.native[1] // factor
        small = small_size(latent, native, self.settings.ug.scale, model.multiple // factor)
        smooth = self.settings.ug.enlargement == "bicubic"
        return small and Reduction.between(latent, small, smooth)

    def _latent_shape(self, size: Size) -> tuple[int, int, int]:
        factor = self.model.factor
        return self.model.latent_channels, size[0] // factor, size[1] // factor

    def _decode(self, latent: Tensor) -> Tensor:
        images = self._in_tiles(self.model.decode, latent, decode=True)
        if not torch.isfinite(images).all():
            raise FloatingPointError("decoding gave values that are not numbers")
        return images

    def _encode(self, image: Tensor) -> Tensor:
        return self._in_tiles(self.model.encode, image, decode=False)

    def _in_tiles(self, function: Callable[[Tensor], Tensor], x: Tensor, decode: bool) -> Tensor:
        refine = self.settings.refine
        pixels = refine.tile if refine.enabled else 0
        return vae_tiled(function, x, pixels=pixels, factor=self.model.factor, decode=decode)


class _Remembering:
    """A function of a tensor that does not compute the same tensor twice in a row."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = x, self._function(x)
        return self._last[1]


def first_size(request: Request, settings: Settings, model: LatentModel) -> Size:
    """The first picture's (height, width) in pixels, rounded to what the model takes.

    Without a wish it has the native area, in the shape of refinement's target where that is given.
    With one side given the picture is square. Raises SettingsError for a side that is too small.
    """
    if not request.width and not request.height:
        wanted = model.native
        if settings.refine.enabled and settings.refine.height:
            wanted = settings.refine.height, settings.refine.width
        return native_size(wanted, model.native, model.multiple)
    size = request.height or request.width, request.width or request.height
    if min(size) < model.multiple:
        raise SettingsError(
            f"width, height: expected at least {model.multiple}, got {size[1]}x{size[0]}"
        )
    return snap(size[0], model.multiple), snap(size[1], model.multiple)
