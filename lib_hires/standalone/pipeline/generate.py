"""One run: from a request to finished images, stage by stage."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from lib_hires.attentive_guidance import gamma_at, mix_into_state_
from lib_hires.clips import as_clips, frame_by_frame
from lib_hires.detail import NO_DETAIL, Detail
from lib_hires.detail.processors import attention_in_windows
from lib_hires.devices import allocated_peak, reset_allocated_peak
from lib_hires.feature_upsampler import Upsampled, UpsamplerError, captured
from lib_hires.noise import VarianceExploding, draw, generators, turned
from lib_hires.refinement import Remembering, Stage, StageResult, plan, refine
from lib_hires.resample import Reduction
from lib_hires.run.passes import clip_guided_at, in_windows
from lib_hires.run.plan import RunPlan, run_plan
from lib_hires.run.record import RunRecord
from lib_hires.run.schedules import Model, Sampler, Sampling, sigmas_of
from lib_hires.settings import AttentiveGuidance, Settings, SettingsError
from lib_hires.sizes import Size, native_size, not_above, snap, why_unguided
from lib_hires.standalone.models.latent import LatentModel, Motion
from lib_hires.standalone.models.motion import set_context
from lib_hires.standalone.pipeline.clip_files import check_format
from lib_hires.standalone.pipeline.detail import RunDetail
from lib_hires.standalone.pipeline.request import OWN, SAMPLERS, TURNING, Request, warn_of_syntax
from lib_hires.standalone.pipeline.rules import RULES
from lib_hires.standalone.pipeline.sampling import (
    ClassifierFreeGuidance,
    Denoiser,
    sample,
    schedule_sigmas,
)
from lib_hires.standalone.pipeline.upsamplers import find_upsampler
from lib_hires.tiled_vae import vae_tiled
from lib_hires.upsample_guidance import UpsampleGuided, shifted_schedule
from lib_hires.upsampler_file import NamedUpsampler

FPS = 8  # of the clips that motion modules are trained with
OnStep = Callable[[int, int, int, Tensor], None]
Gamma = Callable[[int, int, AttentiveGuidance], float]
"""gamma(steps done, steps in all, settings): the share of self-attention that is mixed in then."""
Convert = Callable[[Tensor], Tensor]
Wrap = Callable[[str, Convert], Convert]
"""wrap("decode" or "encode", function): the function that a run calls in its place."""


@dataclass(frozen=True, eq=False)
class FinishedStage:
    """A finished stage: 0 is the first image, the last one is the result."""

    stage: int
    stages: int
    latent: Tensor  # (b, c, h, w); clips (b, c, f, h, w)
    images: Tensor  # (b, 3, H, W) in [-1, 1], float32; clips (b, 3, f, H, W)
    seconds: float  # since the run began
    model_evaluations: int  # calls of the model since the run began, small ones included
    native_evaluations: int  # those of them that Upsample Guidance made


class Run:
    """Everything one run needs, checked when built; `generate` makes the images.

    Raises SettingsError for what cannot work with this model and these sizes.
    """

    def __init__(
        self,
        model: LatentModel,
        request: Request,
        settings: Settings,
        upsampler: NamedUpsampler | None = None,
        *,
        tile: int | None = None,
        stage_sizes: Sequence[Size] | None = None,
        gamma: Gamma | None = None,
        wrap: Wrap = lambda _, function: function,
        detail: Detail = NO_DETAIL,
    ) -> None:
        """The options are for measurements.

        upsampler: in the place of the one that the settings name. tile: of decoding and encoding,
        in pixels, 0 for none, in the place of the settings', which are refinement's. stage_sizes:
        (height, width) in pixels of each stage, in the place of those planned. gamma: the schedule
        of Attentive Guidance, in the place of `gamma_at`. wrap: gets decoding and encoding, tiles
        included, for example to time them. detail: techniques that are no settings.
        """
        request = request.drawn().scaled(model.cfg)
        if model.motion:
            request = request.noised(model.motion.ours)
        model.check_prompt(request.prompt, request.negative)
        self.model, self.request, self.settings = model, request, settings
        self.frames, self.context = clip_length(request, model.motion)
        if self.frames > 1:
            check_format(request.clip_format)
        self.first = first_size(request, settings, model)
        self.stages: tuple[Stage, ...] = ()
        if settings.refine.enabled:
            self.stages = plan(
                settings.refine, self.first, multiple=model.multiple, factor=model.factor
            )
            if stage_sizes is not None:
                sized = zip(self.stages, stage_sizes, strict=True)
                self.stages = tuple(replace(stage, size=size) for stage, size in sized)
        elif settings.ug.enabled and settings.ug.theta and self.reduction(self.first) is None:
            raise SettingsError(_nothing_to_guide(settings, self.first, self.frames, model))
        if tile is None:
            tile = settings.refine.tile  # also of an image that is not refined
        self._tile = tile
        self.detail = RunDetail(detail, settings, model, cfg=request.cfg, frames=self.frames)
        self._gamma = gamma
        self._wrapped = {
            "decode": wrap("decode", self._decode),
            "encode": wrap("encode", self._encode),
        }
        self.upsampler = self._checked(upsampler) if self.stages else None
        self.rules = RULES[request.rules]
        self.denoiser = self.rules.denoiser(model)
        self.sigmas = schedule_sigmas(self.denoiser, request.schedule, request.steps)
        self.sigmas_of_stages = schedule_sigmas(
            self.denoiser, request.schedule, settings.refine.steps_of_stages(request.steps)
        )
        self.family = VarianceExploding(self.denoiser.sigmas)
        self.record = self._new_record()

    def _new_record(self) -> RunRecord:
        reset_allocated_peak(self.model.device)
        return RunRecord(time.perf_counter, partial(allocated_peak, self.model.device))

    def _checked(self, given: NamedUpsampler | None) -> NamedUpsampler | None:
        """The feature upsampler of the stages, its title in the settings."""
        upsampler = given or find_upsampler(self.settings.refine.upsampler)
        if upsampler is None:
            return None
        if self.frames > 1:
            raise SettingsError("refine_upsampler: expected none for clips")
        try:
            sizes = [self.first, *(stage.size for stage in self.stages)]
            windows = in_windows(self.settings, "stage")
            upsampler.check(self.model.family, self.model.unet, sizes, windows)
        except UpsamplerError as error:
            raise SettingsError(f"refine_upsampler: {error}") from None
        self.settings = self.settings.updated({"refine_upsampler": upsampler.title})
        return upsampler

    @property
    def steps(self) -> list[int]:
        """The sampler's steps of the first image and of each stage."""
        return [len(self.first_sigmas()) - 1] + [
            len(self.stage_sigmas(stage)) - 1 for stage in self.stages
        ]

    def first_sigmas(self) -> Tensor:
        """The part of its schedule that the first image samples."""
        return self._left(self.first_schedule(), 0, self.first)

    def first_schedule(self) -> Tensor:
        """The schedule of the first image, to its end."""
        sigmas, reduction = self.sigmas, self.reduction(self.first)
        if reduction is not None and self.settings.ug.shifted_start:
            sigmas = shifted_schedule(sigmas, reduction.noise_gain)
        return sigmas

    def stage_sigmas(self, stage: Stage) -> Tensor:
        """The end of the schedule that a stage samples."""
        return self._left(self._times(stage), stage.number, stage.size)

    def _times(self, stage: Stage) -> Tensor:
        whole = self.sigmas_of_stages
        return torch.tensor(stage.times(whole.tolist(), self._sigma_at)).to(whole)

    def _left(self, sigmas: Tensor, number: int, size: Size) -> Tensor:
        """A stage's sigmas as far as it goes on, which is to the end in the last one."""
        if number == len(self.stages):
            return sigmas
        after = self.stages[number]
        return self.detail.left(sigmas, size, after.size, float(self._times(after)[0]))

    def planned(self) -> RunPlan:
        """What `generate` will do, counted beforehand."""
        sampler = Sampler(SAMPLERS[self.request.sampler].evaluations)
        sampling = Sampling(
            self.first, self.request.steps, sampler, self.request.schedule, frames=self.frames
        )
        unfinished = self.detail.chosen.unfinished
        return run_plan(self.settings, sampling, plan_model(self.model), unfinished=unfinished)

    def about(self) -> dict[str, Any]:
        """Plain values that repeat this run.

        Own noise of a clip is not stated, so that a batch finds the files of an earlier version,
        which knew no other.
        """
        request = self.request.values()
        if request.get("clip_noise") == OWN:
            del request["clip_noise"]
        return {
            "version": version("hires-guidance"),
            "model": self.model.name,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "request": request,
            "settings": self.settings.changed(),
            **({"motion": self.model.motion.name} if self.model.motion else {}),
            **({"loras": [asdict(lora) for lora in self.model.loras]} if self.model.loras else {}),
            **self.model.overrides.values(),
            **self.detail.about(),
        }

    @torch.no_grad()
    def generate(self, on_step: OnStep = lambda *_: None) -> Iterator[FinishedStage]:
        """Yield the first image and then each stage's, as soon as it is finished.

        `record` begins anew and receives what happens.
        on_step: called after each step with (stage, step, steps of the stage, predicted latent).
        """
        started = time.perf_counter()
        record = self.record = self._new_record()
        generation = Generation(self, on_step)
        decode = Remembering(self.decode)

        def finished(stage: int, latent: Tensor) -> FinishedStage:
            images = decode(latent).clamp(-1, 1)
            seconds = time.perf_counter() - started
            counts = record.evaluations, record.native_evaluations
            return FinishedStage(stage, len(self.stages), latent, images, seconds, *counts)

        with record.taking("text", self.first):
            latent = generation.first_image()
            if not torch.isfinite(latent).all():
                raise FloatingPointError("the first image came out as values that are not numbers")
            made = finished(0, latent)
        yield made
        results: Iterator[StageResult] = refine(
            latent,
            self.stages,
            decode=decode,
            encode=self.encode,
            denoise=generation.denoise_stage,
            factor=self.model.factor,
            colour_match=self.settings.refine.colour_match,
            upscale=self.detail.upscale,
            mix=self.detail.mixes_latents,
        )
        for stage in self.stages:
            with record.taking("stage", stage.size, stage.number):
                made = finished(stage.number, next(results).latent)
            yield made

    def _sigma_at(self, timestep: float) -> float:
        """sigma of a training timestep, counted as if there were 1000."""
        timestep *= self.family.training_steps / 1000
        return float(self.denoiser.t_to_sigma(torch.tensor(timestep)))

    def reduction(self, size: Size, stage: int = 0) -> Reduction | None:
        """D and U with which an image of `size` pixels is guided; None where it is not.

        Those of a clip reduce its frames too.
        """
        factor, model = self.model.factor, self.model
        latent = size[0] // factor, size[1] // factor
        native = clip_guided_at(
            self.settings,
            "stage" if stage else "text",
            latent,
            self.frames,
            native=(model.native[0] // factor, model.native[1] // factor),
            native_frames=model.motion.frames if model.motion else 1,
            multiple=model.multiple // factor,
        )
        if native is None:
            return None
        frames, small = native
        smooth = self.settings.ug.enlargement == "bicubic"
        if model.motion is None:
            return Reduction.between(latent, small, smooth)
        return Reduction.between((self.frames, *latent), (frames, *small), smooth)

    @property
    def fps(self) -> float:
        """Frames a second of a clip's file."""
        reduction = self.reduction(self.first) if self.frames > 1 else None
        return self.request.fps or FPS * (reduction.frames_to_one if reduction else 1)

    def gamma(self, done: int, steps: int) -> float:
        """The share of self-attention that is mixed in after `done` of `steps` steps."""
        return (self._gamma or gamma_at)(done, steps, self.settings.pfsa)

    def decode(self, latent: Tensor) -> Tensor:
        """The model's, in the tiles of the settings. Raises FloatingPointError."""
        return self._wrapped["decode"](latent)

    def encode(self, image: Tensor) -> Tensor:
        """The model's, in the tiles of the settings."""
        return self._wrapped["encode"](image)

    def _decode(self, latent: Tensor) -> Tensor:
        images = self._in_tiles(self.model.decode, latent, decode=True)
        if not torch.isfinite(images).all():
            raise FloatingPointError("decoding gave values that are not numbers")
        return images

    def _encode(self, image: Tensor) -> Tensor:
        return self._in_tiles(self.model.encode, image, decode=False)

    def _in_tiles(self, function: Callable[[Tensor], Tensor], x: Tensor, decode: bool) -> Tensor:
        model = self.model
        if model.vae is None:
            return function(x)
        tiled = partial(
            vae_tiled,
            function,
            vae=model.vae,
            pixels=self._tile,
            factor=model.factor,
            decode=decode,
        )
        return frame_by_frame(tiled)(x)


class Generation:
    """Samples the images of one run once through, and reports to the run's record."""

    def __init__(self, run: Run, on_step: OnStep) -> None:
        self._run, self._on_step = run, on_step
        request = run.request
        warn_of_syntax(request.prompt)
        warn_of_syntax(request.negative)
        conditioning = run.model.encode_prompts(
            [request.prompt] * request.batch, [request.negative] * request.batch
        )
        self._prompted: Callable[..., Denoiser] = partial(
            ClassifierFreeGuidance, conditioning=conditioning, scale=request.cfg
        )
        self._upsampler = None
        if run.upsampler is not None:
            weights = copy.deepcopy(run.upsampler.weights)
            self._upsampler = weights.to(run.model.device, run.model.dtype)

    def first_image(self) -> Tensor:
        """The latent (b, c, h, w), or of clips (b, c, f, h, w), sampled from pure noise."""
        run, factor = self._run, self._run.model.factor
        if run.model.motion:
            set_context(run.model.unet, run.context, run.frames)
        sigmas, reduction = run.first_sigmas(), run.reduction(run.first)
        sources = generators(run.request.seeds, frames=run.frames)
        height, width = run.first
        shape = run.model.latent_channels, height // factor, width // factor
        noise = self._drawn(sources, shape)
        if run.model.motion and run.request.clip_noise == TURNING:
            to_one = reduction.frames_to_one if reduction else 1
            noise = turned(noise, run.model.motion.frames, to_one)
        noise = noise.to(sigmas)
        state = run.rules.start(noise, sigmas[0])
        schedule = run.first_schedule()
        return self._sample(state, sources, sigmas, schedule=schedule, reduction=reduction)

    def denoise_stage(self, latent: Tensor, stage: Stage, before: Tensor) -> Tensor:
        """The upsampled latent (b, c, h, w), renoised as the stage says and denoised.

        before: the smaller latent, which the stage before finished.
        """
        run, sigmas = self._run, self._run.stage_sigmas(stage)
        sources = generators(run.request.seeds, stage.number, run.frames)
        shape = latent.shape[1], latent.shape[-2], latent.shape[-1]
        noisy = latent + sigmas[0] * self._drawn(sources, shape).to(latent)
        reduction = run.reduction(stage.size, stage.number)
        with self._upsampled(before, (latent.shape[-2], latent.shape[-1])):
            return self._sample(
                noisy,
                sources,
                sigmas,
                schedule=run.sigmas_of_stages,
                reduction=reduction,
                stage=stage.number,
            )

    def _drawn(self, sources: Sequence[torch.Generator], shape: tuple[int, int, int]) -> Tensor:
        """Each image's noise from its source, or each frame's."""
        noise = draw(sources, shape)
        return as_clips(noise, self._run.frames) if self._run.model.motion else noise

    def _upsampled(self, clean: Tensor, size: Size) -> AbstractContextManager[None]:
        """A scope in which the model has a clean latent's features in calls of latent `size`."""
        upsampler, unet = self._upsampler, self._run.model.unet
        small = clean.shape[-2], clean.shape[-1]
        if upsampler is None or not upsampler.info.fits(small, size):
            return nullcontext()
        with captured(unet, upsampler.info.layers) as features:
            denoise = self._prompted(self._counted(self._run.denoiser))
            denoise(clean, clean.new_zeros(len(clean)))
        return Upsampled(unet, upsampler, features, size)

    def _sample(
        self,
        x: Tensor,
        sources: Sequence[torch.Generator],
        sigmas: Tensor,
        *,
        schedule: Tensor,
        reduction: Reduction | None,
        stage: int = 0,
    ) -> Tensor:
        """Sample one stage down `sigmas`, a part of the whole `schedule`."""
        run, settings = self._run, self._run.settings
        size = run.stages[stage - 1].size if stage else run.first
        as_it_is = self._in_context(run.denoiser)
        denoise: Denoiser = run.detail.sharper(as_it_is, run.family)
        record = run.record.current
        if reduction is not None:
            denoise = UpsampleGuided(
                denoise,
                settings.ug,
                predict_native=as_it_is,
                family=self._run.family,
                reduction=reduction.to(x.device),
                times=schedule.tolist(),
                on_guided=record.guide,
            )
        steps, levels = len(sigmas) - 1, sigmas.tolist()

        def mix(state: Tensor, done: int) -> None:
            if done:
                gamma = self._run.gamma(done, steps)
                record.mixed_steps += gamma > 0
                mix_into_state_(state, gamma, settings.pfsa, levels[done])

        def after_step(step: int, denoised: Tensor) -> None:
            record.finish_step()
            self._on_step(stage, step, steps, denoised)

        with attention_in_windows(run.model.unet, run.detail.windows(size, stage)):
            return sample(
                self._prompted(self._counted(denoise), split=run.detail.split(size)),
                x,
                sigmas,
                SAMPLERS[run.request.sampler],
                sources=sources,
                state_hook=mix if settings.pfsa.enabled and stage == 0 else None,
                on_step=after_step,
            )

    def _counted(self, denoise: Denoiser) -> Denoiser:
        """`denoise`, reporting its evaluations to the record."""

        def evaluate(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
            self._run.record.current.begin_evaluation()
            return denoise(x, sigma, **cond)

        return evaluate

    def _in_context(self, denoise: Denoiser) -> Denoiser:
        """`denoise` with the motion module's context set for the frames of each evaluation."""
        model, context = self._run.model, self._run.context
        if context is None:
            return denoise

        def evaluate(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
            set_context(model.unet, context, x.shape[2])
            return denoise(x, sigma, **cond)

        return evaluate


def _nothing_to_guide(settings: Settings, first: Size, frames: int, model: LatentModel) -> str:
    """Why Upsample Guidance has nothing to do in the first image."""
    native = model.native
    if model.motion:
        return (
            f"ug: {not_above(first, native)}, and {frames} frames are not clearly above the motion "
            f"module's native {model.motion.frames}, or --ug-frames is 1; so there is nothing to "
            "guide"
        )
    reason = why_unguided(first, native, settings.ug.scale)
    if reason != not_above(first, native):
        return f"ug_scale: {reason}"
    return f"ug: {reason}, so there is nothing to guide"


def plan_model(model: LatentModel) -> Model:
    """What a plan must know of a model."""
    sigmas = sigmas_of(model.alphas_cumprod)
    frames = model.motion.frames if model.motion else 1
    sizes = model.native, model.factor, model.multiple
    return Model(sigmas, *sizes, model.latent_channels, native_frames=frames)


def clip_length(request: Request, motion: Motion | None) -> tuple[int, int | None]:
    """A request's frames, and the context that its windows of them have; None for all at once.

    An image has one frame; motion: None for a model of images. Raises SettingsError where the model
    makes no such clip.
    """
    if motion is None:
        if request.frames > 1:
            raise SettingsError("frames: a clip needs a motion module; name its file with --motion")
        return 1, None
    frames = request.frames or motion.frames
    if frames == 1:
        raise SettingsError("frames: expected at least 2 with a motion module, got 1")
    if request.context > motion.most:
        raise SettingsError(
            f"context: {motion.name} has positions for {motion.most} frames, got {request.context}"
        )
    least = min(motion.frames, frames)
    if 0 < request.context < least:
        raise SettingsError(
            f"context: expected at least {least} ({motion.name} has {motion.frames} native "
            f"frames), got {request.context}"
        )
    context = request.context or (motion.frames if frames > motion.most else 0)
    return frames, context if 0 < context < frames else None


def first_size(request: Request, settings: Settings, model: LatentModel | Model) -> Size:
    """The first image's (height, width) in pixels, rounded to what the model takes.

    Without a wish it has the native area, in the shape of refinement's target where that is given.
    With one side given the image is square. Raises SettingsError for a side that is too small.
    """
    if not request.width and not request.height:
        wanted = model.native
        refine = settings.refine
        if refine.enabled and refine.height and refine.width:
            wanted = refine.height, refine.width
        return native_size(wanted, model.native, model.multiple)
    size = request.height or request.width, request.width or request.height
    if min(size) < model.multiple:
        raise SettingsError(
            f"width, height: expected at least {model.multiple}, got {size[1]}x{size[0]}"
        )
    return snap(size[0], model.multiple), snap(size[1], model.multiple)
