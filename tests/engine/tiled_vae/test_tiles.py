"""Which tiles cover an image, and that a function that looks around comes out exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib_hires.tiled_vae.tiles import Sample, assembled, tiles_over


@st.composite
def coverings(draw):
    size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    side = draw(st.integers(1, 16))
    return size, side, draw(st.integers(0, (side - 1) // 2))


@settings(max_examples=80, deadline=None)
@given(coverings())
@example(((1, 4), 5, 2))  # an image shorter than both halos
def test_every_position_is_owned_by_one_tile(covering):
    size, side, halo = covering
    owners = torch.zeros(size)
    for tile in tiles_over(size, side, halo):
        owners[tile.rows.owned(1), tile.columns.owned(1)] += 1
    assert torch.equal(owners, torch.ones(size))


@settings(max_examples=80, deadline=None)
@given(coverings())
@example(((1, 4), 5, 2))  # an image shorter than both halos
def test_a_tile_reads_at_most_its_side_and_the_halo_around_its_own(covering):
    size, side, halo = covering
    tiles = tiles_over(size, side, halo)
    for tile in tiles:
        for axis, (span, length) in enumerate(zip((tile.rows, tile.columns), size, strict=True)):
            first = (tiles[0].rows, tiles[0].columns)[axis]
            assert span.stop - span.start == first.stop - first.start <= min(side, length)
            assert span.start >= 0 and span.stop <= length
            assert span.first - span.start >= halo or span.first == 0
            assert span.stop - span.last >= halo or span.last == length


def blurred(x):
    return F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)


def upsampled(x):
    return F.interpolate(blurred(x), scale_factor=3, mode="nearest")


def reduced(x):
    return blurred(F.avg_pool2d(x, 3))


@pytest.mark.parametrize("size", [(21, 30), (8, 40), (9, 8), (5, 13)])
def test_with_a_halo_as_wide_as_a_function_looks_tiles_are_exact(size):
    tiles = tiles_over(size, side=8, halo=2)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    large = assembled(tiles, lambda tile: upsampled(tile.read(x, 1)), size, 3)
    torch.testing.assert_close(large, upsampled(x))
    pixels = torch.randn(1, 2, 3 * size[0], 3 * size[1])
    small = assembled(tiles, lambda tile: reduced(tile.read(pixels, 3)), size, 1)
    torch.testing.assert_close(small, reduced(pixels))


def test_a_image_that_fits_is_one_tile():
    (tile,) = tiles_over((8, 5), side=8, halo=3)
    x = torch.zeros(1, 1, 8, 5)
    assert tile.read(x, 1).shape == x.shape and tile.own(x).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype):
    x = torch.randn(1, 2, 20, 20).to(dtype)
    tiles = tiles_over((20, 20), side=8, halo=1)
    assert torch.equal(assembled(tiles, lambda tile: tile.read(x, 1), (20, 20), 1), x)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(8, 60)] * 2), st.integers(8, 40), st.sampled_from([1, 3]))
def test_a_sample_s_own_positions_are_those_in_the_middle_of_its_cells(size, side, scale):
    sample = Sample.over(size, side, cell=8, margin=1)
    whole = torch.arange(float(size[0] * size[1])).reshape(1, 1, *size)
    whole = whole.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    read = sample.read(whole, scale)
    assert max(read.shape[-2:]) <= side * scale
    kept, expected = sample.own(read), []
    for top in sample.rows:
        cells = [(top + 1, left + 1) for left in sample.columns]
        assert all(y - 1 >= 0 and y + 7 <= size[0] and x + 7 <= size[1] for y, x in cells)
        expected.append(
            torch.cat(
                [
                    whole[..., y * scale : (y + 6) * scale, x * scale : (x + 6) * scale]
                    for y, x in cells
                ],
                dim=-1,
            )
        )
    assert torch.equal(kept, torch.cat(expected, dim=-2))


def test_a_sample_is_spread_evenly():
    sample = Sample.over((64, 96), side=16, cell=8, margin=1)
    assert sample.rows == (12, 44) and sample.columns == (20, 68)  # middles at 16, 48; 24, 72


@pytest.mark.parametrize(("side", "most"), [(256, 1.11), (128, 1.2)])
def test_tiles_read_little_more_than_the_whole(side, most):
    """At 4096 pixels and factor 8, with tiles of up to 2048 and of 1024 pixels."""
    tiles = tiles_over((512, 512), side, halo=6)
    area = sum((t.rows.stop - t.rows.start) * (t.columns.stop - t.columns.start) for t in tiles)
    assert area / 512**2 < most
