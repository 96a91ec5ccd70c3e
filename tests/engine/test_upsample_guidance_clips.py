"""Upsample Guidance of clips: in time, in space and in both, in both layouts of frames.

The oracle shares nothing with the engine: D is torch's pooling, the native sampler is written here
from the papers' formulas, in float64.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from guided_toys import PLAIN, STEPS, TABLE, guided, noise

from lib_hires.clips import as_clips, as_frames
from lib_hires.noise import Flow, VarianceExploding, VariancePreserving
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance
from lib_hires.standalone.models.k_diffusion import import_k_diffusion
from lib_hires.upsample_guidance import UpsampleGuided, shifted_schedule

NATIVE = (4, 6, 4)  # frames, height, width
SCALES = {"time": (2, 1, 1), "space": (1, 2, 2), "both": (3, 2, 2)}
FUNCTIONS = {"Euler": "sample_euler", "Heun": "sample_heun", "DPM++ 2M": "sample_dpmpp_2m"}


@pytest.fixture
def motion_denoiser():
    """Any function of all frames, all positions and sigma: denoise(x (b, c, f, h, w), sigma)."""
    torch.manual_seed(3)
    net = torch.nn.Conv3d(3, 3, 3, padding=1).double()

    def denoise(x, sigma):
        s = sigma.double()[:, None, None, None, None]
        x = x.double() / (1 + s**2).sqrt()
        context = x.mean((2, 3, 4), keepdim=True) + x.mean((3, 4), keepdim=True)
        return torch.tanh(net(x) + context + s.log() / 9)

    return denoise


def native_run(denoise, x, sigmas, sampler):
    """A deterministic sampler of the literature, from x down `sigmas`, all in float64."""
    x, old = x.double(), None
    times = [-math.log(sigma) if sigma else math.inf for sigma in sigmas]

    def at(x, sigma):
        return denoise(x, torch.full((len(x),), sigma, dtype=torch.float64))

    for k, (sigma, lower) in enumerate(itertools.pairwise(sigmas)):
        x0 = at(x, sigma)
        slope = (x - x0) / sigma
        if sampler == "Euler" or (sampler == "Heun" and not lower):
            x = x + (lower - sigma) * slope
        elif sampler == "Heun":
            guess = x + (lower - sigma) * slope
            x = x + (lower - sigma) * (slope + (guess - at(guess, lower)) / lower) / 2
        else:
            step, blend = times[k + 1] - times[k], x0
            if old is not None and lower:
                ratio = (times[k] - times[k - 1]) / step
                blend = (1 + 1 / (2 * ratio)) * x0 - 1 / (2 * ratio) * old
            x = (lower / sigma) * x - math.expm1(-step) * blend
            old = x0
    return x


def large_run(denoise, x, sigmas, sampler):
    """k-diffusion's own."""
    function = getattr(import_k_diffusion().sampling, FUNCTIONS[sampler])
    return function(denoise, x, torch.tensor(sigmas, dtype=x.dtype), disable=True)


def in_batches(denoise, frames_of):
    """The denoiser as AnimateDiff's convention calls it; frames_of: of a batch of so many rows."""

    def batched(x, sigma, **cond):
        frames = frames_of(len(x))
        return as_frames(denoise(as_clips(x, frames), sigma[::frames], **cond))

    return batched


@pytest.mark.parametrize("sampler", FUNCTIONS)
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("batched", [False, True], ids=["clips", "batch of frames"])
@pytest.mark.parametrize("smooth", ["nearest", "bicubic"])
def test_d_of_the_clip_walks_the_native_clips_way(
    motion_denoiser, sampler, scales, batched, smooth
):
    large = tuple(n * m for n, m in zip(NATIVE, scales, strict=True))
    gain = 1 / math.sqrt(math.prod(scales))
    x = STEPS[0] * noise(2, 3, *large).double()
    reduction = Reduction.between(large, NATIVE, smooth == "bicubic", batched=batched)
    assert reduction.noise_gain == pytest.approx(gain)
    denoise, start = motion_denoiser, x
    if batched:
        denoise = in_batches(motion_denoiser, {2 * large[0]: large[0], 2 * 4: 4}.get)
        start = as_frames(x)
    ug = UpsampleGuided(
        lambda x, sigma: denoise(x, sigma).to(x.dtype),
        UpsampleGuidance(**PLAIN),
        family=VarianceExploding(TABLE),
        reduction=reduction,
        times=STEPS,
    )
    got = large_run(ug, start, STEPS, sampler)
    got = as_clips(got, large[0]) if batched else got
    expected = native_run(
        motion_denoiser, F.avg_pool3d(x, scales), [gain * sigma for sigma in STEPS], sampler
    )
    assert (F.avg_pool3d(got, scales) - expected).abs().max() < 2e-5
    plain = large_run(motion_denoiser, x, STEPS, sampler)
    assert (F.avg_pool3d(plain, scales) - expected).abs().max() > 0.05, "nothing was guided"


def integral(x, small, axis):
    """Means over blocks of any length along an axis: repeat each value, then take whole blocks."""
    x = x.repeat_interleave(small, axis).movedim(axis, -1)
    return x.reshape(*x.shape[:-1], small, -1).mean(-1).movedim(-1, axis)


