"""Attention in windows, beside whole attention in which everything outside is masked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_hires.detail.neighbourhood import Neighbourhood, grid_of, parts_of

attend = F.scaled_dot_product_attention


def seen_from(at: int, length: int, native: int) -> range:
    """What a position sees along one axis, from the definition: half-native blocks, the native
    window around them, moved inwards."""
    if length <= native:
        return range(length)
    block = max(1, native // 2)
    start = at // block * block
    stop = min(start + block, length)
    first = start - (native - (stop - start)) // 2
    while first < 0:
        first += 1
    while first + native > length:
        first -= 1
    return range(first, first + native)


def masked(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], native: tuple[int, int]):
    """(b, heads, positions, d): whole attention with a matrix of all positions by all."""
    height, width = grid
    mask = torch.zeros(height, width, height, width, dtype=torch.bool)
    for y in range(height):
        for x in range(width):
            rows, columns = seen_from(y, height, native[0]), seen_from(x, width, native[1])
            mask[y, x, rows.start : rows.stop, columns.start : columns.stop] = True
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask.reshape(height * width, -1), -torch.inf)
    return scores.softmax(-1) @ v


def random_qkv(positions: int) -> list[Tensor]:
    torch.manual_seed(0)
    return list(torch.randn(3, 2, 2, positions, 8))


@pytest.mark.parametrize("large", [(16, 16), (16, 24), (13, 20), (8, 32), (12, 9)])
def test_it_is_whole_attention_with_what_lies_outside_masked(large: tuple[int, int]) -> None:
    q, k, v = random_qkv(large[0] * large[1])
    got = Neighbourhood(large, (8, 8)).attention(attend, q, k, v)
    torch.testing.assert_close(got, masked(q, k, v, large, (8, 8)), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, attend(q, k, v), atol=1e-2)


@pytest.mark.parametrize("large", [(8, 8), (8, 6), (7, 8)])
def test_at_native_size_it_is_whole_attention_to_the_bit(large: tuple[int, int]) -> None:
    q, k, v = random_qkv(large[0] * large[1])
    got = Neighbourhood(large, (8, 8)).attention(attend, q, k, v)
    assert torch.equal(got, attend(q, k, v))


def test_features_at_half_the_sides_have_windows_of_half_the_sides() -> None:
    windows = Neighbourhood((20, 30), (10, 10))
    assert windows.grids(20 * 30) == ((20, 30), (10, 10))
    assert windows.grids(10 * 15) == ((10, 15), (5, 5))
    assert windows.grids(5 * 8) == ((5, 8), (3, 3))
    assert windows.grids(10 * 10) is None  # of the native image
    assert windows.grids(77) is None


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 20)] * 2))
def test_blocks_cover_once_and_lie_in_windows_of_native_size(grid, native) -> None:
    covered = torch.zeros(grid)
    for part in parts_of(grid, native):
        covered[part.block] += 1
        for block, window, length, side in zip(part.block, part.window, grid, native, strict=True):
            assert 0 <= window.start <= block.start < block.stop <= window.stop <= length
            assert window.stop - window.start == min(side, length)
    assert torch.equal(covered, torch.ones(grid))


def test_a_grid_is_found_by_its_positions() -> None:
    assert grid_of(64 * 96, (64, 96)) == ((64, 96), 0)
    assert grid_of(17 * 24, (67, 96)) == ((17, 24), 2)
    assert grid_of(100, (64, 96)) is None


def test_the_scores_that_are_computed_grow_with_the_area_alone() -> None:
    """N²/2 of them at native size as a matrix of N by N; at n times the area n times as many."""

    def scores(side: int) -> int:
        made = []

        def counting(q: Tensor, k: Tensor) -> Tensor:
            made.append(q.shape[-2] * k.shape[-2])
            return q

        x = torch.zeros(side * side, 1)
        Neighbourhood((side, side), (8, 8)).attention(counting, x, x)
        return sum(made)

    assert [scores(side) for side in (8, 16, 32)] == [64**2, 4 * 64**2, 16 * 64**2]
