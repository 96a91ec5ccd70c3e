import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from meta_device import OnDevice

from lib_hires.resample import Reduction, area_matrix, area_means, bicubic, shrunk


@st.composite
def sizes(draw):
    """A large and a small (height, width), any ratio of at least 1 per axis."""
    small = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    large = tuple(side + draw(st.integers(0, 30)) for side in small)
    return large, small


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("m_rows", "m_columns"), [(1, 1), (2, 2), (3, 3), (4, 4), (2, 3), (1, 4)])
def test_whole_scales_are_average_pooling_and_repetition(m_rows, m_columns):
    x = noise(2, 3, 6 * m_rows, 5 * m_columns)
    reduction = Reduction.between(x.shape[-2:], (6, 5))
    pooled = F.avg_pool2d(x, (m_rows, m_columns))
    torch.testing.assert_close(reduction.reduce(x), pooled, atol=1e-6, rtol=1e-6)
    repeated = pooled.repeat_interleave(m_rows, -2).repeat_interleave(m_columns, -1)
    torch.testing.assert_close(reduction.upsample(pooled), repeated, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("large", "small"), [(5, 2), (7, 3), (10, 4), (9, 8)])
def test_fractional_scales_are_the_integral_over_each_area(large, small):
    """Repeat every value `small` times, so that each block is a whole number of values."""
    values = noise(large).double()
    exact = values.repeat_interleave(small).reshape(small, large).mean(1)
    torch.testing.assert_close(area_matrix(large, small) @ values, exact)


@settings(max_examples=40, deadline=None)
@given(sizes())
def test_area_means_are_d(shapes):
    large, small = shapes
    x = noise(2, 3, *large)
    assert torch.equal(area_means(x, small), Reduction.between(large, small).reduce(x))


@settings(max_examples=60, deadline=None)
@given(sizes())
def test_d_of_u_is_the_identity(shapes):
    large, small = shapes
    reduction = Reduction.between(large, small)
    r = noise(2, 3, *small)
    torch.testing.assert_close(reduction.reduce(reduction.upsample(r)), r, atol=2e-5, rtol=2e-5)


@settings(max_examples=60, deadline=None)
@given(sizes())
def test_constants_and_means_are_kept(shapes):
    large, small = shapes
    reduction = Reduction.between(large, small)
    for matrix in (axis.reduce for axis in reduction.axes):
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)))
        assert (matrix >= 0).all()
    one = torch.ones(1, 1, *large)
    torch.testing.assert_close(reduction.reduce(0.7 * one), 0.7 * torch.ones(1, 1, *small))
    torch.testing.assert_close(
        reduction.upsample(0.7 * torch.ones(1, 1, *small)), 0.7 * one, atol=1e-5, rtol=1e-5
    )
    x = noise(1, 2, *large)
    torch.testing.assert_close(
        reduction.reduce(x).mean((2, 3)), x.mean((2, 3)), atol=1e-5, rtol=1e-5
    )


@settings(max_examples=40, deadline=None)
@given(sizes())
def test_u_d_is_an_orthogonal_projection(shapes):
    """U is the smallest right inverse: what it adds is orthogonal to what D cannot see."""
    large, small = shapes
    reduction = Reduction.between(large, small)
    projection = reduction.axes[0].upsample @ reduction.axes[0].reduce
    torch.testing.assert_close(projection, projection.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(projection @ projection, projection, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("m_rows", "m_columns"), [(1, 1), (2, 2), (3, 3), (4, 4), (2, 3), (1, 4)])
def test_noise_gain_is_one_over_m_for_whole_scales(m_rows, m_columns):
    reduction = Reduction.between((6 * m_rows, 5 * m_columns), (6, 5))
    assert reduction.noise_gain == pytest.approx(1 / math.sqrt(m_rows * m_columns), rel=1e-6)


@pytest.mark.parametrize(
    ("large", "small"),
    [((12, 12), (8, 8)), ((9, 14), (8, 5)), ((13, 7), (3, 7)), ((10, 9), (4, 4))],
)
def test_noise_gain_is_the_measured_deviation(large, small):
    reduction = Reduction.between(large, small)
    measured = reduction.reduce(noise(4000, 1, *large)).square().mean().sqrt()
    assert reduction.noise_gain == pytest.approx(measured.item(), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_reduced_in_float32(dtype):
    reduction = Reduction.between((8, 8), (4, 4))
    assert reduction.reduce(torch.ones(1, 1, 8, 8, dtype=dtype)).dtype == torch.float32
    assert reduction.upsample(torch.ones(1, 1, 4, 4, dtype=dtype)).dtype == torch.float32


def test_on_a_device_it_is_the_same():
    reduction = Reduction.between((9, 8), (4, 4))
    moved = reduction.to(torch.device("cpu"))
    x = noise(1, 1, 9, 8)
    assert torch.equal(moved.reduce(x), reduction.reduce(x))
    assert moved.noise_gain == reduction.noise_gain


@pytest.mark.parametrize("small", [(9, 8), (8, 9), (0, 8), (8, 0), (-1, 8)])
def test_enlarging_is_not_reducing(small):
    with pytest.raises(ValueError, match="cannot reduce"):
        Reduction.between((8, 8), small)


def test_bicubic_keeps_constants_and_is_centred():
    x = noise(1, 2, 8, 6)
    large = bicubic(x, (16, 24))
    assert large.shape == (1, 2, 16, 24)
    torch.testing.assert_close(bicubic(torch.ones(1, 1, 5, 5), (7, 9)), torch.ones(1, 1, 7, 9))
    torch.testing.assert_close(bicubic(x.flip(2, 3), (16, 24)), large.flip(2, 3))


def test_bicubic_is_the_cubic_convolution():
    """At 2x each new value is weighed by the kernel (a = -3/4) at a quarter between two old."""
    a = -0.75
    near, far = (0.25, 0.75), (1.25, 1.75)
    inside = [(a + 2) * d**3 - (a + 3) * d**2 + 1 for d in near]
    outside = [a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a for d in far]
    x = noise(8)
    # the value a quarter after x[3]
    expected = outside[0] * x[2] + inside[0] * x[3] + inside[1] * x[4] + outside[1] * x[5]
    got = bicubic(x[None, None, :, None].expand(1, 1, 8, 8), (16, 8))[0, 0, 7, 0]
    torch.testing.assert_close(got, expected)


def test_a_host_s_autocast_does_not_lower_the_precision():
    reduction = Reduction.between((16, 16), (8, 8))
    x = 30 * noise(1, 4, 16, 16)
    plain = reduction.upsample(reduction.reduce(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reduction.upsample(reduction.reduce(x)), plain)


def test_area_means_make_nothing_on_the_cpu_but_once():
    x = torch.empty(1, 5, 48, 32, device="meta")
    area_means(x, (20, 12))
    with OnDevice():
        assert area_means(x, (20, 12)).shape == (1, 5, 20, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_inpainting_mask_stays_hard(dtype):
    mask = (noise(2, 1, 16, 24) > 0).to(dtype)
    part = torch.cat([mask, noise(2, 4, 16, 24).to(dtype)], 1)
    small = shrunk(part, (7, 12))
    assert small.dtype == dtype and small.shape == (2, 5, 7, 12)
    assert set(small[:, 0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(small[:, 1:], area_means(part[:, 1:], (7, 12)).to(dtype))
    assert torch.equal(shrunk(part[:, 1:], (7, 12)), small[:, 1:])
