import numpy as np
import pytest
import torch

from lib_hires.noise import (
    Flow,
    VarianceExploding,
    VariancePreserving,
    draw,
    generators,
)

GAINS = [1, 0.8, 1 / 2, 1 / 3, 0.29]


@pytest.fixture(scope="module")
def ve(sd_alphas_cumprod):
    return VarianceExploding(((1 - sd_alphas_cumprod) / sd_alphas_cumprod).sqrt().float())


@pytest.fixture(scope="module")
def vp(sd_alphas_cumprod):
    return VariancePreserving(sd_alphas_cumprod.float())


TIMES = {
    "ve": torch.tensor([0.3, 1.0, 3.7, 14.0]),
    "vp": torch.tensor([120.0, 300.25, 700, 999]),
    "flow": torch.tensor([0.05, 0.5, 0.8, 0.999]),
}


def close(got, wanted, rtol=2e-5):
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("name", ["ve", "vp", "flow"])
def test_matched_time_has_the_reduced_noise_ratio(name, gain, ve, vp):
    family, t = {"ve": ve, "vp": vp, "flow": Flow()}[name], TIMES[name]
    tau, scale = family.matched(t, gain)
    close(family.noise(tau) / family.signal(tau), gain * family.noise(t) / family.signal(t), 1e-4)
    close(scale, family.signal(tau) / family.signal(t), 1e-4)


def test_ve_matches_sigma_over_m_unscaled(ve):
    tau, scale = ve.matched(TIMES["ve"], 1 / 2)
    close(tau, TIMES["ve"] / 2)
    assert torch.equal(scale, torch.ones(4))


@pytest.mark.parametrize("m", [2, 3, 4])
def test_vp_scale_is_the_papers_power_adjustment(m, vp, sd_alphas_cumprod):
    t = torch.tensor([100.0, 400, 800, 999])
    abar = sd_alphas_cumprod[t.long()]
    power = abar + (1 - abar) / m**2
    close(vp.matched(t, 1 / m)[1], (1 / power.sqrt()).float())


@pytest.mark.parametrize("m", [2, 3, 4])
def test_flow_time_and_scale_in_closed_form(m):
    t = TIMES["flow"]
    tau, scale = Flow().matched(t, 1 / m)
    close(tau, (t / m) / (1 - t + t / m))
    close(scale, 1 / (1 - t + t / m))


@pytest.mark.parametrize("m", [2, 3, 4])
def test_vp_time_is_the_papers_get_tau_to_its_rounding(m, vp, sd_alphas_cumprod):
    alphas = sd_alphas_cumprod.numpy()
    log_snr = np.log(alphas / (1 - alphas))
    log_snr_low = np.log(alphas / (1 - alphas) * m**2)
    paper = np.array([np.argmin(np.abs(low - log_snr)) for low in log_snr_low])
    tau, _ = vp.matched(torch.arange(1000.0), 1 / m)
    assert np.abs(tau.numpy() - paper).max() <= 0.5 + 1e-3
    # and not the text's m instead of m²
    wrong = np.array([np.argmin(np.abs(s + np.log(m) - log_snr)) for s in log_snr])
    assert np.abs(tau.numpy() - wrong).max() > 20


def test_ve_time_agrees_with_vp(ve, vp):
    """The same noise ratio in both families is the same training timestep."""
    t = torch.arange(0.0, 999.0, 7.5)
    sigma = vp.noise(t) / vp.signal(t)
    torch.testing.assert_close(ve.timestep(sigma), t, atol=0.02, rtol=0)
    wide, _ = vp.matched(t[20:], 0.5)
    torch.testing.assert_close(ve.timestep(sigma[20:] / 2), wide, atol=0.02, rtol=0)


