"""The passes of a run, and the techniques that act in each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from lib_hires.settings import Settings, UpsampleGuidance
from lib_hires.sizes import Size, small_frames, small_size, why_unguided

Kind = Literal["text", "image", "hires", "stage"]
"""From noise, from an image (img2img), the second pass of Hires. fix, or a refinement stage."""

_NAMES: dict[Kind, str] = {"text": "first pass", "image": "img2img", "hires": "Hires. fix"}

CHOSEN: dict[str, tuple[Kind, ...]] = {
    "first pass": ("text",),
    "Hires. fix": ("hires",),
    "both": ("text", "hires"),
    "img2img": ("image",),
}


def pass_name(kind: Kind, number: int = 0) -> str:
    """A pass's name in messages; number: of a stage."""
    return _NAMES.get(kind, f"stage {number}")


def is_chosen(
    choice: str, kind: Kind, automatic: tuple[Kind, ...] = ("text", "image", "hires")
) -> bool:
    """Whether the control's `choice` names this pass; automatic: what "automatic" stands for."""
    return kind in CHOSEN.get(choice, automatic)


def guides(settings: Settings, kind: Kind) -> bool:
    """Whether Upsample Guidance acts in a pass, if its image is large enough.

    A strength of 0 leaves nothing of it but its windows.
    """
    ug = settings.ug
    chosen = settings.refine.guided if kind == "stage" else is_chosen(ug.passes, kind)
    return ug.enabled and chosen and (ug.theta > 0 or ug.evaluates_windows)


def guided_at(
    settings: Settings, kind: Kind, size: Size, *, native: Size, multiple: int
) -> Size | None:
    """The size of a pass's native evaluations; None where it is not guided.

    All sizes (height, width), and `multiple`, in latent positions.
    """
    if not guides(settings, kind):
        return None
    return small_size(size, native, settings.ug.scale, multiple)


def clip_guided_at(
    settings: Settings,
    kind: Kind,
    size: Size,
    frames: int,
    *,
    native: Size,
    native_frames: int,
    multiple: int,
) -> tuple[int, Size] | None:
    """The frames and the size of a pass's native evaluations; None where it is not guided.

    As `guided_at`, in time as well as in space; an image is a clip of one frame.
    """
    if not guides(settings, kind):
        return None
    small = small_size(size, native, settings.ug.scale, multiple) or size
    few = small_frames(frames, native_frames, settings.ug.frames)
    return None if (few, small) == (frames, size) else (few, small)


def in_windows(settings: Settings, kind: Kind) -> bool:
    """Whether a guided pass evaluates its large images in windows."""
    return guides(settings, kind) and settings.ug.evaluates_windows


def attends_in_windows(settings: Settings, kind: Kind) -> bool:
    """Whether self-attention alone sees windows of the large images of a guided pass."""
    return guides(settings, kind) and settings.ug.windows == "attention"


def mixes(settings: Settings, kind: Kind) -> bool:
    """Whether Attentive Guidance acts in a pass; later passes keep its effect."""
    pfsa = settings.pfsa
    chosen = is_chosen(pfsa.passes, kind, automatic=("text", "image"))
    return pfsa.enabled and pfsa.gamma > 0 and chosen


def idle_reason(ug: UpsampleGuidance, sizes: Collection[Size], native: Size) -> str:
    """Why Upsample Guidance guides nothing although it is on.

    sizes: of the run's passes that its control names, in pixels.
    """
    if not sizes:
        return f'the run has no pass that is "{ug.passes}"'
    return why_unguided(max(sizes), native, ug.scale)
