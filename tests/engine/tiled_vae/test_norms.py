"""Group norms that take given moments, and the whole image's from its tiles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from lib_hires.tiled_vae.norms import Moments, norms_take, sampled_moments, whole_moments
from lib_hires.tiled_vae.tiles import Sample, Tile, tiles_over


def norm_of(affine: bool = True) -> nn.GroupNorm:
    torch.manual_seed(0)
    norm = nn.GroupNorm(3, 6, affine=affine).requires_grad_(False)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def uneven(*shape: int) -> Tensor:
    """Far from zero, and brighter and louder to the right."""
    torch.manual_seed(1)
    slope = torch.linspace(1, 4, shape[-1])
    return 20 + torch.randn(shape) * slope + 3 * slope


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_own_moments_are_what_a_norm_takes(affine: bool, dtype: torch.dtype) -> None:
    norm, x = norm_of(affine), uneven(2, 6, 9, 12)
    got = Moments.of(norm, x.to(dtype)).apply(norm, x.to(dtype))
    assert got.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.2  # x itself is rounded
    torch.testing.assert_close(got.float(), norm(x), atol=tolerance, rtol=0)


def test_another_threads_norms_take_their_own() -> None:
    norm, x = norm_of(), uneven(2, 6, 9, 12)
    own, given = norm(x), Moments.of(norm, 2 * x)
    with norms_take([norm], lambda *_: given), ThreadPoolExecutor(1) as other:
        assert torch.equal(other.submit(norm, x).result(), own)
        assert not torch.allclose(norm(x), own)


def test_joined_moments_are_those_of_all_values() -> None:
    norm, x = norm_of(), uneven(2, 6, 9, 12)
    parts = [Moments.of(norm, part) for part in x.split([3, 8, 1], dim=-1)]
    joined, whole = parts[0].joined(parts[1]).joined(parts[2]), Moments.of(norm, x)
    assert joined.count == whole.count
    torch.testing.assert_close(joined.mean, whole.mean)
    torch.testing.assert_close(joined.variance, whole.variance)


def test_moments_move_as_those_of_a_sample_do() -> None:
    """All values are scaled and shifted; a sample of them shows how."""
    norm, x = norm_of(), uneven(2, 6, 16, 16)
    sample = x[..., ::3, ::3]
    moved = Moments.of(norm, x).moved(Moments.of(norm, sample), Moments.of(norm, sample * 3 - 40))
    expected = Moments.of(norm, x * 3 - 40)
    torch.testing.assert_close(moved.mean, expected.mean)
    torch.testing.assert_close(moved.variance, expected.variance, rtol=1e-4, atol=0)


class Chain(nn.Module):
    """Sees one position at a time, but for its norms."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [(norm_of(), nn.SiLU(), nn.Conv2d(6, 6, 1)) for _ in range(norms)]
        self.parts = nn.Sequential(*(part for block in blocks for part in block))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


def error_in_tiles(network: nn.Module, x: Tensor, corrected: bool) -> float:
    """Of the first tile, with the whole image's moments or with those of the small one."""
    norms = [part for part in network.modules() if isinstance(part, nn.GroupNorm)]
    small = x[..., ::4, ::4]
    tiles = tiles_over((x.shape[-2], x.shape[-1]), side=16, halo=1)
    if corrected:
        moments = whole_moments(
            norms, tiles, lambda tile: network(tile.read(x, 1)), lambda: network(small)
        )
    else:
        moments = {}
        with norms_take(norms, lambda norm, x: moments.setdefault(norm, Moments.of(norm, x))):
            network(small)
    with norms_take(norms, lambda norm, _: moments[norm]):
        got = tiles[0].own(network(tiles[0].read(x, 1)))
    expected = network(x)[..., tiles[0].rows.owned(1), tiles[0].columns.owned(1)]
    return float((got - expected).abs().max())


def test_one_norm_takes_exactly_the_whole_image_s() -> None:
    assert error_in_tiles(Chain(1), uneven(1, 6, 24, 32), corrected=True) < 1e-5


def test_a_chain_of_norms_comes_much_nearer_than_the_small_image() -> None:
    network, x = Chain(6), uneven(1, 6, 48, 64)
    assert error_in_tiles(network, x, True) < error_in_tiles(network, x, False) / 5


def test_a_sample_of_an_image_that_repeats_gives_every_norm_the_whole_s_moments() -> None:
    network = Chain(6)
    norms = [part for part in network.modules() if isinstance(part, nn.GroupNorm)]
    x = uneven(1, 6, 2, 3).repeat(1, 1, 24, 24)  # a cell's own 6 positions hold whole periods
    sample = Sample.over((48, 72), side=16, cell=8, margin=1)
    assert len(sample) == 4
    moments = sampled_moments(norms, sample, lambda: network(sample.read(x, 1)))
    with norms_take(norms, lambda norm, _: moments[norm]):
        torch.testing.assert_close(network(x[..., :7, :9]), network_whole(network, x)[..., :7, :9])


def network_whole(network: nn.Module, x: Tensor) -> Tensor:
    """The network without anything that its norms take, in float64."""
    h = x.double()
    for part in network.parts:
        if isinstance(part, nn.GroupNorm):
            groups = h.reshape(1, part.num_groups, -1)
            h = (groups - groups.mean(-1, keepdim=True)) / (
                groups.var(-1, correction=0, keepdim=True) + part.eps
            ).sqrt()
            h = h.reshape(x.shape)
            h = h * part.weight.double()[:, None, None] + part.bias.double()[:, None, None]
        elif isinstance(part, nn.Conv2d):
            h = torch.einsum("oi,bihw->bohw", part.weight.double()[..., 0, 0], h)
            h = h + part.bias.double()[:, None, None]
        else:
            h = h * h.sigmoid()
    return h.to(x.dtype)


def test_no_hook_stays_after_an_error() -> None:
    network = Chain(2)
    norms = [part for part in network.modules() if isinstance(part, nn.GroupNorm)]
    with pytest.raises(ZeroDivisionError), norms_take(norms, lambda norm, x: 1 / 0):
        network(uneven(1, 6, 4, 4))
    assert not any(part._forward_hooks for part in network.modules())


def test_a_host_that_computes_the_small_image_twice_changes_nothing() -> None:
    """As A1111 does, which computes again in float32 what came out as NaN."""
    network, x = Chain(3), uneven(1, 6, 48, 64)
    norms = [part for part in network.modules() if isinstance(part, nn.GroupNorm)]
    tiles, small = tiles_over((48, 64), side=16, halo=1), x[..., ::4, ::4]
    shown = []

    def run_twice() -> None:
        shown.append(None)
        network(small * float("nan") if len(shown) == 2 else small)
        network(small)

    def run_tile(tile: Tile) -> Tensor:
        return network(tile.read(x, 1))

    once = whole_moments(norms, tiles, run_tile, lambda: network(small))
    twice = whole_moments(norms, tiles, run_tile, run_twice)
    for norm in norms:
        assert torch.equal(once[norm].mean, twice[norm].mean)
        assert torch.isfinite(twice[norm].mean).all()
