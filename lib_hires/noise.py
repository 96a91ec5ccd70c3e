"""The three noise families, x_t = a(t)·x0 + s(t)·eps, and matching signal-to-noise between sizes.

| family | t | a | s | used by |
|---|---|---|---|---|
| VarianceExploding | sigma | 1 | sigma | k-diffusion's samplers |
| VariancePreserving | timestep | sqrt(abar) | sqrt(1 - abar) | DDIM, PLMS, UniPC |
| Flow | 0 to 1 | 1 - t | t | SD3 |

An image reduced by an operator that multiplies the noise's deviation by `gain` (1/m for the mean
over m×m blocks) has the noise ratio gain·s/a. The model must be evaluated at the time tau with
s(tau)/a(tau) = gain·s(t)/a(t), its input multiplied by a(tau)/a(t) (Upsample Guidance, section 4.1;
the text's `SNR_low = m·SNR` should read m², as in the paper's appendix).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lib_hires.resample import Reduction

AREAS = 4  # along a frame's height and width, which share their noise's coarse part
TURN = math.radians(60)  # of it in a native clip (docs/bundled-model.md)

Prediction = Literal["denoised", "eps", "v", "velocity"]


class NoiseFamily(ABC):
    """Signal and noise scales as functions of the sampler's own time `t`, a tensor of any shape."""

    @property
    @abstractmethod
    def training_steps(self) -> int:
        """T, the number of timesteps the model was trained on."""

    @abstractmethod
    def signal(self, t: Tensor) -> Tensor:
        """a(t)."""

    @abstractmethod
    def noise(self, t: Tensor) -> Tensor:
        """s(t)."""

    @abstractmethod
    def timestep(self, t: Tensor) -> Tensor:
        """The training timestep, 0 to T, that `t` stands for (fractional)."""

    @abstractmethod
    def matched(self, t: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        """The model's time tau for an image whose noise is multiplied by `gain`.

        Returns (tau, input scale a(tau)/a(t)). tau is clamped to the times that the model knows.
        """

    def denoised(self, prediction: Prediction, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The image x0 that a model's `output` at `x` stands for, (b, c, ...) each; t: (b,).

        "denoised" is x0 itself, "eps" the noise, "v" a·eps - s·x0 (a² + s² = 1), "velocity"
        eps - x0 of rectified flow.
        """
        if prediction == "denoised":
            return output
        a, s = self._scales(t, x.ndim)
        if prediction == "eps":
            return (x - s * output) / a
        if prediction == "v":
            return a * x - s * output
        return x - s * output

    def output_change(self, prediction: Prediction, change: Tensor, t: Tensor) -> Tensor:
        """The change of a model's output that changes its x0 by `change`, (b, c, ...); t: (b,)."""
        if prediction == "denoised":
            return change
        a, s = self._scales(t, change.ndim)
        if prediction == "eps":
            return -a / s * change
        return -change / s

    def _scales(self, t: Tensor, axes: int) -> tuple[Tensor, Tensor]:
        """a(t) and s(t), (b, 1, ...) each with so many axes, of t (b,)."""
        return per_image(self.signal(t), axes), per_image(self.noise(t), axes)


@dataclass(frozen=True, eq=False)
class VarianceExploding(NoiseFamily):
    """k-diffusion's families: t is sigma, the state's noise deviation over an unscaled signal.

    sigmas: (T,) the model's training sigmas, increasing.
    """

    sigmas: Tensor

    @property
    def training_steps(self) -> int:
        return len(self.sigmas)

    def signal(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def noise(self, t: Tensor) -> Tensor:
        return t

    def timestep(self, t: Tensor) -> Tensor:
        table = self.sigmas.to(t)
        return _interpolate(t.log(), table.log(), _indices(table))

    def matched(self, t: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        """Above the largest sigma the input is scaled down until its noise is that sigma."""
        wanted = gain * t
        smallest, largest = self.sigmas[0].to(t), self.sigmas[-1].to(t)
        return wanted.clamp(smallest, largest), (largest / wanted).clamp(max=1)


@dataclass(frozen=True, eq=False)
class VariancePreserving(NoiseFamily):
    """Timestep samplers: t is the training timestep, the state has unit power.

    alphas_cumprod: (T,) the cumulative product abar of DDPM, decreasing.
    """

    alphas_cumprod: Tensor

    @property
    def training_steps(self) -> int:
        return len(self.alphas_cumprod)

    def signal(self, t: Tensor) -> Tensor:
        return (1 + self._ratio(t) ** 2).rsqrt()

    def noise(self, t: Tensor) -> Tensor:
        return self._ratio(t) * self.signal(t)

    def timestep(self, t: Tensor) -> Tensor:
        return t

    def matched(self, t: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        ratios = self._log_ratios.to(t.device)
        steps = _indices(ratios)
        tau = _interpolate(_interpolate(t, steps, ratios) + math.log(gain), ratios, steps)
        power = self.signal(t) ** 2 + (gain * self.noise(t)) ** 2  # the paper's P
        return tau, power.rsqrt()

    @cached_property
    def _log_ratios(self) -> Tensor:
        """log(s/a) of every timestep, increasing; in float64 on the CPU, for MPS has none."""
        abar = self.alphas_cumprod.cpu().double()
        ratios = ((1 - abar) / abar).log() / 2
        return ratios.to(device=self.alphas_cumprod.device, dtype=torch.float32)

    def _ratio(self, t: Tensor) -> Tensor:
        ratios = self._log_ratios.to(t.device)
        return _interpolate(t.float(), _indices(ratios), ratios).exp()


@dataclass(frozen=True)
class Flow(NoiseFamily):
    """Rectified flow: t from 0 (image) to 1 (noise)."""

    steps: int = 1000

    @property
    def training_steps(self) -> int:
        return self.steps

    def signal(self, t: Tensor) -> Tensor:
        return 1 - t

    def noise(self, t: Tensor) -> Tensor:
        return t

    def timestep(self, t: Tensor) -> Tensor:
        return t * self.steps

    def matched(self, t: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        power = 1 - t + gain * t
        return gain * t / power, 1 / power


def per_image(values: Tensor, axes: int = 4) -> Tensor:
    """(b,) to (b, 1, 1, 1); axes: of what they scale, 5 for clips (b, c, f, h, w)."""
    return values.view(-1, *[1] * (axes - 1))


def frame_seed(seed: int, frame: int) -> int:
    """The seed of a clip's frame, from 0; the first one keeps the clip's."""
    return (seed + frame * 0xC2B2AE3D27D4EB4F) % 2**63


def stage_seed(seed: int, stage: int) -> int:
    """The seed of an image's noise in a refinement stage; stage 0, the first image, keeps it."""
    return (seed + stage * 0x9E3779B1) % 2**63


def generators(seeds: Sequence[int], stage: int = 0, frames: int = 1) -> list[torch.Generator]:
    """One noise generator per image (CPU), for the first image (stage 0) or a later stage.

    Stage 0 gives the WebUI's CPU noise of that seed; later stages have noise of their own. With
    frames there is one for each frame, clip after clip, which depends on the clip's seed and the
    frame's number alone: a longer clip begins with the same noise.
    """
    return [
        torch.Generator().manual_seed(stage_seed(frame_seed(seed, frame), stage))
        for seed in seeds
        for frame in range(frames)
    ]


def draw(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """The generators' next standard normal noise, (len(generators), *shape), on the CPU, float32.

    Each image's noise depends on its own generator alone, whatever the batch it is drawn in.
    """
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def turned(noise: Tensor, native_frames: int, frames_to_one: float = 1.0) -> Tensor:
    """Clips' noise (b, c, f, h, w) whose coarse part turns slowly from frame to frame.

    At a schedule's first level the signal is not quite gone: means over large areas still show
    where things are, and a model reads them. With noise of its own each frame says something else
    there, and objects jump (FreeInit, arXiv:2312.07537, section 3, on this gap). With n_i the means
    of a frame's 4 x 4 areas, g their noise gain, and e_k = sum of n_i / (g·sqrt(m_k)) over the m_k
    frames that share the native frame k (`frames_to_one`, m_t of Upsample Guidance in time):

        n_i' = n_i + g·(cos(a)·e_j + sin(a)·e_(j+1) - e_k) / sqrt(m_k)
        60°·(k + 1/2) / native_frames = 90°·j + a,  j whole, 0 <= a < 90°

    All else of the noise stays. Each frame's is normal and independent as before, and a longer clip
    begins with the same. D of it is the native clip's turned noise where m_t is a whole number. One
    native frame leaves nothing to turn.
    """
    frames, height, width = noise.shape[2:]
    native = round(frames / frames_to_one)
    if native < 2:
        return noise
    areas = Reduction.between((height, width), (min(AREAS, height), min(AREAS, width)))
    of = ((torch.arange(frames) + 0.5) * native / frames).long()  # native frames, by frame
    root = torch.bincount(of, minlength=native).sqrt().view(-1, 1, 1)
    means = areas.reduce(noise) / areas.noise_gain
    sums = means.new_zeros(*means.shape[:2], native, *means.shape[3:]).index_add_(2, of, means)
    own = sums / root
    angles = (torch.arange(native) + 0.5) / native_frames * TURN
    start = (angles / (math.pi / 2)).long()
    rest = (angles - start * (math.pi / 2)).view(-1, 1, 1)
    wanted = rest.cos() * own[:, :, start] + rest.sin() * own[:, :, start + 1]
    change = ((wanted - own) / root)[:, :, of]
    return noise + areas.noise_gain * areas.upsample(change)


def _indices(table: Tensor) -> Tensor:
    """0, 1, 2, ... for the entries of a table, of its dtype and on its device."""
    return torch.arange(len(table), dtype=table.dtype, device=table.device)


def _interpolate(at: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (known, values), known increasing; clamped at both ends."""
    right = torch.searchsorted(known, at.contiguous()).clamp(1, len(known) - 1)
    left = right - 1
    share = ((at - known[left]) / (known[right] - known[left])).clamp(0, 1)
    return values[left].lerp(values[right], share)
