"""Decoding and encoding in tiles, of networks whose parts all look beyond a tile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from toy_vaes import FACTOR, ToyVae, uneven

from lib_hires.tiled_vae import HALO, vae_tiled
from lib_hires.tiled_vae.tiles import tiles_over

LAYOUTS = "ldm", "diffusers"
SIDES = 40, 56  # of the latent
PIXELS = 24 * FACTOR  # of a tile

both = pytest.mark.parametrize("decode", [True, False], ids=["decode", "encode"])


def random_input(decode: bool, images: int = 1) -> Tensor:
    if decode:
        return uneven(*SIDES, images)
    return uneven(*(side * FACTOR for side in SIDES), images, channels=3)


def in_tiles(function, x: Tensor, vae: nn.Module, decode: bool, pixels: int = PIXELS) -> Tensor:
    return vae_tiled(function, x, vae=vae, pixels=pixels, factor=FACTOR, decode=decode)


def in_halves(half: nn.Module, part: Tensor) -> Tensor:
    return torch.cat([half(side) for side in part.chunk(2, dim=-1)], dim=-1)


def hooks(module: nn.Module) -> int:
    parts = list(module.modules())
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


@both
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_middle_sees_the_whole(layout: str, decode: bool) -> None:
    """Without norms outside it, and with a halo as wide as convolutions look, nothing differs."""
    vae, x = ToyVae(layout, normed=False), random_input(decode)
    half = vae.half(decode)
    torch.testing.assert_close(in_tiles(half, x, vae, decode), half(x), atol=1e-4, rtol=1e-4)
    plain = ToyVae("unknown", normed=False)
    assert (in_tiles(plain.half(decode), x, plain, decode) - half(x)).abs().max() > 0.1


@both
@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_take_the_whole_image_s_moments(layout: str, decode: bool) -> None:
    vae, plain, x = ToyVae(layout), ToyVae("unknown"), random_input(decode)
    whole = vae.half(decode)(x)

    def worst(of: ToyVae) -> float:
        return float((in_tiles(of.half(decode), x, of, decode) - whole).abs().max())

    assert worst(vae) < worst(plain) / 10


@both
@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_a_sample_is_large_enough_it_takes_the_place_of_passes(
    layout: str, decode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image of a tile's size, and then each tile once, hardly further from the whole."""
    vae, plain, x = ToyVae(layout), ToyVae("unknown"), random_input(decode)
    half, given = vae.half(decode), []
    whole = half(x)
    monkeypatch.setattr("lib_hires.tiled_vae.CELLS", 1)

    def counting(part: Tensor) -> Tensor:
        given.append(max(part.shape[-2:]))
        return half(part)

    got = in_tiles(counting, x, vae, decode)
    in_plain_tiles = in_tiles(plain.half(decode), x, plain, decode)
    assert (got - whole).abs().mean() < (in_plain_tiles - whole).abs().mean() / 3
    tile = PIXELS // FACTOR if decode else PIXELS
    tiles = tiles_over(SIDES, PIXELS // FACTOR, HALO)
    assert sum(side <= tile for side in given) == len(tiles) + 1  # and the middle, of the whole
    assert len(given) == len(tiles) + 2


@both
def test_nothing_as_large_as_the_whole_passes_outside_the_middle(decode: bool) -> None:
    vae, x = ToyVae(), random_input(decode)
    half = vae.half(decode)
    seen = []
    for part in half.up if decode else half.down:
        part.register_forward_pre_hook(lambda _, inputs: seen.append(max(inputs[0].shape[-2:])))
    in_tiles(half, x, vae, decode)
    assert max(seen) <= PIXELS


@both
@pytest.mark.parametrize("pixels", [0, 56 * FACTOR, 4096])
def test_what_fits_is_one_call_of_its_own(decode: bool, pixels: int) -> None:
    vae, x, given = ToyVae(), random_input(decode, images=2), []

    def function(part: Tensor) -> Tensor:
        assert hooks(vae) == 0
        given.append(part)
        return vae.half(decode)(part)

    assert torch.equal(in_tiles(function, x, vae, decode, pixels), vae.half(decode)(x))
    assert len(given) == 1 and given[0] is x


@both
def test_each_image_is_as_if_alone(decode: bool) -> None:
    vae, x = ToyVae(), random_input(decode, images=3)
    half = vae.half(decode)

    def one_by_one(images: Tensor) -> Tensor:
        return torch.cat([half(image[None]) for image in images])

    together = in_tiles(one_by_one, x, vae, decode)
    alone = [in_tiles(half, image[None], vae, decode) for image in x]
    assert torch.equal(together, torch.cat(alone))


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(decode: bool, dtype: torch.dtype) -> None:
    vae, x = ToyVae(), random_input(decode)
    whole = vae.half(decode)(x)
    vae.to(dtype)
    got = in_tiles(vae.half(decode), x.to(dtype), vae, decode)
    assert got.dtype == dtype
    assert (got.float() - whole).abs().mean() < 0.05 * whole.std()


@both
def test_in_inference_mode(decode: bool) -> None:
    """As Forge calls its VAE, and nothing around it."""
    vae, x = ToyVae(), random_input(decode)
    function = torch.inference_mode()(vae.half(decode).__call__)
    expected = in_tiles(vae.half(decode), x, vae, decode)
    assert torch.equal(in_tiles(function, x, vae, decode), expected)


@both
def test_whatever_call_fails_leaves_the_vae_as_it_was(decode: bool) -> None:
    """A tile's error, as when memory runs out or the user interrupts."""
    vae, x = ToyVae(), random_input(decode)
    half = vae.half(decode)
    whole, counted = half(x), []

    def counting(part: Tensor) -> Tensor:
        counted.append(part)
        return half(part)

    in_tiles(counting, x, vae, decode)
    for failing in range(len(counted)):
        left = iter(range(len(counted)))

        def failing_once(part: Tensor, left=left, failing=failing) -> Tensor:
            if next(left) == failing:
                raise RuntimeError("out of memory")
            return half(part)

        with pytest.raises(RuntimeError, match="out of memory"):
            in_tiles(failing_once, x, vae, decode)
        assert hooks(vae) == 0
    assert torch.equal(half(x), whole)


def test_a_host_may_change_the_precision_when_it_sees_nan() -> None:
    """As the WebUI does: overflow gives it NaN, and it computes once more in float32."""
    vae, z = ToyVae(), random_input(True)
    wide = in_tiles(vae.decoder, z, vae, True)
    broken = vae.decoder.conv_in.weight.clone()
    vae.decoder.conv_in.weight.fill_(torch.nan)
    tried = []

    def with_retry(part: Tensor) -> Tensor:
        image = vae.decoder(part)
        if image.isnan().all():
            tried.append(part)
            vae.decoder.conv_in.weight.copy_(broken)
            image = vae.decoder(part)
        return image

    assert torch.equal(in_tiles(with_retry, z, vae, True), wide)
    assert len(tried) == 1 and max(tried[0].shape[-2:]) <= PIXELS // FACTOR


@both
def test_another_network_gets_the_whole(decode: bool) -> None:
    """As where a host is set to decode or encode by an approximation."""
    vae, x = ToyVae(), random_input(decode)
    other = nn.Upsample(scale_factor=2) if decode else nn.AvgPool2d(FACTOR)
    assert torch.equal(in_tiles(other, x, vae, decode), other(x))
    assert hooks(vae) == 0


def test_a_host_may_turn_to_previews_in_the_middle() -> None:
    """As the WebUI does when the user interrupts."""
    vae, z = ToyVae(), random_input(True)
    preview = nn.Upsample(scale_factor=2)
    calls = []

    def function(part: Tensor) -> Tensor:
        calls.append(part)
        return vae.decoder(part) if len(calls) < 5 else preview(part)

    assert torch.equal(in_tiles(function, z, vae, True), preview(z))
    assert hooks(vae) == 0


@both
def test_a_host_with_tiles_of_its_own_is_left_to_them(decode: bool) -> None:
    """As Forge where it always tiles; what is no larger than one of its tiles it computes whole."""
    vae, x = ToyVae(), random_input(decode)
    half, tile = vae.half(decode), PIXELS // FACTOR if decode else PIXELS

    def function(part: Tensor) -> Tensor:
        return half(part) if max(part.shape[-2:]) <= tile else in_halves(half, part)

    assert torch.equal(in_tiles(function, x, vae, decode), in_halves(half, x))
    assert hooks(vae) == 0


@both
def test_a_host_that_tries_again_at_any_error_is_not_made_to(decode: bool) -> None:
    """As Forge with --directml, which takes every error for a lack of memory."""
    vae, x = ToyVae(), random_input(decode)
    half, failed = vae.half(decode), []

    def function(part: Tensor) -> Tensor:
        try:
            return half(part)
        except Exception as error:
            failed.append(error)
            return in_halves(half, part)

    assert torch.equal(in_tiles(function, x, vae, decode), in_tiles(half, x, vae, decode))
    assert failed == []


def test_a_live_preview_is_decoded_as_ever() -> None:
    """In another thread, and of the very size that is decoded."""
    vae, z = ToyVae(normed=False), random_input(True)
    whole, previews = vae.decoder(z), []

    with ThreadPoolExecutor(1) as other:

        def function(part: Tensor) -> Tensor:
            previews.append(other.submit(vae.decoder, z).result())
            return vae.decoder(part)

        image = in_tiles(function, z, vae, True)
    assert torch.equal(image, in_tiles(vae.decoder, z, vae, True))
    for preview in previews:
        torch.testing.assert_close(preview, whole)


@pytest.mark.parametrize("pixels", [16, 36, 64, 100])
def test_tiles_of_any_size_give_the_size_of_the_whole(pixels: int) -> None:
    vae, image = ToyVae(), random_input(False)
    z = in_tiles(vae.encoder, image, vae, False, pixels)
    assert z.shape == vae.encoder(image).shape
    assert in_tiles(vae.decoder, z, vae, True, pixels).shape == image.shape
