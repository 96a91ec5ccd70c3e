"""Clips of sd-webui-animatediff, known by what that extension keeps for the run it has prepared."""

from __future__ import annotations

import sys

EXTENSION = "scripts.animatediff_mm"
"""Its module of the motion module's state, as the extension itself imports it."""

LEFT_OUT = (
    "the clip was made without it, because AnimateDiff's clips are not guided or refined in the "
    "WebUI yet; `hires generate --motion` does."
)


def makes_clip() -> bool:
    """Whether the extension makes a clip of the run that begins."""
    state = getattr(sys.modules.get(EXTENSION), "mm_animatediff", None)
    return bool(getattr(getattr(state, "ad_params", None), "enable", False))
