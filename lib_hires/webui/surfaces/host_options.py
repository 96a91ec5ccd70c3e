"""Options on the host's Settings page, which are no controls of the script."""

from __future__ import annotations

from modules import shared

from lib_hires.settings import NOTHING

UPSCALER = "hires_guidance_upscaler"


def upscalers() -> list[str]:
    """What Hires. fix offers beside its latent ones; NOTHING is bicubic upsampling here."""
    return [NOTHING, *(each.name for each in shared.sd_upscalers if each.name != NOTHING)]


def chosen_upscaler() -> str:
    """The upscaler that the user has set and the host has, "" for none."""
    name = getattr(shared.opts, UPSCALER, None) or NOTHING
    return "" if name == NOTHING or name not in upscalers() else name
