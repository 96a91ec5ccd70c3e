"""HiRes Guidance on a diffusers pipeline: one line before it, one line to take it off."""

from __future__ import annotations

from lib_hires.diffusers.guidance import (
    HiresGuidance,
    apply_hires_guidance,
    remove_hires_guidance,
)
from lib_hires.diffusers.refining import RefinedStage, refine

__all__ = [
    "HiresGuidance",
    "RefinedStage",
    "apply_hires_guidance",
    "refine",
    "remove_hires_guidance",
]
