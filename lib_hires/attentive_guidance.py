"""Attentive guidance: mix parameter-free self-attention of the latent into the latent (AP-LDM 3.2).

PFSA(z)  = softmax(F F^T / lambda) F          F = z as (h·w, c), lambda = sqrt(c)
z       <- gamma_t·PFSA(z) + (1 - gamma_t)·z   after each sampling step, on the sampler's state
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_hires.clips import as_clips, as_frames
from lib_hires.devices import full_precision
from lib_hires.noise import NoiseFamily
from lib_hires.settings import AttentiveGuidance

QUERIES = 512  # attended at once, so that memory stays linear also where no fused kernel exists


def gamma_at(steps_done: int, total_steps: int, settings: AttentiveGuidance) -> float:
    """gamma_t of eq. 3 for the state after `steps_done` of T0 = `total_steps` steps.

    t numbers the steps downward, T0 being the first, so that the states of k = eta1·T0 steps stay
    unmixed, as in algorithm 1 and in the authors' code.
    """
    t = max(total_steps - steps_done + 1, 0)
    active = total_steps - round(settings.eta1 * total_steps)  # T0 - k
    if active <= 0 or t > active:
        return 0.0
    wave = (math.cos(math.pi * (active - t) / active) + 1) / 2
    return float(settings.gamma * wave**settings.beta)


def steps_behind(evaluations: int, per_step: int) -> int | None:
    """The finished steps, where the evaluation after so many begins a step; else None.

    per_step: how often the sampler evaluates the model in each step.
    """
    steps, within = divmod(evaluations, per_step)
    return None if within else steps


def pfsa(z: Tensor, lambda_: float = 0) -> Tensor:
    """Parameter-free self-attention of each image's positions.

    z: (b, c, h, w), or clips (b, c, f, h, w), each frame for itself. lambda_: the temperature, 0
    for sqrt(c). Computed in float32 without the (h·w)² matrix, also under a host's autocast;
    returns z's shape and dtype.
    """
    if z.ndim == 5:
        return as_clips(pfsa(as_frames(z), lambda_), z.shape[2])
    b, c, h, w = z.shape
    positions = z.float().flatten(2).transpose(1, 2).unsqueeze(1)  # (b, 1, h·w, c)
    # Fused attention kernels need a multiple of 8 channels; zeros change no product.
    padded = F.pad(positions, (0, -c % 8)).contiguous()
    # Attention divides by the root of its channels; its argument `scale` came with torch 2.1.
    scale = math.sqrt(padded.shape[-1]) / (lambda_ or math.sqrt(c))
    with full_precision(z.device):
        attended = torch.cat(
            [
                F.scaled_dot_product_attention(scale * queries, padded, padded)
                for queries in torch.split(padded, QUERIES, dim=2)
            ],
            dim=2,
        )
    return attended[:, 0, :, :c].transpose(1, 2).reshape(b, c, h, w).to(z.dtype)


def mix_into_state_(
    state: Tensor, gamma: float, settings: AttentiveGuidance, sigma: float | Tensor
) -> None:
    """Mix PFSA into a VE sampler's state, in place, because the sampler holds that tensor.

    state: (b, c, h, w), or clips (b, c, f, h, w), at noise deviation `sigma` over an unscaled
    signal: a number, or a tensor (1,) on the state's device, which is not read. With settings.space
    "VP" the attention is computed on the state scaled to unit variance. gamma 0 touches nothing.
    """
    if gamma == 0:
        return
    scale = 1.0 if settings.space == "VE" else 1 / (1 + sigma**2) ** 0.5
    attended = pfsa(state.float() * scale, settings.lambda_) / scale
    state.copy_(gamma * attended + (1 - gamma) * state.float())


def mix_scaled_(
    state: Tensor,
    time: Tensor,
    gamma: float,
    settings: AttentiveGuidance,
    family: NoiseFamily,
    *,
    held: float | Tensor = 1,
) -> None:
    """Mix PFSA into the state of a sampler of any family, in place: brought to VE's scale and back.

    state: (b, c, h, w), or clips (b, c, f, h, w), each frame for itself. time: (1,), for an index
    without dimensions would be read from the device. held: what `state` is a multiple of the
    family's state by, (1,) or a number. gamma 0 touches nothing.
    """
    if gamma == 0:
        return
    signal, noise = family.signal(time.float()), family.noise(time.float())
    scaled = state.float() / (signal * held)
    mix_into_state_(scaled, gamma, settings, noise / signal)
    state.copy_(scaled * (signal * held))
