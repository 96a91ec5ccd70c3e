"""What happens at each moment of a host's run. Nothing is kept between them but what is on `p`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules.processing import StableDiffusionProcessingImg2Img
from torch import Tensor

from lib_hires.settings import Settings, SettingsError
from lib_hires.webui import infotext
from lib_hires.webui.arguments import read_arguments, settings_or_off
from lib_hires.webui.guided_sampling import Guidance, Kind, guided
from lib_hires.webui.messages import say_to
from lib_hires.webui.model import FACTOR, ModelSizes, chosen_native, is_supported
from lib_hires.webui.patching import Once
from lib_hires.webui.stages import announce_stages, refine_samples


def begin(p: Any, arguments: Sequence[object]) -> None:
    """Check the arguments once, tell the user what is wrong with them, and write the PNG info."""
    try:
        settings = read_arguments(arguments, p)
    except SettingsError as error:
        infotext.write(Settings(), p.extra_generation_params)
        say_to(p)(f"the picture was made without it. {error}.")
        return
    infotext.write(settings, p.extra_generation_params, chosen_native())


def before_sampling(p: Any, arguments: Sequence[object]) -> None:
    """Make the sampling that follows, the first pass or that of Hires. fix, a guided one."""
    settings = settings_or_off(arguments, p)
    if not any((settings.ug.enabled, settings.pfsa.enabled, settings.refine.enabled)):
        return
    say = say_to(p)
    if not is_supported(p.sd_model):
        say("the picture was made without it, because it does not work with this model yet.")
        return
    kind = _kind(p)
    if p.iteration == 0 and kind != "hires":
        announce_stages(p, settings)
    guidance = Guidance(settings, ModelSizes.of(p.sd_model), kind, say)

    def scope(_p: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not getattr(p, "enable_hr", False):  # there one of the two passes has what to do
            _say_if_idle(guidance, x)
        return guided(p.sampler, x, guidance)

    Once(p.sampler, "sample" if kind == "text" else "sample_img2img", scope)


def after_sampling(p: Any, samples: Any, arguments: Sequence[object]) -> Any:
    """The samples that the host goes on with."""
    settings = settings_or_off(arguments, p)
    if not is_supported(p.sd_model):
        return samples
    return refine_samples(p, samples, settings, say_to(p))


def _kind(p: Any) -> Kind:
    if getattr(p, "is_hr_pass", False):
        return "hires"
    return "image" if isinstance(p, StableDiffusionProcessingImg2Img) else "text"


def _say_if_idle(guidance: Guidance, x: Tensor) -> None:
    """Upsample Guidance alone, at a size that gives it nothing to do, says so."""
    settings = guidance.settings
    idle = settings.ug.enabled and settings.ug.theta > 0 and not settings.refine.enabled
    if not idle or guidance.reduction(tuple(x.shape[-2:])) is not None:
        return
    width, height = x.shape[-1] * FACTOR, x.shape[-2] * FACTOR
    native = guidance.sizes.native
    guidance.say(
        f"Upsample Guidance had nothing to do, because {width}x{height} is not clearly above the "
        f"model's native {native}x{native}."
    )
