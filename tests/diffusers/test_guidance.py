"""Upsample Guidance on pipelines of every family."""

from __future__ import annotations

import logging

import pytest
import tiny_pipelines as tiny
import torch
from torch import Tensor

from lib_hires import Reduction, SettingsError
from lib_hires.diffusers import apply_hires_guidance, remove_hires_guidance
from lib_hires.diffusers.layouts import unpacked

FAMILIES = {
    "sd1, eps": lambda: tiny.unet_pipeline("sd1", "eps"),
    "sd2, v": lambda: tiny.unet_pipeline("sd2", "v"),
    "sd1, sample": lambda: tiny.unet_pipeline("sd1", "sample"),
    "sdxl, eps": lambda: tiny.unet_pipeline("sdxl", "eps"),
    "sd3": tiny.sd3_pipeline,
    "flux": tiny.flux_pipeline,
    "animatediff": tiny.animatediff_pipeline,
}
NATIVE = {"flux": {"native": 16}}  # the others' models say it
CALL = {"animatediff": {"num_frames": 2}}


@pytest.mark.parametrize("family", FAMILIES)
def test_theta_0_and_removal_leave_every_bit_and_theta_1_does_not(family: str) -> None:
    pipe, call, native = FAMILIES[family](), CALL.get(family, {}), NATIVE.get(family, {})
    plain = tiny.latents(pipe, **call)
    apply_hires_guidance(pipe, ug=True, ug_theta=0, **native)
    assert torch.equal(tiny.latents(pipe, **call), plain)
    apply_hires_guidance(pipe, ug=True, **native)
    assert not torch.allclose(tiny.latents(pipe, **call), plain, atol=1e-2)
    remove_hires_guidance(pipe)
    assert torch.equal(tiny.latents(pipe, **call), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_it_is_left(family: str) -> None:
    pipe = FAMILIES[family]()
    module = getattr(pipe, "unet", None) or pipe.transformer
    before = dict(vars(pipe)), dict(vars(module))
    apply_hires_guidance(pipe, ug=True, pfsa=True, **NATIVE.get(family, {}))
    assert dict(vars(module)) != before[1]
    remove_hires_guidance(pipe)
    remove_hires_guidance(pipe)
    assert (dict(vars(pipe)), dict(vars(module))) == before


def coarse_matches(pipe, start: Tensor, scale: float, sigmas: dict[str, list[float]]) -> float:
    """How far D of the guided latents lies from the native run's on the matched schedule."""
    raise NotImplementedError
