"""The host's upscalers before a stage is encoded."""

from __future__ import annotations

import pytest
import torch
from runs import same

REFINE = {"refine": True, "refine_eta2": "0.4"}
NATIVE = {"width": 64, "height": 64}
KEY = "HiRes upscaler"


def choose(name):
    from modules import shared

    shared.opts.hires_guidance_upscaler = name


@pytest.fixture
def encoded(monkeypatch):
    """The images that stages encode."""
    from lib_hires.webui.refining.vae import HostVae

    seen, encode = [], HostVae.encode

    def heard(self, images):
        seen.append(images.clone())
        return encode(self, images)

    monkeypatch.setattr(HostVae, "encode", heard)
    return seen


def test_a_stage_encodes_what_the_chosen_upscaler_gives(host, encoded):
    """Nearest at twice the sides repeats each pixel; the first image has 8 bits then."""
    plain = host.generate(REFINE, **NATIVE)
    choose("Nearest")
    made = host.generate(REFINE, **NATIVE)
    assert made.messages == []
    bicubic, nearest = encoded
    assert nearest.shape == bicubic.shape and not torch.allclose(nearest, bicubic, atol=0.01)
    corner = nearest[..., ::2, ::2]
    assert torch.equal(nearest, corner.repeat_interleave(2, 2).repeat_interleave(2, 3))
    levels = (nearest + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert not same(plain, made)
    assert KEY in made.infotexts[0] and KEY not in plain.infotexts[0]


@pytest.mark.parametrize("name", ["None", "", None])
def test_none_is_bicubic_and_changes_no_bit(host, name):
    plain = host.generate(REFINE, **NATIVE)
    choose(name)
    made = host.generate(REFINE, **NATIVE)
    assert same(plain, made) and made.infotexts == plain.infotexts and made.messages == []


def test_one_that_is_not_there_is_left_out_with_a_message(host):
    plain = host.generate(REFINE, **NATIVE)
    choose("4x-Gone")
    made = host.generate(REFINE, **NATIVE)
    assert same(plain, made) and KEY not in made.infotexts[0]
    (message,) = made.messages
    assert 'there is no upscaler "4x-Gone"' in message


def test_what_is_not_refined_does_not_name_one(host):
    choose("Lanczos")
    made = host.generate({"ug": True}, width=128, height=128)
    assert KEY not in made.infotexts[0]


@pytest.mark.parametrize("name", ["Lanczos", "4x-Gone"])
def test_stages_of_latents_have_no_use_for_it_and_do_not_name_it(host, name):
    pivot = {"refine": True, "refine_method": "Pivot", "refine_pivot": 400}
    plain = host.generate(pivot, **NATIVE)
    choose(name)
    made = host.generate(pivot, **NATIVE)
    assert same(plain, made) and KEY not in made.infotexts[0] and made.messages == []


def test_the_settings_page_lists_what_hires_fix_offers(host):
    from modules import shared

    from lib_hires.webui.surfaces.host_options import upscalers

    shared.sd_upscalers.append(type(shared.sd_upscalers[0])(name="ESRGAN_4x"))
    try:
        assert upscalers() == ["None", "Lanczos", "Nearest", "ESRGAN_4x"]
    finally:
        shared.sd_upscalers.pop()
