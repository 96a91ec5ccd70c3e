"""Forge Neo's models whose latents are not as Stable Diffusion's, on a stand-in for Forge."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from toy_forge import FLOW, Model, Sampler, SdModel, conds, evaluated

from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance
from lib_hires.webui import hosts
from lib_hires.webui.hosts import forge
from lib_hires.webui.hosts.protocol import GuidedPass
from lib_hires.webui.refining.refine import reason_not_to_refine

LARGE, SMALL = (8, 8), (4, 4)


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    module = ModuleType("backend.sampling.sampling_function")
    module.sampling_function_inner = evaluated
    for name in ("backend", "backend.sampling"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def guiding(sd_model):
    settings = UpsampleGuidance(enabled=True, eta=1, cadence=1, shifted_start=False)
    reduction = Reduction.between(LARGE, SMALL)
    guided = GuidedPass(LARGE, reduction, settings, [0.8, 0.3, 0.0], lambda native: None, print)
    return hosts.guiding(Sampler(sd_model).model_wrap_cfg, guided)


def test_latents_with_a_time_axis_are_guided_frame_by_frame():
    """(b, c, T, h, w), as Forge Neo has them for Wan, Qwen-Image and Anima."""
    video, times = SdModel(Model(FLOW)), torch.tensor([0.8, 0.3])
    x = torch.randn(2, 3, 2, *LARGE, generator=torch.Generator().manual_seed(0))
    with guiding(video):
        made = video.denoise(x, times, conds(), conds(0.2))
    image = SdModel(Model(FLOW))
    with guiding(image):
        alone = [image.denoise(frame, times, conds(), conds(0.2)) for frame in x.unbind(2)]
    torch.testing.assert_close(made, torch.stack(alone, 2))
    assert not torch.allclose(made, video.denoise(x, times, conds(), conds(0.2)))


def test_models_with_a_time_axis_are_neither_refined_nor_evaluated_in_windows():
    video = SdModel(Model(FLOW))
    video.is_wan = True
    run = SimpleNamespace(p=SimpleNamespace(sd_model=video))
    assert "time axis" in reason_not_to_refine(run)
    assert "time axis" in forge.reason_for_whole(video)


@pytest.mark.parametrize(("ratio", "known"), [(8, True), ((print, 8, 8), True), (16, False)])
def test_a_latent_of_another_factor_is_not_guided(ratio, known):
    """Forge Neo's VAE of Wan has one ratio for each axis; that of Flux 2 has 16."""
    sd_model = SdModel(Model(FLOW))
    sd_model.forge_objects.vae.downscale_ratio = ratio
    assert forge.is_supported(sd_model) == known
