"""Attentive Guidance on a sampler's own state, once a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import Tensor

from lib_hires.attentive_guidance import gamma_at, mix_into_state_
from lib_hires.noise import NoiseFamily
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
evaluate more often than their options say."""


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

    The state is the tensor that the CFG denoiser gets in the evaluation that begins a step; with
    UniPC, which evaluates predictions of the state, the one that its callback gets.

    A mix that fails, as where memory runs out, leaves the state as it was; the rest of the block
    goes on without, and a sentence is said.

    A step waits for nothing that is on the device; the model's noise levels are read once, and
    anew where the refiner takes another model in the middle.
    """
    denoiser = sampler.model_wrap_cfg
    family_once = lru_cache(maxsize=1)(family_of)
    last_time: list[Tensor] = []
    failed = False

    def mix(state: Tensor, time: Tensor, done: int) -> None:
        nonlocal failed
        gamma = gamma_at(done, denoiser.steps, settings)
        if failed or gamma == 0 or done >= denoiser.steps:  # the last is the finished image
            return
        try:
            family, _ = family_once(denoiser.inner_model)
            mix_scaled_(state, time, gamma, settings, family)
        except Exception as error:
            failed = True
            warn_failed(warn, "Attentive Guidance", error)
        else:
            on_mixed()

    def before_evaluation(_: Any, inputs: tuple[Tensor, ...]) -> None:
        state, times = inputs[:2]
        last_time[:] = [times[:1]]
        done = steps_done(sampler.config, denoiser.step)
        if done:
            mix(state, times[:1], done)

    def after_update(step: dict[str, Any]) -> None:
        mix(step["x"], last_time[0], step["i"] + 1)
        callback(step)

    callback = sampler.callback_state
    with denoiser.register_forward_pre_hook(before_evaluation):
        if sampler.config.name == "UniPC":
            with replaced(sampler, "callback_state", after_update):
                yield
        else:
            yield


def steps_done(config: Any, evaluations: int) -> int | None:
    """How many steps are behind, where the evaluation that comes begins a step; else None.

    Samplers of second order evaluate twice a step, PLMS twice in its first.
    """
    if config.name == "UniPC":
        return None
    if config.name == "PLMS":
        return evaluations - 1 if evaluations > 1 else None
    steps, within = divmod(evaluations, 2 if config.options.get("second_order") else 1)
    return steps if within == 0 else None


def mix_scaled_(
    state: Tensor, time: Tensor, gamma: float, settings: AttentiveGuidance, family: NoiseFamily
) -> None:
    """Mix into a state of any family, in place; it is brought to VE's scale and back.

    time: (1,), for an index without dimensions would be read from the device.
    """
    signal, noise = family.signal(time.float()), family.noise(time.float())
    scaled = state.float() / signal
    mix_into_state_(scaled, gamma, settings, noise / signal)
    state.copy_(scaled * signal)
