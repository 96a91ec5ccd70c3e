import logging

import comfy.model_base
import comfy.samplers
import pytest
import torch

from lib_hires.comfy.guidance import GuidedSampling, guided_model
from lib_hires.comfy.nodes import shifted_sigmas
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance

SIGMAS = torch.tensor([9.0, 3.0, 0.8, 0.0])
REDUCTION = Reduction.between((8, 8), (4, 4))


def guided(host, **settings):
    settings = {"enabled": True, "eta": 1, "cadence": 1, **settings}
    return guided_model(host.model, UpsampleGuidance(**settings), host.native)


def native_run(host, noise, name="euler"):
    gain = REDUCTION.noise_gain
    return host.sample(host.model, SIGMAS * gain, REDUCTION.reduce(noise) / gain, name)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_the_coarse_image_is_the_native_samplers(host, name):
    noise = host.noise(8)
    large = host.sample(guided(host), SIGMAS, noise, name)
    torch.testing.assert_close(REDUCTION.reduce(large), native_run(host, noise, name))


def test_what_other_nodes_evaluate_besides_is_guided_alike(host):
    """As perturbed attention does: one more evaluation of cond after classifier-free guidance."""

    def perturbed(guider, x, sigma, options, combined, cond):
        branch = [guider.conds["negative"]]
        (other,) = comfy.samplers.calc_cond_batch(guider.inner_model, branch, x, sigma, options)
        return combined + 2 * (cond - other)

    host.model.model_options["sampler_post_cfg_function"] = [perturbed]
    noise = host.noise(8)
    large = host.sample(guided(host), SIGMAS, noise)
    torch.testing.assert_close(REDUCTION.reduce(large), native_run(host, noise))


def test_theta_0_gives_the_model_and_a_run_leaves_nothing_behind(host):
    noise = host.noise(8)
    before = host.sample(host.model, SIGMAS, noise)
    assert not torch.equal(host.sample(guided(host), SIGMAS, noise), before)
    assert torch.equal(host.sample(guided(host, theta=0), SIGMAS, noise), before)
    assert torch.equal(host.sample(host.model, SIGMAS, noise), before)
    assert host.model.wrappers == {}


def test_a_run_does_not_see_the_one_before(host):
    model, noise = guided(host, cadence=2), host.noise(8)
    first = host.sample(model, SIGMAS, noise)
    host.sample(model, SIGMAS, host.noise(8, seed=1))
    assert torch.equal(host.sample(model, SIGMAS, noise), first)


def test_the_second_node_replaces_the_first(host):
    twice = guided_model(
        guided(host), UpsampleGuidance(enabled=True, eta=1, cadence=1), host.native
    )
    noise = host.noise(8)
    assert torch.equal(host.sample(twice, SIGMAS, noise), host.sample(guided(host), SIGMAS, noise))


def test_a_cadence_saves_native_evaluations(host):
    host.sample(guided(host, cadence=2), SIGMAS, host.noise(8))
    sizes = [shape[-1] for shape, _, _ in host.model.model.calls]
    assert sizes == [8, 4, 8, 8, 4]


def test_an_automatic_share_ends_where_a_run_begins_in_noise(host):
    """A schedule that begins further down is guided to its end."""
    largest = float(host.model.model.model_sampling.sigmas[-1])
    guided_steps = []
    for start in (largest, largest / 18):
        host.model.model.calls.clear()
        low = largest / 1000  # below the share of 0.8
        sigmas = torch.cat([torch.linspace(start, largest / 20, 10), torch.tensor([low, 0.0])])
        host.sample(guided(host, eta=0, edge=0, shifted_start=False), sigmas, host.noise(8))
        sizes = [shape[-1] for shape, _, _ in host.model.model.calls]
        guided_steps.append(sizes.count(4))
    assert guided_steps == [10, 11]


def test_the_native_evaluation_has_the_matched_noise(host):
    host.sample(guided(host), SIGMAS, host.noise(8))
    sigmas = {shape[-1]: sigma for shape, sigma, _ in reversed(host.model.model.calls)}
    assert sigmas[4] == pytest.approx(sigmas[8] * REDUCTION.noise_gain)


def test_a_schedule_from_the_largest_sigma_begins_higher(host):
    largest = host.model.model.model_sampling.sigmas[-1]
    seen = []

    def keep(executor, guider, sigmas, *rest):
        seen.append(sigmas)
        return executor(guider, sigmas, *rest)

    for start in (largest, largest / 2):
        model = guided(host)
        model.add_wrapper_with_key("sampler_sample", "last", keep)
        host.sample(model, torch.stack([start, start / 9, start * 0]), host.noise(8))
    assert float(seen[0][0]) == pytest.approx(float(largest) / REDUCTION.noise_gain)
    assert float(seen[1][0]) == float(largest / 2)
    assert max(sigma for _, sigma, _ in host.model.model.calls) <= float(largest) * 1.0001


@pytest.mark.parametrize("shape", [(1, 4, 3, 8, 8), (1, 64, 100)])
def test_latents_of_videos_and_sounds_are_left_alone(host, shape, caplog):
    guidance = GuidedSampling(UpsampleGuidance(enabled=True, eta=1, cadence=1), host.native)
    with caplog.at_level(logging.WARNING, logger="hires_guidance"):
        assert guidance.reduction(host.model.model, torch.zeros(shape)) is None
    assert f"{len(shape)} axes" in caplog.text


def test_an_image_of_native_size_is_left_alone(host, caplog):
    noise = host.noise(4)
    with caplog.at_level(logging.WARNING, logger="hires_guidance"):
        out = host.sample(guided(host), SIGMAS, noise)
    assert torch.equal(out, host.sample(host.model, SIGMAS, noise))
    assert "not clearly above" in caplog.text


def test_a_scale_that_leaves_nothing_to_guide_is_named(host, caplog):
    noise = host.noise(8)
    with caplog.at_level(logging.WARNING, logger="hires_guidance"):
        out = host.sample(guided(host, scale=1), SIGMAS, noise)
    assert torch.equal(out, host.sample(host.model, SIGMAS, noise))
    assert "left out: at a scale of 1 the native evaluation is about as large" in caplog.text


def test_the_size_that_sdxl_receives_is_the_evaluations(make_host):
    host = make_host(kind=comfy.model_base.SDXL)
    host.sample(guided(host), SIGMAS, host.noise(8))
    sizes = {
        shape[-1]: conds[0][0]["model_conds"]["y"].cond.tolist()
        for shape, _, conds in host.model.model.calls
    }
    assert sizes == {8: [[64, 64, 0, 0]], 4: [[32, 32, 0, 0]]}


def test_the_stretched_schedule_is_of_the_guidance_s_scale(host):
    """Of twice the native side: D multiplies the noise by 1/2, at a scale of 4 by 1/4."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    for scale, gain in ((0, 2), (4, 4)):
        (sigmas,) = shifted_sigmas(guided(host, scale=scale), SIGMAS, latent, host.native)
        torch.testing.assert_close(sigmas[0], SIGMAS[0] * gain)
    (unguided,) = shifted_sigmas(host.model, SIGMAS, latent, host.native)
    torch.testing.assert_close(unguided[0], SIGMAS[0] * 2)
