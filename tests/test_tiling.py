from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_hires.tiling import tiled, vae_tiled


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def up(x):
    return F.interpolate(x, scale_factor=8, mode="nearest")


def down(x):
    return F.avg_pool2d(x, 8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(2, 12), st.data())
def test_decoding_in_tiles_is_decoding(height, width, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    x = noise(2, 3, height, width)
    got = tiled(up, x, tile=tile, overlap=overlap, ratio=Fraction(8))
    torch.testing.assert_close(got, up(x), atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 16), st.integers(1, 20), st.integers(2, 8), st.data())
def test_encoding_in_tiles_is_encoding(height, width, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    x = noise(1, 3, 8 * height, 8 * width)
    got = tiled(down, x, tile=8 * tile, overlap=8 * overlap, ratio=Fraction(1, 8))
    torch.testing.assert_close(got, down(x), atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 16), st.data())
def test_the_weights_are_a_partition_of_unity(height, width, tile, data):
    """Tiles that disagree are averaged: every value lies between theirs, a constant is kept."""
    overlap = data.draw(st.integers(0, tile - 1))
    count = [0]

    def numbered(x):
        count[0] += 1
        return torch.full_like(x, count[0])

    x = torch.zeros(1, 1, height, width)
    got = tiled(numbered, x, tile=tile, overlap=overlap, ratio=Fraction(1))
    assert got.min() >= 1 - 1e-4 and got.max() <= count[0] * (1 + 1e-6) + 1e-4
    ones = tiled(torch.ones_like, x, tile=tile, overlap=overlap, ratio=Fraction(1))
    torch.testing.assert_close(ones, torch.ones_like(x))


def test_neighbours_fade_linearly():
    """Two tiles of 8 that share 3 columns, of values 0 and 1: quarters in between."""
    left = [0.0]

    def numbered(x):
        left[0] += 1
        return torch.full_like(x, left[0] - 1)

    got = tiled(numbered, torch.zeros(1, 1, 4, 13), tile=8, overlap=3, ratio=Fraction(1))
    expected = torch.tensor([0.0] * 5 + [0.25, 0.5, 0.75] + [1.0] * 5)
    torch.testing.assert_close(got[0, 0], expected.expand(4, 13))


@pytest.mark.parametrize("size", [(8, 8), (8, 3), (1, 8)])
def test_what_fits_in_a_tile_is_one_whole_call(size):
    seen = []

    def whole(x):
        seen.append(x)
        return up(x)

    x = noise(1, 2, *size)
    assert torch.equal(tiled(whole, x, tile=8, overlap=4, ratio=Fraction(8)), up(x))
    assert len(seen) == 1 and seen[0] is x


def test_every_tile_has_the_same_size():
    seen = []

    def watched(x):
        seen.append(tuple(x.shape[-2:]))
        return x

    tiled(watched, noise(1, 1, 21, 30), tile=8, overlap=2, ratio=Fraction(1))
    assert set(seen) == {(8, 8)}


def test_overlap_hides_the_borders_of_a_function_that_looks_around():
    """A function that reads 1 pixel around is right in the middle of a tile."""

    def blur(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    x = torch.linspace(0, 1, 40).expand(1, 1, 40, 40)
    whole = blur(x)
    sharp = tiled(blur, x, tile=16, overlap=0, ratio=Fraction(1))
    soft = tiled(blur, x, tile=16, overlap=8, ratio=Fraction(1))
    assert (soft - whole).abs().max() < 0.25 * (sharp - whole).abs().max()


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_overlap_is_smaller_than_the_tile(overlap):
    with pytest.raises(ValueError, match=f"overlap: expected 0 to 7, got {overlap}"):
        tiled(up, noise(1, 1, 16, 16), tile=8, overlap=overlap, ratio=Fraction(8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_returns(dtype):
    x = noise(1, 2, 20, 20).to(dtype)
    got = tiled(up, x, tile=8, overlap=3, ratio=Fraction(8))
    assert got.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(got, up(x), atol=tolerance, rtol=tolerance)


def test_the_input_is_left_alone():
    x = noise(1, 2, 20, 20)
    kept = x.clone()
    tiled(lambda part: part, x, tile=8, overlap=3, ratio=Fraction(1))
    assert torch.equal(x, kept)


def test_tiles_that_do_not_fit_the_ratio_are_refused():
    with pytest.raises(ValueError, match="expected multiples of 8, got 20, 8"):
        tiled(lambda x: x, torch.zeros(1, 1, 64, 64), tile=20, overlap=8, ratio=Fraction(1, 8))


@pytest.mark.parametrize("pixels", [0, 36, 64, 100, 500])
def test_a_vae_s_tiles_of_any_size_give_the_whole(pixels):
    image = torch.randn(1, 3, 200, 136, generator=torch.Generator().manual_seed(0))
    encode = torch.nn.AvgPool2d(8)
    decode = torch.nn.Upsample(scale_factor=8)
    latent = vae_tiled(encode, image, vae=encode, pixels=pixels, factor=8, decode=False)
    torch.testing.assert_close(latent, encode(image))
    back = vae_tiled(decode, latent, vae=decode, pixels=pixels, factor=8, decode=True)
    torch.testing.assert_close(back, decode(latent))
