import dataclasses
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from lib_hires.refinement import NotEncoded, Stage, match_channels, plan, refine, target_size
from lib_hires.settings import ProgressiveRefinement, SettingsError

SCHEDULE = [10.0, 8, 6, 4, 3, 2, 1, 0.5, 0.2, 0.1, 0]  # 10 steps
FACTOR = 4


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- plans -------------------------------------------------------------------------------------


def test_ap_ldm_is_one_pixel_stage_for_each_strength():
    stages = plan(
        ProgressiveRefinement(factor=4, eta2="0.1, 0.2"), (256, 256), multiple=8, factor=8
    )
    # areas 1, 8.5, 16 times 256²: the middle side is 256·sqrt(8.5) = 746.4, up to 747, to 744
    assert stages == (
        Stage(1, (744, 744), "pixel", 0.1),
        Stage(2, (1024, 1024), "pixel", 0.2),
    )


@pytest.mark.parametrize(
    ("factor", "count"), [(1, 1), (1.5, 1), (2, 1), (2.25, 2), (4, 2), (8, 3), (9, 4), (16, 4)]
)
def test_pivot_has_at_most_four_times_the_area_a_stage(factor, count):
    first = 256, 256
    settings = ProgressiveRefinement(factor=factor, method="Pivot", pivot=600)
    stages = plan(settings, first, multiple=8, factor=8)
    assert len(stages) == count
    assert stages[-1].size == (256 * factor, 256 * factor)
    assert all((s.enlargement, s.timestep) == ("latent", 600) for s in stages)
    sizes = [first, *(stage.size for stage in stages)]
    for before, after in pairwise(sizes):
        # equal ratios, to the rounding of both sides to multiples of 8
        assert after[0] / before[0] == pytest.approx(factor ** (1 / count), rel=2 * 8 / before[0])


def test_the_enlargement_can_be_chosen():
    for method in ("AP-LDM", "Pivot"):
        for wanted in ("pixel", "latent"):
            settings = ProgressiveRefinement(method=method, enlargement=wanted)
            stages = plan(settings, (256, 256), multiple=8, factor=8)
            assert [stage.enlargement for stage in stages] == [wanted]


def test_stages_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan(ProgressiveRefinement(), (256, 256), multiple=8, factor=8)[0].size = (1, 1)


@pytest.mark.parametrize(
    ("settings", "first", "expected"),
    [
        ({"factor": 2}, (256, 192), (512, 384)),
        ({"factor": 1.3}, (256, 256), (336, 336)),  # 332.8, the nearest multiple of 8
        ({"factor": 2, "width": 640, "height": 512}, (256, 320), (512, 640)),
        ({"width": 601, "height": 395}, (192, 288), (392, 600)),
        ({"factor": 1}, (256, 192), (256, 192)),
        ({"width": 384}, (256, 192), (512, 384)),  # the other side keeps the shape
        ({"height": 600}, (256, 192), (600, 448)),
    ],
)
def test_target_size(settings, first, expected):
    assert target_size(ProgressiveRefinement(**settings), first, 8) == expected


@pytest.mark.parametrize(("width", "height"), [(248, 512), (512, 248), (64, 64)])
def test_a_target_below_the_first_image_is_refused(width, height):
    settings = ProgressiveRefinement(width=width, height=height)
    with pytest.raises(SettingsError) as caught:
        plan(settings, (256, 256), multiple=8, factor=8)
    assert f"{width}x{height}" in str(caught.value) and "256x256" in str(caught.value)


# --- which part of the schedule ----------------------------------------------------------------


def stage(strength=0.2, timestep=None, number=1, size=(32, 24), enlargement="pixel"):
    return Stage(number, size, enlargement, strength, timestep)


def no_time(_):
    raise AssertionError("AP-LDM uses no timestep")


@pytest.mark.parametrize(
    ("strength", "steps"), [(0.2, 2), (0.4, 4), (1, 10), (0.01, 1), (0.14, 1), (0.36, 4)]
)
def test_strength_is_the_share_of_steps(strength, steps):
    times = stage(strength).times(SCHEDULE, no_time)
    assert times == SCHEDULE[-steps - 1 :] and len(times) == steps + 1


def test_a_schedule_of_one_step_is_denoised_whole():
    assert stage(0.1).times([14.0, 0.0], no_time) == [14.0, 0.0]


@pytest.mark.parametrize("start", [20.0, 10.0, 7.0, 4.0, 0.15, 0.05])
def test_pivot_starts_at_k_and_goes_on_down_the_schedule(start):
    wanted = []

    def time_at(timestep):
        wanted.append(timestep)
        return start

    times = stage(timestep=700).times(SCHEDULE, time_at)
    assert wanted == [700]
    assert times[0] == start and times[-1] == 0 and len(times) >= 2
    assert times[1:] == [time for time in SCHEDULE if time < start]
    assert all(a > b for a, b in pairwise(times))


