"""One sampling that Upsample Guidance is put around, whatever the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib_hires.settings import UpsampleGuidance
from lib_hires.sizes import Size
from lib_hires.upsample_guidance import UpsampleGuided
from lib_hires.webui.messages import Say


@dataclass(frozen=True)
class GuidedPass:
    """What a host's adapter needs to know of it.

    size: (height, width) of the pass's latents; others are not guided. small: that of what the
    small question is about. new_guide: makes one from a predictor, the settings, a noise family, a
    parametrisation and a function that shrinks conds.
    times: the sampler's schedule in its own times, filled by the first evaluation at latest.
    """

    size: Size
    small: Size
    settings: UpsampleGuidance
    new_guide: Callable[..., UpsampleGuided]
    times: Sequence[float]
    say: Say
