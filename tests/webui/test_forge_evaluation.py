"""Upsample Guidance in Forge's evaluation of cond and uncond, on a stand-in for it."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from toy_forge import FLOW, SIGMAS, Model, Sampler, SdModel, conds, evaluated

from lib_hires.noise import VarianceExploding
from lib_hires.resample import Reduction
from lib_hires.settings import ProgressiveRefinement, Settings, UpsampleGuidance
from lib_hires.upsample_guidance import UpsampleGuided
from lib_hires.webui import hosts
from lib_hires.webui.hosts import forge, forge_conds, host_of
from lib_hires.webui.hosts.protocol import GuidedPass
from lib_hires.webui.refining.refine import stages_of

LARGE, SMALL = (8, 8), (4, 4)
PLAIN = UpsampleGuidance(enabled=True, eta=1, cadence=1, shifted_start=False, enlargement="nearest")


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    module = ModuleType("backend.sampling.sampling_function")
    module.sampling_function_inner = evaluated
    for name in ("backend", "backend.sampling"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def guiding(sampler, settings=PLAIN, messages=None):
    warn = [].append if messages is None else messages.append
    reduction = Reduction.between(LARGE, SMALL)
    guided = GuidedPass(LARGE, reduction, settings, [5.0, 2.0, 0.0], lambda native: None, warn)
    return hosts.guiding(sampler.model_wrap_cfg, guided)


X = torch.arange(64.0).view(1, 1, *LARGE).sin()
SIGMA = torch.tensor([2.0])


def reduced(x):
    return Reduction.between(LARGE, SMALL).reduce(x)


def test_the_coarse_part_of_the_prediction_is_the_native_prediction():
    """D[x0'] = x0_small at theta = 1, with the host's own CFG in both."""
    sd_model = SdModel()
    with guiding(Sampler(sd_model)):
        guided = sd_model.denoise(X, SIGMA, conds(), conds(0.2))
    small = sd_model.denoise(reduced(X), SIGMA / 2, conds(), conds(0.2))
    torch.testing.assert_close(reduced(guided), small)


IN_WINDOWS = replace(PLAIN, windows="Hann", overlap=0.5)


def test_the_large_image_is_evaluated_in_windows_and_the_native_one_whole():
    """Nine windows in calls of four, whose rows the host's extensions can distinguish."""
    sd_model = SdModel()
    model = sd_model.forge_objects.unet.model
    with guiding(Sampler(sd_model), IN_WINDOWS):
        guided = sd_model.denoise(X, SIGMA, conds(), conds(0.2))
    assert "apply_model" not in vars(model)
    assert {size for size, _ in model.evaluated} == {SMALL}
    rows = [received["cond_indices"] for _, received in model.evaluated]
    assert rows == [*[[0, 1, 2, 3], [0, 1, 2, 3], [0]] * 2, [0], [0]]
    branches = [received["cond_or_uncond"] for _, received in model.evaluated]
    assert branches == [[0] * 4, [0] * 4, [0], [1] * 4, [1] * 4, [1], [0], [1]]

    def plain(x, sigma):
        return sd_model.denoise(x, sigma, conds(), conds(0.2))

    windowed = UpsampleGuided(
        plain,
        IN_WINDOWS,
        family=VarianceExploding(SIGMAS),
        reduction=Reduction.between(LARGE, SMALL),
        times=[5.0, 2.0, 0.0],
    )
    torch.testing.assert_close(guided, windowed(X, SIGMA))


def test_without_guidance_the_rest_is_evaluated_at_full_size():
    sd_model, messages = SdModel(), []
    sampler, model = Sampler(sd_model), sd_model.forge_objects.unet.model
    plain = sd_model.denoise(X, SIGMA, conds(), conds(0.2))
    with guiding(sampler, IN_WINDOWS, messages):
        sampler.model_wrap_cfg.need_last_noise_uncond = True
        assert torch.equal(sd_model.denoise(X, SIGMA, conds(), conds(0.2)), plain)
    assert {size for size, _ in model.evaluated} == {LARGE}
    assert len(messages) == 1


def test_two_windows_of_a_call_have_the_rows_of_both():
    options = {
        "cond_or_uncond": [1, 0], "uuids": ["u", "c"], "kept": 7, "sigmas": torch.ones(2),
        "cond_indices": [2, 3], "uncond_indices": [0, 1], "cond_mark": torch.tensor([1, 1, 0, 0]),
    }  # fmt: skip
    received = forge_conds.options_in_windows(options, 4, 8)
    assert received.pop("cond_mark").tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    assert received.pop("sigmas") is options["sigmas"]
    assert received == {
        "cond_or_uncond": [1, 0, 1, 0], "uuids": ["u", "c", "u", "c"], "kept": 7,
        "cond_indices": [2, 3, 6, 7], "uncond_indices": [0, 1, 4, 5],
    }  # fmt: skip
    assert options["cond_or_uncond"] == [1, 0]


@pytest.mark.parametrize(
    ("controlnet", "options", "reason"),
    [
        (None, {}, ""),
        (None, {"conditioning_modifiers": [], "transformer_options": {"patches_replace": {}}}, ""),
        (object(), {}, "ControlNet"),
        (None, {"conditioning_modifiers": [print]}, "attention"),
        (None, {"transformer_options": {"patches_replace": {"attn1": {}}}}, "attention"),
    ],
)
def test_what_goes_by_the_whole_images_attention_is_evaluated_whole(controlnet, options, reason):
    sd_model = SdModel()
    patcher = sd_model.forge_objects.unet
    patcher.controlnet_linked_list, patcher.model_options = controlnet, options
    assert reason in forge.reason_for_whole(sd_model)
    assert bool(reason) == bool(forge.reason_for_whole(sd_model))


def test_other_sizes_pass_and_afterwards_the_options_are_as_before():
    sd_model = SdModel()
    before = sd_model.options
    tile = X[..., :6]
    plain = sd_model.denoise(tile, SIGMA, conds(), conds(0.2))
    with guiding(Sampler(sd_model)):
        assert sd_model.options["kept"] == 1
        assert torch.equal(sd_model.denoise(tile, SIGMA, conds(), conds(0.2)), plain)
    assert sd_model.options is before


def test_above_the_models_noise_the_large_image_is_scaled_down():
    sd_model, beyond = SdModel(), torch.tensor([29.2])
    shifted = UpsampleGuidance(enabled=True, theta=0, shifted_start=True)
    with guiding(Sampler(sd_model), shifted):
        made = sd_model.denoise(X, beyond, conds(), conds(0.2))
    largest = SIGMAS[-1:]
    expected = sd_model.denoise(X * largest / beyond, largest, conds(), conds(0.2))
    torch.testing.assert_close(made, expected)


def test_the_refiners_model_is_guided_from_then_on():
    first, second = SdModel(), SdModel()
    sampler = Sampler(first)
    with guiding(sampler):
        sampler.refine_with(second)
        second.denoise(X, SIGMA, conds(), conds(0.2))
        assert first.options == {"kept": 1}
    sizes = [size for size, _ in second.forge_objects.unet.model.evaluated]
    assert sizes == [LARGE, LARGE, SMALL, SMALL]
    assert second.options == {"kept": 1}


def test_a_native_evaluation_that_fails_is_one_message_and_not_made_again():
    sd_model, messages = SdModel(), []
    apply_model = sd_model.forge_objects.unet.model.apply_model
    plain = sd_model.denoise(X, SIGMA, conds(), conds(0.2))

    def failing(x, *more, **cond):
        assert x.shape[-1] == 8, "too small"
        return apply_model(x, *more, **cond)

    sd_model.forge_objects.unet.model.apply_model = failing
    with guiding(Sampler(sd_model), messages=messages):
        for _ in range(2):
            assert torch.equal(sd_model.denoise(X, SIGMA, conds(), conds(0.2)), plain)
    assert len(messages) == 1
    assert "AssertionError: too small" in messages[0]


def test_a_sampler_that_replaces_our_function_is_noticed():
    sd_model, messages = SdModel(), []
    with guiding(Sampler(sd_model), messages=messages):
        sd_model.options["sampler_post_cfg_function"] = []
        for _ in range(3):
            sd_model.denoise(X, SIGMA, conds(), conds(0.2))
    assert len(messages) == 1
    assert "a function of its own" in messages[0]


def test_a_sampler_that_goes_on_from_uncond_is_left_alone():
    """DDIM CFG++, which is known after the sampling has begun."""
    sd_model, messages = SdModel(), []
    sampler = Sampler(sd_model)
    plain = sd_model.denoise(X, SIGMA, conds(), conds(0.2))
    with guiding(sampler, messages=messages):
        sampler.model_wrap_cfg.need_last_noise_uncond = True
        for _ in range(2):
            assert torch.equal(sd_model.denoise(X, SIGMA, conds(), conds(0.2)), plain)
    assert len(messages) == 1
    assert "from uncond alone" in messages[0]


def test_a_mask_beside_the_latent_shrinks_and_controlnet_stays_where_it_is_wanted():
    sd_model, beside = SdModel(), torch.ones(1, 5, *LARGE)
    with guiding(Sampler(sd_model)):
        sd_model.denoise(X, SIGMA, conds(c_concat=beside), conds(0.2, c_concat=beside))
    sides = [
        received["c_concat"].shape[-2:]
        for _, received in sd_model.forge_objects.unet.model.evaluated
    ]
    assert sides == [LARGE, LARGE, SMALL, SMALL]
    cond = {"cond": conds(), "uncond": None}
    for controlled, control in ((True, "hint"), (False, None)):
        fitting = forge_conds.shrunk_conds(
            cond,
            SMALL,
            large=LARGE,
            controlled=controlled,
            sizes=forge_conds.size_embeddings(sd_model),
        )
        assert fitting["cond"][0]["control"] == control
        assert fitting["uncond"] is None
        assert cond["cond"][0]["control"] == "hint"


@pytest.mark.parametrize(("length", "received"), [(2816, (32, 32, 0, 0, 32, 32)), (2560, (32, 32))])
def test_sdxls_vector_receives_the_small_size(length, received):
    """The base has six numbers behind the pooled text, the refiner five, the last a score."""

    def embed(numbers):
        return numbers[:, None].repeat(1, 256)

    sd_model = SdModel()
    sd_model.embedder = embed
    vector = torch.zeros(1, length)
    made = forge_conds.size_embeddings(sd_model).with_size(vector, (32, 32))
    numbers = made[0, 1280:].view(-1, 256)[:, 0]
    assert tuple(numbers[: len(received)].tolist()) == received
    assert made[0, :1280].eq(0).all()
    assert not vector.any()


def test_sdxls_sizes_are_embedded_once_a_sampling():
    sd_model, embedded = SdModel(), []

    def embed(numbers):
        embedded.append(tuple(numbers.tolist()))
        return numbers[:, None].repeat(1, 256)

    sd_model.embedder = embed
    vector = torch.zeros(1, 2816)
    with guiding(Sampler(sd_model)):
        for _ in range(3):
            sd_model.denoise(X, SIGMA, conds(y=vector), conds(0.2, y=vector))
    assert embedded == [(32, 32)] * 2


def test_a_flow_models_native_evaluation_is_at_its_own_noise_level():
    """x = (1 - t)·x0 + t·eps with half the noise: the same sum's share of noise, and its scale."""
    sd_model, t = SdModel(Model(FLOW)), torch.tensor([0.8])
    with guiding(Sampler(sd_model)):
        guided = sd_model.denoise(X, t, conds(), conds(0.2))
    small = sd_model.denoise(reduced(X) / 0.6, torch.tensor([0.4 / 0.6]), conds(), conds(0.2))
    torch.testing.assert_close(reduced(guided), small)


def test_ddim_does_not_guide_a_flow_model():
    sd_model, messages = SdModel(Model(FLOW)), []
    sampler = Sampler(sd_model)
    del sampler.model_wrap_cfg.inner_model.sigmas
    before = sd_model.options
    with guiding(sampler, messages=messages):
        assert sd_model.options is before
    assert len(messages) == 1
    assert "knows no flow models" in messages[0]


def test_a_flow_models_stages_are_of_whole_patches():
    refine = ProgressiveRefinement(enabled=True, factor=1.5, eta2="0.5")
    (stage,) = stages_of(SdModel(Model(FLOW)), Settings(refine=refine), (80, 64))
    assert stage.size == (128, 96)  # not 120


def test_flow_models_are_supported_in_forge_and_a_model_is_known_by_what_it_has():
    flow = SdModel(Model(FLOW))
    assert host_of(flow) is forge
    assert forge.is_supported(SdModel())
    assert not forge.is_flow(SdModel())
    assert forge.is_flow(flow)
    assert forge.is_supported(flow)
    model = flow.forge_objects.unet.model
    model.model_sampling = model.__dict__.pop("predictor")  # as in reForge
    assert not forge.is_supported(flow)
    assert not forge.is_supported(SimpleNamespace(forge_objects=None))


def test_timesteps_become_noise_levels():
    abar = torch.tensor([0.9, 0.5, 0.1])
    inner = SimpleNamespace(inner_model=SimpleNamespace(alphas_cumprod=abar))
    times = forge._as_sigmas(SimpleNamespace(inner_model=inner), [2.0, 1.0, 0.0])
    assert times == pytest.approx([3, 1, 1 / 3])
