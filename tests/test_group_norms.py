"""Group norms held to the moments of the whole picture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_hires.group_norms import norms_held
from lib_hires.tiling import vae_tiled


@pytest.fixture
def network() -> nn.Module:
    """Sees one position at a time, but for its norms."""
    torch.manual_seed(0)
    norms = nn.GroupNorm(2, 6), nn.GroupNorm(3, 6, affine=False)
    nn.init.normal_(norms[0].weight)
    nn.init.normal_(norms[0].bias)
    parts = nn.Conv2d(3, 6, 1), norms[0], nn.SiLU(), norms[1], nn.Conv2d(6, 3, 1)
    return nn.Sequential(*parts).requires_grad_(False)


@pytest.fixture
def pictures() -> torch.Tensor:
    """Bright at one side, dark at the other, each of another brightness."""
    torch.manual_seed(1)
    slope = torch.linspace(0, 3, 12) + torch.randn(2, 3, 8, 12)
    return slope * torch.tensor([1.0, 4.0])[:, None, None, None]


def hooks(module: nn.Module) -> int:
    parts = list(module.modules())
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


def test_tiles_give_the_whole(network, pictures) -> None:
    whole, half = network(pictures), pictures[..., :6]
    assert not torch.allclose(network(half), whole[..., :6], atol=0.1)
    with norms_held(network, lambda: network(pictures)):
        torch.testing.assert_close(network(half), whole[..., :6])
        torch.testing.assert_close(network(pictures[..., 6:]), whole[..., 6:])
    assert torch.equal(network(pictures), whole)
    assert hooks(network) == 0


def test_each_image_keeps_its_own_where_they_are_computed_one_by_one(network, pictures) -> None:
    def one_by_one(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([network(image[None]) for image in x])

    whole = network(pictures)
    with norms_held(network, lambda: one_by_one(pictures)):
        for part in (slice(0, 6), slice(6, 12)):
            torch.testing.assert_close(one_by_one(pictures[..., part]), whole[..., part])


def test_nothing_stays_after_an_error(network, pictures) -> None:
    with pytest.raises(RuntimeError), norms_held(network, lambda: network(pictures)):
        network(torch.zeros(1, 5, 2, 2))
    with pytest.raises(RuntimeError), norms_held(network, lambda: network(pictures[:, :2])):
        pass
    assert hooks(network) == 0


@pytest.mark.parametrize(("decode", "side"), [(True, 20), (False, 160)])
def test_a_vae_in_tiles_is_nearer_to_the_whole(network, decode: bool, side: int) -> None:
    """The small picture's moments are not quite the whole's."""
    torch.manual_seed(2)
    x = torch.linspace(0, 3, side) + torch.randn(1, 3, side, side)
    resize = nn.Upsample(scale_factor=8) if decode else nn.AvgPool2d(8)
    vae = nn.Sequential(network, resize)

    def error(held: nn.Module) -> float:
        tiles = vae_tiled(vae, x, vae=held, pixels=64, factor=8, decode=decode)
        return float((tiles - vae(x)).abs().mean())

    assert error(vae) < error(nn.Identity()) / 2
