"""k-diffusion's samplers under the engine's hooks. Its import takes seconds: only here."""

import itertools
import math

import pytest
import torch

from lib_hires.attentive_guidance import gamma_at, mix_into_state_
from lib_hires.noise import VarianceExploding, draw, generators
from lib_hires.resample import Reduction
from lib_hires.settings import AttentiveGuidance, UpsampleGuidance
from lib_hires.standalone.models.k_diffusion import import_k_diffusion
from lib_hires.standalone.models.latent import Conditioning
from lib_hires.standalone.pipeline.request import SAMPLERS, SCHEDULES
from lib_hires.standalone.pipeline.sampling import ClassifierFreeGuidance, sample, schedule_sigmas
from lib_hires.upsample_guidance import UpsampleGuided, shifted_schedule

EVERY = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
DETERMINISTIC = ("Euler", "Heun", "DPM2", "LMS", "DPM++ 2M")
STOCHASTIC = [
    name for name, sampler in SAMPLERS.items() if sampler.noise != "none" and name != "LCM"
]
"""But for LCM, which is right for models alone that predict an image rather than its mean."""
STEPS = 6
TABLE = torch.logspace(-3, math.log10(15), 1000)


@pytest.fixture(scope="module", autouse=True)
def k_sampling():
    return import_k_diffusion().sampling


@pytest.fixture
def sigmas(k_sampling):
    return k_sampling.get_sigmas_karras(STEPS, 0.03, 15)


def run(denoise, sigmas, sampler, seeds=(3, 4), shape=(3, 8, 8), **hooks):
    sources = generators(seeds)
    x = draw(sources, shape) * sigmas[0]
    return sample(denoise, x, sigmas, sampler, sources=sources, **hooks)


def guided(denoise, sigmas, large=(8, 8), small=(4, 4), **options):
    return UpsampleGuided(
        denoise,
        UpsampleGuidance(**{"enabled": True, "eta": 1, "cadence": 1, "edge": 0, **options}),
        family=VarianceExploding(TABLE),
        reduction=Reduction.between(large, small),
        times=sigmas.tolist(),
    )


# --- nothing wanted, nothing changed ------------------------------------------------------------


@EVERY
def test_theta_0_and_gamma_0_are_bit_identical(sampler, sigmas, toy_denoiser):
    pfsa = AttentiveGuidance(enabled=True, gamma=0)
    steps = len(sigmas) - 1

    def mix(state, done):
        mix_into_state_(state, gamma_at(done, steps, pfsa), pfsa, float(sigmas[done]))

    plain = run(toy_denoiser, sigmas, sampler)
    assert torch.equal(run(guided(toy_denoiser, sigmas, theta=0), sigmas, sampler), plain)
    assert torch.equal(run(toy_denoiser, sigmas, sampler, state_hook=mix), plain)


def test_theta_0_is_bit_identical_on_the_models_own_schedules(sd_alphas_cumprod):
    """A schedule's first sigma may lie a rounding above the table's last."""
    table = ((1 - sd_alphas_cumprod) / sd_alphas_cumprod).sqrt().float()

    class Model:
        sigmas = table
        sigma_min, sigma_max = table[0], table[-1]

        def get_sigmas(self, n):
            t = torch.linspace(999, 0, n)
            low = t.floor().long()
            logs = torch.lerp(table.log()[low], table.log()[t.ceil().long()], t - low)
            return torch.cat([logs.exp(), torch.zeros(1)])

    received = []

    def denoise(x, sigma):
        received.append(sigma)
        return x / (1 + sigma[:, None, None, None])

    for name in SCHEDULES:
        for steps in (1, 5, 20, 33):
            sigmas = schedule_sigmas(Model(), name, steps)
            assert len(sigmas) == steps + 1 and sigmas[-1] == 0
            ug = UpsampleGuided(
                denoise,
                UpsampleGuidance(theta=0),
                family=VarianceExploding(table),
                reduction=Reduction.between((8, 8), (4, 4)),
                times=sigmas.tolist(),
            )
            x = sigmas[0] * torch.ones(1, 1, 8, 8)
            now = sigmas[:1]
            assert torch.equal(ug(x, now), denoise(x, now)), (name, steps)


# --- the state hook ----------------------------------------------------------------------------


@EVERY
def test_the_state_hook_is_called_once_a_step_on_the_samplers_own_state(
    sampler, sigmas, toy_denoiser, k_sampling, monkeypatch
):
    real = getattr(k_sampling, sampler.function)
    states, hooked, received = [], [], []

    def watched(model, x, sigmas, callback=None, **extra):
        def see(step):
            states.append((step["i"], step["x"], float(step["sigma"])))

        return real(model, x, sigmas, callback=see, **extra)

    def hook(state, done):
        hooked.append((done, state))
        received.append(None)

    def denoise(x, sigma):
        if received and received[-1] is None:
            received[-1] = float(sigma[0])
        return toy_denoiser(x, sigma)

    monkeypatch.setattr(k_sampling, sampler.function, watched)
    run(denoise, sigmas, sampler, state_hook=hook)
    assert [done for done, _ in hooked] == [i for i, _, _ in states] == list(range(STEPS))
    assert received == [sigma for _, _, sigma in states] == sigmas[:-1].tolist()
    for (_, mine), (_, theirs, _) in zip(hooked, states, strict=True):
        assert mine is theirs, "the hook was given another tensor than the sampler steps from"


