"""What happens at each moment of a host's run. Nothing is kept between them but what is on `p`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from modules import sd_unet
from modules.processing import StableDiffusionProcessingImg2Img
from torch import Tensor

from lib_hires.run.passes import Kind, guides, idle_reason
from lib_hires.settings import Settings, SettingsError
from lib_hires.sizes import Size
from lib_hires.webui.hosts.model import ModelSizes, chosen_native, is_supported
from lib_hires.webui.hosts.protocol import FACTOR
from lib_hires.webui.messages import warner_of
from lib_hires.webui.patching import Once
from lib_hires.webui.refining.kept import forget_kept, show_kept
from lib_hires.webui.refining.refine import announce_stages, refine_samples
from lib_hires.webui.sampling.controlnet import active_controlnet
from lib_hires.webui.sampling.guidance import Guidance, guided
from lib_hires.webui.sampling.recording import begin_record, record_of, show_record, taking
from lib_hires.webui.surfaces import infotext
from lib_hires.webui.surfaces.arguments import keep_settings, kept_settings, read_arguments


def begin(p: Any, arguments: Sequence[object]) -> None:
    """Check the arguments once, tell the user what is wrong with them, and write the PNG info."""
    forget_kept(p)
    begin_record(p)
    try:
        settings = read_arguments(arguments, p)
    except SettingsError as error:
        keep_settings(p, Settings())
        infotext.write(Settings(), p.extra_generation_params)
        warner_of(p)(f"the image was made without it. {error}.")
        return
    keep_settings(p, settings)
    infotext.write(settings, p.extra_generation_params, chosen_native())


def before_sampling(p: Any) -> None:
    """Make the sampling that follows, the first pass or that of Hires. fix, a guided one."""
    settings, warn = _settings_for_model(p), warner_of(p)
    if not any((settings.ug.enabled, settings.pfsa.enabled, settings.refine.enabled)):
        return
    kind = kind_of(p)
    sizes, controlnet = ModelSizes.of(p.sd_model), active_controlnet(p)
    guidance = Guidance(settings, sizes, kind, warn, record_of(p), controlnet)
    if p.iteration == 0 and kind != "hires":
        announce_stages(p, settings, warn)
        _warn_if_idle(p, guidance)

    @contextmanager
    def scope(_p: Any, x: Tensor, *args: Any, **kwargs: Any) -> Iterator[None]:
        size = x.shape[-2] * FACTOR, x.shape[-1] * FACTOR
        with taking(p, kind, size), guided(p.sampler, x, guidance):
            yield

    Once(p.sampler, "sample" if kind == "text" else "sample_img2img", scope)


def after_sampling(p: Any, samples: Any) -> Any:
    """The samples that the host goes on with."""
    return refine_samples(p, samples, _settings_for_model(p), warner_of(p))


def end(p: Any, processed: Any) -> None:
    """Add what was kept on the way to the run's images, and say what happened."""
    show_kept(p, processed)
    show_record(p, processed)


def _settings_for_model(p: Any) -> Settings:
    """The run's settings without what cannot work with this model; the user is told of it."""
    settings, warn = kept_settings(p), warner_of(p)
    ug, refine = settings.ug, settings.refine
    if not (ug.enabled or settings.pfsa.enabled or refine.enabled):
        return settings
    if not is_supported(p.sd_model):
        warn("the image was made without it, because it does not work with this model yet.")
        return Settings()
    if sd_unet.current_unet is not None and (ug.enabled or refine.enabled):
        warn(
            "Upsample Guidance and Progressive Refinement were left out, because the SD Unet "
            f'"{sd_unet.current_unet.option.label}" is made for certain sizes; set SD Unet to None.'
        )
        ug, refine = replace(ug, enabled=False), replace(refine, enabled=False)
    return replace(settings, ug=ug, refine=refine)


def _warn_if_idle(p: Any, guidance: Guidance) -> None:
    """Upsample Guidance alone, with nothing to do in any pass of the run, says so."""
    settings, native = guidance.settings, guidance.sizes.native
    if not settings.ug.enabled or settings.ug.theta == 0 or settings.refine.enabled:
        return
    passes = {kind: size for kind, size in passes_of(p).items() if guides(settings, kind)}
    for kind, (height, width) in passes.items():
        latent = height // FACTOR, width // FACTOR
        if replace(guidance, kind=kind).reduction(latent) is not None:
            return
    reason = idle_reason(settings.ug.passes, passes.values(), (native, native))
    guidance.warn(f"Upsample Guidance had nothing to do, because {reason}.")


def kind_of(p: Any) -> Kind:
    """The pass that comes next."""
    if getattr(p, "is_hr_pass", False):
        return "hires"
    return "image" if isinstance(p, StableDiffusionProcessingImg2Img) else "text"


def passes_of(p: Any) -> dict[Kind, Size]:
    """All passes of a run and their (height, width) in pixels; refinement's stages come after."""
    first: dict[Kind, Size] = {"text" if kind_of(p) == "hires" else kind_of(p): (p.height, p.width)}
    if getattr(p, "enable_hr", False):
        first["hires"] = p.hr_upscale_to_y, p.hr_upscale_to_x
    return first
