"""What holds of Upsample Guidance for any model, and its cadence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guided_toys import ABAR, STEPS, guided, noise, wide

from lib_hires.noise import VarianceExploding, VariancePreserving
from lib_hires.resample import Reduction
from lib_hires.upsample_guidance import Opening


@pytest.mark.parametrize("options", [{"theta": 0}, {"eta": 0.05}, {"eta": 0.05, "edge": 4}])
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
    assert calls == [(2, 3, 8, 8)], "no native evaluation is made"


@pytest.mark.parametrize("theta", [0.4, 1, 1.35])
@pytest.mark.parametrize(
    ("large", "small"), [((8, 8), (4, 4)), ((9, 12), (3, 4)), ((9, 11), (6, 5)), ((8, 6), (4, 6))]
)
def test_coarse_part_is_between_the_two_predictions(large, small, theta, toy_denoiser):
    x, sigma = 2 * noise(2, 3, *large), torch.tensor([2.0, 0.8])
    reduction = Reduction.between(large, small)
    x0_small = toy_denoiser(reduction.reduce(x), sigma * reduction.noise_gain)
    x0 = toy_denoiser(x, sigma)
    got = guided(toy_denoiser, large, small, theta=theta)(x, sigma)
    expected = (1 - theta) * reduction.reduce(x0) + theta * x0_small
    torch.testing.assert_close(reduction.reduce(got), expected, atol=1e-5, rtol=1e-5)
    # and what D cannot see is the large prediction's own
    fine = [image - reduction.upsample(reduction.reduce(image)) for image in (got, x0)]
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
    # less than one timestep away, where the net's input differs by 1/50
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
def test_below_the_table_the_model_receives_the_smallest_sigma(sigma, toy_denoiser):
    received = []

    def predict(x, sigma):
        received.append((x.shape[-1], sigma[0].item()))
        return toy_denoiser(x, sigma)

    family = VarianceExploding(torch.linspace(0.15, 15, 100))
    x = noise(1, 3, 8, 8)
    guided(predict, (8, 8), (4, 4), family=family)(x, torch.tensor([sigma]))
    assert received == [(8, pytest.approx(sigma)), (4, pytest.approx(0.15))]


def test_above_the_table_the_large_call_receives_the_largest_sigma(toy_denoiser):
    received = []

    def predict(x, sigma):
        received.append((x.shape[-1], sigma[0].item(), x.std().item()))
        return toy_denoiser(x, sigma)

    x = 30 * noise(1, 3, 64, 64)
    guided(predict, (64, 64), (32, 32), shifted_start=True)(x, torch.tensor([30.0]))
    # the noise in x is the noise level received, at both sizes
    assert received == [
        (64, *[pytest.approx(15, rel=0.03)] * 2),
        (32, *[pytest.approx(15, rel=0.03)] * 2),
    ]


def count_small_calls(toy_denoiser, times, evaluations, **options):
    """The steps (as indices of `times`) at which a native evaluation is made."""
    native, now = [], [0]

    def predict(x, sigma):
        if x.shape[-1] == 4:
            native.append(now[0])
        return toy_denoiser(x, sigma)

    ug = guided(predict, (8, 8), (4, 4), times=times, **options)
    for index in evaluations:
        now[0] = index
        ug(noise(2, 3, 8, 8, seed=index), torch.full((2,), times[index]))
    return native


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_cadence_evaluates_natively_every_nth_step(n, toy_denoiser):
    native = count_small_calls(toy_denoiser, STEPS, range(8), cadence=n)
    assert native == list(range(0, 8, n))


@pytest.mark.parametrize("n", [2, 3])
def test_cadence_counts_steps_not_evaluations(n, toy_denoiser):
    """Heun evaluates at the start of a step and again at its end."""
    heun = [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert count_small_calls(toy_denoiser, STEPS, heun, cadence=n) == list(range(0, 8, n))


def test_cadence_evaluates_natively_where_noise_rises_again(toy_denoiser):
    """As the sampler Restart lets it: the prediction of a later step is not held there."""
    restarted = [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]
    called = count_small_calls(toy_denoiser, STEPS, restarted, cadence=3)
    assert called == [0, 3, 2, 5]


def test_all_that_guide_a_pass_share_its_opening(toy_denoiser):
    """One that is needed in the middle alone does not take that for the pass's start."""
    x, times = noise(1, 3, 8, 8), [*torch.logspace(1, -3, 20).tolist(), 0.0]
    first, late = torch.tensor([30.0]), torch.tensor([times[-3]])

    def new(opening=None):
        automatic = {"eta": 0, "cadence": 0}
        return guided(toy_denoiser, (8, 8), (4, 4), times=times, opening=opening, **automatic)

    shared = Opening()
    new(shared)(x, first)
    assert torch.equal(new(shared)(x, late), toy_denoiser(x, late)), "guidance has ended"
    assert not torch.equal(new()(x, late), toy_denoiser(x, late)), "a pass that begins there"


def test_cadence_holds_the_prediction(toy_denoiser):
    """Not its difference from the large one's: that would be added to what it has moved already."""
    ug = guided(toy_denoiser, (8, 8), (4, 4), cadence=2)
    reduction = Reduction.between((8, 8), (4, 4))
    x, y = noise(1, 3, 8, 8), noise(1, 3, 8, 8, seed=1)
    first, second = torch.tensor([4.0]), torch.tensor([2.0])
    ug(x, first)
    prediction = toy_denoiser(reduction.reduce(x), first / 2)
    got, plain = ug(y, second), toy_denoiser(y, second)
    expected = plain + reduction.upsample(prediction - reduction.reduce(plain))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(reduction.reduce(got), prediction, atol=1e-6, rtol=1e-6)
