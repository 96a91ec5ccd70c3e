import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from meta_device import OnDevice
from torch import Tensor

from lib_hires.noise import Flow, VarianceExploding, VariancePreserving
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance
from lib_hires.upsample_guidance import UpsampleGuided, guidance_weight, shifted_schedule

TABLE = torch.logspace(-3, math.log10(15), 1000)  # sigmas, wide enough to clamp nothing
STEPS = [15.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0]
PLAIN = {"enabled": True, "edge": 0, "shifted_start": False}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def guided(predict, large, small, *, family=None, times=STEPS, prediction="denoised", **options):
    shrink, device = options.pop("shrink_cond", None), options.pop("device", "cpu")
    return UpsampleGuided(
        predict,
        UpsampleGuidance(**{**PLAIN, **options}),
        family=family or VarianceExploding(TABLE),
        reduction=Reduction.between(large, small).to(device),
        times=times,
        prediction=prediction,
        shrink_cond=shrink,
    )


def wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


# --- eq. 4 as printed, computed from the paper alone -------------------------------------------


def eq_4(predict_eps, x, t, tau, power, m, w):
    """eps + w·U[ 1/m · eps(D[x]/sqrt(P), tau) - D[eps] ]; predict_eps(x, t), all (b,) but w, m."""
    eps = predict_eps(x, t)
    small = predict_eps(F.avg_pool2d(x, m) / wide(power).sqrt(), tau)
    inside = small / m - F.avg_pool2d(eps, m)
    return eps + w * inside.repeat_interleave(m, -2).repeat_interleave(m, -1)


# A schedule whose log noise ratio is linear in t, so that tau is known in closed form.
SLOPE = 9 / 999
RATIOS = (-4.5 + SLOPE * torch.arange(1000, dtype=torch.float64)).exp()
ABAR = 1 / (1 + RATIOS**2)


def abar_at(t: Tensor) -> Tensor:
    return 1 / (1 + (-4.5 + SLOPE * t).exp() ** 2)


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
    """k-diffusion's wrapper puts a VP eps model behind denoise(x, sigma); eq. 4 asks that model."""
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

    # eq. 4's D[x]/sqrt(P), with flow's power adjustment in its place
    eps = eq_4(predict_eps, x, t, t / m / power, power**2, m, w)
    velocity = (eps - x) / wide(1 - t)
    ug = guided(
        toy_net, x.shape[-2:], (5, 4), family=Flow(), times=[1, 0], prediction="velocity", theta=w
    )
    torch.testing.assert_close(ug(x, t), velocity, atol=1e-5, rtol=1e-5)


# --- w_t ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0, 0.3, 0.6, 0.75, 1])
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


# --- reductions and properties -----------------------------------------------------------------


@pytest.mark.parametrize("options", [{"theta": 0}, {"eta": 0}, {"eta": 0, "edge": 4}])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_without_weight_the_prediction_is_bit_identical(dtype, shifted, options, toy_denoiser):
    calls = []

    def predict(x, sigma):
        calls.append(x.shape)
        return toy_denoiser(x, sigma)

    x, sigma = 3 * noise(2, 3, 8, 8).to(dtype), torch.tensor([3.0, 0.7], dtype=dtype)
    ug = guided(predict, (8, 8), (4, 4), shifted_start=shifted, **options)
    assert torch.equal(ug(x, sigma), toy_denoiser(x, sigma))
    assert calls == [(2, 3, 8, 8)], "nothing is asked about the small image"


@pytest.mark.parametrize("theta", [0.4, 1, 1.35])
@pytest.mark.parametrize(
    ("large", "small"), [((8, 8), (4, 4)), ((9, 12), (3, 4)), ((9, 11), (6, 5)), ((8, 6), (4, 6))]
)
def test_coarse_part_is_between_the_two_answers(large, small, theta, toy_denoiser):
    x, sigma = 2 * noise(2, 3, *large), torch.tensor([2.0, 0.8])
    reduction = Reduction.between(large, small)
    x0_small = toy_denoiser(reduction.reduce(x), sigma * reduction.noise_gain)
    x0 = toy_denoiser(x, sigma)
    got = guided(toy_denoiser, large, small, theta=theta)(x, sigma)
    expected = (1 - theta) * reduction.reduce(x0) + theta * x0_small
    torch.testing.assert_close(reduction.reduce(got), expected, atol=1e-5, rtol=1e-5)
    # and what D cannot see is the large answer's own
    fine = [image - reduction.enlarge(reduction.reduce(image)) for image in (got, x0)]
    torch.testing.assert_close(*fine, atol=1e-5, rtol=1e-5)


