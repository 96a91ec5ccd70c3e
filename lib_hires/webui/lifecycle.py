"""What happens at each moment of a host's run. Nothing is kept between them but what is on `p`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from modules import sd_unet
from modules.processing import StableDiffusionProcessingImg2Img
from torch import Tensor

from lib_hires.run.passes import Kind, guides, idle_reason
from lib_hires.settings import NOTHING, Settings, SettingsError
from lib_hires.sizes import Size
from lib_hires.webui import animatediff
from lib_hires.webui.callers import caller_of_run
from lib_hires.webui.hosts import host_of
from lib_hires.webui.hosts.model import is_supported
from lib_hires.webui.hosts.protocol import FACTOR
from lib_hires.webui.messages import warn_failed
from lib_hires.webui.patching import Once
from lib_hires.webui.refining.kept import show_kept
from lib_hires.webui.refining.refine import prepare_stages, refine_samples
from lib_hires.webui.run_state import HostRun, RunState
from lib_hires.webui.sampling.controlnet import controlnet_of
from lib_hires.webui.sampling.guidance import Guidance, guided
from lib_hires.webui.sampling.recording import new_record, show_record, taking
from lib_hires.webui.surfaces import infotext
from lib_hires.webui.surfaces.arguments import read_run
from lib_hires.webui.surfaces.host_options import NATIVE, SMALLEST

ALL = "ug", "pfsa", "refine"


def begin(p: Any, arguments: Sequence[object]) -> None:
    """Check the arguments once, warn of what is wrong with them, and write the PNG info."""
    run = HostRun.begin(p, RunState(new_record(), caller=caller_of_run()))
    try:
        run.state.settings, run.state.upsampler = read_run(arguments, p)
    except SettingsError as error:
        infotext.write(Settings(), p.extra_generation_params)
        run.warn(f"the image was made without it. {error}.")
        return
    infotext.write(run.settings, p.extra_generation_params)


def before_sampling(p: Any) -> None:
    """Make the sampling that follows, the first pass or that of Hires. fix, a guided one.

    An error here leaves a run that has just begun as it is without us, a later pass unguided, and
    a message.
    """
    run = HostRun.of(p)
    if not _is_on(run.settings):
        return
    try:
        _prepare(run, kind_of(p))
    except Exception as error:
        begun = bool(run.state.acted)  # then the PNG info is true of the passes before
        warn = run.leaving_out("ug") if begun else partial(run.turn_off, ALL)
        warn_failed(warn, "HiRes Guidance", error)


def _prepare(run: HostRun, kind: Kind) -> None:
    p = run.p
    if run.state.size is None:
        run.state.size = list(passes_of(p).values())[-1]
        if NATIVE.is_refused():
            run.warn(
                "the model's own native size was taken: expected one in pixels of at least "
                f"{SMALLEST}, got {NATIVE.wanted!r:.40}."
            )
        _turn_off_unsupported(run)
        _fit_to_clip(run)
        prepare_stages(run)
        _warn_if_idle(run, Guidance.of(run, kind))
        run.keep_messages()
    run.begin_batch(p.iteration)
    if not _is_on(run.settings):
        return
    guidance = Guidance.of(run, kind)

    @contextmanager
    def scope(_p: Any, x: Tensor, *args: Any, **kwargs: Any) -> Iterator[None]:
        size = x.shape[-2] * FACTOR, x.shape[-1] * FACTOR
        with taking(run.record, kind, size), guided(p.sampler, x, guidance):
            yield

    Once(p.sampler, "sample" if kind == "text" else "sample_img2img", scope)


def after_sampling(p: Any, samples: Any) -> Any:
    """The samples that the host goes on with."""
    run = HostRun.of(p)
    if _is_on(run.settings) and run.state.size is None:
        run.turn_off(
            ALL, "the image was made without it, because another extension samples for the WebUI."
        )
    refined = refine_samples(run, samples)
    run.describe()
    return refined


def end(p: Any, processed: Any) -> None:
    """Add what was kept on the way to the run's images, and show what happened."""
    run = HostRun.of(p)
    show_kept(run, processed)
    show_record(run.record, processed)


def _is_on(settings: Settings) -> bool:
    return settings.ug.enabled or settings.pfsa.enabled or settings.refine.enabled


