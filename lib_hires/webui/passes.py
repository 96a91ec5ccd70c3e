"""The passes that a host's run consists of."""

from __future__ import annotations

from typing import Any

from modules.processing import StableDiffusionProcessingImg2Img

from lib_hires.passes import Kind
from lib_hires.sizes import Size


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
