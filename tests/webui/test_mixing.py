"""Attentive Guidance in a sampler's steps, on a CFG denoiser that changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from meta_device import OnDevice
from torch import nn

from lib_hires.attentive_guidance import gamma_at, mix_scaled_
from lib_hires.settings import AttentiveGuidance
from lib_hires.webui.hosts.noise import WholeTimesteps, family_of
from lib_hires.webui.sampling.attentive import mixing

PFSA = AttentiveGuidance(enabled=True, gamma=0.3, eta1=0)


class Inner(nn.Module):
    """Of k-diffusion's samplers with `sigmas`; of those that count timesteps with `abar`."""

    def __init__(self, sigmas=None, abar=None):
        super().__init__()
        if sigmas is not None:
            self.sigmas = sigmas
        self.inner_model = SimpleNamespace(alphas_cumprod=abar)


class Denoiser(nn.Module):
    steps = 5

    def __init__(self, inner):
        super().__init__()
        self.inner_model, self.step = inner, 0

    def forward(self, x, time):
        self.step += 1
        return x


class Sampler:
    def __init__(self, inner, name):
        self.model_wrap_cfg = Denoiser(inner)
        self.config = SimpleNamespace(name=name, options={})

    def callback_state(self, step):
        pass

    def take_step(self, x, time):
        """One evaluation, and the callback after it."""
        done = self.model_wrap_cfg.step
        self.model_wrap_cfg(x, time)
        self.callback_state({"x": x, "i": done})


VE = {"sigmas": torch.linspace(0.03, 14.6, 1000)}
FLOW = {"sigmas": torch.linspace(0.001, 1, 1000)}
VP = {"abar": torch.linspace(0.999, 0.01, 1000)}


@pytest.mark.parametrize("space", ["VE", "VP"])
@pytest.mark.parametrize(
    ("name", "levels"), [("Euler", VE), ("Euler", FLOW), ("DDIM", VP), ("UniPC", VP)]
)
def test_a_step_reads_nothing_and_makes_nothing_on_the_cpu(name, levels, space):
    sampler, mixed = Sampler(Inner(**levels), name), []
    settings = AttentiveGuidance(enabled=True, eta1=0, space=space)
    x, time = torch.empty(2, 4, 8, 8, device="meta"), torch.empty(2, device="meta")
    with mixing(sampler, settings, lambda: mixed.append(sampler.model_wrap_cfg.step), print):
        sampler.take_step(x, time)
        sampler.take_step(x, time)  # knows the model by now
        before = len(mixed)
        with OnDevice():
            sampler.take_step(x, time)
    assert len(mixed) == before + 1


def test_after_the_refiner_the_states_are_those_of_its_noise_levels():
    first, second = Inner(**VP), Inner(abar=torch.linspace(0.9, 0.1, 1000))
    sampler, time = Sampler(first, "DDIM"), torch.full((2,), 500.0)
    mixed = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = mixed.clone()
    with mixing(sampler, PFSA, lambda: None, print):
        sampler.model_wrap_cfg(mixed, time)
        for inner in (first, second):
            sampler.model_wrap_cfg.inner_model = inner
            sampler.model_wrap_cfg(mixed, time)
    for done, inner in ((1, first), (2, second)):
        family = WholeTimesteps(inner.inner_model.alphas_cumprod)
        mix_scaled_(expected, time[:1], gamma_at(done, Denoiser.steps, PFSA), PFSA, family)
    assert torch.equal(mixed, expected)


def raising(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(("name", "levels"), [("Euler", VE), ("DDIM", VP), ("UniPC", VP)])
def test_a_mix_that_fails_leaves_the_rest_unmixed_and_is_one_message(name, levels, monkeypatch):
    sampler, mixed, messages = Sampler(Inner(**levels), name), [], []
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    time = torch.full((2,), 5.0)
    with mixing(sampler, PFSA, lambda: mixed.append(1), messages.append):
        sampler.take_step(x, time)
        sampler.take_step(x, time)
        kept, before = x.clone(), len(mixed)
        with monkeypatch.context() as patch:
            error = torch.cuda.OutOfMemoryError("CUDA out of memory")
            patch.setattr("lib_hires.attentive_guidance.pfsa", raising(error))
            sampler.take_step(x, time)
        sampler.take_step(x, time)
    assert torch.equal(x, kept)
    assert len(mixed) == before > 0
    assert messages == [
        "the rest of the image was made without Attentive Guidance, because it failed "
        "(OutOfMemoryError: CUDA out of memory)."
    ]


def test_an_interrupt_in_a_mix_is_no_failure(monkeypatch):
    class Interrupted(BaseException):
        """As the hosts' own is derived."""

    sampler, messages = Sampler(Inner(**VE), "Euler"), []
    monkeypatch.setattr("lib_hires.attentive_guidance.pfsa", raising(Interrupted()))
    x, time = torch.zeros(1, 4, 8, 8), torch.ones(1)
    with pytest.raises(Interrupted), mixing(sampler, PFSA, lambda: None, messages.append):
        sampler.take_step(x, time)
        sampler.take_step(x, time)
    assert messages == []


def test_a_half_precision_state_is_brought_to_scale_in_float32():
    state = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    expected, family = state.float(), WholeTimesteps(VP["abar"])
    for part in (state, expected):
        mix_scaled_(part, torch.tensor([500.0]), 0.3, PFSA, family)
    assert torch.equal(state, expected.half())


def test_frames_are_mixed_each_by_itself():
    """A state (b, c, T, h, w)."""
    state = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    frames, family = [frame.clone() for frame in state.unbind(2)], WholeTimesteps(VP["abar"])
    for part in (state, *frames):
        mix_scaled_(part, torch.tensor([500.0]), 0.3, PFSA, family)
    torch.testing.assert_close(state, torch.stack(frames, 2))


def test_unipc_along_sigmas_is_mixed_from_the_state_that_it_holds():
    """As in Forge Neo: it calls back before the first step, with states of variance 1."""
    sampler = Sampler(Inner(**VE), "UniPC")
    sampler.get_sigmas = lambda *_: VE["sigmas"]
    family, time = family_of(sampler.model_wrap_cfg.inner_model)[0], torch.tensor([3.0])
    state = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scale = (1 + time**2) ** 0.5
    expected = state * scale
    with mixing(sampler, PFSA, lambda: None, print):
        for _ in range(2):
            sampler.take_step(state, time)
    mix_scaled_(expected, time, gamma_at(1, Denoiser.steps, PFSA), PFSA, family)
    torch.testing.assert_close(state, expected / scale)