# --- running -----------------------------------------------------------------------------------


class Fakes:
    """A decoder, encoder and denoiser that keep a diary and check what they are given."""

    def __init__(self, fail_at=None, poison_at=None):
        self.diary = []
        self.images, self.befores = [], []
        self.fail_at, self.poison_at = fail_at, poison_at

    def decode(self, latent):
        self.diary.append(("decode", tuple(latent.shape)))
        return 3 * F.interpolate(latent[:, :3], scale_factor=FACTOR, mode="nearest")

    def encode(self, image):
        self.diary.append(("encode", tuple(image.shape)))
        self.images.append(image)
        pooled = F.avg_pool2d(image, FACTOR)
        return torch.cat([pooled, pooled[:, :1]], dim=1)

    def denoise(self, latent, stage, before):
        self.diary.append(("denoise", stage.number, tuple(latent.shape)))
        self.befores.append(before)
        if stage.number == self.fail_at:
            raise KeyboardInterrupt
        if stage.number == self.poison_at:
            return latent / 0
        return latent + stage.number

    def run(self, latent, stages, **options):
        return refine(
            latent,
            stages,
            decode=self.decode,
            encode=self.encode,
            denoise=self.denoise,
            factor=FACTOR,
            **options,
        )


STAGES = (stage(number=1, size=(24, 20)), stage(number=2, size=(32, 40)))


def test_the_order_of_calls_and_the_sizes():
    fakes = Fakes()
    results = list(fakes.run(noise(2, 4, 4, 4), STAGES))
    assert fakes.diary == [
        ("decode", (2, 4, 4, 4)),
        ("encode", (2, 3, 24, 20)),
        ("denoise", 1, (2, 4, 6, 5)),
        ("decode", (2, 4, 6, 5)),
        ("encode", (2, 3, 32, 40)),
        ("denoise", 2, (2, 4, 8, 10)),
    ]
    assert [result.stage for result in results] == list(STAGES)


def test_the_image_is_upsampled_bicubically_and_clamped():
    fakes, latent = Fakes(), noise(2, 4, 4, 4)
    result = next(fakes.run(latent, STAGES[:1]))
    image = Fakes().decode(latent)
    expected = F.interpolate(image, size=(24, 20), mode="bicubic").clamp(-1, 1)
    assert image.abs().max() > 1
    torch.testing.assert_close(fakes.images[0], expected)
    torch.testing.assert_close(result.latent, Fakes().encode(expected) + 1)


def test_each_stage_begins_with_the_last_ones_latent():
    fakes, latent = Fakes(), noise(1, 4, 4, 4)
    latents = [latent] + [result.latent for result in fakes.run(latent, STAGES)]
    assert all(a is b for a, b in zip(fakes.befores, latents, strict=False))
    again = Fakes()
    for before, after, one in zip(latents, latents[1:], STAGES, strict=False):
        torch.testing.assert_close(next(again.run(before, [one])).latent, after)


def test_latent_upsampling_never_decodes():
    fakes, latent = Fakes(), noise(2, 4, 4, 4).half()
    one = stage(enlargement="latent", size=(32, 24))
    result = next(fakes.run(latent, [one]))
    assert fakes.diary == [("denoise", 1, (2, 4, 8, 6))]
    expected = F.interpolate(latent.float(), size=(8, 6), mode="bicubic").half() + 1
    assert torch.equal(result.latent, expected)


def test_each_stage_is_there_as_soon_as_it_is_finished():
    fakes = Fakes()
    run = fakes.run(noise(1, 4, 4, 4), STAGES)
    assert fakes.diary == [], "nothing is done before the first stage is wanted"
    next(run)
    assert fakes.diary[-1][:2] == ("denoise", 1)


def test_an_interrupt_leaves_the_stages_before_it():
    finished = []
    with pytest.raises(KeyboardInterrupt):
        for result in Fakes(fail_at=2).run(noise(1, 4, 4, 4), STAGES):
            finished.append(result)
    assert [result.stage.number for result in finished] == [1]
    assert finished[0].latent.shape == (1, 4, 6, 5) and finished[0].latent.isfinite().all()


def test_values_that_are_not_numbers_are_an_error_and_leave_the_stages_before():
    finished = []
    with pytest.raises(FloatingPointError, match="stage 2"):
        for result in Fakes(poison_at=2).run(noise(1, 4, 4, 4), STAGES):
            finished.append(result)
    assert [result.stage.number for result in finished] == [1]


def test_a_vae_whose_values_are_not_numbers_is_named_before_the_stage_is_sampled():
    fakes = Fakes()
    encode, first = fakes.encode, []
    fakes.encode = lambda image: encode(image) / (1 - len(fakes.befores))
    with pytest.raises(NotEncoded, match="the VAE .* before refinement stage 2"):
        for result in fakes.run(noise(1, 4, 4, 4), STAGES):
            first.append(result.stage.number)
    assert first == [1] and len(fakes.befores) == 1


