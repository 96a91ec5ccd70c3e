"""Options on the host's Settings page, which are no controls of the script, as one table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from modules import shared

from lib_hires.refinement import enlargement_of
from lib_hires.settings import NOTHING, Settings

SMALLEST = 8  # native size in pixels: one position of a latent


@dataclass(frozen=True)
class HostOption:
    """One of them, which stands in the PNG info where it acts and something is chosen."""

    name: str  # among the host's
    key: str  # in PNG info, behind our prefix
    default: int | str  # nothing is chosen
    usable: Callable[[Any], Any]  # of whatever is set, a value that can be used, or the default
    acts: Callable[[Settings], bool]  # whether the technique that it belongs to uses it

    @property
    def wanted(self) -> Any:
        """What is set; a request's own options may hold anything."""
        return getattr(shared.opts, self.name, self.default) or self.default

    def chosen(self) -> Any:
        """What is set and can be used, else the default."""
        return self.usable(self.wanted)

    def is_refused(self) -> bool:
        """Whether something is set that cannot be used."""
        return bool(self.wanted != self.default and self.chosen() == self.default)


def upscalers() -> list[str]:
    """What Hires. fix offers beside its latent ones; NOTHING is bicubic upsampling here."""
    return [NOTHING, *(each.name for each in shared.sd_upscalers if each.name != NOTHING)]


def _side(value: Any) -> int:
    with suppress(OverflowError, TypeError, ValueError):
        side = int(value)
        return side if side >= SMALLEST else 0
    return 0


NATIVE = HostOption(
    "hires_guidance_native_size",  # in pixels
    "native size",
    0,
    _side,
    lambda settings: settings.ug.enabled,
)
UPSCALER = HostOption(
    "hires_guidance_upscaler",  # of a stage's image
    "upscaler",
    NOTHING,
    lambda name: name if name in upscalers() else NOTHING,
    lambda settings: settings.refine.enabled and enlargement_of(settings.refine) == "pixel",
)
HOST_OPTIONS = NATIVE, UPSCALER