@pytest.mark.parametrize(("frames", "small"), [(24, 16), (20, 16), (17, 16), (7, 3)])
def test_area_weights_where_the_frames_are_no_multiple(frames, small):
    x = noise(2, 3, frames, 6, 9).double()
    expected = integral(integral(integral(x, small, 2), 4, 3), 6, 4)
    clips = Reduction.between((frames, 6, 9), (small, 4, 6))
    torch.testing.assert_close(clips.reduce(x).double(), expected, atol=1e-6, rtol=1e-5)
    batch = Reduction.between((frames, 6, 9), (small, 4, 6), batched=True)
    assert torch.equal(batch.reduce(as_frames(x)), as_frames(clips.reduce(x)))
    assert torch.equal(batch.upsample(as_frames(expected)), as_frames(clips.upsample(expected)))
    back = clips.reduce(clips.upsample(expected)).double()
    torch.testing.assert_close(back, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("large", [(32, 4, 4), (24, 6, 6), (48, 8, 4)])
def test_the_noise_gain_is_what_d_does_to_noise(large):
    reduction = Reduction.between(large, (16, 4, 4))
    reduced = reduction.reduce(noise(400, 1, *large))
    assert reduced.std().item() == pytest.approx(reduction.noise_gain, rel=0.01)


def test_frames_alone_leave_each_frame_as_it_is():
    x = noise(1, 3, 4, 5, 6)
    same = Reduction.between((4, 5, 6), (4, 5, 6))
    assert torch.equal(same.reduce(x), x) and same.noise_gain == 1
    assert torch.equal(same.upsample(x), x)


@pytest.mark.parametrize("small", [(0, 4, 4), (17, 4, 4), (16, 4), (16, 5, 4)])
def test_what_cannot_be_reduced(small):
    with pytest.raises(ValueError, match="cannot reduce"):
        Reduction.between((16, 4, 4), small)


def test_images_are_no_batch_of_frames():
    with pytest.raises(ValueError, match="cannot reduce"):
        Reduction.between((4, 4), (2, 2), batched=True)


@pytest.mark.parametrize(
    ("family", "prediction", "t"),
    [
        (VarianceExploding(TABLE), "denoised", 2.0),
        (VarianceExploding(TABLE), "eps", 2.0),
        (VariancePreserving(torch.linspace(0.999, 0.01, 1000)), "v", 500.0),
        (Flow(), "velocity", 0.6),
    ],
)
def test_every_family_changes_the_coarse_part_of_clips(family, prediction, t, motion_denoiser):
    """D[x0'] = x0_small, which this evaluates by itself; batch of frames and clips alike."""
    large, small = (8, 6, 4), NATIVE
    reduction = Reduction.between(large, small)
    x, time = 2 * noise(2, 3, *large), torch.tensor([t, 0.9 * t])
    guide = {"family": family, "prediction": prediction, "times": [t, 0]}

    def model(x, t):
        return motion_denoiser(x, t).to(x.dtype)

    got = guided(model, large, small, **guide)(x, time)
    tau, scale = family.matched(time, reduction.noise_gain)
    z = F.avg_pool3d(x, (2, 1, 1)) * scale[:, None, None, None, None]
    wanted = family.denoised(prediction, z, model(z, tau), tau)
    coarse = reduction.reduce(family.denoised(prediction, x, got, time))
    torch.testing.assert_close(coarse, wanted, atol=2e-5, rtol=2e-5)
    batch = guided(in_batches(model, {16: 8, 8: 4}.get), large, small, batched=True, **guide)
    rows = batch(as_frames(x), time.repeat_interleave(8))
    torch.testing.assert_close(as_clips(rows, 8), got, atol=1e-6, rtol=1e-5)


def test_conditioning_of_frames_is_that_of_the_middle_of_each_block():
    seen = []

    def model(x, t, context, shared):
        seen.append((context, shared))
        return x

    ug = guided(model, (8, 4, 4), (4, 4, 4), batched=True)
    context, shared = torch.arange(16.0)[:, None], torch.zeros(1, 3)
    ug(noise(16, 3, 4, 4), torch.ones(16), context=[context], shared=shared)
    (_, _), (native, kept) = seen
    assert native[0][:, 0].tolist() == [1, 3, 5, 7, 9, 11, 13, 15] and kept is shared


def test_a_shifted_start_reaches_the_gain_of_time_and_space():
    reduction = Reduction.between((32, 8, 8), (16, 4, 4))
    sigmas = shifted_schedule(torch.tensor(STEPS), reduction.noise_gain)
    assert sigmas[0].item() == pytest.approx(STEPS[0] * 2 * math.sqrt(2), rel=1e-5)


def test_windows_split_the_frames_nowhere(motion_denoiser):
    frames = []

    def model(x, t):
        frames.append((x.shape[2], x.shape[-2:]))
        return motion_denoiser(x, t).to(x.dtype)

    ug = guided(model, (8, 12, 8), NATIVE, windows="Hann", overlap=0.5)
    out = ug(noise(1, 3, 8, 12, 8), torch.tensor([2.0]))
    assert out.shape == (1, 3, 8, 12, 8) and out.isfinite().all()
    assert {count for count, _ in frames} == {8, 4} and {size for _, size in frames} == {(6, 4)}
