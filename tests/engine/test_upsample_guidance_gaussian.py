"""Upsample Guidance of a Gaussian, whose ideal denoiser is known, and the shifted schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from guided_toys import STEPS, guided, noise, wide
from torch import Tensor

from lib_hires.resample import Reduction
from lib_hires.upsample_guidance import shifted_schedule


@pytest.mark.parametrize("gain", [0.5, 0.4, 1 / 3])
def test_shifted_schedule_starts_higher_and_ends_the_same(gain):
    sigmas = torch.tensor(STEPS)
    shifted = shifted_schedule(sigmas, gain)
    assert len(shifted) == len(sigmas)
    assert shifted[0].item() == pytest.approx(15 / gain, rel=1e-6)
    torch.testing.assert_close(shifted[-2:], sigmas[-2:])
    assert (shifted[:-1] > shifted[1:]).all()
    share = (sigmas[:-1] / 0.05).log() / math.log(15 / 0.05)
    torch.testing.assert_close(shifted[:-1].log(), sigmas[:-1].log() - share * math.log(gain))


def test_shifted_schedule_of_one_step_and_of_no_gain():
    torch.testing.assert_close(
        shifted_schedule(torch.tensor([14.0, 0.0]), 0.5), torch.tensor([28.0, 0])
    )
    assert torch.equal(shifted_schedule(torch.tensor(STEPS), 1), torch.tensor(STEPS))


class Gaussian:
    """x0 = U[y] + r on 8x8: y stationary on 4x4 (any spectrum), r white where D sees nothing.

    The posterior mean splits in the same way, so that D of the ideal large prediction is the
    ideal small one at sigma/2.
    """

    def __init__(self, mean: float = 0.7, fine: float = 0.3) -> None:
        frequency = torch.fft.fftfreq(4)
        radius = frequency[:, None] ** 2 + frequency**2
        self.spectrum = 1.5 * (-12 * radius).exp() + 0.02  # variance of each Fourier mode of y
        self.mean = mean + torch.linspace(-1, 1, 16).reshape(4, 4)
        self.fine = fine**2
        self.reduction = Reduction.between((8, 8), (4, 4))

    def small(self, y: Tensor, sigma: Tensor) -> Tensor:
        modes = torch.fft.fft2(y - self.mean)
        return (
            self.mean
            + torch.fft.ifft2(modes * self.spectrum / (self.spectrum + wide(sigma) ** 2)).real
        )

    def large(self, x: Tensor, sigma: Tensor) -> Tensor:
        coarse = self.reduction.reduce(x)
        fine = x - self.reduction.upsample(coarse)
        kept = self.fine / (self.fine + wide(sigma) ** 2)
        return self.reduction.upsample(self.small(coarse, sigma / 2)) + kept * fine

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.small(x, sigma) if x.shape[-1] == 4 else self.large(x, sigma)

    def end_of_flow(self, y: Tensor, sigma: float) -> Tensor:
        """Where the probability flow takes a small state y at noise sigma, exactly."""
        factor = (self.spectrum / (self.spectrum + sigma**2)).sqrt()
        return self.mean + torch.fft.ifft2(torch.fft.fft2(y - self.mean) * factor).real


def euler(denoise, x, sigmas):
    for sigma, after in pairwise(sigmas):
        denoised = denoise(x, sigma.expand(len(x)))
        x = x + (x - denoised) / sigma * (after - sigma)
    return x


def many_steps(count=240):
    return torch.cat([torch.logspace(math.log10(15), -2, count), torch.zeros(1)])


def affine_map(sampler, start: float) -> tuple[Tensor, Tensor]:
    """mean (64,) and matrix (64, 64) of an affine sampler of 8x8 states `start`·eps."""
    basis = torch.cat([torch.zeros(1, 64), torch.eye(64)]).reshape(65, 1, 8, 8)
    ends = sampler(start * basis).reshape(65, 64)
    return ends[0], (ends[1:] - ends[0]).T


@pytest.mark.parametrize("theta", [0.5, 1, 1.7])
def test_consistent_guidance_changes_nothing(theta):
    gaussian = Gaussian()
    ug = guided(gaussian, (8, 8), (4, 4), theta=theta)
    for sigma in (14.0, 3.0, 0.5, 0.02):
        x = gaussian.reduction.upsample(gaussian.mean) + (1 + sigma) * noise(5, 1, 8, 8)
        now = torch.full((5,), sigma)
        torch.testing.assert_close(ug(x, now), gaussian(x, now), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shifted", [False, True])
def test_guidance_mends_a_large_model_that_is_wrong_about_the_coarse_part(shifted):
    """Guided fully, a large denoiser of another mean and spread gives the small one's images.

    Everything is affine, so mean and covariance come from the images of a basis, with no sampling
    error; what they should be is the probability flow's closed form.
    """
    gaussian, wrong = Gaussian(), Gaussian(mean=-2)
    wrong.spectrum = wrong.spectrum / 4

    def denoise(x, sigma):
        return gaussian.small(x, sigma) if x.shape[-1] == 4 else wrong.large(x, sigma)

    sigmas = shifted_schedule(many_steps(), 0.5) if shifted else many_steps()
    start = sigmas[0].item() / 2  # where the coarse image starts
    ug = guided(denoise, (8, 8), (4, 4), shifted_start=shifted)
    mean, matrix = affine_map(lambda x: euler(ug, x, sigmas), sigmas[0].item())

    coarse = gaussian.reduction.reduce(mean.reshape(8, 8))
    expected = gaussian.end_of_flow(torch.zeros(4, 4), start)
    torch.testing.assert_close(coarse, expected, atol=0.02, rtol=0)
    # Fourier modes of D[x]: variances those of y, but for what the flow's start leaves out
    modes = torch.fft.fft2(
        gaussian.reduction.reduce(matrix.T.reshape(64, 8, 8)), norm="ortho"
    ).reshape(64, 16)
    variance = (modes.abs() ** 2).sum(0).reshape(4, 4)
    spectrum = gaussian.spectrum
    torch.testing.assert_close(
        variance, spectrum * start**2 / (spectrum + start**2), rtol=0.03, atol=0
    )
    # and what D cannot see is as the large model has it
    fine = (
        matrix
        - torch.kron(
            gaussian.reduction.axes[0].upsample @ gaussian.reduction.axes[0].reduce,
            gaussian.reduction.axes[1].upsample @ gaussian.reduction.axes[1].reduce,
        )
        @ matrix
    )
    if not shifted:
        assert fine.square().sum().item() / 48 == pytest.approx(gaussian.fine, rel=0.03)


def test_shifted_start_gives_the_coarse_part_its_full_contrast():
    """Images so wide that sigma_max matters: half the start is a visible loss of deviation."""
    gaussian = Gaussian()
    gaussian.spectrum = 400 * gaussian.spectrum
    deviation = {}
    for shifted in (False, True):
        sigmas = shifted_schedule(many_steps(), 0.5) if shifted else many_steps()
        ug = guided(gaussian, (8, 8), (4, 4), shifted_start=shifted)
        _, matrix = affine_map(lambda x, ug=ug, s=sigmas: euler(ug, x, s), sigmas[0].item())
        coarse = gaussian.reduction.reduce(matrix.T.reshape(64, 8, 8))
        deviation[shifted] = (coarse.square().sum() / 16).sqrt().item()
    spectrum = gaussian.spectrum
    for shifted, start in ((False, 7.5), (True, 15)):
        exact = (spectrum * start**2 / (spectrum + start**2)).mean().sqrt().item()
        assert deviation[shifted] == pytest.approx(exact, rel=0.03)
    assert deviation[False] < 0.85 * deviation[True]
