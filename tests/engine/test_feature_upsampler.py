"""The feature upsampler against a second computation, on toys of both layouts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from toy_unets import CHANNELS, ToyDiffusers, ToyLdm
from toy_upsamplers import info, trained

from lib_hires import feature_upsampler
from lib_hires.feature_upsampler import (
    FeatureUpsampler,
    Phi,
    Upsampled,
    UpsamplerError,
    captured,
    default_layers,
    layout_of,
)

LARGE, SMALL = (8, 12), (4, 6)


UNETS = {"LDM": ToyLdm, "diffusers": ToyDiffusers}


@pytest.fixture(params=UNETS)
def unet(request: pytest.FixtureRequest) -> nn.Module:
    return UNETS[request.param]().requires_grad_(False)


def small_features(unet: nn.Module, rows: int = 2) -> list[Tensor]:
    torch.manual_seed(2)
    clean = torch.randn(rows, 4, *SMALL)
    with captured(unet, (0, 1, 2, 3)) as features:
        unet(clean, torch.zeros(rows))
    return features


def hooks(module: nn.Module) -> int:
    parts = list(module.modules())
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


X = torch.randn(2, 4, *LARGE, generator=torch.Generator().manual_seed(3))
T = torch.tensor([300.0, 500.0])


# --- phi ------------------------------------------------------------------------------------------


def test_all_four_have_at_most_2000_weights() -> None:
    assert sum(weight.numel() for weight in FeatureUpsampler(info()).parameters()) == 1920


def bilinear_by_hand(h: Tensor, size: tuple[int, int]) -> Tensor:
    """(c, h, w) to (c, *size), pixel centres at halves."""

    def weights(large: int, small: int) -> Tensor:
        rows = torch.zeros(large, small)
        for i in range(large):
            at = min(max((i + 0.5) * small / large - 0.5, 0), small - 1)
            low = min(int(at), small - 2) if small > 1 else 0
            rows[i, low] += 1 - (at - low)
            if small > 1:
                rows[i, low + 1] += at - low
        return rows

    return weights(size[0], h.shape[1]) @ h @ weights(size[1], h.shape[2]).T


def convolved_by_hand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(i, h, w) to (o, h, w): 3x3, zeros outside."""
    height, width = x.shape[1:]
    padded = torch.zeros(x.shape[0], height + 2, width + 2)
    padded[:, 1:-1, 1:-1] = x
    out = bias[:, None, None].expand(-1, height, width).clone()
    for i in range(3):
        for j in range(3):
            window = padded[:, i : i + height, j : j + width]
            out += torch.einsum("oi,ihw->ohw", weight[:, :, i, j], window)
    return out


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def phi_by_hand(phi: Phi, h: Tensor, size: tuple[int, int], t: float) -> Tensor:
    """The module's formula for one image, h (c, h, w), channel by channel."""
    rms = float(h.pow(2).mean().sqrt())
    waves = torch.tensor([math.cos(math.pi * k * t / 1000) for k in range(1, 9)])
    hidden = silu(phi.time.weight @ waves + phi.time.bias)
    v = phi.mix.weight @ hidden + phi.mix.bias
    added = []
    for channel in bilinear_by_hand(h / rms, size):
        hidden = silu(convolved_by_hand(channel[None], phi.into.weight, phi.into.bias))
        psi = rms * convolved_by_hand(hidden, phi.pictures.weight, phi.pictures.bias)
        added.append(sum(v[j] * psi[j] for j in range(4)))
    return torch.stack(added)


def test_phi_is_the_formula() -> None:
    phi = trained().part(0)
    h = torch.randn(2, 3, 4, 5) * torch.tensor([1.0, 9.0])[:, None, None, None]
    got = phi.mixed(phi.psi(h, (7, 10)), T).view(2, 3, 7, 10)
    for image, t in enumerate(T.tolist()):
        wanted = phi_by_hand(phi, h[image], (7, 10), t)
        torch.testing.assert_close(got[image], wanted, rtol=1e-4, atol=1e-4)


