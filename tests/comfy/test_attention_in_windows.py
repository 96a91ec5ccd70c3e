"""Self-attention in windows through the host's place for it."""

import logging

import pytest
import torch
from torch import nn

from lib_hires.comfy.guidance import guided_model
from lib_hires.detail.neighbourhood import parts_of
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance

SIGMAS = torch.tensor([9.0, 3.0, 0.8, 0.0])
REDUCTION = Reduction.between((8, 8), (4, 4))


def optimized_attention(q, k, v, heads):
    """The host's, (b, n, d) with one head; found beside the class of `attn1`."""
    assert heads == 1
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


class Attention(nn.Module):
    pass


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1 = Attention()


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_blocks = nn.ModuleList([Block()])
        self.middle_block, self.output_blocks = Block(), nn.ModuleList([Block()])


def attends(model):
    """denoise(x, sigma) of one block ("input", 0), as the host calls it with its options."""

    def denoise(x, sigma):
        q = x.flatten(2).transpose(1, 2) / (1 + sigma**2).sqrt()[:, None, None]
        slot = model().state.get("patches_replace", {}).get("attn1", {}).get(("input", 0))
        extra = {"n_heads": 1, "original_shape": list(x.shape)}
        attended = slot(q, q, q, extra) if slot else optimized_attention(q, q, q, 1)
        return attended.transpose(1, 2).reshape(x.shape)

    return denoise


@pytest.fixture
def attending(make_host):
    """A host whose network is one self-attention."""
    host = make_host()
    denoise = attends(lambda: host.model.model)
    host.model.model.net = lambda x, sigma, branch: branch[0]["strength"] * denoise(x, sigma)
    host.model.model.diffusion_model = UNet()
    return host


def guided(host, **settings):
    settings = {"enabled": True, "eta": 1, "cadence": 1, **settings}
    return guided_model(host.model, UpsampleGuidance(**settings), host.native)


def masked(x, sigma):
    """The same attention with the whole matrix, and what is outside the windows masked."""
    mask = torch.zeros(8, 8, 8, 8, dtype=torch.bool)
    for part in parts_of((8, 8), (4, 4)):
        mask[part.block[0], part.block[1], part.window[0], part.window[1]] = True
    q = x.flatten(2).transpose(1, 2) / (1 + sigma**2).sqrt()[:, None, None]
    scores = (q @ q.transpose(-1, -2) / 2).masked_fill(~mask.reshape(64, 64), -torch.inf)
    return (scores.softmax(-1) @ q).transpose(1, 2).reshape(x.shape)


def test_the_large_image_sees_windows_and_the_native_one_all(attending):
    noise = attending.noise(8)
    whole = attending.sample(guided(attending), SIGMAS, noise)
    made = attending.sample(guided(attending, windows="attention"), SIGMAS, noise)
    assert not torch.allclose(made, whole, atol=1e-4)

    plain = attends(lambda: attending.model.model)

    def by_hand(x, sigma, branch):
        denoise = masked if x.shape[-1] == 8 else plain
        return branch[0]["strength"] * denoise(x, sigma)

    attending.model.model.net = by_hand
    torch.testing.assert_close(
        made, attending.sample(guided(attending), SIGMAS, noise), atol=1e-3, rtol=0
    )


def test_the_coarse_image_is_still_the_native_samplers(attending):
    noise, gain = attending.noise(8), REDUCTION.noise_gain
    large = attending.sample(guided(attending, windows="attention"), SIGMAS, noise)
    small = attending.sample(attending.model, SIGMAS * gain, REDUCTION.reduce(noise) / gain)
    torch.testing.assert_close(REDUCTION.reduce(large), small)


def test_nothing_stays_and_off_changes_no_bit(attending):
    noise = attending.noise(8)
    before = attending.sample(guided(attending, windows="off"), SIGMAS, noise)
    assert torch.equal(before, attending.sample(guided(attending), SIGMAS, noise))
    attending.sample(guided(attending, windows="attention"), SIGMAS, noise)
    assert torch.equal(before, attending.sample(guided(attending), SIGMAS, noise))
    assert "patches_replace" not in attending.model.model_options.get("transformer_options", {})


@pytest.mark.parametrize(
    ("reason", "message"),
    [("held", "holds the attention's place"), ("kind", "attention is of another kind")],
)
def test_whole_with_a_message_where_it_has_no_place(attending, caplog, reason, message):
    noise = attending.noise(8)
    if reason == "kind":
        attending.model.model.diffusion_model = nn.Identity()
    else:
        other = {"attn1": {("input", 0): lambda q, k, v, extra: v}}
        options = attending.model.model_options.setdefault("transformer_options", {})
        options["patches_replace"] = other
    plain = attending.sample(guided(attending), SIGMAS, noise)
    with caplog.at_level(logging.WARNING):
        made = attending.sample(guided(attending, windows="attention"), SIGMAS, noise)
    assert torch.equal(made, plain)
    assert message in caplog.text
