"""The host's option "Zero Terminal SNR": guidance is matched on the schedule that is sampled."""

from __future__ import annotations

import pytest
import torch

from lib_hires.noise import VarianceExploding
from lib_hires.webui.hosts.noise import family_of

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
LARGEST = (1 / 4.8973451890853435e-08 - 1) ** 0.5  # 4518.8, the host's last noise level


@pytest.fixture
def zero_snr(host):
    from modules import shared

    shared.opts.sd_noise_schedule = "Zero Terminal SNR"
    return host


def evaluations(host, settings, **request):
    """(latent side, first t) of each evaluation, and what was made."""
    from modules import shared

    model, seen = shared.loaded.sd_model, []
    plain = model.apply_model

    def apply_model(x, t, cond):
        seen.append((x.shape[-1], float(t[0]), x.clone()))
        return plain(x, t, cond)

    model.apply_model = apply_model
    made = host.generate(settings, **request)
    del model.apply_model
    return seen, made


def test_the_family_is_that_of_the_changed_schedule(zero_snr):
    from modules import sd_samplers, shared

    zero_snr.generate()
    for name, largest in (("Euler", LARGEST), ("DDIM", None)):
        sampler = sd_samplers.create_sampler(name, shared.loaded.sd_model)
        family, _ = family_of(sampler.model_wrap_cfg.inner_model)
        if largest:
            assert isinstance(family, VarianceExploding)
            tau, scale = family.matched(torch.tensor([2 * LARGEST]), 0.5)
            assert float(tau) == pytest.approx(largest, rel=1e-3)
            assert torch.isfinite(scale).all()
        else:
            abar = shared.loaded.sd_model.alphas_cumprod
            assert float(abar[-1]) == pytest.approx(1 / (1 + LARGEST**2), rel=1e-3)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM"])
def test_both_evaluations_begin_at_the_last_timestep(zero_snr, sampler, shifted):
    """With the shifted start the large image begins at twice sigma_max, scaled down to it."""
    settings = UG | {"ug_shifted_start": shifted}
    seen, made = evaluations(zero_snr, settings, sampler_name=sampler)
    assert made.messages == []
    assert torch.isfinite(made.images[0]).all()
    (large, t_large, x_large), (small, t_small, x_small) = seen[:2]
    assert (large, small) == (16, 8)
    assert torch.isfinite(x_large).all() and torch.isfinite(x_small).all()
    assert float(x_large.std()) == pytest.approx(1, rel=0.2)
    assert float(x_small.std()) == pytest.approx(1, rel=0.3)
    if sampler != "DDIM" and shifted:
        assert t_large == t_small == pytest.approx(999, abs=0.01)
    else:
        assert t_small < t_large


def test_without_the_option_the_next_image_is_as_ever(host):
    from modules import shared

    before = host.generate(UG).images[0]
    shared.opts.sd_noise_schedule = "Zero Terminal SNR"
    assert not torch.equal(host.generate(UG).images[0], before)
    shared.opts.sd_noise_schedule = "Default"
    assert torch.equal(host.generate(UG).images[0], before)