def test_large_images_are_computed_some_channels_at_a_time(monkeypatch) -> None:
    phi, most = trained().part(0), []
    h, size = torch.randn(2, 5, 4, 6), (8, 12)
    whole = phi.psi(h, size)
    watched = phi.into.register_forward_hook(lambda *call: most.append(call[2].numel()))
    monkeypatch.setattr(feature_upsampler, "HELD", 3 * 8 * 8 * 12)  # three channels of width 8
    with watched:
        torch.testing.assert_close(phi.psi(h, size), whole)
    assert most == [3 * 768, 3 * 768, 3 * 768, 768]


# --- in the U-Net ---------------------------------------------------------------------------------


def test_both_layouts_name_the_same_skip_features() -> None:
    for make in UNETS.values():
        layout = layout_of(make())
        assert tuple(skip.channels for skip in layout.skips) == CHANNELS
        assert default_layers(make()) == (0, 1, 2, 3)


def test_captured_features_are_what_the_decoder_takes(unet: nn.Module) -> None:
    features = small_features(unet)
    assert [tuple(f.shape) for f in features] == [
        (2, 6, 1, 1),
        (2, 5, 1, 2),
        (2, 4, 2, 3),
        (2, 3, 4, 6),
    ]


def test_both_layouts_compute_the_same() -> None:
    """The toys are the same network, so what is captured and added must be the same too."""
    results = []
    for make in UNETS.values():
        unet = make().requires_grad_(False)
        with Upsampled(unet, trained(), small_features(unet), LARGE):
            results.append(unet(X, T))
    assert torch.equal(*results)


def test_untrained_it_changes_no_bit(unet: nn.Module) -> None:
    plain = unet(X, T)
    with Upsampled(unet, FeatureUpsampler(info()), small_features(unet), LARGE):
        assert torch.equal(unet(X, T), plain)


def test_phi_is_added_to_the_skip_features_and_nothing_else(unet: nn.Module) -> None:
    upsampler, features = trained(), small_features(unet)
    with captured(unet, (0, 1, 2, 3)) as plain:
        unet(X, T)
    inputs = []
    keep = lambda _, args: inputs.append(args[0])  # noqa: E731
    with Upsampled(unet, upsampler, features, LARGE):
        handles = [s.block.register_forward_pre_hook(keep) for s in layout_of(unet).skips]
        unet(X, T)
    for handle in handles:
        handle.remove()
    for n in range(4):
        wanted = torch.stack(
            [
                phi_by_hand(upsampler.part(n), features[n][i], tuple(plain[n].shape[-2:]), float(t))
                for i, t in enumerate(T)
            ]
        )
        got = inputs[n][:, -CHANNELS[n] :]
        torch.testing.assert_close(got, plain[n] + wanted, rtol=1e-4, atol=1e-4)
    # What comes from the middle of the network is as it was.
    main = inputs[0][:, : -CHANNELS[0]]
    again: list[Tensor] = []
    with (
        layout_of(unet)
        .skips[0]
        .block.register_forward_pre_hook(lambda _, args: again.append(args[0]))
    ):
        unet(X, T)
    assert torch.equal(main, again[0][:, : -CHANNELS[0]])


def test_each_call_has_its_own_time_and_each_row_too(unet: nn.Module) -> None:
    upsampler, features = trained(), small_features(unet)
    with Upsampled(unet, upsampler, features, LARGE):
        first, second = unet(X, T), unet(X, T.flip(0))
        both = unet(X, T)
    assert torch.equal(first, both)
    assert not torch.equal(first, second)
    for row in range(2):
        alone = [feature[row : row + 1] for feature in features]
        with Upsampled(unet, upsampler, alone, LARGE):
            result = unet(X[row : row + 1], T[row : row + 1])
        torch.testing.assert_close(result, first[row : row + 1])


