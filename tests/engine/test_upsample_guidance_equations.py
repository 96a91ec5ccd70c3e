"""Upsample Guidance against eq. 4 and eq. 5, computed from the paper alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from guided_toys import ABAR, SLOPE, TABLE, abar_at, guided, noise, wide

from lib_hires.noise import Flow, VariancePreserving
from lib_hires.settings import UpsampleGuidance
from lib_hires.upsample_guidance import guidance_weight


def eq_4(predict_eps, x, t, tau, power, m, w):
    """eps + w·U[ 1/m · eps(D[x]/sqrt(P), tau) - D[eps] ]; predict_eps(x, t), all (b,) but w, m."""
    eps = predict_eps(x, t)
    small = predict_eps(F.avg_pool2d(x, m) / wide(power).sqrt(), tau)
    inside = small / m - F.avg_pool2d(eps, m)
    return eps + w * inside.repeat_interleave(m, -2).repeat_interleave(m, -1)


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_vp_equals_eq_4(prediction, m, toy_net):
    t, w = torch.tensor([250, 500, 651.5, 900], dtype=torch.float64), 0.7
    tau = t - math.log(m) / SLOPE
    abar = abar_at(t)
    x = noise(4, 3, 6 * m, 4 * m).double()

    def model(x, t):
        return toy_net(x, t / 500)

    def predict_eps(x, t):
        if prediction == "eps":
            return model(x, t)
        return wide(1 - abar_at(t)).sqrt() * x + wide(abar_at(t)).sqrt() * model(x, t)

    eps = eq_4(predict_eps, x, t, tau, abar + (1 - abar) / m**2, m, w)
    family = VariancePreserving(ABAR)
    ug = guided(
        model, x.shape[-2:], (6, 4), family=family, times=[900, 0], prediction=prediction, theta=w
    )
    expected = eps
    if prediction == "v":
        a, s = wide(abar).sqrt(), wide(1 - abar).sqrt()
        expected = a * eps - s * (x - s * eps) / a
    got = ug(x.float(), t.float())
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_ve_equals_eq_4(m, toy_denoiser):
    """k-diffusion puts a VP eps model behind denoise(x, sigma); eq. 4 evaluates that model."""
    sigma, w = torch.tensor([0.3, 1.0, 4.0, 14.0]), 0.7
    x = wide(sigma) * noise(4, 3, 4 * m, 6 * m) + noise(4, 3, 4 * m, 6 * m, seed=1)

    def predict_eps(x_vp, sigma):
        x = x_vp * wide(1 + sigma**2).sqrt()
        return (x - toy_denoiser(x, sigma)) / wide(sigma)

    abar = 1 / (1 + sigma**2)
    power = abar + (1 - abar) / m**2
    eps = eq_4(predict_eps, x * wide(abar).sqrt(), sigma, sigma / m, power, m, w)
    ug = guided(toy_denoiser, x.shape[-2:], (4, 6), theta=w)
    torch.testing.assert_close(ug(x, sigma), x - wide(sigma) * eps, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_flow_equals_eq_4(m, toy_net):
    t, w = torch.tensor([0.1, 0.4, 0.7, 0.95]), 0.7
    x = noise(4, 3, 5 * m, 4 * m)
    power = 1 - t + t / m

    def predict_eps(x, t):
        return x + wide(1 - t) * toy_net(x, t)

    # eq. 4's D[x]/sqrt(P), with flow's power adjustment instead
    eps = eq_4(predict_eps, x, t, t / m / power, power**2, m, w)
    velocity = (eps - x) / wide(1 - t)
    ug = guided(
        toy_net, x.shape[-2:], (5, 4), family=Flow(), times=[1, 0], prediction="velocity", theta=w
    )
    torch.testing.assert_close(ug(x, t), velocity, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.05, 0.3, 0.6, 0.75, 1])
@pytest.mark.parametrize("theta", [0.5, 1.35])
def test_weight_is_eq_5(theta, eta):
    settings = UpsampleGuidance(theta=theta, eta=eta, edge=0)
    got = guidance_weight(torch.arange(1000.0), settings, training_steps=1000, steps=20)
    first_guided = 1000 - round(1000 * eta)
    expected = torch.tensor([theta if t >= first_guided else 0.0 for t in range(1000)])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("edge", [0.5, 4, 10])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_soft_edge_is_a_ramp_inside_the_window(steps, edge):
    settings = UpsampleGuidance(theta=0.8, eta=0.6, edge=edge)
    t = torch.arange(0, 1000, 0.5)
    w = guidance_weight(t, settings, training_steps=1000, steps=steps)
    width = edge * 1000 / steps  # the ramp's, in timesteps
    assert (w[t <= 400] == 0).all()
    torch.testing.assert_close(w[t >= 400 + width], torch.full_like(w[t >= 400 + width], 0.8))
    inside = (t > 400) & (t < min(400 + width, 1000))
    torch.testing.assert_close(w[inside], 0.8 * (t[inside] - 400) / width, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("edge", [0, 4])
def test_a_window_to_the_end_has_no_ramp(edge):
    settings = UpsampleGuidance(theta=0.8, eta=1, edge=edge)
    w = guidance_weight(torch.arange(1000.0), settings, training_steps=1000, steps=20)
    assert torch.equal(w, torch.full((1000,), 0.8))


def test_weight_of_a_sigma_is_that_of_its_timestep(toy_denoiser):
    """eq. 5 counts the model's training timesteps, not the sampler's steps."""
    t = noise(2, 3, 8, 8)
    ug = guided(toy_denoiser, (8, 8), (4, 4), eta=0.5)
    above, below = TABLE[502].expand(2), TABLE[498].expand(2)
    assert not torch.equal(ug(t, above), toy_denoiser(t, above))
    assert torch.equal(ug(t, below), toy_denoiser(t, below))