@EVERY
def test_a_change_of_the_state_is_taken_up(sampler, sigmas, toy_denoiser):
    """Changing the state before the last step is starting the last step from there."""

    def zero_it(state, done):
        if done == STEPS - 1:
            state.zero_()

    got = run(toy_denoiser, sigmas, sampler, state_hook=zero_it)
    again = run(toy_denoiser, sigmas, sampler, seeds=(3, 4), state_hook=zero_it)
    plain = run(toy_denoiser, sigmas, sampler)
    assert torch.equal(got, again) and not torch.allclose(got, plain)
    if sampler.function not in ("sample_lms",):  # whose last step remembers those before
        ones = torch.full((2,), float(sigmas[-2]))
        torch.testing.assert_close(got, toy_denoiser(torch.zeros(2, 3, 8, 8), ones))


@EVERY
def test_steps_are_reported_once_each(sampler, sigmas, toy_denoiser):
    reported = []
    run(toy_denoiser, sigmas, sampler, on_step=lambda i, x0: reported.append((i, x0.shape)))
    assert reported == [(i, (2, 3, 8, 8)) for i in range(STEPS)]


# --- batches and noise -------------------------------------------------------------------------


@EVERY
def test_image_k_of_a_batch_is_the_image_alone(sampler, sigmas, toy_denoiser):
    batch = run(toy_denoiser, sigmas, sampler, seeds=(3, 4, 5))
    for k, seed in enumerate((3, 4, 5)):
        alone = run(toy_denoiser, sigmas, sampler, seeds=(seed,))
        torch.testing.assert_close(batch[k : k + 1], alone, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(batch[0], batch[1], atol=0.01)


@EVERY
def test_the_global_stream_of_noise_has_no_say(sampler, sigmas, toy_denoiser):
    with torch.random.fork_rng():
        results = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            results.append(run(toy_denoiser, sigmas, sampler))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_give_the_right_deviation(name, sigmas):
    """For x0 ~ N(0, 1) each must end near deviation 1, which noise of the wrong size would not."""

    def ideal(x, sigma):
        return x / (1 + sigma[:, None, None, None] ** 2)

    many = torch.cat([torch.logspace(math.log10(15), -2, 80), torch.zeros(1)])
    got = run(ideal, many, SAMPLERS[name], seeds=(1, 2), shape=(3, 32, 32))
    assert got.std().item() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_the_prediction(name, toy_denoiser):
    """The least a refinement stage does."""
    sigmas = torch.tensor([2.0, 0.0])
    x = draw(generators((3, 4)), (3, 8, 8)) * 2
    got = run(toy_denoiser, sigmas, SAMPLERS[name])
    torch.testing.assert_close(got, toy_denoiser(x, torch.full((2,), 2.0)), atol=1e-5, rtol=1e-5)


# --- the exact property ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("large", "small"),
    [((16, 16), (8, 8)), ((24, 16), (6, 8)), ((14, 12), (9, 8)), ((13, 9), (5, 8))],
)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_reduced_trajectory_is_the_native_one(
    name, shifted, large, small, k_sampling, toy_denoiser
):
    """theta = 1, eta = 1: D of every state is the native sampler's on sigmas·gain, at any scale."""
    reduction = Reduction.between(large, small)
    gain = reduction.noise_gain
    sigmas = k_sampling.get_sigmas_karras(12, 0.03, 15)
    if shifted:
        sigmas = shifted_schedule(sigmas, gain)
        assert float(sigmas[0]) * gain == pytest.approx(15, rel=1e-5)
    x = draw(generators([7]), (3, *large)) * sigmas[0]
    paths = {"large": [], "small": []}

    def trajectory(which, denoise, x, sigmas):
        function = getattr(k_sampling, SAMPLERS[name].function)
        keep = paths[which]
        end = function(denoise, x, sigmas, disable=True, callback=lambda s: keep.append(s["x"]))
        keep.append(end)

    ug = guided(toy_denoiser, sigmas, large, small, shifted_start=shifted)
    trajectory("large", ug, x, sigmas)
    trajectory("small", toy_denoiser, reduction.reduce(x), sigmas * gain)
    assert len(paths["large"]) == len(paths["small"]) == 13
    for above, below in zip(paths["large"], paths["small"], strict=True):
        torch.testing.assert_close(reduction.reduce(above), below, atol=1e-4, rtol=1e-4)


# --- classifier-free guidance ------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 5.0])
@pytest.mark.parametrize("pooled", [False, True])
def test_classifier_free_guidance(scale, pooled):
    seen = []

    def denoise(x, sigma, context, pooled=None):
        seen.append((x.shape[0], None if pooled is None else pooled.shape[0]))
        total = context.mean((1, 2)) + (0 if pooled is None else pooled.mean(1))
        return x * total[:, None, None, None]

    contexts = torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 0.5)
    extra = (torch.full((2, 6), 0.25), torch.full((2, 6), 0.75)) if pooled else (None, None)
    guidance = ClassifierFreeGuidance(denoise, Conditioning(*contexts, *extra), scale)
    got = guidance(torch.ones(2, 3, 4, 4), torch.ones(2))
    cond, uncond = (2.25, 1.25) if pooled else (2.0, 0.5)
    torch.testing.assert_close(got, torch.full((2, 3, 4, 4), uncond + scale * (cond - uncond)))
    branches = 1 if scale == 1 else 2
    assert seen == [(2 * branches, 2 * branches if pooled else None)]


def test_lcm_keeps_nothing_of_a_step_but_the_prediction(sigmas, toy_denoiser):
    """Latent Consistency Models (arXiv:2310.04378), algorithm 3, for sigmas."""
    made = run(toy_denoiser, sigmas, SAMPLERS["LCM"], seeds=(3,))
    sources = generators((3,))
    x = draw(sources, (3, 8, 8)) * sigmas[0]
    for sigma, following in itertools.pairwise(sigmas):
        x = toy_denoiser(x, sigma[None]) + following * draw(sources, (3, 8, 8))
    torch.testing.assert_close(made, x)
