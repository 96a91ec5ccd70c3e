"""Finer detail, and large evaluations whose cost grows with the area.

Each module is one equation; switched off, each leaves every bit as it was. `Detail` says which of
them act. They are measured on the standalone side and are no controls of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_hires.controls import Declared, SettingsError, control, meant_hint


@dataclass(frozen=True)
class Detail(Declared):
    """Which techniques of this package act in a run. The default is none.

    Raises SettingsError for values that they do not take.
    """

    attention: str = control(
        "whole",
        "Attention",
        "What self-attention sees of a large image: all of it, or the native-sized neighbourhood.",
        choices=("whole", "windows"),
    )
    cfg_low: float = control(
        0.0,
        "CFG scale of the coarse part",
        "In passes above the native size. 0: the CFG scale.",
        "w_low",
        minimum=1,
        maximum=200,
        automatic=True,
    )
    cfg_high: float = control(
        0.0,
        "CFG scale of the detail",
        "Of what the native size cannot show, in passes above it. 0: as the coarse part.",
        "w_high",
        minimum=1,
        maximum=200,
        automatic=True,
    )
    mixing: bool = control(
        False, "Mix latents", "Take a stage's coarse part from the enlarged latent."
    )
    sharper: float = control(
        0.0,
        "Smaller sigma",
        "How much smaller the large evaluation's sigma is than the noise's, in mid-run.",
        minimum=-0.5,
        maximum=0.5,
    )
    sharpen: float = control(
        0.0,
        "Sharpen",
        "How much an enlarged image is sharpened before it is encoded.",
        minimum=0,
        maximum=5,
    )
    upscaler: str = control(
        "", "Upscaler", "A model's file that enlarges the image instead of bicubic upsampling."
    )
    unfinished: str = control(
        "no",
        "Unfinished stages",
        "Leave a stage with its predicted image when it reaches the noise level at which the next "
        "begins (same), or the one that is as noisy per native pixel (matched).",
        choices=("no", "same", "matched"),
    )

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Detail:
        """Build from plain values by name. Raises SettingsError also for unknown names."""
        known = [name for name, *_ in cls.rows()]
        for name in values:
            if name not in known:
                hint = meant_hint(name, known)
                raise SettingsError(f"{name}: there is no such technique of detail{hint}")
        return cls(**values)

    def changed(self) -> dict[str, Any]:
        """What differs from the default, by name."""
        default = type(self)()
        return {
            name: value for name, value in vars(self).items() if value != getattr(default, name)
        }


NO_DETAIL = Detail()