def _turn_off_unsupported(run: HostRun) -> None:
    """Leave out what cannot work with the model that is loaded."""
    if animatediff.makes_clip() and (reason := _reason_to_leave_clip(run)):
        run.turn_off(ALL, f"the clip was made without it, because {reason}.")
    elif not is_supported(run.p.sd_model):
        run.turn_off(
            ALL, "the image was made without it, because it does not work with this model yet."
        )
    elif sd_unet.current_unet is not None and (
        run.settings.ug.enabled or run.settings.refine.enabled
    ):
        name = sd_unet.current_unet.option.label
        run.turn_off(
            ["ug", "refine"],
            "Upsample Guidance and Progressive Refinement were left out, because the SD Unet "
            f'"{name}" is made for certain sizes; set SD Unet to None.',
        )


def _reason_to_leave_clip(run: HostRun) -> str:
    """Why AnimateDiff's clip must be made as without us, "" where it need not."""
    if not host_of(run.p.sd_model).guides_clips(run.p.sd_model):
        return "AnimateDiff's clips are guided and refined in the AUTOMATIC1111 WebUI alone"
    if animatediff.clip_of(run.p) is None:
        return animatediff.OF_ANOTHER_RUN
    if controlnet_of(run) is not None:
        return "ControlNet's units do not know the frames of AnimateDiff's native evaluations"
    return ""


def _fit_to_clip(run: HostRun) -> None:
    """Leave out what works with images, but not with the clip that AnimateDiff makes."""
    clip, settings = animatediff.clip_of(run.p), run.settings
    if clip is None or not _is_on(settings):
        return
    if settings.ug.enabled and settings.ug.frames > 1 and not clip.is_seen_whole:
        run.warn(
            "the clip was guided in space alone, because AnimateDiff's context batch size is "
            f"{clip.context} and its clip has {clip.frames} frames; set both alike."
        )
    if settings.refine.enabled and settings.refine.upsampler != NOTHING:
        run.state.upsampler = None
        run.turn_off(
            ["refine_upsampler"],
            "the feature upsampler was left out, because it was not made for clips.",
        )
    if settings.refine.enabled and settings.refine.keep_stages:
        run.turn_off(
            ["refine_keep_stages"],
            "the stages before the last were not kept, because AnimateDiff makes one clip of all "
            "images of a run.",
        )


def _warn_if_idle(run: HostRun, guidance: Guidance) -> None:
    """Where Upsample Guidance alone is on, and has nothing to do in any pass of the run."""
    settings, native = guidance.settings, guidance.sizes.native
    if not settings.ug.enabled or settings.ug.theta == 0 or settings.refine.enabled:
        return
    passes = {kind: size for kind, size in passes_of(run.p).items() if guides(settings, kind)}
    for kind, (height, width) in passes.items():
        latent = height // FACTOR, width // FACTOR
        if replace(guidance, kind=kind).reduction(latent) is not None:
            return
    reason = idle_reason(settings.ug, passes.values(), (native, native))
    run.leaving_out("ug")(f"Upsample Guidance had nothing to do, because {reason}.")


def kind_of(p: Any) -> Kind:
    """The pass that comes next."""
    if getattr(p, "is_hr_pass", False):
        return "hires"
    return "image" if isinstance(p, StableDiffusionProcessingImg2Img) else "text"


def passes_of(p: Any) -> dict[Kind, Size]:
    """All passes of a run and their (height, width) in pixels; refinement's stages come after."""
    first: dict[Kind, Size] = {
        "text" if kind_of(p) == "hires" else kind_of(p): _sampled(p.height, p.width)
    }
    if getattr(p, "enable_hr", False):
        if getattr(p, "firstpass_image", None) is not None:  # an image of the gallery is upscaled
            first = {}
        height = p.hr_upscale_to_y - getattr(p, "truncate_y", 0) * FACTOR
        width = p.hr_upscale_to_x - getattr(p, "truncate_x", 0) * FACTOR
        first["hires"] = _sampled(height, width)
    return first


def _sampled(height: int, width: int) -> Size:
    """As the host rounds it."""
    return height // FACTOR * FACTOR, width // FACTOR * FACTOR