def test_above_k_the_time_counts_as_k(unet: nn.Module) -> None:
    features = small_features(unet)
    added = []
    with Upsampled(unet, trained(pivot=300), features, LARGE):
        skip = layout_of(unet).skips[0]
        with skip.block.register_forward_pre_hook(lambda _, args: added.append(args[0])):
            for t in (300.0, 999.0):
                unet(X, torch.full((2,), t))
    with skip.block.register_forward_pre_hook(lambda _, args: added.append(args[0])):
        for t in (300.0, 999.0):
            unet(X, torch.full((2,), t))
    torch.testing.assert_close(added[0] - added[2], added[1] - added[3])


def test_calls_of_another_size_are_left_alone(unet: nn.Module) -> None:
    features = small_features(unet)
    small, plain = torch.randn(2, 4, *SMALL), unet(X, T)
    alone = unet(small, T)
    with Upsampled(unet, trained(), features, LARGE):
        assert torch.equal(unet(small, T), alone)
        assert not torch.equal(unet(X, T), plain)
        assert torch.equal(unet(small, T), alone)


def test_features_of_other_rows_are_refused(unet: nn.Module) -> None:
    with (
        Upsampled(unet, trained(), small_features(unet, rows=3), LARGE),
        pytest.raises(ValueError, match="features of 3 rows in a call of 2"),
    ):
        unet(X, T)


def test_no_hook_outlives_its_scope(unet: nn.Module) -> None:
    plain = unet(X, T)
    features = small_features(unet)
    assert hooks(unet) == 0
    with pytest.raises(RuntimeError, match="inside"), Upsampled(unet, trained(), features, LARGE):
        unet(X, T)
        assert hooks(unet) == 5
        raise RuntimeError("inside")
    assert hooks(unet) == 0
    with pytest.raises(IndexError), captured(unet, (0, 9)):
        pass
    assert hooks(unet) == 0
    assert torch.equal(unet(X, T), plain)


def test_a_scope_in_half_precision_keeps_it(unet: nn.Module) -> None:
    unet, upsampler = unet.to(torch.bfloat16), trained().to(torch.bfloat16)
    x = X.to(torch.bfloat16)
    with captured(unet, (0, 1, 2, 3)) as features:
        unet(x[..., ::2, ::2], torch.zeros(2, dtype=torch.bfloat16))
    with Upsampled(unet, upsampler, features, LARGE):
        assert unet(x, T.to(torch.bfloat16)).dtype == torch.bfloat16


def test_gradients_reach_every_weight_once_the_last_layer_has_moved(unet: nn.Module) -> None:
    upsampler, features = trained().requires_grad_(True), small_features(unet)
    with Upsampled(unet, upsampler, features, LARGE):
        unet(X, T).square().mean().backward()
    for name, weight in upsampler.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_training_it_lowers_the_loss(unet: nn.Module) -> None:
    """The target is the network with another upsampler: there is something to find."""
    features = small_features(unet)
    with Upsampled(unet, trained(), features, LARGE):
        target = unet(X, T)
    upsampler = FeatureUpsampler(info())
    optimizer = torch.optim.AdamW(upsampler.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        with Upsampled(unet, upsampler, features, LARGE):
            loss = (unet(X, T) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_other_networks_are_refused() -> None:
    with pytest.raises(UpsamplerError, match="a Linear is not a U-Net that feature upsamplers"):
        layout_of(nn.Linear(1, 1))


# --- what it fits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "fits"),
    [
        ((256, 256), (512, 512), True),
        ((512, 512), (960, 1088), True),
        ((256, 256), (384, 384), False),
        ((256, 256), (1024, 1024), False),
    ],
)
def test_stages_near_the_trained_scale_fit(before, after, fits) -> None:
    assert info(scale=2.0).fits(before, after) is fits


def test_a_model_of_another_kind_is_refused(unet: nn.Module) -> None:
    info().check("sd1", unet)
    with pytest.raises(UpsamplerError, match=r"was trained on toy \(sd1, features of 6, 5, 4, 3 c"):
        info().check("sd2", unet)
    with pytest.raises(UpsamplerError, match="was trained on toy"):
        info(channels=(6, 5, 4, 4)).check("sd1", unet)
    with pytest.raises(UpsamplerError, match="was trained on toy"):
        info(layers=(1, 2, 3, 4)).check("sd1", unet)
