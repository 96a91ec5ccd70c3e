"""Progressive Refinement after sampling: what is finished survives whatever happens later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from modules import devices, shared
from torch import Tensor

from lib_hires.devices import is_out_of_memory
from lib_hires.feature_upsampler import UpsamplerError
from lib_hires.refinement import NotEncoded, Stage, enlargement_of, plan, refine
from lib_hires.run.passes import in_windows
from lib_hires.settings import Settings, SettingsError, label_of
from lib_hires.sizes import Size, shown
from lib_hires.upsampler_file import NamedUpsampler
from lib_hires.webui.hosts import host_of
from lib_hires.webui.hosts.model import ModelSizes
from lib_hires.webui.hosts.protocol import FACTOR
from lib_hires.webui.messages import extension_of
from lib_hires.webui.refining.features import SmallImage
from lib_hires.webui.refining.kept import Kept, save_stage
from lib_hires.webui.refining.stage import Stopped, sample_stage
from lib_hires.webui.refining.upscaling import host_upscaler
from lib_hires.webui.refining.vae import HostVae
from lib_hires.webui.run_state import HostRun
from lib_hires.webui.sampling.controlnet import controlnet_of
from lib_hires.webui.sampling.guidance import Guidance, reason_for_whole
from lib_hires.webui.sampling.recording import taking
from lib_hires.webui.surfaces.user_files import model_family

log = logging.getLogger("hires_guidance")

TILERS = "MultiDiffusion", "MixtureOfDiffusers"
"""Classes of Tiled Diffusion's that put themselves around a sampler's inner denoiser."""


def stages_of(sd_model: Any, settings: Settings, first: Size) -> tuple[Stage, ...]:
    """The stages from an image of (height, width) pixels; none where refinement is off.

    Raises SettingsError where no stage leads to the size that the settings want.
    """
    if not settings.refine.enabled:
        return ()
    sizes = ModelSizes.of(sd_model)
    return plan(settings.refine, first, multiple=sizes.multiple, factor=sizes.step)


def prepare_stages(run: HostRun) -> None:
    """Before the first sampling: turn off what cannot be refined, and count the stages in the
    host's progress bar. run.state.size is known."""
    p, first = run.p, run.state.size
    assert first is not None
    reason = reason_not_to_refine(run) if run.settings.refine.enabled else ""
    if reason:
        run.turn_off(["refine"], f"the image was not refined, because {reason}.")
    try:
        stages = stages_of(p.sd_model, run.settings, first)
    except SettingsError as error:
        run.turn_off(["refine"], f"the image was not refined. {error}.")
        return
    shared.state.job_count += p.n_iter * len(stages)
    usable_upsampler(run, first, stages)
    if stages and is_tiled(p.sampler):
        run.warn(
            "Tiled Diffusion tiles the images of the size that was asked for; the refinement's "
            "stages are evaluated at full size. Upsample Guidance in windows saves their memory."
        )


def reason_not_to_refine(run: HostRun) -> str:
    """Why the run's images must keep their size, "" where they need not."""
    if getattr(run.p, "image_mask", None) is not None:
        return "an inpainted image keeps the size of its mask"
    sd_model = run.p.sd_model
    if host_of(sd_model).has_frames(sd_model):
        return "this model's latents have a time axis"
    if host_of(sd_model).sees_first_image(sd_model):
        return "this model receives the first image or its depth beside each latent"
    return run.state.caller.reason_to_keep_size()


def is_tiled(sampler: Any) -> bool:
    """Whether Tiled Diffusion evaluates what this sampler samples."""
    inner = sampler.model_wrap_cfg.inner_model
    owner = getattr(vars(inner).get("forward"), "__self__", None)
    return type(owner).__name__ in TILERS


def usable_upsampler(run: HostRun, first: Size, stages: Sequence[Stage]) -> NamedUpsampler | None:
    """The feature upsampler that the settings name; None, and a message, where it is of no use."""
    upsampler, sd_model = run.state.upsampler, run.p.sd_model
    if not stages or upsampler is None:
        return None
    sizes = [first, *(stage.size for stage in stages)]
    whole = reason_for_whole(sd_model, controlnet_of(run))
    windows = not whole and in_windows(run.settings, "stage")
    try:
        upsampler.check(model_family(sd_model), host_of(sd_model).unet(sd_model), sizes, windows)
    except UpsamplerError as error:
        run.state.upsampler = None
        run.turn_off(["refine_upsampler"], f"the feature upsampler was left out. {error}.")
        return None
    return upsampler


