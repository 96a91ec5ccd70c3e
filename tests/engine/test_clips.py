"""Layouts of clips, their noise, and refinement and mixing frame by frame."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lib_hires.attentive_guidance import mix_into_state_, pfsa
from lib_hires.clips import as_clips, as_frames, frame_by_frame
from lib_hires.noise import draw, generators, turned
from lib_hires.refinement import match_channels, plan, refine
from lib_hires.settings import AttentiveGuidance, ProgressiveRefinement


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_clips_frames_lie_one_after_another_in_the_batch():
    clips = noise(2, 3, 5, 4, 6)
    frames = as_frames(clips)
    for clip in range(2):
        for frame in range(5):
            assert torch.equal(frames[5 * clip + frame], clips[clip, :, frame])
    assert torch.equal(as_clips(frames, 5), clips)
    image = noise(2, 3, 4, 6)
    assert as_frames(image) is image


def test_a_function_of_images_meets_one_frame_of_each_clip_at_a_time():
    seen = []

    def double(x):
        seen.append(tuple(x.shape))
        return F.interpolate(x, scale_factor=2)

    clips = noise(2, 3, 4, 5, 6)
    doubled = frame_by_frame(double)(clips)
    assert seen == [(2, 3, 5, 6)] * 4
    assert torch.equal(doubled, as_clips(F.interpolate(as_frames(clips), scale_factor=2), 4))
    image = noise(2, 3, 5, 6)
    assert torch.equal(frame_by_frame(double)(image), double(image))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_frames_noise_depends_on_its_seed_and_number_alone(stage):
    def drawn(seeds, frames):
        return as_clips(draw(generators(seeds, stage, frames), (2, 4, 4)), frames)

    clips = drawn([7, 8], 6)
    torch.testing.assert_close(drawn([8], 6)[0], clips[1], rtol=0, atol=0)
    torch.testing.assert_close(drawn([7], 3)[0], clips[0, :, :3], rtol=0, atol=0)
    image = draw(generators([7], stage), (2, 4, 4))
    assert torch.equal(image[0], clips[0, :, 0]), "the first frame has the image's"
    rows = as_frames(torch.cat([clips, drawn([9, 10, 11], 6)])).flatten(1)
    alike = torch.corrcoef(rows) - torch.eye(len(rows))
    assert alike.abs().max() < 0.75, "no two frames of neighbouring seeds share their noise"


@pytest.mark.parametrize("to_one", [1, 2, 4])
def test_the_coarse_noise_turns_and_the_rest_stays(to_one):
    """Against the same in loops: for each native frame the means of 4 x 4 areas."""
    clips = noise(2, 3, 8, 8, 16)
    got = turned(clips, 5, to_one)
    for clip, channel, frame in ((0, 0, 0), (1, 2, 3), (1, 1, 7)):
        native = frame // to_one
        angle = (native + 0.5) / 5 * math.pi / 3
        for row, column in ((0, 0), (3, 1)):
            rows, columns = slice(2 * row, 2 * row + 2), slice(4 * column, 4 * column + 4)
            before = clips[clip, channel, :, rows, columns]
            after = got[clip, channel, :, rows, columns]
            means = before.reshape(-1, to_one * 8).mean(1)
            wanted = math.cos(angle) * means[0] + math.sin(angle) * means[1]
            torch.testing.assert_close(after.reshape(-1, to_one * 8).mean(1)[native], wanted)
            torch.testing.assert_close(after[frame] - wanted, before[frame] - means[native])


@pytest.mark.parametrize(
    ("size", "native"),
    [((6, 4, 8), 3), ((6, 6, 7), 6), ((6, 4, 4), 4), ((7, 5, 4), 3), ((20, 4, 4), 20)],
    ids=["whole", "odd sides", "1.5 to one", "7 to 3", "long"],
)
def test_turned_noise_is_as_normal_within_a_frame_as_drawn_noise(size, native):
    """Its covariance, exactly: what becomes of each of the independent values behind it."""
    frames, height, width = size
    count = frames * height * width
    each = turned(torch.eye(count).view(count, 1, *size), 4, frames / native)
    for frame in range(frames):
        behind = each[:, 0, frame].flatten(1)
        torch.testing.assert_close(behind.T @ behind, torch.eye(height * width), atol=1e-5, rtol=0)


def test_a_long_clip_does_not_turn_back():
    """After each quarter of a turn it goes on to the coarse noise of one more frame."""
    frames = 100
    each = turned(torch.eye(frames * 16).view(-1, 1, frames, 4, 4), 4)[:, 0, :, 0, 0]
    alike = each.T @ each
    assert torch.diagonal(alike, 1).min() > 0.95, "neighbours at 15 degrees"
    assert alike.min() > -1e-6 and alike[0, 12:].max() < 1e-6


def test_d_of_turned_noise_is_the_native_clips():
    """In space and time, so that Upsample Guidance starts from noise that is turned too."""
    clips = noise(1, 2, 8, 16, 16)
    gain = (2 * 2 * 2) ** -0.5
    native = turned(F.avg_pool3d(clips, 2) / gain, 4)
    torch.testing.assert_close(F.avg_pool3d(turned(clips, 4, 2), 2) / gain, native)


def test_a_longer_clip_begins_with_the_same_turned_noise():
    clips = noise(1, 2, 9, 8, 8)
    torch.testing.assert_close(turned(clips, 4)[:, :, :3], turned(clips[:, :, :3], 4))
    single = clips[:, :, :2]
    assert torch.equal(turned(single, 4, 2), single), "one native frame has nothing to turn"


@pytest.mark.parametrize("method", ["AP-LDM", "Pivot"])
@pytest.mark.parametrize("enlargement", ["pixel", "latent"])
def test_a_refined_clip_is_its_frames_refined(method, enlargement):
    """With a denoiser that treats frames alike, each frame is what it is alone."""

    def decode(latent):
        return F.interpolate(latent[:, :3], scale_factor=4).tanh()

    def encode(image):
        return F.avg_pool2d(image, 4)

    settings = ProgressiveRefinement(
        enabled=True, method=method, enlargement=enlargement, factor=3, eta2=(0.4, 0.2)
    )
    stages = plan(settings, (16, 24), multiple=8, factor=4)
    clip = noise(1, 3, 5, 4, 6)

    def refined(latent, decode, encode):
        results = refine(
            latent, stages, decode=decode, encode=encode,
            denoise=lambda x, stage, before: x * (1 + stage.number / 9), factor=4,
        )  # fmt: skip
        return [result.latent for result in results]

    clips = refined(clip, frame_by_frame(decode), frame_by_frame(encode))
    alone = [refined(clip[:, :, frame], decode, encode) for frame in range(5)]
    assert clips[-1].shape == (1, 3, 5, 12, 18)
    for stage, result in enumerate(clips):
        for frame in range(5):
            torch.testing.assert_close(result[:, :, frame], alone[frame][stage])


def test_channels_are_matched_over_the_clip_and_not_frame_by_frame():
    clip, reference = 3 * noise(2, 4, 5, 8, 8) + 1, noise(2, 4, 5, 4, 4, seed=1)
    clip[:, :, 2] += 4  # a flash that is the clip's own
    matched = match_channels(clip, reference)
    axes = (2, 3, 4)
    torch.testing.assert_close(matched.mean(axes), reference.mean(axes), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(matched.std(axes), reference.std(axes), atol=1e-5, rtol=1e-5)
    assert (matched[:, :, 2].mean() - matched[:, :, 1].mean()) > 0.5


def test_attention_mixes_each_frame_with_itself():
    clip = noise(2, 4, 3, 6, 6)
    for frame in range(3):
        torch.testing.assert_close(pfsa(clip)[:, :, frame], pfsa(clip[:, :, frame]))
    state = clip.clone()
    mix_into_state_(state, 0.2, AttentiveGuidance(enabled=True), 1.5)
    torch.testing.assert_close(state, 0.2 * pfsa(clip) + 0.8 * clip)
