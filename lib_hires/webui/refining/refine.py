"""Progressive Refinement after sampling: what is finished survives whatever happens later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from modules import devices, shared
from torch import Tensor

from lib_hires.devices import is_out_of_memory
from lib_hires.feature_upsampler import UpsamplerError
from lib_hires.refinement import Stage, plan, refine
from lib_hires.run.passes import in_windows
from lib_hires.settings import Settings, SettingsError
from lib_hires.sizes import Size, shown
from lib_hires.upsampler_file import NamedUpsampler
from lib_hires.webui.hosts import host_of
from lib_hires.webui.hosts.model import ModelSizes
from lib_hires.webui.hosts.protocol import FACTOR
from lib_hires.webui.messages import Warn
from lib_hires.webui.refining.features import SmallImage
from lib_hires.webui.refining.kept import Kept, keep, save_stage
from lib_hires.webui.refining.stage import Stopped, sample_stage
from lib_hires.webui.refining.vae import HostVae
from lib_hires.webui.sampling.controlnet import active_controlnet
from lib_hires.webui.sampling.guidance import Guidance, reason_for_whole
from lib_hires.webui.sampling.recording import record_of, taking
from lib_hires.webui.surfaces.user_files import find_upsampler, model_family

log = logging.getLogger("hires_guidance")


def stages_of(p: Any, settings: Settings, first: Size) -> tuple[Stage, ...]:
    """The stages from an image of (height, width) pixels; none where refinement is off.

    Raises SettingsError where this run cannot be refined.
    """
    if not settings.refine.enabled:
        return ()
    if getattr(p, "image_mask", None) is not None:
        raise SettingsError("refine: an inpainted image keeps the size of its mask")
    sizes = ModelSizes.of(p.sd_model)
    return plan(settings.refine, first, multiple=sizes.multiple, factor=sizes.step)


def announce_stages(p: Any, settings: Settings, warn: Warn) -> None:
    """Before the first sampling: count the stages in the host's progress bar, and say what of them
    will be left out."""
    hires = getattr(p, "enable_hr", False)
    first = (p.hr_upscale_to_y, p.hr_upscale_to_x) if hires else (p.height, p.width)
    with suppress(SettingsError):  # said when it comes to refining
        stages = stages_of(p, settings, first)
        shared.state.job_count += p.n_iter * len(stages)
        usable_upsampler(p, settings, first, stages, warn)


def usable_upsampler(
    p: Any, settings: Settings, first: Size, stages: Sequence[Stage], warn: Warn
) -> NamedUpsampler | None:
    """The feature upsampler that the settings name; None, and a sentence, where it is of no use."""
    if not stages:
        return None
    sd_model = p.sd_model
    try:
        upsampler = find_upsampler(settings.refine.upsampler)
        if upsampler is not None:
            sizes = [first, *(stage.size for stage in stages)]
            unet = host_of(sd_model).unet(sd_model)
            whole = reason_for_whole(sd_model, active_controlnet(p))
            windows = not whole and in_windows(settings, "stage")
            upsampler.check(model_family(sd_model), unet, sizes, windows)
    except (SettingsError, UpsamplerError) as error:
        warn(f"the feature upsampler was left out. {error}.")
        return None
    return upsampler


def refine_samples(p: Any, samples: Any, settings: Settings, warn: Warn) -> Any:
    """The refined samples: latents, or decoded images. `samples` come back where nothing is done.

    samples: latents (b, 4, h, w), or after Hires. fix a list of images (3, H, W) in [-1, 1].
    """
    state = shared.state
    if not settings.refine.enabled or state.interrupted or state.skipped:
        return samples
    try:
        stages = stages_of(p, settings, _pixels(samples))
    except SettingsError as error:
        warn(f"the image was not refined. {error}.")
        return samples
    vae = HostVae(p.sd_model, settings.refine.tile, warn)
    latents = _latents(p, samples, stages, settings, vae, warn)
    kept: list[list[Kept]] = []

    def keep_stage(number: int, latent: Tensor) -> None:
        if settings.refine.keep_stages and number < len(stages):
            kept.append(_saved(p, vae.decode(latent), number, len(stages), warn))

    job, text = state.job, state.textinfo
    try:
        latent, done = _last(latents, len(stages), keep_stage, warn)
    finally:
        state.job, state.textinfo = job, text
    keep(p, chain.from_iterable(kept[:done]))  # the last one is the result
    return vae.finished(latent) if done else samples


def _latents(
    p: Any, samples: Any, stages: Sequence[Stage], settings: Settings, vae: HostVae, warn: Warn
) -> Iterator[Tensor]:
    """The latent of the first image, then that of each stage as soon as it is finished."""
    sizes, controlnet = ModelSizes.of(p.sd_model), active_controlnet(p)
    guidance = Guidance(settings, sizes, "stage", warn, record_of(p), controlnet)

    upsampler = usable_upsampler(p, settings, _pixels(samples), stages, warn)

    def denoise(enlarged: Tensor, stage: Stage, before: Tensor) -> Tensor:
        shared.state.nextjob()
        name = f"stage {stage.number} of {len(stages)}, {shown(stage.size)}"
        shared.state.job = f"HiRes Guidance: {name}"
        shared.state.textinfo = shared.state.job
        small = SmallImage.fitting(upsampler, before, enlarged)
        return sample_stage(p, enlarged.float(), stage, guidance, small)

    first = _latent_of(samples, vae)
    yield first
    results = refine(
        first,
        stages,
        decode=vae.decode,
        encode=vae.encode,
        denoise=denoise,
        factor=FACTOR,
        colour_match=settings.refine.colour_match,
    )
    for stage in stages:
        with taking(p, "stage", stage.size, stage.number):
            result = next(results)
        yield result.latent


def _last(
    latents: Iterator[Tensor], count: int, finish: Callable[[int, Tensor], None], warn: Warn
) -> tuple[Tensor | None, int]:
    """The latent of the last stage that was finished, and its number, 0 for the first image.

    finish: called with the number and the latent of each. A sentence is said if stages are missing.
    """
    last, done = None, 0
    try:
        for number, latent in enumerate(latents):
            last, done = latent, number
            finish(number, latent)
    except Stopped:
        warn(f"stopped; this is the image after {_stages_done(done, count)}.")
    except Exception as error:
        log.exception("Progressive Refinement failed")
        devices.torch_gc()
        warn(
            f"refinement stage {done + 1} failed ({type(error).__name__}: {error}); this is the "
            f"image after {_stages_done(done, count)}. {_remedy(error)}"
        )
    return last, done


def _saved(p: Any, images: Tensor, number: int, count: int, warn: Warn) -> list[Kept]:
    """The images (b, 3, H, W) of a stage; none, and a sentence, where saving fails."""
    try:
        return save_stage(p, images, number, count)
    except Exception as error:
        log.exception("A stage's image was not kept")
        name = _stages_done(number, count)
        warn(f"the image after {name} was not kept ({type(error).__name__}: {error}).")
        return []


def _latent_of(samples: Any, vae: HostVae) -> Tensor:
    """The first image's latent; after Hires. fix the host has kept the images alone."""
    if not getattr(samples, "already_decoded", False):
        return samples
    images = torch.stack(list(samples)).to(shared.device).float().clamp(-1, 1)
    latent = vae.encode(images).float()
    vae.remember(latent, images)
    return latent


def _stages_done(number: int, count: int) -> str:
    return f"stage {number} of {count}" if number else "the first pass"


def _remedy(error: Exception) -> str:
    if is_out_of_memory(error):
        return 'Set "Decode in tiles of" to 512, or lower "Enlarge by".'
    if isinstance(error, FloatingPointError):
        return 'Lower "Strengths", or start the WebUI with --no-half.'
    return "The log has the details."


def _pixels(samples: Any) -> Size:
    scale = 1 if getattr(samples, "already_decoded", False) else FACTOR
    return samples[0].shape[-2] * scale, samples[0].shape[-1] * scale