def test_scales_at_table_entries_are_the_tables(ve, vp, sd_alphas_cumprod):
    t = torch.arange(1000.0)
    close(vp.signal(t), sd_alphas_cumprod.sqrt().float())
    close(vp.noise(t), (1 - sd_alphas_cumprod).sqrt().float(), 1e-4)
    close(vp.signal(t) ** 2 + vp.noise(t) ** 2, torch.ones(1000))
    torch.testing.assert_close(ve.timestep(ve.sigmas), t, atol=0.01, rtol=0)
    assert ve.training_steps == vp.training_steps == Flow().training_steps == 1000
    close(Flow().timestep(torch.tensor([0, 0.25, 1])), torch.tensor([0.0, 250, 1000]))


def test_times_below_the_smallest_are_clamped(ve, vp):
    smallest = ve.sigmas[0]
    tau, scale = ve.matched(torch.stack([smallest, smallest / 5, torch.tensor(0.0)]), 1 / 4)
    assert torch.equal(tau, smallest.expand(3)) and torch.equal(scale, torch.ones(3))
    tau, _ = vp.matched(torch.tensor([0.0, 1.5]), 1 / 4)
    assert torch.equal(tau, torch.zeros(2))
    tau, scale = Flow().matched(torch.tensor([0.0]), 1 / 4)
    assert tau == 0 and scale == 1
    assert ve.timestep(torch.tensor([1e-9, 0.0])).tolist() == [0, 0]


def test_times_above_the_largest_become_the_largest_at_its_noise(ve):
    largest = ve.sigmas[-1]
    t = largest * torch.tensor([0.5, 1, 2, 4])
    tau, scale = ve.matched(t, 1.0)
    close(tau, largest * torch.tensor([0.5, 1, 1, 1]))
    close(t * scale, tau)
    assert ve.timestep(t).tolist()[1:] == [999, 999, 999]


def test_times_inside_the_table_are_left_alone_to_the_bit(ve):
    tau, scale = ve.matched(ve.sigmas, 1.0)
    assert torch.equal(tau, ve.sigmas) and torch.equal(scale, torch.ones(1000))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ve_keeps_the_times_dtype(ve, dtype):
    tau, scale = ve.matched(torch.tensor([1.0, 10], dtype=dtype), 0.5)
    assert tau.dtype == scale.dtype == dtype


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("ve", "denoised"), ("ve", "eps"), ("vp", "eps"), ("vp", "v"), ("flow", "velocity")],
)
def test_predictions_stand_for_the_image(name, prediction, request):
    family = Flow() if name == "flow" else request.getfixturevalue(name)
    t = TIMES[name]
    x0, eps, change = torch.randn(
        3, len(t), 4, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    a, s = (scale(t)[:, None, None, None] for scale in (family.signal, family.noise))
    x = a * x0 + s * eps
    output = {"denoised": x0, "eps": eps, "v": a * eps - s * x0, "velocity": eps - x0}[prediction]
    found = family.denoised(prediction, x, output, t)
    torch.testing.assert_close(found, x0, atol=1e-5, rtol=1e-5)
    moved = output + family.output_change(prediction, change, t)
    found = family.denoised(prediction, x, moved, t)
    torch.testing.assert_close(found, x0 + change, atol=1e-5, rtol=1e-5)


def test_image_k_of_a_batch_has_the_noise_of_the_image_alone():
    shape = (4, 6, 5)
    batch, alone = generators([5, 6, 7]), generators([6])
    for _ in range(3):
        assert torch.equal(draw(batch, shape)[1], draw(alone, shape)[0])


def test_stage_0_has_the_noise_of_manual_seed():
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        expected = torch.randn(4, 8, 8), torch.randn(4, 8, 8)
    sources = generators([1234])
    assert torch.equal(draw(sources, (4, 8, 8))[0], expected[0])
    assert torch.equal(draw(sources, (4, 8, 8))[0], expected[1])


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**63 - 1])
def test_stages_have_noise_of_their_own(seed):
    drawn = [draw(generators([seed], stage), (4, 16, 16)) for stage in range(4)]
    for i, one in enumerate(drawn):
        assert torch.equal(one, draw(generators([seed], i), (4, 16, 16)))
        assert all((one * other).mean().abs() < 0.2 for other in drawn[:i])


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw(generators([1, 2]), (3, 3))
    assert torch.equal(torch.get_rng_state(), before)