def test_a_batch_of_many_sigmas_is_its_images_alone(toy_denoiser):
    x, sigma = noise(4, 3, 8, 8), torch.tensor([9.0, 2.0, 0.4, 0.01])
    ug = guided(toy_denoiser, (8, 8), (4, 4), eta=0.6, edge=4)
    together = ug(x, sigma)
    for k in range(4):
        alone = ug(x[k : k + 1], sigma[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-6, rtol=1e-6)


def test_guidance_commutes_with_classifier_free_guidance(toy_denoiser, toy_net):
    def other(x, sigma):
        return toy_net(x / wide(1 + sigma), sigma)

    def cfg(one, two):
        return lambda x, sigma: two(x, sigma) + 5 * (one(x, sigma) - two(x, sigma))

    x, sigma = noise(2, 3, 8, 8), torch.tensor([3.0, 1.0])
    before = cfg(*(guided(branch, (8, 8), (4, 4), theta=0.7) for branch in (toy_denoiser, other)))
    after = guided(cfg(toy_denoiser, other), (8, 8), (4, 4), theta=0.7)
    torch.testing.assert_close(before(x, sigma), after(x, sigma), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_models_dtype_returns(dtype, toy_denoiser):
    seen = []

    def predict(x, sigma):
        seen.append((x.dtype, sigma.dtype))
        return toy_denoiser(x, sigma)

    x, sigma = noise(2, 3, 8, 8), torch.tensor([3.0, 0.7])
    for shifted in (False, True):
        ug = guided(predict, (8, 8), (4, 4), shifted_start=shifted)
        got = ug(x.to(dtype), sigma.to(dtype))
        assert got.dtype == dtype
        expected = guided(toy_denoiser, (8, 8), (4, 4))(x, sigma)
        tolerance = {torch.float16: 1e-2, torch.bfloat16: 8e-2, torch.float64: 1e-5}[dtype]
        torch.testing.assert_close(got.float(), expected, atol=tolerance, rtol=tolerance)
    assert set(seen) == {(dtype, dtype)}


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_whole_timesteps_are_not_rounded_away(kind, toy_net):
    """A host may count VP timesteps in integers; the matched time lies between two of them."""

    def model(x, t):
        return toy_net(x, t.float() / 50)

    t = torch.tensor([700, 300], dtype=kind)
    x = noise(2, 3, 8, 8)
    family = VariancePreserving(ABAR)
    options = {"family": family, "times": [900, 0], "prediction": "eps"}
    got = guided(model, (8, 8), (4, 4), **options)(x, t)
    expected = guided(model, (8, 8), (4, 4), **options)(x, t.float())
    # less than one timestep away, where the net is told 1/50 more or less
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0)


def test_arguments_are_left_alone(toy_denoiser):
    x, sigma = noise(2, 3, 8, 8), torch.tensor([30.0, 0.7])
    kept = x.clone(), sigma.clone()
    guided(toy_denoiser, (8, 8), (4, 4), shifted_start=True)(x, sigma)
    assert torch.equal(x, kept[0]) and torch.equal(sigma, kept[1])


def test_conditioning_is_shrunk_for_the_small_call_only(toy_denoiser):
    seen, shrunk_to = [], []

    def predict(x, sigma, hint, context):
        seen.append((tuple(x.shape[-2:]), tuple(hint.shape[-2:]), context))
        return toy_denoiser(x, sigma)

    def shrink(cond, size):
        shrunk_to.append(size)
        return {**cond, "hint": F.avg_pool2d(cond["hint"], 2)}

    cond = {"hint": noise(2, 1, 8, 12), "context": "words"}
    kept = dict(cond)
    ug = guided(predict, (8, 12), (4, 6), shrink_cond=shrink)
    ug(noise(2, 3, 8, 12), torch.ones(2), **cond)
    assert seen == [((8, 12), (8, 12), "words"), ((4, 6), (4, 6), "words")]
    assert shrunk_to == [(4, 6)] and all(cond[name] is kept[name] for name in kept)


@pytest.mark.parametrize("sigma", [0.2, 0.05])
def test_below_the_table_the_smallest_sigma_is_told(sigma, toy_denoiser):
    told = []

    def predict(x, sigma):
        told.append((x.shape[-1], sigma[0].item()))
        return toy_denoiser(x, sigma)

    family = VarianceExploding(torch.linspace(0.15, 15, 100))
    x = noise(1, 3, 8, 8)
    guided(predict, (8, 8), (4, 4), family=family)(x, torch.tensor([sigma]))
    assert told == [(8, pytest.approx(sigma)), (4, pytest.approx(0.15))]


def test_above_the_table_the_large_call_is_told_the_largest(toy_denoiser):
    told = []

    def predict(x, sigma):
        told.append((x.shape[-1], sigma[0].item(), x.std().item()))
        return toy_denoiser(x, sigma)

    x = 30 * noise(1, 3, 64, 64)
    guided(predict, (64, 64), (32, 32), shifted_start=True)(x, torch.tensor([30.0]))
    # the noise that comes is the noise that is told, at both sizes
    assert told == [
        (64, *[pytest.approx(15, rel=0.03)] * 2),
        (32, *[pytest.approx(15, rel=0.03)] * 2),
    ]


# --- cadence -----------------------------------------------------------------------------------


def count_small_calls(toy_denoiser, times, evaluations, **options):
    """The steps (as indices of `times`) at which the small question is asked."""
    asked, now = [], [0]

    def predict(x, sigma):
        if x.shape[-1] == 4:
            asked.append(now[0])
        return toy_denoiser(x, sigma)

    ug = guided(predict, (8, 8), (4, 4), times=times, **options)
    for index in evaluations:
        now[0] = index
        ug(noise(2, 3, 8, 8, seed=index), torch.full((2,), times[index]))
    return asked


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_cadence_asks_every_nth_step(n, toy_denoiser):
    asked = count_small_calls(toy_denoiser, STEPS, range(8), cadence=n)
    assert asked == list(range(0, 8, n))


@pytest.mark.parametrize("n", [2, 3])
def test_cadence_counts_steps_not_evaluations(n, toy_denoiser):
    """Heun evaluates at the start of a step and again at its end."""
    heun = [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert count_small_calls(toy_denoiser, STEPS, heun, cadence=n) == list(range(0, 8, n))


def test_cadence_holds_the_answer(toy_denoiser):
    """Not its difference from the large one's: that would be added to what it has moved already."""
    ug = guided(toy_denoiser, (8, 8), (4, 4), cadence=2)
    reduction = Reduction.between((8, 8), (4, 4))
    x, y = noise(1, 3, 8, 8), noise(1, 3, 8, 8, seed=1)
    first, second = torch.tensor([4.0]), torch.tensor([2.0])
    ug(x, first)
    answer = toy_denoiser(reduction.reduce(x), first / 2)
    got, plain = ug(y, second), toy_denoiser(y, second)
    expected = plain + reduction.enlarge(answer - reduction.reduce(plain))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(reduction.reduce(got), answer, atol=1e-6, rtol=1e-6)


# --- the shifted schedule ----------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.5, 0.4, 1 / 3])
def test_shifted_schedule_starts_higher_and_ends_the_same(gain):
    sigmas = torch.tensor(STEPS)
    shifted = shifted_schedule(sigmas, gain)
    assert len(shifted) == len(sigmas)
    assert shifted[0].item() == pytest.approx(15 / gain, rel=1e-6)
    torch.testing.assert_close(shifted[-2:], sigmas[-2:])
    assert (shifted[:-1] > shifted[1:]).all()
    share = (sigmas[:-1] / 0.05).log() / math.log(15 / 0.05)
    torch.testing.assert_close(shifted[:-1].log(), sigmas[:-1].log() - share * math.log(gain))


def test_shifted_schedule_of_one_step_and_of_no_gain():
    torch.testing.assert_close(
        shifted_schedule(torch.tensor([14.0, 0.0]), 0.5), torch.tensor([28.0, 0])
    )
    assert torch.equal(shifted_schedule(torch.tensor(STEPS), 1), torch.tensor(STEPS))


# --- a Gaussian, whose ideal denoiser is known -------------------------------------------------


class Gaussian:
    """x0 = U[y] + r on 8x8: y stationary on 4x4 (any spectrum), r white where D sees nothing.

    The posterior mean splits in the same way, so that D of the ideal large answer is the ideal
    small answer at sigma/2.
    """

    def __init__(self, mean: float = 0.7, fine: float = 0.3) -> None:
        frequency = torch.fft.fftfreq(4)
        radius = frequency[:, None] ** 2 + frequency**2
        self.spectrum = 1.5 * (-12 * radius).exp() + 0.02  # variance of each Fourier mode of y
        self.mean = mean + torch.linspace(-1, 1, 16).reshape(4, 4)
        self.fine = fine**2
        self.reduction = Reduction.between((8, 8), (4, 4))

    def small(self, y: Tensor, sigma: Tensor) -> Tensor:
        modes = torch.fft.fft2(y - self.mean)
        return (
            self.mean
            + torch.fft.ifft2(modes * self.spectrum / (self.spectrum + wide(sigma) ** 2)).real
        )

    def large(self, x: Tensor, sigma: Tensor) -> Tensor:
        coarse = self.reduction.reduce(x)
        fine = x - self.reduction.enlarge(coarse)
        kept = self.fine / (self.fine + wide(sigma) ** 2)
        return self.reduction.enlarge(self.small(coarse, sigma / 2)) + kept * fine

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.small(x, sigma) if x.shape[-1] == 4 else self.large(x, sigma)

    def end_of_flow(self, y: Tensor, sigma: float) -> Tensor:
        """Where the probability flow takes a small state y at noise sigma, exactly."""
        factor = (self.spectrum / (self.spectrum + sigma**2)).sqrt()
        return self.mean + torch.fft.ifft2(torch.fft.fft2(y - self.mean) * factor).real


def euler(denoise, x, sigmas):
    for sigma, after in pairwise(sigmas):
        denoised = denoise(x, sigma.expand(len(x)))
        x = x + (x - denoised) / sigma * (after - sigma)
    return x


def many_steps(count=240):
    return torch.cat([torch.logspace(math.log10(15), -2, count), torch.zeros(1)])


def affine_map(sampler, start: float) -> tuple[Tensor, Tensor]:
    """mean (64,) and matrix (64, 64) of an affine sampler of 8x8 states `start`·eps."""
    basis = torch.cat([torch.zeros(1, 64), torch.eye(64)]).reshape(65, 1, 8, 8)
    ends = sampler(start * basis).reshape(65, 64)
    return ends[0], (ends[1:] - ends[0]).T


@pytest.mark.parametrize("theta", [0.5, 1, 1.7])
def test_consistent_guidance_changes_nothing(theta):
    gaussian = Gaussian()
    ug = guided(gaussian, (8, 8), (4, 4), theta=theta)
    for sigma in (14.0, 3.0, 0.5, 0.02):
        x = gaussian.reduction.enlarge(gaussian.mean) + (1 + sigma) * noise(5, 1, 8, 8)
        now = torch.full((5,), sigma)
        torch.testing.assert_close(ug(x, now), gaussian(x, now), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shifted", [False, True])
def test_guidance_mends_a_large_model_that_is_wrong_about_the_coarse_part(shifted):
    """Guided fully, a large denoiser of another mean and spread gives the small one's images.

    Everything is affine, so mean and covariance come from the images of a basis, with no sampling
    error; what they should be is the probability flow's closed form.
    """
    gaussian, wrong = Gaussian(), Gaussian(mean=-2)
    wrong.spectrum = wrong.spectrum / 4

    def denoise(x, sigma):
        return gaussian.small(x, sigma) if x.shape[-1] == 4 else wrong.large(x, sigma)

    sigmas = shifted_schedule(many_steps(), 0.5) if shifted else many_steps()
    start = sigmas[0].item() / 2  # where the coarse image starts
    ug = guided(denoise, (8, 8), (4, 4), shifted_start=shifted)
    mean, matrix = affine_map(lambda x: euler(ug, x, sigmas), sigmas[0].item())

    coarse = gaussian.reduction.reduce(mean.reshape(8, 8))
    expected = gaussian.end_of_flow(torch.zeros(4, 4), start)
    torch.testing.assert_close(coarse, expected, atol=0.02, rtol=0)
    # Fourier modes of D[x]: variances those of y, but for what the flow's start leaves out
    modes = torch.fft.fft2(
        gaussian.reduction.reduce(matrix.T.reshape(64, 8, 8)), norm="ortho"
    ).reshape(64, 16)
    variance = (modes.abs() ** 2).sum(0).reshape(4, 4)
    spectrum = gaussian.spectrum
    torch.testing.assert_close(
        variance, spectrum * start**2 / (spectrum + start**2), rtol=0.03, atol=0
    )
    # and what D cannot see is as the large model has it
    fine = (
        matrix
        - torch.kron(
            gaussian.reduction.enlarge_rows @ gaussian.reduction.reduce_rows,
            gaussian.reduction.enlarge_columns @ gaussian.reduction.reduce_columns,
        )
        @ matrix
    )
    if not shifted:
        assert fine.square().sum().item() / 48 == pytest.approx(gaussian.fine, rel=0.03)


def test_shifted_start_gives_the_coarse_part_its_full_contrast():
    """Images so wide that sigma_max matters: half the start is a visible loss of deviation."""
    gaussian = Gaussian()
    gaussian.spectrum = 400 * gaussian.spectrum
    deviation = {}
    for shifted in (False, True):
        sigmas = shifted_schedule(many_steps(), 0.5) if shifted else many_steps()
        ug = guided(gaussian, (8, 8), (4, 4), shifted_start=shifted)
        _, matrix = affine_map(lambda x, ug=ug, s=sigmas: euler(ug, x, s), sigmas[0].item())
        coarse = gaussian.reduction.reduce(matrix.T.reshape(64, 8, 8))
        deviation[shifted] = (coarse.square().sum() / 16).sqrt().item()
    spectrum = gaussian.spectrum
    for shifted, start in ((False, 7.5), (True, 15)):
        exact = (spectrum * start**2 / (spectrum + start**2)).mean().sqrt().item()
        assert deviation[shifted] == pytest.approx(exact, rel=0.03)
    assert deviation[False] < 0.85 * deviation[True]


# --- nothing waits for the device -----------------------------------------------------------------


@pytest.mark.parametrize("windows", ["off", "Hann"])
@pytest.mark.parametrize(
    ("family", "prediction"),
    [
        (VarianceExploding(TABLE.to("meta")), "denoised"),
        (VariancePreserving(torch.linspace(0.999, 0.01, 1000)), "eps"),
        (Flow(), "velocity"),
    ],
)
def test_a_step_reads_nothing_and_makes_nothing_on_the_cpu(family, prediction, windows) -> None:
    model = guided(
        lambda x, t, context: x * t[:, None, None, None],
        (16, 16),
        (8, 8),
        family=family,
        prediction=prediction,
        windows=windows,
        shifted_start=True,
        device="meta",
    )
    x, t = torch.empty(2, 4, 16, 16, device="meta"), torch.empty(2, device="meta")
    context = torch.empty(2, 7, 8, device="meta")
    model(x, t, context=context)  # brings its tables to the device
    with OnDevice():
        assert model(x, t, context=context).shape == x.shape


def test_reading_the_time_would_be_noticed() -> None:
    model = guided(
        lambda x, t: x,
        (16, 16),
        (8, 8),
        family=Flow(),
        prediction="velocity",
        eta=0.5,
        device="meta",
    )
    with pytest.raises(RuntimeError, match="meta"):
        model(torch.empty(1, 4, 16, 16, device="meta"), torch.empty(1, device="meta"))


# --- what the model's precision, layout and compiler leave as it is -------------------------------


def a_model(layouts=None):
    """A convolution that notes in `layouts` whether it was asked in channels-last."""
    weight = noise(4, 4, 3, 3, seed=7).to(memory_format=torch.channels_last) / 6

    def predict(x, t):
        if layouts is not None:
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return F.conv2d(x, weight, padding=1) / (1 + wide(t) ** 2)

    return predict


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_both_calls_have_the_layout_of_the_state(layout):
    layouts = []
    x = noise(2, 4, 16, 16).contiguous(memory_format=layout)
    made = guided(a_model(layouts), (16, 16), (8, 8))(x, torch.full((2,), 5.0))
    assert layouts == [layout == torch.channels_last] * 2
    torch.testing.assert_close(
        made, guided(a_model(), (16, 16), (8, 8))(noise(2, 4, 16, 16), torch.full((2,), 5.0))
    )


def test_under_autocast_the_model_alone_is_rounded():
    """A model that answers as it does without it gets its guidance to the bit."""

    def exact(x, t):
        with torch.autocast("cpu", enabled=False):
            return a_model()(x, t)

    ug, x, t = guided(exact, (16, 16), (8, 8)), noise(2, 4, 16, 16), torch.full((2,), 5.0)
    plain = ug(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ug(x, t), plain)


def test_a_compiled_model_is_guided_as_the_model():
    """Without code for the machine, which wants a compiler: what PyTorch makes of the calls."""
    x, t = noise(2, 4, 16, 16), torch.full((2,), 5.0)
    compiled = torch.compile(a_model(), backend="eager")
    made = guided(compiled, (16, 16), (8, 8))(x, t)
    assert torch.equal(made, guided(a_model(), (16, 16), (8, 8))(x, t))