def refine_samples(run: HostRun, samples: Any) -> Any:
    """The refined samples: latents, or decoded images. `samples` come back where nothing is done.

    samples: latents (b, 4, h, w), or after Hires. fix a list of images (3, H, W) in [-1, 1].
    """
    state, settings, first = shared.state, run.settings, _pixels(samples)
    if not settings.refine.enabled or state.interrupted or state.skipped:
        return samples
    if first != run.state.size or len(samples) != len(run.p.seeds):
        run.leaving_out("refine")(
            "the image was not refined, because another extension has changed its size or its "
            "number; turn that extension off, or refinement."
        )
        return samples
    stages = stages_of(run.p.sd_model, settings, first)
    vae = HostVae(run.p.sd_model, settings.refine.tile, run.warn)
    latents = _latents(run, samples, stages, vae)
    kept: list[list[Kept]] = []

    def finish(number: int, latent: Tensor) -> None:
        if number == len(stages):
            vae.decode(latent)  # where a failure leaves the stage before
        elif settings.refine.keep_stages:
            kept.append(_saved(run, vae.decode(latent), number, len(stages)))

    job, text = state.job, state.textinfo
    try:
        latent, done = _last(run, latents, len(stages), finish)
    finally:
        state.job, state.textinfo = job, text
    run.state.kept.extend(chain.from_iterable(kept[:done]))  # the last one is the result
    if not done:
        return samples
    run.acting("refine")()
    refined = vae.finished(latent)
    run.p.extra_generation_params.update(vae.stated)
    return refined


def _latents(run: HostRun, samples: Any, stages: Sequence[Stage], vae: HostVae) -> Iterator[Tensor]:
    """The latent of the first image, then that of each stage as soon as it is finished."""
    settings = run.settings
    guidance = Guidance.of(run, "stage")
    upsampler = usable_upsampler(run, _pixels(samples), stages)

    def denoise(upsampled: Tensor, stage: Stage, before: Tensor) -> Tensor:
        shared.state.nextjob()
        name = f"stage {stage.number} of {len(stages)}, {shown(stage.size)}"
        shared.state.job = f"HiRes Guidance: {name}"
        shared.state.textinfo = shared.state.job
        small = SmallImage.fitting(upsampler, before, upsampled)
        return sample_stage(upsampled.float(), stage, guidance, small)

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
        upscale=host_upscaler(run.warn) if enlargement_of(settings.refine) == "pixel" else None,
    )
    for stage in stages:
        with taking(run.record, "stage", stage.size, stage.number):
            result = next(results)
        yield result.latent


def _last(
    run: HostRun, latents: Iterator[Tensor], count: int, finish: Callable[[int, Tensor], None]
) -> tuple[Tensor | None, int]:
    """The latent of the last stage that was finished, and its number, 0 for the first image.

    finish: called with the number and the latent of each. The user is warned if stages are missing.
    """
    last, done = None, 0
    try:
        for number, latent in enumerate(latents):
            finish(number, latent)
            last, done = latent, number
    except Stopped:
        run.warn(f"stopped; this is the image after {_stages_done(done, count)}.")
    except Exception as error:
        log.exception("Progressive Refinement failed")
        devices.torch_gc()
        run.leaving_out("refine")(
            f"refinement stage {done + 1} failed ({type(error).__name__}: {error}); this is the "
            f"image after {_stages_done(done, count)}. {_remedy(error)}"
        )
    return last, done


def _saved(run: HostRun, images: Tensor, number: int, count: int) -> list[Kept]:
    """The images (b, 3, H, W) of a stage; none, and a message, where saving fails."""
    try:
        return save_stage(run.p, images, number, count)
    except Exception as error:
        log.exception("A stage's image was not kept")
        name = _stages_done(number, count)
        run.warn(f"the image after {name} was not kept ({type(error).__name__}: {error}).")
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
        return f'Set "{label_of("refine_tile")}" to 512, or lower "{label_of("refine_factor")}".'
    if isinstance(error, NotEncoded):
        return "Start the WebUI with --no-half-vae, or take another VAE."
    if isinstance(error, FloatingPointError):
        return f'Lower "{label_of("refine_eta2")}", or start the WebUI with --no-half.'
    name = extension_of(error)
    if name:
        return (
            f'The error came from the extension "{name}", which may not be made for a second run '
            f'of fewer steps or another size: turn it off, or raise "{label_of("refine_eta2")}" so '
            "that a stage has more steps."
        )
    return "The log has the details."


def _pixels(samples: Any) -> Size:
    scale = 1 if getattr(samples, "already_decoded", False) else FACTOR
    return samples[0].shape[-2] * scale, samples[0].shape[-1] * scale
