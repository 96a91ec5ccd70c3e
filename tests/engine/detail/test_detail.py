"""The techniques of detail, each beside its equation computed another way, and off."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lib_hires.controls import SettingsError
from lib_hires.detail import Detail
from lib_hires.detail.latent_mixing import mixed
from lib_hires.detail.sharpening import gaussian, sharpened
from lib_hires.detail.sharper import bump, sharper
from lib_hires.detail.split_guidance import split_guidance
from lib_hires.detail.unfinished import left_at, level_before
from lib_hires.noise import VarianceExploding
from lib_hires.resample import Reduction

M = 4
SMALL, LARGE = (6, 5), (6 * M, 5 * M)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_split_guidance_scales_block_means_and_what_is_left_apart() -> None:
    cond, uncond = noise(2, 4, *LARGE), noise(2, 4, *LARGE, seed=1)
    got = split_guidance(cond, uncond, 3.0, 8.0, Reduction.between(LARGE, SMALL))
    d = cond - uncond
    means = F.avg_pool2d(d, M).repeat_interleave(M, -1).repeat_interleave(M, -2)
    torch.testing.assert_close(got, uncond + 3 * means + 8 * (d - means), atol=1e-4, rtol=1e-4)


def test_with_one_scale_it_is_classifier_free_guidance_to_the_bit() -> None:
    cond, uncond = noise(1, 4, *LARGE).bfloat16(), noise(1, 4, *LARGE, seed=1).bfloat16()
    got = split_guidance(cond, uncond, 5.0, 5.0, Reduction.between(LARGE, SMALL))
    assert torch.equal(got, uncond + 5.0 * (cond - uncond))


def test_mixed_latents_have_the_coarse_part_of_one_and_the_detail_of_the_other() -> None:
    before, pixel = noise(1, 4, *SMALL), noise(1, 4, *LARGE, seed=1)
    got = mixed(pixel, before)
    enlarged = F.interpolate(before, size=LARGE, mode="bicubic")
    torch.testing.assert_close(F.avg_pool2d(got, M), F.avg_pool2d(enlarged, M))
    smooth = Reduction.between(LARGE, SMALL, smooth=True)

    def detail(z: torch.Tensor) -> torch.Tensor:
        return z - smooth.upsample(F.avg_pool2d(z, M))

    torch.testing.assert_close(detail(got), detail(pixel), atol=1e-5, rtol=1e-5)


def test_equal_enlargements_mix_to_themselves() -> None:
    before = noise(1, 4, *SMALL)
    enlarged = F.interpolate(before, size=LARGE, mode="bicubic")
    torch.testing.assert_close(mixed(enlarged, before), enlarged)


FAMILY = VarianceExploding(torch.linspace(-3, 3, 1000).exp())


def test_the_sharper_question_is_a_smaller_sigma_in_the_middle_of_the_run() -> None:
    told = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor, *, extra: int) -> torch.Tensor:
        told.append(sigma)
        return x * extra

    asked = sharper(denoise, 0.1, FAMILY)
    x, sigma = torch.ones(4, 1), FAMILY.sigmas[[0, 350, 500, 900]]
    assert torch.equal(asked(x, sigma, extra=2), 2 * x)
    shares = [math.sin(math.pi * (u - 0.2) / 0.6) ** 2 for u in (0.35, 0.5)]
    expected = sigma * torch.tensor([1, 1 - 0.1 * shares[0], 1 - 0.1 * shares[1], 1])
    torch.testing.assert_close(told[0], expected)
    assert sharper(denoise, 0, FAMILY) is denoise


def test_the_bump_is_one_in_the_middle_and_nothing_outside() -> None:
    got = bump(torch.tensor([0.0, 0.1, 0.2, 0.5, 0.8, 1.0]))
    torch.testing.assert_close(got, torch.tensor([0, 0, 0, 1.0, 0, 0]), atol=1e-6, rtol=0)


def test_sharpening_adds_what_a_gaussian_takes_away() -> None:
    """A wave under a Gaussian of deviation s keeps exp(-(s·k)²/2) of its height."""
    k = 2 * math.pi / 8
    wave = torch.cos(k * torch.arange(64.0)).expand(1, 3, 64, 64)
    kept = math.exp(-(k**2) / 2)
    inside = ..., slice(8, 56), slice(8, 56)
    torch.testing.assert_close(gaussian(wave, 1)[inside], kept * wave[inside], atol=5e-3, rtol=0)
    got = sharpened(wave, 2.0)[inside]
    torch.testing.assert_close(got, (1 + 2 * (1 - kept)) * wave[inside], atol=1e-2, rtol=0)
    flat = torch.full((1, 3, 9, 7), 0.3)
    torch.testing.assert_close(sharpened(flat, 2.0), flat)
    assert sharpened(wave, 0) is wave


SIGMAS = [8.0, 4.0, 2.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("level", "left"),
    [
        (1.0, [8.0, 4.0, 2.0, 0.0]),
        (0.7, [8.0, 4.0, 2.0, 1.0, 0.0]),
        (0.0, SIGMAS),
        (9.0, [8.0, 0.0]),
    ],
)
def test_a_stage_is_left_at_a_level(level: float, left: list[float]) -> None:
    assert left_at(SIGMAS, level) == left


def test_two_stages_at_the_same_level_take_the_steps_of_one_schedule() -> None:
    level = level_before(2.0, (64, 64), (128, 128), matched=False)
    later = [sigma for sigma in SIGMAS if sigma <= 2.0]
    assert len(left_at(SIGMAS, level)) - 1 + len(later) - 1 == len(SIGMAS) - 1


def test_a_matched_level_is_as_noisy_after_reduction() -> None:
    level = level_before(2.0, SMALL, LARGE, matched=True)
    noisy = 2.0 * noise(64, 4, *LARGE)
    assert level == pytest.approx(2.0 / M)
    assert float(F.avg_pool2d(noisy, M).std()) == pytest.approx(level, rel=0.05)


def test_detail_is_checked_and_off_by_itself() -> None:
    assert Detail().changed() == {}
    assert Detail(sharper="0.1", attention="Windows").changed() == {  # type: ignore[arg-type]
        "sharper": 0.1,
        "attention": "windows",
    }
    with pytest.raises(SettingsError, match="sharper: expected a number from -0.5 to 0.5"):
        Detail(sharper=2)
