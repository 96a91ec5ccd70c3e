"""Clips of sd-webui-animatediff, known by what that extension keeps for the run it has prepared.

Its frames are the host's batch. While the host samples it stands in the place of the inner
denoiser's `forward` and calls that with whole contexts; its motion module takes the number of
frames of a call from the extension's parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lib_hires.webui.patching import replaced

EXTENSION = "scripts.animatediff_mm"
"""Its module of the motion module's state, as the extension itself imports it."""

LENGTH, CONTEXT = "video_length", "batch_size"
"""What its parameters call a clip's frames, and those that the motion module sees together."""

HOTSHOT_NATIVE, NATIVE = 8, 16
"""Frames of the clips that HotShot-XL was trained with, and that the other modules were."""

OF_ANOTHER_RUN = "it is made inside AnimateDiff's run, or by a version of it that is not known"
WHOLE = "AnimateDiff's clips are evaluated whole"
"""Why their frames are not evaluated in windows."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip that the extension makes of a run: `frames` of it, of which the motion module sees
    `context` together and was trained with `native`."""

    parameters: Any  # the extension's
    frames: int
    context: int
    native: int

    @property
    def is_seen_whole(self) -> bool:
        """Whether the motion module sees all frames together."""
        return self.frames == self.context

    @contextmanager
    def of_frames(self, frames: int) -> Iterator[None]:
        """Inside the block the model is evaluated for a clip of so many frames, all together."""
        with ExitStack() as stack:
            for name in (LENGTH, CONTEXT):
                stack.enter_context(replaced(self.parameters, name, frames))
            yield


def makes_clip() -> bool:
    """Whether the extension makes a clip of the run that begins."""
    return bool(getattr(getattr(_state(), "ad_params", None), "enable", False))


def clip_of(p: Any) -> Clip | None:
    """The clip that the extension makes of the host's run `p`; None where it makes none of it, or
    keeps its state in another way than the known versions."""
    state = _state()
    parameters = getattr(state, "ad_params", None)
    found = [getattr(parameters, name, None) for name in (LENGTH, CONTEXT)]
    if not (makes_clip() and getattr(state, "mm_injected", False)):
        return None
    frames, context = (number if isinstance(number, int) else 0 for number in found)
    if min(frames, context) < 1 or p.batch_size != max(frames, context):
        return None
    hotshot = getattr(getattr(state, "mm", None), "is_hotshot", False)
    return Clip(parameters, frames, context, HOTSHOT_NATIVE if hotshot else NATIVE)


def _state() -> Any:
    return getattr(sys.modules.get(EXTENSION), "mm_animatediff", None)