def test_an_empty_plan_does_nothing():
    fakes = Fakes()
    assert list(fakes.run(noise(1, 4, 4, 4), ())) == []
    assert fakes.diary == []


def test_the_first_latent_is_left_alone():
    latent = noise(1, 4, 4, 4)
    list(Fakes().run(latent, STAGES, colour_match=True))
    assert torch.equal(latent, noise(1, 4, 4, 4))


# --- colours -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_matched_channels_have_the_references_mean_and_deviation(dtype):
    latent = (3 * noise(2, 4, 12, 10) + 1).to(dtype)
    reference = (noise(2, 4, 6, 5, seed=1) * torch.tensor([0.5, 1, 2, 3])[:, None, None]).to(dtype)
    matched = match_channels(latent, reference)
    assert matched.dtype == dtype
    tolerance = {"atol": 1e-5 if dtype == torch.float32 else 5e-3, "rtol": 2e-3}
    for of in (torch.mean, torch.std):
        got, wanted = (of(z.float(), dim=(2, 3)) for z in (matched, reference))
        torch.testing.assert_close(got, wanted, **tolerance)


def test_matching_is_per_image_and_keeps_the_image():
    latent, reference = noise(2, 4, 12, 10), noise(2, 4, 6, 5, seed=1)
    both = match_channels(latent, reference)
    for image in range(2):
        one = slice(image, image + 1)
        torch.testing.assert_close(both[one], match_channels(latent[one], reference[one]))
    flat = torch.stack([latent.flatten(2), both.flatten(2)])
    centred = flat - flat.mean(-1, keepdim=True)
    cosine = F.cosine_similarity(centred[0], centred[1], dim=-1)
    torch.testing.assert_close(cosine, torch.ones(2, 4))
    torch.testing.assert_close(match_channels(latent, latent), latent, atol=1e-6, rtol=1e-6)


def test_a_flat_channel_stays_finite():
    assert match_channels(torch.ones(1, 4, 6, 5), noise(1, 4, 6, 5)).isfinite().all()


def test_every_stage_is_matched_to_the_first_image():
    seen = []

    def denoise(latent, stage, before):
        seen.append(latent)
        return 2 * latent + 1  # drifts

    fakes, first = Fakes(), noise(1, 4, 4, 4)
    fakes.denoise = denoise
    list(fakes.run(first, STAGES, colour_match=True))
    for latent in seen:
        torch.testing.assert_close(latent.mean((2, 3)), first.mean((2, 3)), atol=1e-5, rtol=0)
        torch.testing.assert_close(latent.std((2, 3)), first.std((2, 3)), atol=1e-5, rtol=1e-5)


def test_the_plan_of_any_settings_can_be_run():
    for method in ("AP-LDM", "Pivot"):
        settings = ProgressiveRefinement(factor=3, method=method, eta2="0.1, 0.2, 0.3")
        stages = plan(settings, (16, 24), multiple=FACTOR, factor=FACTOR)
        results = list(Fakes().run(noise(1, 4, 4, 6), stages))
        assert results[-1].latent.shape == (1, 4, 12, 18)
        assert math.prod(stages[-1].size) == 9 * 16 * 24


def test_a_target_of_another_shape_is_refused():
    settings = ProgressiveRefinement(width=512, height=512)
    with pytest.raises(SettingsError, match="512x512 has another shape than .* 512x256"):
        target_size(settings, (256, 512), 8)


def test_no_stage_is_smaller_than_the_first_image():
    settings = ProgressiveRefinement(width=580, height=512, eta2="0.2, 0.2")
    stages = plan(settings, (512, 512), multiple=8, factor=8)
    assert all(stage.size[0] >= 512 and stage.size[1] >= 512 for stage in stages)
    assert stages[-1].size == (512, 584)


def test_a_pivot_just_above_a_step_does_not_take_a_tiny_step():
    schedule = [10.0, 5.0, 2.0, 0.0]
    stage = Stage(1, (8, 8), "latent", 0.7, timestep=700)
    assert stage.times(schedule, lambda _: 5.01) == [5.01, 2.0, 0.0]
    assert stage.times(schedule, lambda _: 6.0) == [6.0, 5.0, 2.0, 0.0]


@pytest.mark.parametrize("factor", [1.0, 1.08, 1.125, 1.6, 3.0, 4.0])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_stages_never_shrink_nor_overshoot(factor, count):
    settings = ProgressiveRefinement(factor=factor, eta2=[0.2] * count)
    stages = plan(settings, (512, 384), multiple=64, factor=8)
    for before, after in pairwise([Stage(0, (512, 384), "pixel", 1), *stages]):
        assert before.size[0] <= after.size[0] <= stages[-1].size[0]
        assert before.size[1] <= after.size[1] <= stages[-1].size[1]
