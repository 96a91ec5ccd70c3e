"""What a pipeline's scheduler says about the noise in its model's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib_hires.noise import Flow, NoiseFamily, Prediction, VarianceExploding, per_image

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "denoised",
    "original_sample": "denoised",
}
NEAR = 0.01  # how far a time in half precision may lie from the scheduler's own


class Unsupported(Exception):
    """A call that is left as it is. The message says why."""


class Levels:
    """The noise family of a scheduler's model, and the model's own input and time in it."""

    def __init__(self, scheduler: Any, device: torch.device, time_scale: float) -> None:
        """time_scale: what the model's time is multiplied by to be the scheduler's.

        Raises Unsupported for a scheduler of another kind.
        """
        self.time_scale = time_scale
        self.flows = is_flow(scheduler)
        self.family: NoiseFamily
        self.prediction: Prediction
        total = int(scheduler.config.num_train_timesteps)
        if self.flows:
            self.family, self.prediction = Flow(total), "velocity"
            self._time_factor = total / time_scale
            return
        kind = str(scheduler.config.get("prediction_type", "epsilon"))
        if kind not in PREDICTIONS:
            raise Unsupported(f"a model that predicts {kind} is not known")
        self.family = VarianceExploding(training_sigmas(scheduler).to(device))
        self.prediction = PREDICTIONS[kind]

    def state(self, x: Tensor, t: Tensor) -> Tensor:
        """The state in float32 whose model input is x (b, c, h, w), at the times t (b,)."""
        return x.float() if self.flows else x.float() * per_image((1 + t**2).sqrt())

    def model_input(self, x: Tensor, t: Tensor) -> Tensor:
        """The inverse of `state`."""
        return x if self.flows else x * per_image((1 + t**2).rsqrt())

    def denoised(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """x0 of the model's output, float32, for the state x (b, c, h, w) at the times t (b,)."""
        if self.prediction != "v":
            return self.family.denoised(self.prediction, x, output.float(), t)
        sigma = per_image(t)
        return (x - sigma * (1 + sigma**2).sqrt() * output.float()) / (1 + sigma**2)

    def output(self, denoised: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The inverse of `denoised`, float32."""
        if self.prediction == "denoised":
            return denoised
        sigma = per_image(t)
        if self.prediction == "v":
            return (x - (1 + sigma**2) * denoised) / (sigma * (1 + sigma**2).sqrt())
        return (x - denoised) / sigma

    def model_time(self, t: Tensor) -> Tensor:
        """What the model receives for the times t (b,), fractional."""
        if self.flows:
            return t * self._time_factor
        return self.family.timestep(t) / self.time_scale


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler's sigmas are times of rectified flow."""
    config = scheduler.config
    return "FlowMatch" in type(scheduler).__name__ or bool(config.get("use_flow_sigmas", False))


def scales_noise(scheduler: Any) -> bool:
    """Whether a run's state is unscaled signal and noise of deviation sigma (Euler's), as against
    one of unit power (DDIM's)."""
    return float(scheduler.init_noise_sigma) != 1.0


def training_sigmas(scheduler: Any) -> Tensor:
    """(T,) float32, increasing; pure noise has no finite one, and counts as diffusers' Euler does.

    Raises Unsupported where the scheduler has no such table, or means other times.
    """
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None or scheduler.config.get("timestep_type") == "continuous":
        raise Unsupported(f"{type(scheduler).__name__} has no table of training timesteps")
    abar = table.cpu().double().clamp(min=2.0**-24)  # MPS has no float64
    sigmas: Tensor = ((1 - abar) / abar).sqrt().float()
    return sigmas


def has_sigmas(scheduler: Any) -> bool:
    """Whether each of the scheduler's timesteps has its own sigma, at the same index."""
    sigmas = getattr(scheduler, "sigmas", None)
    return (
        sigmas is not None
        and not hasattr(scheduler, "sigmas_interpol")
        and len(sigmas) == len(scheduler.timesteps) + 1
    )


def time_scale(scheduler: Any, t: float) -> float:
    """1 where the model receives the scheduler's timesteps, 1000 where a thousandth of them.

    Raises Unsupported where t, the first of a sampling, is neither.
    """
    total = float(scheduler.config.num_train_timesteps)
    for scale in (1.0, total):
        if _index(scheduler, t * scale) is not None:
            return scale
    raise Unsupported("the model's time is not one of the scheduler's timesteps")


def level_at(scheduler: Any, timestep: float) -> float:
    """The time of a noise family at a scheduler's timestep: sigma, or flow's t.

    Raises Unsupported for a timestep that the schedule does not have.
    """
    index = _index(scheduler, timestep)
    if index is None:
        raise Unsupported("the model's time is not one of the scheduler's timesteps")
    return schedule(scheduler)[index]


def schedule(scheduler: Any) -> list[float]:
    """The levels of all timesteps, decreasing, and 0."""
    if has_sigmas(scheduler):
        return [float(sigma) for sigma in scheduler.sigmas]
    timesteps = scheduler.timesteps.cpu().float()
    if is_flow(scheduler):
        return [*(timesteps / scheduler.config.num_train_timesteps).tolist(), 0.0]
    table = training_sigmas(scheduler).log()
    below = timesteps.long().clamp(0, len(table) - 2)
    return [*table[below].lerp(table[below + 1], timesteps - below).exp().tolist(), 0.0]


def _index(scheduler: Any, timestep: float) -> int | None:
    """The scheduler's own index where it is at that timestep, else the nearest timestep's."""
    times = scheduler.timesteps.tolist()
    allowed = NEAR * max(abs(timestep), 1.0)
    own = getattr(scheduler, "step_index", None)
    if own is not None and own < len(times) and abs(times[own] - timestep) <= allowed:
        return int(own)
    nearest = min(range(len(times)), key=lambda index: abs(times[index] - timestep))
    return nearest if abs(times[nearest] - timestep) <= allowed else None
