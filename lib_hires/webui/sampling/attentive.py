"""Attentive Guidance on a sampler's own state, once a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import Tensor

from lib_hires.attentive_guidance import gamma_at, mix_scaled_, steps_behind
from lib_hires.settings import AttentiveGuidance
from lib_hires.webui.hosts.noise import family_of
from lib_hires.webui.messages import Warn, warn_failed
from lib_hires.webui.patching import replaced

WITHOUT_STEPS = ("DPM fast", "DPM adaptive")
"""Samplers that choose their steps themselves or take evaluations in turns of three."""

MIXED = re.split(
    ", ",
    "Euler, Euler a, Heun, LMS, DPM2, DPM2 a, DPM++ 2M, DPM++ 2S a, DPM++ SDE, DPM++ 2M SDE, "
    "DPM++ 2M SDE Heun, DPM++ 3M SDE, Restart, LCM, DDIM, DDIM CFG++, PLMS, UniPC, IPNDM, "
    "IPNDM_V, DEIS",
)
"""Samplers known to begin a step where `steps_done` says so. Forge has others, some of which
evaluate more often than their options name."""


def reason_not_to_mix(config: Any) -> str:
    """Why a sampler's state cannot be mixed, "" where it can."""
    if config.name in MIXED:
        return ""
    if config.name in WITHOUT_STEPS:
        return f"{config.name} has no fixed steps"
    return f"it is not known where {config.name} begins a step"


@contextmanager
def mixing(
    sampler: Any, settings: AttentiveGuidance, on_mixed: Callable[[], None], warn: Warn
) -> Iterator[None]:
    """Mix PFSA into the state of everything that `sampler` samples inside the block.

    on_mixed: called for every step whose state is changed.
    """
    mixer = Mixer(sampler, settings, on_mixed, warn)
    with sampler.model_wrap_cfg.register_forward_pre_hook(mixer.before_evaluation):
        if sampler.config.name == "UniPC":
            with replaced(sampler, "callback_state", mixer.callback_state):
                yield
        else:
            yield


class Mixer:
    """Mixes PFSA into a sampler's state where a step begins; lives for one sampling.

    The state is the tensor that the CFG denoiser gets in the evaluation that begins a step; with
    UniPC, which evaluates predictions of the state, the one that its callback gets.

    A mix that fails, as where memory runs out, leaves the state as it was; the rest of the sampling
    goes on without, and the user is warned.

    A step waits for nothing that is on the device; the model's noise levels are read once, and
    anew where the refiner takes another model in the middle.
    """

    def __init__(
        self, sampler: Any, settings: AttentiveGuidance, on_mixed: Callable[[], None], warn: Warn
    ) -> None:
        self._config, self._denoiser = sampler.config, sampler.model_wrap_cfg
        self._callback = sampler.callback_state
        self._along_sigmas = hasattr(sampler, "get_sigmas")
        self._settings, self._on_mixed, self._warn = settings, on_mixed, warn
        self._family_once = lru_cache(maxsize=1)(family_of)
        self._time: Tensor | None = None  # (1,) of the last evaluation
        self._failed = False

    def before_evaluation(self, _: Any, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook of the CFG denoiser."""
        state, times = inputs[:2]
        self._time = times[:1]
        done = steps_done(self._config, self._denoiser.step)
        if done:
            self._mix(state, self._time, done)

    def callback_state(self, step: dict[str, Any]) -> None:
        """In place of the sampler's own, where the state is known after a step alone.

        UniPC along sigmas, as in Forge Neo, calls back before the first step too, and holds a state
        of variance 1.
        """
        assert self._time is not None
        if self._along_sigmas:
            held = (1 + self._time.float() ** 2) ** -0.5
            self._mix(step["x"], self._time, step["i"], held)
        else:
            self._mix(step["x"], self._time, step["i"] + 1)
        self._callback(step)

    def _mix(self, state: Tensor, time: Tensor, done: int, held: float | Tensor = 1) -> None:
        gamma = gamma_at(done, self._denoiser.steps, self._settings)
        finished = done >= self._denoiser.steps  # the last state is the finished image
        if self._failed or gamma == 0 or done == 0 or finished:
            return
        try:
            family, _ = self._family_once(self._denoiser.inner_model)
            mix_scaled_(state, time, gamma, self._settings, family, held=held)
        except Exception as error:
            self._failed = True
            warn_failed(self._warn, "Attentive Guidance", error)
        else:
            self._on_mixed()


def steps_done(config: Any, evaluations: int) -> int | None:
    """How many steps are behind, where the evaluation that comes begins a step; else None.

    Samplers of second order evaluate twice a step, PLMS twice in its first.
    """
    if config.name == "UniPC":
        return None
    if config.name == "PLMS":
        return evaluations - 1 if evaluations > 1 else None
    return steps_behind(evaluations, 2 if config.options.get("second_order") else 1)
