"""Noise schedules of training, as the products alphas_cumprod (T,) in float64.

One function for files and folders, so that the same weights are sampled alike whatever they came
in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lib_hires.standalone.models.values import Values

MOST_STEPS = 1_000_000  # of training; SD has 1000
START, END, STEPS = 0.00085, 0.012, 1000  # of Stable Diffusion
FOLDER_START, FOLDER_END = 0.0001, 0.02  # diffusers' own, where a folder gives none


def scaled_linear(start: float = START, end: float = END, steps: int = STEPS) -> Tensor:
    """alphas_cumprod of SD's schedule: linear in the square root of beta."""
    return products(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)


def linear(start: float = START, end: float = END, steps: int = STEPS) -> Tensor:
    """alphas_cumprod of betas that rise evenly, as AnimateDiff's for SD 1.5."""
    return products(start + (end - start) * _even(steps))


def _even(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps, dtype=torch.float64)


def products(betas: Tensor) -> Tensor:
    """alphas_cumprod of betas (T,), float64."""
    return torch.cumprod(1 - betas, dim=0)


def zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule moved and scaled so that it ends in pure noise (Lin et al. 2023, algorithm 1).

    Its first value stays. One that ends in pure noise already stays as it is.
    """
    roots = alphas_cumprod.double().sqrt()
    first, last = roots[0], roots[-1]
    return ((roots - last) * first / (first - last)) ** 2


def of_folder(scheduler: Values) -> Tensor:
    """alphas_cumprod of a diffusers scheduler's configuration, before any rescaling.

    Raises ModelError for a schedule that is not known, or has other values than it takes.
    """
    if scheduler.given("trained_betas") is not None:
        return products(_trained(scheduler))
    name = scheduler.given("beta_schedule") or "linear"
    steps = scheduler.whole("num_train_timesteps", STEPS)
    start = scheduler.number("beta_start", FOLDER_START)
    end = scheduler.number("beta_end", FOLDER_END)
    check_steps(scheduler, "num_train_timesteps", steps)
    for key, beta in (("beta_start", start), ("beta_end", end)):
        if not 0 < beta < 1:
            raise scheduler.error(key, "a number between 0 and 1", beta)
    if name == "scaled_linear":
        return scaled_linear(start, end, steps)
    if name == "linear":
        return linear(start, end, steps)
    if name == "sigmoid":
        return products(start + (end - start) * torch.sigmoid(12 * _even(steps) - 6))
    if name == "squaredcos_cap_v2":
        return products(_cosine(steps))
    known = "linear, scaled_linear, sigmoid or squaredcos_cap_v2"
    raise scheduler.error("beta_schedule", known, name)


def check_steps(config: Values, key: str, steps: int) -> None:
    """Raises ModelError for a number of training steps that cannot be."""
    if not 2 <= steps <= MOST_STEPS:
        raise config.error(key, f"at least 2 and at most {MOST_STEPS}", steps)


def _trained(scheduler: Values) -> Tensor:
    given = scheduler.given("trained_betas")
    try:
        betas = torch.tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        betas = torch.empty(0)
    if betas.dim() != 1 or len(betas) < 2 or not ((betas > 0) & (betas <= 1)).all():
        raise scheduler.error("trained_betas", "two numbers or more between 0 and 1", given)
    return betas


def _cosine(steps: int) -> Tensor:
    """Betas of cos² (Nichol & Dhariwal 2021), at most 0.999 each."""
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    remaining = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - remaining[1:] / remaining[:-1]).clamp(max=0.999)


def of_file(own: Tensor | None, stated: Tensor) -> Tensor:
    """A file's own alphas_cumprod where they differ from its configuration's by more than rounding.

    own: as it lies in the file, in any dtype, or None. What is no schedule is left out.
    """
    if own is None or own.dim() != 1 or len(own) < 2 or not own.is_floating_point():
        return stated
    values = own.double()
    falls = bool((values.diff() <= 0).all())
    if not falls or not values.isfinite().all() or not 0 <= values[-1] < values[0] <= 1:
        return stated
    rounding = 1e-5 if torch.finfo(own.dtype).eps < 1e-6 else torch.finfo(own.dtype).eps
    same = len(own) == len(stated) and torch.allclose(values, stated, rtol=rounding, atol=1e-7)
    return stated if same else values
