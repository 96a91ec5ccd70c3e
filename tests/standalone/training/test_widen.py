"""A widened VAE computes what the narrow one does."""

import pytest
import torch

from lib_hires.standalone.training.vae import build_vae
from lib_hires.standalone.training.widen import widened


@pytest.mark.parametrize("multipliers", [(1, 1, 1, 1), (1, 1, 2, 2), (1, 2, 2, 4)])
def test_wider_channels_compute_the_same(multipliers):
    torch.manual_seed(0)
    narrow, wide = build_vae((1, 1, 1, 1)), build_vae(multipliers)
    wide.load_state_dict(widened(narrow.state_dict(), wide.state_dict()))
    image = torch.rand(1, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        expected, got = (vae.encode(image).latent_dist for vae in (narrow, wide))
        torch.testing.assert_close(got.mean, expected.mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            wide.decode(expected.mean).sample, narrow.decode(expected.mean).sample,
            atol=1e-4, rtol=1e-4,
        )  # fmt: skip


def test_noise_parts_equal_channels():
    narrow, wide = build_vae((1, 1, 1, 1)), build_vae((1, 1, 2, 2))
    state = widened(narrow.state_dict(), wide.state_dict(), noise=0.1)
    first, second = state["decoder.conv_in.weight"][:2]
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second, atol=0.3, rtol=1)


def test_widths_that_are_no_multiples_are_refused():
    narrow, wide = build_vae((2, 2, 2, 2)), build_vae((3, 3, 3, 3))
    with pytest.raises(ValueError, match="no multiple"):
        widened(narrow.state_dict(), wide.state_dict())
