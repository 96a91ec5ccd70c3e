"""Self-attention in windows through the ways that the hosts call it, beside a masked matrix."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lib_hires.detail.neighbourhood import EvaluatedSize, Neighbourhood, parts_of
from lib_hires.detail.slots import reason_for_whole_attention, with_windows
from lib_hires.settings import Settings, UpsampleGuidance
from lib_hires.webui.hosts import forge
from lib_hires.webui.hosts.attention import SelfAttention, attention_in_windows

LARGE, NATIVE = (12, 16), (6, 6)
WINDOWS = Neighbourhood(LARGE, NATIVE)
HEADS = 2


def attention_function(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """As the hosts' own: (b, n, heads·d) each."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (scores @ v).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.to_out = nn.Linear(8, 8)

    def forward(self, x, context=None, mask=None, additional_tokens=None, times=0):
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(attention_function(q, k, v, HEADS))


class Block(nn.Module):
    """A transformer block as both kinds of host write it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(), CrossAttention()
        self.disable_self_attn, self.size = False, (0, 0)

    def forward(self, x: Tensor, text: Tensor, slot=None) -> Tensor:
        if slot is None:
            x = self.attn1(x, context=None, additional_tokens=None, times=0) + x
        else:
            q, k, v = self.attn1.to_q(x), self.attn1.to_k(x), self.attn1.to_v(x)
            extra = {"n_heads": HEADS, "original_shape": [len(x), 4, *self.size]}
            x = self.attn1.to_out(slot(q, k, v, extra)) + x
        return self.attn2(x, context=text) + x


class WithoutAttention(nn.Module):
    input_blocks = output_blocks = ()


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.input_blocks = nn.ModuleList([nn.Identity(), Block()])
        self.middle_block, self.output_blocks = Block(), nn.ModuleList([Block()])
        self.requires_grad_(False)

    def forward(self, latents: Tensor, x: Tensor, text: Tensor, options=None) -> Tensor:
        """latents: as large as the image; x: the features of its positions."""
        for block in (self.input_blocks[1], self.middle_block, self.output_blocks[0]):
            block.size = tuple(latents.shape[-2:])
        slots = (options or {}).get("transformer_options", {}).get("patches_replace", {})
        slots = slots.get("attn1", {})
        x = self.input_blocks[1](x, text, slots.get(("input", 1)))
        x = self.middle_block(x, text, slots.get(("middle", 0)))
        return self.output_blocks[0](x, text, slots.get(("output", 0)))


def masked(unet: UNet, x: Tensor, text: Tensor) -> Tensor:
    """With the matrix of all positions by all, and everything outside the windows masked."""
    mask = torch.zeros(*LARGE, *LARGE, dtype=torch.bool)
    for part in parts_of(LARGE, NATIVE):
        mask[part.block[0], part.block[1], part.window[0], part.window[1]] = True
    mask = mask.reshape(LARGE[0] * LARGE[1], -1)
    for block in (unet.input_blocks[1], unet.middle_block, unet.output_blocks[0]):
        attn = block.attn1
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask, -torch.inf).softmax(-1)
        x = attn.to_out((scores @ v).transpose(1, 2).flatten(2)) + x
        x = block.attn2(x, context=text) + x
    return x


def inputs(size: tuple[int, int] = LARGE) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    features = 3 * torch.randn(2, size[0] * size[1], 8)
    return torch.zeros(2, 4, *size), features, torch.randn(2, 5, 8)


def test_modules_see_windows_inside_the_block_alone() -> None:
    unet, (latents, x, text) = UNet(), inputs()
    whole = unet(latents, x, text)
    with attention_in_windows(unet, WINDOWS):
        got = unet(latents, x, text)
    torch.testing.assert_close(got, masked(unet, x, text), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, whole, atol=1e-3)
    assert torch.equal(unet(latents, x, text), whole)
    with pytest.raises(ZeroDivisionError), attention_in_windows(unet, WINDOWS):
        raise ZeroDivisionError
    assert torch.equal(unet(latents, x, text), whole)
    with attention_in_windows(unet, None):
        assert torch.equal(unet(latents, x, text), whole)


def test_the_slot_sees_the_same_windows() -> None:
    unet, (latents, x, text) = UNet(), inputs()
    options = {"kept": 1, "transformer_options": {"kept": 2, "patches_replace": {"attn2": {}}}}
    made = with_windows(options, unet, WINDOWS)
    got = unet(latents, x, text, made)
    torch.testing.assert_close(got, masked(unet, x, text), atol=1e-5, rtol=1e-5)
    assert made["kept"] == 1 and made["transformer_options"]["kept"] == 2
    assert options == {
        "kept": 1,
        "transformer_options": {"kept": 2, "patches_replace": {"attn2": {}}},
    }


@pytest.mark.parametrize("size", [(6, 6), (6, 8), (12, 10)])
def test_images_of_native_size_and_others_stay_whole(size: tuple[int, int]) -> None:
    """(6, 8) has as many positions as the large image at half the sides, where native is 3x3."""
    unet, (latents, x, text) = UNet(), inputs(size)
    whole = unet(latents, x, text)
    with attention_in_windows(unet, WINDOWS):
        assert torch.equal(unet(latents, x, text), whole)
    assert torch.equal(unet(latents, x, text, with_windows({}, unet, WINDOWS)), whole)


def test_what_others_give_beside_the_image_is_theirs() -> None:
    """As ControlNet's reference units do, and hooks that have a mask."""
    attn, (_, x, text) = CrossAttention().requires_grad_(False), inputs()
    size = EvaluatedSize()
    size.now = LARGE
    called = SelfAttention(WINDOWS, attn.forward, size)
    reference = torch.cat([x, x + 1], dim=1)
    for given in ({"context": reference}, {"context": text}, {"mask": torch.ones(2)}):
        assert torch.equal(called(x, **given), attn(x, **given))
    assert not torch.allclose(called(x), attn(x), atol=1e-3)
    assert torch.equal(called(x, context=x), called(x, times=0, additional_tokens=None))


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({}, UNet, ""),
        ({"transformer_options": {"patches_replace": {"attn2": {("input", 1): print}}}}, UNet, ""),
        ({"transformer_options": {"patches_replace": {"attn1": {("input", 1): print}}}}, UNet,
         "another extension holds the attention's place"),
        ({}, nn.Identity, "this model's attention is of another kind"),
        ({}, WithoutAttention, "this model has no self-attention"),
    ],
)  # fmt: skip
def test_the_slot_is_left_to_who_holds_it(options, kind, reason) -> None:
    diffusion_model = kind()
    patcher = SimpleNamespace(
        model_options=options, model=SimpleNamespace(diffusion_model=diffusion_model)
    )
    sd_model = SimpleNamespace(forge_objects=SimpleNamespace(unet=patcher))
    assert forge.reason_for_whole_attention(sd_model) == reason


def test_attention_is_no_evaluation_in_windows() -> None:
    settings = Settings.from_values({"ug": True, "ug_windows": "attention"})
    assert not settings.ug.evaluates_windows
    assert UpsampleGuidance(windows="Hann").evaluates_windows


def test_a_run_of_the_host_is_in_windows_and_nothing_stays(host) -> None:
    from modules import shared

    unet = shared.loaded.sd_model.model.diffusion_model
    unet.block = nn.Module()
    attn = unet.block.attn1 = nn.Identity()
    seen: list[tuple[tuple[int, int], bool]] = []
    hook = unet.register_forward_pre_hook(
        lambda _, inputs: seen.append((tuple(inputs[0].shape[-2:]), "forward" in vars(attn)))
    )
    for windows, inside in (("attention", True), ("off", False)):
        seen.clear()
        made = host.generate({"ug": True, "ug_windows": windows})
        assert made.messages == [] and {size for size, _ in seen} == {(16, 16), (8, 8)}
        assert all(found == inside for _, found in seen)
        assert "forward" not in vars(attn)
    hook.remove()


def test_attention_of_an_unknown_name_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules[__name__], "attention_function")
    reason = reason_for_whole_attention({}, UNet())
    assert reason == "the host's attention is not where it is looked for"
