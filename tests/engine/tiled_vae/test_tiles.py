"""Which tiles cover an image, and that a function that looks around comes out exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib_hires.tiled_vae.tiles import assembled, tiles_over


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
def test_a_tile_reads_its_side_and_the_halo_around_its_own(covering):
    size, side, halo = covering
    for tile in tiles_over(size, side, halo):
        for span, length in zip((tile.rows, tile.columns), size, strict=True):
            assert span.stop - span.start == min(side, length)
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
