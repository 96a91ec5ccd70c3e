import comfy.samplers
import pytest
import torch

from lib_hires.attentive_guidance import gamma_at, mix_into_state_
from lib_hires.comfy.attentive import mixing_sampler
from lib_hires.settings import AttentiveGuidance, SettingsError

SIGMAS = torch.tensor([9.0, 3.0, 0.8, 0.0])
SETTINGS = AttentiveGuidance(enabled=True, gamma=0.3)


def mixing(name, settings=SETTINGS):
    return mixing_sampler(comfy.samplers.sampler_object(name), settings)


def by_hand(host, name, noise):
    """One step at a time, each begun by the host from the state that was mixed before it."""
    state = noise * SIGMAS[0]
    for done in range(3):
        if done:
            mix_into_state_(state, gamma_at(done, 3, SETTINGS), SETTINGS, float(SIGMAS[done]))
        part = SIGMAS[done : done + 2]
        state = host.sample(host.model, part, state / part[0], name)
    return state


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_the_state_is_mixed_once_a_step(host, name):
    noise = host.noise(6)
    mixed = host.sample(host.model, SIGMAS, noise, sampler=mixing(name))
    assert not torch.equal(mixed, host.sample(host.model, SIGMAS, noise, name))
    torch.testing.assert_close(mixed, by_hand(host, name, noise))


def test_two_runs_of_a_sampler_are_alike(host):
    sampler, noise = mixing("euler"), host.noise(6)
    first = host.sample(host.model, SIGMAS, noise, sampler=sampler)
    assert torch.equal(host.sample(host.model, SIGMAS, noise, sampler=sampler), first)


def test_gamma_0_is_the_sampler():
    sampler = comfy.samplers.sampler_object("euler")
    assert mixing_sampler(sampler, AttentiveGuidance(enabled=True, gamma=0)) is sampler


def test_a_sampler_without_fixed_steps_is_refused():
    with pytest.raises(SettingsError, match="dpm_adaptive"):
        mixing("dpm_adaptive")


def test_a_sampler_without_a_function_is_refused():
    with pytest.raises(SettingsError, match="object"):
        mixing_sampler(object(), SETTINGS)
