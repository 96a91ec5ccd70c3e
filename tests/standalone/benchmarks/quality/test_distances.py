"""The distances against closed forms, their invariances, and the helpers beside them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_hires.standalone.benchmarks.quality.distances import (
    bootstrap_error,
    frechet_distance,
    kernel_distance,
    native_crops,
    share_interval,
)


def exact_gaussian(mean, covariance, n=400, seed=0):
    """Samples whose mean and covariance are the given ones exactly, not only on average."""
    draw = np.random.default_rng(seed).standard_normal((n, len(mean)))
    draw -= draw.mean(0)
    white = draw @ np.linalg.inv(np.linalg.cholesky(np.cov(draw.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_equals_the_closed_form_of_two_gaussians():
    rng = np.random.default_rng(1)
    roots = rng.standard_normal((2, 5, 5))
    s_a, s_b = (root @ root.T + np.eye(5) for root in roots)
    m_a, m_b = rng.standard_normal((2, 5))
    eigenvalues = np.linalg.eigvals(s_a @ s_b).real
    expected = np.sum((m_a - m_b) ** 2) + np.trace(s_a + s_b) - 2 * np.sqrt(eigenvalues).sum()
    got = frechet_distance(exact_gaussian(m_a, s_a, seed=2), exact_gaussian(m_b, s_b, seed=3))
    assert got == pytest.approx(expected, rel=1e-9)


def test_commuting_covariances_differ_by_their_deviations():
    deviation_a, deviation_b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    a = exact_gaussian(np.zeros(3), np.diag(deviation_a**2))
    b = exact_gaussian(np.zeros(3), np.diag(deviation_b**2), seed=1)
    assert frechet_distance(a, b) == pytest.approx(np.sum((deviation_a - deviation_b) ** 2))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 40), k=st.integers(2, 40), d=st.integers(1, 30), seed=st.integers(0, 99))
def test_properties_hold_for_any_shape_also_singular(n, k, d, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((n, d)), rng.standard_normal((k, d)) * 2
    distance = frechet_distance(a, b)
    assert distance >= 0
    assert distance == pytest.approx(frechet_distance(b, a), rel=1e-8, abs=1e-8)
    assert distance == pytest.approx(frechet_distance(rng.permutation(a), b), rel=1e-8, abs=1e-8)
    assert frechet_distance(a, rng.permutation(a)) == pytest.approx(0, abs=1e-8)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    assert distance == pytest.approx(frechet_distance(a @ rotation, b @ rotation), rel=1e-8)


def test_a_shift_adds_its_square():
    a = np.random.default_rng(0).standard_normal((30, 8))
    for shift in (0.5, 1.0, 4.0):
        assert frechet_distance(a, a + shift) == pytest.approx(8 * shift**2)


def test_tensors_of_low_precision_are_read_in_double():
    a = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(a.bfloat16(), a.bfloat16() + 1) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("shape", [(5,), (1, 3), (5, 3, 2)])
def test_samples_that_make_no_gaussian_are_refused(shape):
    with pytest.raises(ValueError, match="features: expected"):
        frechet_distance(np.zeros(shape), np.zeros(shape))


def test_widths_must_agree():
    with pytest.raises(ValueError, match="equal widths, got 3 and 4"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))


def test_crops_are_pieces_of_their_image_and_repeat_by_seed():
    images = torch.arange(2 * 3 * 12 * 20.0).view(2, 3, 12, 20)
    crops = native_crops(images, 8, 5, np.random.default_rng(3))
    again = native_crops(images, 8, 5, np.random.default_rng(3))
    assert crops.shape == (10, 3, 8, 8)
    assert torch.equal(crops, again)
    assert len({crop[0, 0, 0].item() for crop in crops}) > 5
    for index, crop in enumerate(crops):
        place = (images[index // 5] == crop[0, 0, 0]).nonzero()[0]
        top, left = int(place[1]), int(place[2])
        assert torch.equal(crop, images[index // 5, :, top : top + 8, left : left + 8])


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="expected images of 8 or more, got 9x7"):
        native_crops(torch.zeros(1, 3, 7, 9), 8, 1, np.random.default_rng(0))


def test_share_interval_is_wilsons():
    low, high = share_interval(0.5, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert share_interval(1.0, 100)[1] == pytest.approx(1.0)
    assert share_interval(0.0, 100)[0] == 0.0


def test_bootstrap_error_of_a_mean():
    sample = np.random.default_rng(0).standard_normal(400)
    error = bootstrap_error(lambda x: float(x.mean()), sample, draws=400)
    assert error == pytest.approx(sample.std() / 20, rel=0.15)
    assert error == bootstrap_error(lambda x: float(x.mean()), sample, draws=400)


def test_kernel_distance_is_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 3)), rng.standard_normal((5, 3)) + 1

    def k(x, y):
        return (np.dot(x, y) / 3 + 1) ** 3

    inside = [
        np.mean([k(x, y) for i, x in enumerate(c) for j, y in enumerate(c) if i != j])
        for c in (a, b)
    ]
    across = np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(sum(inside) - 2 * across)
    with pytest.raises(ValueError, match="equal widths"):
        kernel_distance(a, b[:, :2])


def test_kernel_distance_is_zero_on_average_for_sets_of_one_kind():
    values = [
        kernel_distance(*np.random.default_rng(seed).standard_normal((2, 20, 4)))
        for seed in range(300)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0
